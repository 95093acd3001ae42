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

from sae_lens_hsae.config import ARCHITECTURE, HierarchicalTrainingSAEConfig
from sae_lens_hsae.sae.auxiliary_loss import auxiliary_loss, longest_silent
from sae_lens_hsae.sae.bad_batches import check_activations, check_losses, check_told
from sae_lens_hsae.sae.cpu_step.active_entries import MAX_DENSITY, ActiveEntries, Encoder
from sae_lens_hsae.sae.cpu_step.encoder_product import product_of_rows
from sae_lens_hsae.sae.cpu_step.places import places_of
from sae_lens_hsae.sae.dense_activations import DenseActivations
from sae_lens_hsae.sae.ghost_gradients import ghost_gradient_loss
from sae_lens_hsae.sae.gpu_step.feature_rows import FeatureRows
from sae_lens_hsae.sae.gpu_step.ghosts import ghost_gradients, places_for
from sae_lens_hsae.sae.gpu_step.late_checks import LateChecks
from sae_lens_hsae.sae.level_activation import PreActivations
from sae_lens_hsae.sae.model_files import check_tensor_file
from sae_lens_hsae.sae.perturbation import Replacement, draw_replaced, replacements
from sae_lens_hsae.sae.sparse_levels import SparseLevels
from sae_lens_hsae.sae.standardized_input import StandardizedInput
from sae_lens_hsae.sae.step_output import Activations, LazyStepOutput
from sae_lens_hsae.sae.structural_loss import decay_factor
from sae_lens_hsae.sae.training_metrics import level_metrics
from sae_lens_hsae.sae.updated_forest import UpdatedForest
from sae_lens_hsae.storage.exact_storage import SUFFIX, as_bytes
from sae_lens_hsae.storage.json_files import read_json_object
from sae_lens_hsae.storage.whole_files import files_written_whole

INFERENCE_TENSORS = ("W_enc", "b_enc", "threshold", "W_dec", "b_dec", "parents")
"""What of a training SAE's state the inference SAE has."""


