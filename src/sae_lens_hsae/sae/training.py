"""The training SAE of the architecture ``hsae``: puts the mechanisms together and holds no formulas of its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from sae_lens.constants import SAE_CFG_FILENAME, SAE_WEIGHTS_FILENAME
from sae_lens.saes.jumprelu_sae import JumpReLU
from sae_lens.saes.sae import TrainCoefficientConfig, TrainingSAE, TrainStepInput, TrainStepOutput
from typing_extensions import override

from sae_lens_hsae.config import HierarchicalTrainingSAEConfig
from sae_lens_hsae.sae.forest_updater import ForestUpdater
from sae_lens_hsae.sae.forms import activations_of, encoder_of
from sae_lens_hsae.sae.gpu_step.feature_rows import FeatureRows
from sae_lens_hsae.sae.inference import LevelStack
from sae_lens_hsae.sae.model_files import check_architecture, check_tensor_file
from sae_lens_hsae.sae.perturbation import Replacement, draw_replaced, replacements
from sae_lens_hsae.sae.silent_features import SilentFeatures
from sae_lens_hsae.sae.sparsity_control import SparsityControl
from sae_lens_hsae.sae.standardized_input import StandardizedInput
from sae_lens_hsae.sae.step_checks import StepChecks
from sae_lens_hsae.sae.step_output import Activations, level_metrics, observing_output, output_of
from sae_lens_hsae.sae.thresholds import LearnedThresholds, RunningThresholds, thresholds_of
from sae_lens_hsae.storage.exact_storage import SUFFIX, as_bytes
from sae_lens_hsae.storage.whole_files import files_written_whole

INFERENCE_TENSORS = ("W_enc", "b_enc", "W_dec", "b_dec", "parents")
"""What the inference SAE has of a training SAE's own state; the thresholds are a part's."""


class HierarchicalTrainingSAE(LevelStack, TrainingSAE[HierarchicalTrainingSAEConfig]):
    """Trains all levels and their forest together (HSAE §3); any SAELens trainer or runner drives it.

    It has the tensors of `LevelStack`. What else training needs and a checkpoint must hold its parts keep.
    During training ``hook_sae_acts_pre`` and ``hook_sae_acts_post`` are in the units of x̃ (`StandardizedInput`);
    ``encode`` gives the latter in those of x. In the inference SAE both are in those of x.

    Attributes:
        standardization: from activations as they are to those that parameters and losses read.
        activation: the thresholds, and what makes features fire.
        sparsity: λ and L0 of every level.
        silent_features: features that do not fire, and their loss.
        forest_updater: counts steps and what fires together, and updates the forest.
        checks: of every step's numbers.
    """

    standardization: StandardizedInput
    activation: LearnedThresholds | RunningThresholds
    sparsity: SparsityControl
    silent_features: SilentFeatures
    forest_updater: ForestUpdater
    checks: StepChecks

    row_devices: tuple[str, ...] = ("cuda",)
    """Kinds of device on which a step takes the form of `FeatureRows`."""

    keeps_forest: bool = False
    """Whether the forest is final, so that the end of training does not update it."""

    whole_batch_l0: Callable[[torch.Tensor], torch.Tensor] | None = None
    """Where processes share a batch: L0 of every level over all of it, of the L0 over this one's part, both (L,)."""

    whole_batch: Callable[[torch.Tensor], torch.Tensor] | None = None
    """Where processes share a batch: all of it, of this one's part, (batch, d_in)."""

    @override
    def initialize_weights(self) -> None:
        super().initialize_weights()
        self.standardization = StandardizedInput(self.cfg, self.device)
        self.activation = thresholds_of(self.cfg, self.device)
        self.sparsity = SparsityControl(self.cfg, self.device)
        self.silent_features = SilentFeatures(self.cfg, self.device)
        self.forest_updater = ForestUpdater(self.cfg, self.device)
        self.checks = StepChecks()
        self.project_parameters()

    @property
    def threshold(self) -> torch.Tensor:  # pyright: ignore[reportIncompatibleVariableOverride]
        """θ (d_sae,), in the units of what the encoder's biases are."""
        return self.activation.threshold

    @override
    def training_forward_pass(self, step_input: TrainStepInput) -> TrainStepOutput:
        """One step's losses (HSAE §3.1): Σ_l (‖x̂_l − x‖² + λ_l L0_l) + ρ Σ L_PC, and that of silent features.

        BatchTopK levels have no λ, and only one in ``cfg.structural_loss_every`` training steps has L_PC. In ``eval()``
        the same losses without perturbation, and neither forest nor λ move.
        With standardized activations the losses are those of x̃ (`StandardizedInput`), whose typical norm is √d_in,
        and outlying tokens count less in them; the first steps only observe.

        Args:
            step_input: SAELens'; ``sae_in`` is (batch, d_in).

        Returns:
            SAELens' output. ``sae_out`` is the unperturbed reconstruction of ``cfg.output_level``, ``feature_acts``
            (batch, d_sae) are those of all levels.

        Raises:
            BadBatchError: if there are no activations, they are NaN, infinite or all zero, or losses overflow; training
                can go on with the next batch.
            ValueError: if activations are not ``d_in`` wide, or parameters are NaN or infinite.
        """
        # What depends on the forest, the draw or the silent features changes shape from step to step. It stays out of
        # compiled graphs, which would be compiled again and again until torch gives up on them.
        replaced = self._begin_step(step_input)
        if replaced is None:
            return self._observe(step_input)
        sparsity = self.sparsity.state()
        x = self.standardization.scaled(step_input.sae_in)
        weights = self.standardization.token_weights(x)
        sae_in = self.process_sae_in(step_input.sae_in)
        acts = self._activations(sae_in, weights)

        perturbed = acts.reconstruct(self.W_dec, self.b_dec, replaced)
        exact = torch.promote_types(perturbed.dtype, torch.float32)
        errors = x.to(exact) - perturbed.to(exact)
        squared_errors = errors.square().sum(-1)
        if weights is not None:
            squared_errors = squared_errors * weights
        squared_errors = squared_errors.mean(-1)
        losses = {"mse_loss": squared_errors.sum()}

        l0 = acts.l0(weights)
        if sparsity.log_coefficient is not None:
            losses["l0_loss"] = (sparsity.log_coefficient.exp() * l0).sum()
        losses |= self._structural_losses(acts, weights, step_input.is_logging_step)
        losses |= self.silent_features.losses(
            errors, sae_in, encoder_of(self), self.W_dec, weights, step_input.dead_neuron_mask,
            fixed_shapes=isinstance(acts, FeatureRows), n_dead=self.checks.n_dead,
        )  # fmt: skip

        clean = self._clean(perturbed, acts, replaced, step_input.is_logging_step)
        metrics: dict[str, Any] = {}
        if step_input.is_logging_step:
            dead = step_input.dead_neuron_mask
            metrics = level_metrics(self.levels, x, clean, l0.detach(), sparsity, self.parents, dead)
            metrics["reparented_share"] = self.forest_updater.reparented_share
        if self.training:
            self._end_step(step_input, acts, l0, losses, squared_errors, x, weights)
        sae_out = self.hook_sae_recons(self.standardization.in_units_of_x(clean[self.cfg.output_level]))
        return output_of(acts, self.standardization.in_units_of_x, step_input.sae_in, sae_out, losses, metrics)

    @torch.no_grad()
    @torch.compiler.disable()
    def _begin_step(self, step_input: TrainStepInput) -> list[Replacement] | None:
        """All before the gradients; what is replaced at each level but the finest, None if the step only observes."""
        step = self.forest_updater.steps_taken()
        self.check_width(step_input.sae_in)
        self.checks.before(step_input.sae_in, step, self, self.levels, in_time=self._must_check_in_time(step))
        self.project_parameters()
        if not self.training:
            return []
        if self.standardization.is_observing(step):
            return None
        if self.standardization.is_due(step):
            self.standardization.begin(self.b_dec.data)
        if self.forest_updater.is_due(step):
            self.update_hierarchy()
        if self.cfg.perturbation_rate == 0:
            return []
        parents = self.forest_updater.view(self.parents).on_cpu
        replaced = draw_replaced(parents, self.cfg.perturbation_rate, self.cfg.perturbation_seed, step)
        changes, device = replacements(replaced, parents, self.levels), self.parents.device
        return [Replacement(*(each.to(device, non_blocking=True) for each in change)) for change in changes]

    @torch.compiler.disable()
    def _observe(self, step_input: TrainStepInput) -> TrainStepOutput:
        """A step that only takes its batch into the moments: nothing fires, and only b_dec has a gradient, of 0.

        SAELens' gradient scaler needs one, and several processes need those of all parameters.
        """
        x = step_input.sae_in
        with torch.no_grad():
            if self.whole_batch_l0 is not None:
                self.whole_batch_l0(torch.zeros(len(self.levels), device=x.device))
            whole = x if self.whole_batch is None else self.whole_batch(x)
            self.standardization.observe(whole, self.forest_updater.steps_taken())
            self.forest_updater.count_step()
        of_0 = [self.b_dec] if self.whole_batch_l0 is None else self.parameters()
        return observing_output(x, self.cfg.d_sae, len(self.levels), of_0)

    def _activations(self, sae_in: torch.Tensor, weights: torch.Tensor | None = None) -> Activations:
        return activations_of(self, sae_in, self.activation.rule(weights), weights, self.row_devices)

    @torch.compiler.disable()
    def _structural_losses(
        self, acts: Activations, weights: torch.Tensor | None, is_logging_step: bool
    ) -> dict[str, torch.Tensor]:
        """ρ Σ L_PC, on steps that have it or are logged; its gradient makes up for the steps without it."""
        every = self.cfg.structural_loss_every if self.training else 1
        is_due = self.forest_updater.steps_taken() % every == 0
        if self.cfg.structural_loss_coefficient == 0 or not (is_due or is_logging_step):
            return {}
        with torch.set_grad_enabled(is_due and torch.is_grad_enabled()):
            loss = self.cfg.structural_loss_coefficient * self._structural_loss(acts, weights)
        return {"structural_loss": loss.detach() + every * (loss - loss.detach()) if every > 1 else loss}

    def _structural_loss(self, acts: Activations, weights: torch.Tensor | None) -> torch.Tensor:
        return acts.structural_loss(self.W_dec, self.forest_updater.view(self.parents).families, weights)

    @torch.compiler.disable()
    def _clean(
        self, perturbed: torch.Tensor, acts: Activations, replaced: list[Replacement], all_levels: bool
    ) -> torch.Tensor:
        """Reconstructions without replacements, (L, batch, d_in); made again only where they differ and are read."""
        output_level = self.cfg.output_level % len(self.levels)
        differ = [level for level, change in enumerate(replaced) if len(change.features)]
        if (all_levels and differ) or output_level in differ:
            with torch.no_grad():
                return acts.reconstruct(self.W_dec, self.b_dec)
        return perturbed

    @torch.no_grad()
    @torch.compiler.disable()
    def _end_step(
        self,
        step_input: TrainStepInput,
        acts: Activations,
        l0: torch.Tensor,
        losses: dict[str, torch.Tensor],
        squared_errors: torch.Tensor,
        x: torch.Tensor,
        weights: torch.Tensor | None,
    ) -> None:
        """Check the losses, count the step and what fires, alone and together, and steer λ for the next one.

        Many features fire on an outlying token that have nothing to do with each other, so none is counted there.
        """
        step, dead, batch = self.forest_updater.steps_taken(), step_input.dead_neuron_mask, len(x)
        in_time = self._must_check_in_time(step)
        good = self.checks.after(losses, squared_errors, x, dead, step, self, self.levels, in_time=in_time)
        l0 = l0.detach().float()
        if self.whole_batch_l0 is not None:
            # Of a part that is bad elsewhere a process learns here; until then it has counted nothing.
            l0 = self.whole_batch_l0(l0)
        counted = None if weights is None else weights >= 1
        self.forest_updater.count(acts, step, good, counted)
        self.forest_updater.count_step()
        self.silent_features.count(acts, batch, good, counted)
        self.activation.follow(acts, step - self.standardization.n_observed, good)
        self.sparsity.follow(l0, good)

    def _must_check_in_time(self, step: int) -> bool:
        # The moments of the first steps must not take in a bad batch; and processes agree on each step anyway.
        return self.standardization.is_observing(step) or self.whole_batch_l0 is not None

    def update_hierarchy(self) -> None:
        """Recompute the forest from the parameters as they are (HSAE §3.3)."""
        self.forest_updater.update(self.parents, self.W_enc, self.W_dec)

    @torch.no_grad()
    def project_parameters(self) -> None:
        """Bring the parameters back to where they must be: decoder rows to unit norm, thresholds to 0 or more.

        On ``.data``, so that the optimizer's parameters stay the same objects. A negative θ would let negative
        pre-activations through.
        """
        self.threshold.data.clamp_(min=0)
        self.W_dec.data.div_(self.get_W_dec_norm().unsqueeze(1))

    @torch.no_grad()
    def finish_training(self) -> None:
        """Make decoder and forest those of the final parameters: unit rows, a last hierarchy update unless frozen."""
        self.project_parameters()
        freeze = self.cfg.freeze_hierarchy_after
        if not self.keeps_forest and (freeze is None or self.forest_updater.steps_taken() <= freeze):
            self.update_hierarchy()

    def running_means(self) -> list[torch.Tensor]:
        """The buffers that follow the activations, linear in them: means over batches, of which means may be taken."""
        return [*self.standardization.running_means(), *self.activation.running_means()]

    def running_means_are_due(self) -> bool:
        """Whether the next training step begins by reading the running means."""
        step = self.forest_updater.steps_taken()
        return self.forest_updater.is_due(step) or self.standardization.is_due(step)

    @override
    def get_coefficients(self) -> dict[str, float | TrainCoefficientConfig]:
        """None for SAELens to schedule: λ is steered here, ρ is constant."""
        return {}

    @override
    def calculate_aux_loss(
        self, step_input: TrainStepInput, feature_acts: torch.Tensor, hidden_pre: torch.Tensor, sae_out: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        raise NotImplementedError("the losses of all levels are one; call training_forward_pass")

    @override
    def log_histograms(self) -> dict[str, NDArray[Any]]:
        """What SAELens logs with its evaluations: thresholds and encoder biases, in the units of x.

        Not the decoder's norms, as for other architectures: they are all 1. In float64, because a histogram cannot be
        made of numbers that differ in the last bits alone, and one that fails ends the training.
        """
        logged = {"threshold": self.thresholds(), "b_enc": self.encoder()[1]}
        return {f"weights/{name}": values.detach().cpu().double().numpy() for name, values in logged.items()}

    @override
    def encode_with_hidden_pre(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Activations and pre-activations of all levels, in the units of x: (…, d_in) → two of (…, d_sae)."""
        hidden_pre = self.hook_sae_acts_pre(self.hidden_pre(self.process_sae_in(x)))
        acts = JumpReLU.apply(
            hidden_pre, self.threshold.to(hidden_pre.dtype), self.cfg.jumprelu_bandwidth, self.cfg.jumprelu_ste_to_input
        )
        in_units_of_x = self.standardization.in_units_of_x
        return self.hook_sae_acts_post(in_units_of_x(acts)), in_units_of_x(hidden_pre)

    @override
    def process_sae_in(self, sae_in: torch.Tensor) -> torch.Tensor:
        """What the encoder reads of activations as they are."""
        return self.standardization.scaled(super().process_sae_in(sae_in))

    @override
    def encoder(self, features: slice = slice(None)) -> tuple[torch.Tensor, torch.Tensor]:
        weights, bias = super().encoder(features)
        return weights, self.standardization.in_units_of_x(bias)

    @override
    def thresholds(self, features: slice = slice(None)) -> torch.Tensor:
        return self.standardization.in_units_of_x(super().thresholds(features))

    @override
    def decoder_biases(self) -> torch.Tensor:
        return self.standardization.in_units_of_x(super().decoder_biases())

    @override
    @torch.no_grad()
    def fold_activation_norm_scaling_factor(self, scaling_factor: float) -> None:
        if not self.standardization.is_on:
            super().fold_activation_norm_scaling_factor(scaling_factor)
            return
        self.check_scaling_factor(scaling_factor)
        self.standardization.input_scale.mul_(scaling_factor)
        self.cfg.normalize_activations = "none"

    @override
    def save_inference_model(self, path: str | Path) -> tuple[Path, Path]:
        """Finish training and save the `HierarchicalSAE`: the saved forest belongs to the saved weights.

        Its files appear whole or not at all. A training that goes on afterwards has had an update off its schedule; to
        leave it as it was, save a copy: ``copy.deepcopy(sae).save_inference_model(path)``.
        """
        self.finish_training()
        with files_written_whole(Path(path), SAE_CFG_FILENAME) as aside:
            weights, cfg = super().save_inference_model(aside)
        return Path(path) / weights.name, Path(path) / cfg.name

    @override
    def process_state_dict_for_saving_inference(self, state_dict: dict[str, Any]) -> None:
        state_dict["W_enc"], state_dict["b_enc"] = (tensor.contiguous() for tensor in self.encoder())
        for name in set(state_dict) - set(INFERENCE_TENSORS):
            del state_dict[name]
        state_dict["threshold"] = self.thresholds().detach().to(self.dtype)
        state_dict["b_dec"] = self.decoder_biases().detach()
        state_dict["parents" + SUFFIX] = as_bytes(state_dict.pop("parents"))

    @override
    def process_state_dict_for_loading(self, state_dict: dict[str, Any]) -> None:
        super().process_state_dict_for_loading(state_dict)
        if unknown := sorted(set(state_dict) - set(self.state_dict())):
            raise ValueError(
                f"the weights hold {', '.join(map(repr, unknown))}, which this configuration has no use for; "
                f"resume with the configuration of the checkpoint"
            )

    @override
    def load_weights_from_checkpoint(self, checkpoint_path: Path | str) -> None:
        """Resume from a checkpoint.

        Raises:
            ValueError: if it is one of another architecture or shape.
        """
        check_architecture(Path(checkpoint_path) / SAE_CFG_FILENAME)
        check_tensor_file(Path(checkpoint_path) / SAE_WEIGHTS_FILENAME)
        super().load_weights_from_checkpoint(checkpoint_path)