class HierarchicalTrainingSAE(
    SparseLevels, StandardizedInput, UpdatedForest, TrainingSAE[HierarchicalTrainingSAEConfig]
):
    """Trains all levels and their forest together (HSAE §3); any SAELens trainer or runner drives it.

    Beyond the tensors of `LevelStack` it keeps what training needs and a checkpoint must hold: those of `SparseLevels`,
    `StandardizedInput` and `UpdatedForest`.
    """

    row_devices: tuple[str, ...] = ("cuda",)
    """Kinds of device on which a step takes the form of `FeatureRows`."""

    late_checks: LateChecks | None = None
    """Set by a trainer that leaves parameters as they are where these say so: checks then wait for no device."""

    _n_dead: tuple[int, ...] | None = None

    whole_batch_l0: Callable[[torch.Tensor], torch.Tensor] | None = None
    """Where processes share a batch: L0 of every level over all of it, of the L0 over this one's part, both (L,)."""

    whole_batch: Callable[[torch.Tensor], torch.Tensor] | None = None
    """Where processes share a batch: all of it, of this one's part, (batch, d_in)."""

    @override
    def initialize_weights(self) -> None:
        super().initialize_weights()
        self._normalize_decoder()

    def running_means(self) -> list[torch.Tensor]:
        """The buffers that follow the activations, linear in them: means over batches, of which means may be taken."""
        return [*self.moments(), *self.shares_of_tokens(), *self.running_thresholds()]

    def running_means_are_due(self) -> bool:
        """Whether the next training step begins by reading the running means."""
        step = self.steps_taken()
        return self.update_is_due(step) or self.statistics_are_due(step)

    @override
    def get_coefficients(self) -> dict[str, float | TrainCoefficientConfig]:
        """None for SAELens to schedule: λ is steered here, ρ is constant."""
        return {}

    @override
    def encode_with_hidden_pre(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Activations and pre-activations of all levels, in the units of x: (…, d_in) → two of (…, d_sae)."""
        hidden_pre = self.hook_sae_acts_pre(self.hidden_pre(self.process_sae_in(x)))
        acts = JumpReLU.apply(
            hidden_pre,
            self.threshold.to(hidden_pre.dtype),
            self.cfg.jumprelu_bandwidth,
            self.cfg.jumprelu_ste_to_input,
        )
        return self.hook_sae_acts_post(self.in_units_of_x(acts)), self.in_units_of_x(hidden_pre)

    @override
    def training_forward_pass(self, step_input: TrainStepInput) -> TrainStepOutput:
        """One step's losses (HSAE §3.1): Σ_l (‖x̂_l − x‖² + λ_l L0_l) + ρ Σ L_PC, and that of silent features.

        BatchTopK levels have no λ. In ``eval()`` the same losses without perturbation, and neither forest nor λ move.
        With standardized activations the losses are those of x̃ (`StandardizedInput`), whose typical norm is √d_in,
        and outlying tokens count less in them; the first steps only observe.

        Args:
            step_input: SAELens'; ``sae_in`` is (batch, d_in).

        Returns:
            SAELens' output. ``sae_out`` is the unperturbed reconstruction of ``cfg.output_level``, ``feature_acts``
            (batch, d_sae) are those of all levels.

        Raises:
            BadBatchError: if activations are NaN, infinite or all zero, or losses overflow; the next batch can follow.
            ValueError: if activations are not ``d_in`` wide, or parameters are NaN or infinite.
        """
        replaced = self._begin_step(step_input)
        if replaced is None:
            return self._observation(step_input)
        sparsity = self.sparsity()
        x = self.scaled(step_input.sae_in)
        weights = self.token_weights(x)
        sae_in = self.process_sae_in(step_input.sae_in)
        acts = self._activations(sae_in, weights)
        perturbed = acts.reconstruct(self.W_dec, self.b_dec, replaced)
        exact = torch.promote_types(perturbed.dtype, torch.float32)
        errors = x.to(exact) - perturbed.to(exact)
        l0 = acts.l0(weights)
        squared_errors = errors.square().sum(-1)
        if weights is not None:
            squared_errors = squared_errors * weights
        squared_errors = squared_errors.mean(-1)
        losses = {"mse_loss": squared_errors.sum()}
        if sparsity.log_coefficient is not None:
            losses["l0_loss"] = (sparsity.log_coefficient.exp() * l0).sum()
        if self.cfg.structural_loss_coefficient > 0:
            rho = self.cfg.structural_loss_coefficient * decay_factor(self.n_steps, self.cfg.structural_loss_decay)
            losses["structural_loss"] = rho * self._structural_loss(acts, weights)
        losses |= self._losses_of_silent(acts, errors, sae_in, weights, step_input.dead_neuron_mask)
        clean = self._clean(perturbed, acts, replaced, step_input.is_logging_step)
        metrics: dict[str, Any] = {}
        if step_input.is_logging_step:
            dead = step_input.dead_neuron_mask
            metrics = level_metrics(self.levels, x, clean, l0.detach(), sparsity, self.parents, dead)
            metrics["reparented_share"] = self.reparented_share
        if self.training:
            good = self._check_losses(losses, squared_errors, x, step_input.dead_neuron_mask)
            self._end_step(acts, l0, x, good)
        common: dict[str, Any] = {
            "sae_in": step_input.sae_in,
            "sae_out": self.hook_sae_recons(self.in_units_of_x(clean[self.cfg.output_level])),
            "loss": torch.stack(list(losses.values())).sum(),
            "losses": losses,
            "metrics": metrics,
        }
        if not isinstance(acts, DenseActivations):
            return LazyStepOutput(acts, self.in_units_of_x, **common)
        values, hidden_pre = self.in_units_of_x(acts.values), self.in_units_of_x(acts.hidden_pre)
        return TrainStepOutput(feature_acts=values, hidden_pre=hidden_pre, **common)

    @torch.compiler.disable()
    def _observation(self, step_input: TrainStepInput) -> TrainStepOutput:
        """A step that only takes its batch into the statistics: nothing fires, and every gradient is 0."""
        x = step_input.sae_in
        with torch.no_grad():
            l0 = torch.zeros(len(self.levels), device=x.device)
            if self.whole_batch_l0 is not None:
                self.whole_batch_l0(l0)
            self.observe(x if self.whole_batch is None else self.whole_batch(x), self.steps_taken())
            self.count_step()
            silent = x.new_zeros(len(x), self.cfg.d_sae)
            unexplained = x.float().square().sum(-1).mean()
        nothing = torch.stack([0.0 * parameter.float().sum() for parameter in self.parameters()]).sum()
        return TrainStepOutput(
            sae_in=x,
            sae_out=torch.zeros_like(x),
            feature_acts=silent,
            hidden_pre=silent,
            loss=nothing,
            losses={"mse_loss": len(self.levels) * unexplained},
            metrics={},
        )

    @override
    def log_histograms(self) -> dict[str, NDArray[Any]]:
        """What SAELens logs with its evaluations: thresholds and encoder biases.

        Not the decoder's norms, as for other architectures: they are all 1. In float64, because a histogram cannot be
        made of numbers that differ in the last bits alone, and one that fails ends the training.
        """
        return {
            f"weights/{name}": getattr(self, name).detach().double().cpu().numpy() for name in ("threshold", "b_enc")
        }

    @override
    def calculate_aux_loss(
        self,
        step_input: TrainStepInput,
        feature_acts: torch.Tensor,
        hidden_pre: torch.Tensor,
        sae_out: torch.Tensor,
    ) -> dict[str, torch.Tensor]:
        raise NotImplementedError("the losses of all levels are one; call training_forward_pass")

    @torch.no_grad()
    def finish_training(self) -> None:
        """Make decoder and forest those of the final parameters: unit rows, a last hierarchy update unless frozen."""
        self.project_parameters()
        freeze = self.cfg.freeze_hierarchy_after
        if freeze is None or self.steps_taken() <= freeze:
            self.update_hierarchy()

    @override
    def save_inference_model(self, path: str | Path) -> tuple[Path, Path]:
        """Finish training and save the `HierarchicalSAE`: the saved forest belongs to the saved weights.

        Its files appear whole or not at all.
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

    # What depends on the forest, the draw or the dead features changes shape from step to step. It stays out of
    # compiled graphs, which would be compiled again and again until torch gives up on them.

    @torch.no_grad()
    @torch.compiler.disable()
    def _begin_step(self, step_input: TrainStepInput) -> list[Replacement] | None:
        """All that comes before the gradients: checks, constraints on parameters, the forest, the draw.

        Returns:
            What is replaced at each level but the finest, if anything; None if the step only observes.
        """
        step = self.steps_taken()
        self.check_width(step_input.sae_in)
        self._n_dead = None
        if self.late_checks is not None and (told := self.late_checks.receive()) is not None:
            self._n_dead = told.n_dead
            check_told(told, self.named_parameters(), self.levels)
        if not self._checks_late(step):
            check_activations(step_input.sae_in, step)
        self.project_parameters()
        cfg = self.cfg
        if not self.training:
            return []
        if self.is_observing(step):
            return None
        if self.statistics_are_due(step):
            self.standardize()
        if self.update_is_due(step):
            self.update_hierarchy()
        if cfg.perturbation_rate == 0:
            return []
        parents = self.forest_view().on_cpu
        replaced = draw_replaced(parents, cfg.perturbation_rate, cfg.perturbation_seed, step)
        return [
            Replacement(*(tensor.to(self.parents.device, non_blocking=True) for tensor in change))
            for change in replacements(replaced, parents, self.levels)
        ]

    def _activations(self, sae_in: torch.Tensor, weights: torch.Tensor | None = None) -> Activations:
        """The activations in the form that is the cheaper one for this batch."""
        rule = self.activation_rule()
        if self._may_use_rows(sae_in):
            centre, bias = self.centre_and_bias()
            return FeatureRows(self.W_enc, bias, sae_in - centre, rule, self.levels, weights)
        if self._may_use_entries(sae_in):
            centre, bias = (tensor.detach() for tensor in self.centre_and_bias())
            pre = PreActivations(product_of_rows(self.W_enc.T, sae_in - centre), bias)
            found = rule.found(pre)
            places = places_of(found)
            if len(places) <= MAX_DENSITY * found.numel():
                encoder = Encoder(self.W_enc, self.b_enc, self.b_dec if self.cfg.apply_b_dec_to_input else None)
                return ActiveEntries(found, places, sae_in, pre, encoder, rule, self.levels)
        hidden_pre = self.hook_sae_acts_pre(self.hidden_pre(sae_in))
        values, fired = rule.of_all(hidden_pre)
        return DenseActivations(self.hook_sae_acts_post(values), hidden_pre, fired, self.levels)

    def _may_use_rows(self, sae_in: torch.Tensor) -> bool:
        return sae_in.device.type in self.row_devices and self._needs_no_activations_in_full(sae_in)

    def _may_use_entries(self, sae_in: torch.Tensor) -> bool:
        return (
            sae_in.device.type == "cpu"
            and self.dtype in (torch.float32, torch.float64)
            and not torch.is_autocast_enabled("cpu")
            and self._needs_no_activations_in_full(sae_in)
        )

    def _needs_no_activations_in_full(self, sae_in: torch.Tensor) -> bool:
        hooked = any(point.has_hooks() for point in (self.hook_sae_acts_pre, self.hook_sae_acts_post))
        return not torch.compiler.is_compiling() and not sae_in.requires_grad and not hooked

    @torch.compiler.disable()
    def _clean(
        self,
        perturbed: torch.Tensor,
        acts: Activations,
        replaced: list[Replacement],
        all_levels: bool,
    ) -> torch.Tensor:
        """Reconstructions without replacements, (L, batch, d_in); made again only where they differ and are read."""
        output_level = self.cfg.output_level % len(self.levels)
        differ = [level for level, change in enumerate(replaced) if len(change.features)]
        if (all_levels and differ) or output_level in differ:
            with torch.no_grad():
                return acts.reconstruct(self.W_dec, self.b_dec)
        return perturbed

    @torch.compiler.disable()
    def _structural_loss(self, acts: Activations, weights: torch.Tensor | None) -> torch.Tensor:
        return acts.structural_loss(self.W_dec, self.forest_view().families, weights)

    @torch.compiler.disable()
    def _losses_of_silent(
        self,
        acts: Activations,
        errors: torch.Tensor,
        sae_in: torch.Tensor,
        weights: torch.Tensor | None,
        dead: torch.Tensor | None,
    ) -> dict[str, torch.Tensor]:
        if self.cfg.dead_feature_loss == "auxiliary":
            return {"auxiliary_loss": self._auxiliary_loss(acts, errors, sae_in, weights)}
        if self.cfg.dead_feature_loss == "ghost" and dead is not None:
            return {"ghost_gradient_loss": self._ghost_gradients(acts, errors, sae_in, dead)}
        return {}

    def _auxiliary_loss(
        self, acts: Activations, errors: torch.Tensor, sae_in: torch.Tensor, weights: torch.Tensor | None
    ) -> torch.Tensor:
        total = torch.zeros((), dtype=errors.dtype, device=errors.device)
        is_silent = self.silent()
        for level, own in enumerate(self.levels):
            mine = own.start + longest_silent(self.tokens_since_fired[own])
            silent = is_silent[mine]
            if not isinstance(acts, FeatureRows):  # which waits for no device, and takes a fixed number of features
                mine, silent = mine[silent], silent[silent]
            if len(mine):
                pre = self._pre_activations_of(mine, level, sae_in)
                total = total + auxiliary_loss(errors[level], pre, self.W_dec[mine], weights, silent)
        return total

    def _pre_activations_of(self, features: torch.Tensor, level: int, sae_in: torch.Tensor) -> torch.Tensor:
        """Of some features of one level, (batch, n)."""
        shifted = sae_in - self.b_dec[level] if self.cfg.apply_b_dec_to_input else sae_in
        return shifted @ self.W_enc[:, features] + self.b_enc[features]

    def _ghost_gradients(
        self, acts: Activations, errors: torch.Tensor, sae_in: torch.Tensor, dead: torch.Tensor
    ) -> torch.Tensor:
        if isinstance(acts, FeatureRows):
            encoder = (self.W_enc, self.b_enc, self.b_dec if self.cfg.apply_b_dec_to_input else None)
            n_dead = self._n_dead or [int(own.sum()) for own in self.levels.split(dead)]
            places = places_for(n_dead, self.levels)
            return ghost_gradients(errors, sae_in, dead, places, encoder, self.W_dec, self.levels)
        total = torch.zeros((), dtype=errors.dtype, device=dead.device)
        ghosts = torch.nonzero(dead).squeeze(1)
        for level, own in enumerate(self.levels):
            mine = ghosts[(ghosts >= own.start) & (ghosts < own.stop)]
            if len(mine):
                pre = self._pre_activations_of(mine, level, sae_in)
                total = total + ghost_gradient_loss(errors[level], pre, self.W_dec[mine])
        return total

    @torch.no_grad()
    @torch.compiler.disable()
    def _end_step(self, acts: Activations, l0: torch.Tensor, x: torch.Tensor, good: torch.Tensor | None) -> None:
        """Count the step, steer λ for the next one, and count what fires, alone and together."""
        step = self.steps_taken()
        self.count_coactivation(acts, len(x), step)
        l0 = l0.detach().float()
        if self.whole_batch_l0 is not None:
            l0 = self.whole_batch_l0(l0)
        self.count_step()
        self.follow_sparsity(acts, l0, len(x), step, good)

    @torch.no_grad()
    @torch.compiler.disable()
    def _check_losses(
        self,
        losses: dict[str, torch.Tensor],
        squared_errors: torch.Tensor,
        x: torch.Tensor,
        dead: torch.Tensor | None,
    ) -> torch.Tensor | None:
        """Raise an error if the batch is bad; or have it raised a step later, and return 1, or 0 if it is, ()."""
        step = self.steps_taken()
        if self.late_checks is None or not self._checks_late(step):
            check_losses(losses, squared_errors, x, self.named_parameters(), self.levels, step)
            return None
        n_dead = torch.zeros(len(self.levels), device=x.device)
        if dead is not None:
            n_dead = torch.stack([own.sum() for own in self.levels.split(dead)])
        self.late_checks.send(step, x, torch.stack(list(losses.values())).sum(), n_dead)
        return self.late_checks.good

    def _checks_late(self, step: int) -> bool:
        # The moments behind the whitening must not take in a bad batch; and processes agree on each step anyway.
        return self.late_checks is not None and not self.is_observing(step) and self.whole_batch_l0 is None

    @torch.no_grad()
    def project_parameters(self) -> None:
        """Bring the parameters back to where they must be: decoder rows to unit norm, thresholds to 0 or more.

        On ``.data``, so that the optimizer's parameters stay the same objects. A negative θ would let negative
        pre-activations through.
        """
        self.threshold.data.clamp_(min=0)
        self._normalize_decoder()

    def _normalize_decoder(self) -> None:
        self.W_dec.data.div_(self.get_W_dec_norm().unsqueeze(1))


def check_architecture(cfg_path: Path) -> None:
    """Raise a ValueError if a saved config is of another architecture."""
    saved = read_json_object(cfg_path).get("architecture")
    if saved != ARCHITECTURE:
        raise ValueError(
            f"{cfg_path} has architecture={saved!r}, but this SAE is {ARCHITECTURE!r}; "
            f"resume from a checkpoint of this run, or train with the configuration of that one"
        )
