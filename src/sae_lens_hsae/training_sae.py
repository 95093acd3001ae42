"""The training SAE of the architecture ``hsae``: puts the mechanisms together and holds no formulas of its own."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
from numpy.typing import NDArray
from sae_lens.constants import SAE_CFG_FILENAME, SAE_WEIGHTS_FILENAME
from sae_lens.saes.jumprelu_sae import JumpReLU
from sae_lens.saes.sae import TrainCoefficientConfig, TrainingSAE, TrainStepInput, TrainStepOutput
from torch import nn
from typing_extensions import override

from sae_lens_hsae.active_entries import MAX_DENSITY, ActiveEntries, Encoder, PreActivations
from sae_lens_hsae.config import ARCHITECTURE, MEASURED_ON_ACTIVATIONS, HierarchicalTrainingSAEConfig
from sae_lens_hsae.dense_activations import DenseActivations
from sae_lens_hsae.encoder_product import product_of_rows
from sae_lens_hsae.encoder_whitening import (
    REFINED_AT,
    Whitening,
    change_coordinates,
    first_encoder,
    follow_moments,
    unwhitened,
    whitening_of,
)
from sae_lens_hsae.ghost_gradients import ghost_gradient_loss
from sae_lens_hsae.hierarchical_sae import LevelStack
from sae_lens_hsae.hierarchy_update import (
    COACTIVATION_EVERY,
    COACTIVATION_MOMENTUM,
    SimilarityBlock,
    coactivation_similarity,
    conditional_similarity,
    cosine_similarity,
    follow_coactivation,
    follow_frequency,
    is_update_due,
    parent_table,
)
from sae_lens_hsae.perturbation import Replacement, draw_replaced, replacements
from sae_lens_hsae.places import places_of
from sae_lens_hsae.sparsity_control import SparsityState, control_sparsity, initial_state
from sae_lens_hsae.step_output import EntriesStepOutput
from sae_lens_hsae.storage.exact_storage import SUFFIX, as_bytes
from sae_lens_hsae.storage.json_files import read_json_object
from sae_lens_hsae.storage.model_files import check_tensor_file
from sae_lens_hsae.structural_loss import Families, decay_factor, families_of
from sae_lens_hsae.training.bad_batches import check_activations, check_losses
from sae_lens_hsae.training_metrics import level_metrics

INFERENCE_TENSORS = ("W_enc", "b_enc", "threshold", "W_dec", "b_dec", "parents")
"""What of a training SAE's state the inference SAE has."""


class _ForestView(NamedTuple):
    """What training steps need of a parent table, worked out once per table."""

    table: torch.Tensor
    version: int
    on_cpu: torch.Tensor
    families: Families


class HierarchicalTrainingSAE(LevelStack, TrainingSAE[HierarchicalTrainingSAEConfig]):
    """Trains all levels and their forest together (HSAE §3); any SAELens trainer or runner drives it.

    Beyond the tensors of :class:`LevelStack` it keeps what training needs and a checkpoint must hold:
    ``log_l0_coefficient`` and ``l0_ema`` (L,) of the sparsity control, ``n_steps`` () taken so far,
    ``reparented_share`` () of the last hierarchy update, and with co-activation similarity one
    ``coactivation_l`` (n_l, n_{l+1}) per level boundary, with the conditional one ``firing_frequency`` (d_sae,) too.
    With a whitened encoder ``W_enc`` and ``b_enc`` are in whitened coordinates, z = (x − ``whitening_mean``) @
    ``whitening_matrix``, which come from the running means ``moment_1`` (d_in,) and ``moment_2`` (d_in, d_in).
    """

    log_l0_coefficient: torch.Tensor
    l0_ema: torch.Tensor
    n_steps: torch.Tensor
    reparented_share: torch.Tensor
    firing_frequency: torch.Tensor
    whitening_mean: torch.Tensor
    whitening_matrix: torch.Tensor
    moment_1: torch.Tensor
    moment_2: torch.Tensor
    whole_batch_l0: Callable[[torch.Tensor], torch.Tensor] | None = None
    """Where processes share a batch: L0 of every level over all of it, of the L0 over this one's part, both (L,)."""
    _forest_view: _ForestView | None = None

    @override
    def initialize_weights(self) -> None:
        super().initialize_weights()
        self._normalize_decoder()
        kind: dict[str, Any] = {"dtype": torch.float32, "device": self.device}
        # θ and the controller move by steps that a half-precision number of their size would round away.
        self.threshold = nn.Parameter(torch.full((self.cfg.d_sae,), self.cfg.jumprelu_init_threshold, **kind))
        n_levels = len(self.levels)
        sparsity = initial_state(n_levels, self.cfg.jumprelu_init_threshold, self.device)
        self.register_buffer("log_l0_coefficient", sparsity.log_coefficient)
        self.register_buffer("l0_ema", sparsity.l0_ema)
        # SAELens' own count is off by one in a resumed run: its trainer saves a checkpoint before it counts the step.
        self.register_buffer("n_steps", torch.zeros((), dtype=torch.int64, device=self.device))
        self.register_buffer("reparented_share", torch.zeros((), **kind))
        if self.cfg.whiten_encoder:
            d_in = self.cfg.d_in
            self.register_buffer("whitening_mean", torch.zeros(d_in, **kind))
            self.register_buffer("whitening_matrix", torch.eye(d_in, **kind))
            # A covariance is a small difference of large moments.
            exact: dict[str, Any] = kind | {"dtype": torch.float32 if self.device.type == "mps" else torch.float64}
            self.register_buffer("moment_1", torch.zeros(d_in, **exact))
            self.register_buffer("moment_2", torch.zeros(d_in, d_in, **exact))
        if self.cfg.hierarchy_similarity == "conditional":
            self.register_buffer("firing_frequency", torch.zeros(self.cfg.d_sae, **kind))
        if self.cfg.hierarchy_similarity in MEASURED_ON_ACTIVATIONS:
            for boundary, (n_parents, n_children) in enumerate(pairwise(self.levels.widths)):
                self.register_buffer(f"coactivation_{boundary}", torch.zeros(n_parents, n_children, **kind))

    @property
    @override
    def exact_tensors(self) -> tuple[str, ...]:
        followed = self._names_of_running_means()
        whitening = ("whitening_mean", "whitening_matrix") if self.cfg.whiten_encoder else ()
        steered = ("threshold", "log_l0_coefficient", "l0_ema", "n_steps", "reparented_share")
        return ("parents", *steered, *whitening, *followed)

    def _names_of_running_means(self) -> tuple[str, ...]:
        measured = ("coactivation_", "firing_frequency", "moment_")
        return tuple(name for name, _ in self.named_buffers() if name.startswith(measured))

    def running_means(self) -> list[torch.Tensor]:
        """The buffers that follow the activations, linear in them: means over batches, of which means may be taken."""
        return [self.get_buffer(name) for name in self._names_of_running_means()]

    def update_is_due(self) -> bool:
        """Whether the next training step begins with a hierarchy update."""
        cfg = self.cfg
        step = int(self.n_steps)
        return is_update_due(step, cfg.hierarchy_first_update, cfg.hierarchy_update_every, cfg.freeze_hierarchy_after)

    def running_means_are_due(self) -> bool:
        """Whether the next training step begins by reading the running means."""
        return self.update_is_due() or self._whitening_is_due()

    def _whitening_is_due(self) -> bool:
        return self.cfg.whiten_encoder and int(self.n_steps) in REFINED_AT

    @property
    def _whitening(self) -> Whitening:
        return Whitening(self.whitening_mean, self.whitening_matrix)

    @override
    def process_sae_in(self, sae_in: torch.Tensor) -> torch.Tensor:
        """What the encoder reads: activations as :class:`LevelStack` prepares them, whitened if the encoder is."""
        sae_in = super().process_sae_in(sae_in)
        if not self.cfg.whiten_encoder:
            return sae_in
        with torch.autocast(sae_in.device.type, enabled=False):
            mean, matrix = self._whitening
            exact = torch.promote_types(sae_in.dtype, matrix.dtype)
            return ((sae_in.to(exact) - mean) @ matrix.to(exact)).to(sae_in.dtype)

    @override
    @torch.no_grad()
    def encoder(self, features: slice = slice(None)) -> tuple[torch.Tensor, torch.Tensor]:
        weights, bias = super().encoder(features)
        if not self.cfg.whiten_encoder:
            return weights, bias
        weights, bias = unwhitened(weights, bias, self._whitening)
        return weights.to(self.dtype), bias.to(self.dtype)

    @override
    @torch.no_grad()
    def fold_activation_norm_scaling_factor(self, scaling_factor: float) -> None:
        super().fold_activation_norm_scaling_factor(scaling_factor)
        if self.cfg.whiten_encoder:
            self.whitening_mean.div_(scaling_factor)

    @override
    def get_coefficients(self) -> dict[str, float | TrainCoefficientConfig]:
        """None for SAELens to schedule: λ is steered here, ρ is constant."""
        return {}

    @override
    def encode_with_hidden_pre(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Activations and pre-activations of all levels: (…, d_in) → two of (…, d_sae)."""
        hidden_pre = self.hook_sae_acts_pre(self.hidden_pre(self.process_sae_in(x)))
        acts = JumpReLU.apply(
            hidden_pre,
            self.threshold.to(hidden_pre.dtype),
            self.cfg.jumprelu_bandwidth,
            self.cfg.jumprelu_ste_to_input,
        )
        return self.hook_sae_acts_post(acts), hidden_pre

    @override
    def training_forward_pass(self, step_input: TrainStepInput) -> TrainStepOutput:
        """One step's losses (HSAE §3.1): Σ_l (‖x̃_l − x‖² + λ_l L0_l) + ρ Σ L_PC, and ghost gradients.

        In ``eval()`` the same losses without perturbation, and neither forest nor λ move.

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
        sparsity = self._sparsity()
        x = step_input.sae_in
        sae_in = self.process_sae_in(x)
        acts = self._activations(sae_in)
        perturbed = acts.reconstruct(self.W_dec, self.b_dec, replaced)
        exact = torch.promote_types(perturbed.dtype, torch.float32)
        errors = x.to(exact) - perturbed.to(exact)
        l0 = acts.l0()
        squared_errors = errors.square().sum(-1).mean(-1)
        losses = {"mse_loss": squared_errors.sum()}
        if sparsity.log_coefficient is not None:
            losses["l0_loss"] = (sparsity.log_coefficient.exp() * l0).sum()
        if self.cfg.structural_loss_coefficient > 0:
            rho = self.cfg.structural_loss_coefficient * decay_factor(self.n_steps, self.cfg.structural_loss_decay)
            losses["structural_loss"] = rho * self._structural_loss(acts)
        if self.cfg.ghost_gradients and step_input.dead_neuron_mask is not None:
            losses["ghost_gradient_loss"] = self._ghost_gradients(errors, sae_in, step_input.dead_neuron_mask)
        clean = self._clean(perturbed, acts, replaced, step_input.is_logging_step)
        metrics: dict[str, Any] = {}
        if step_input.is_logging_step:
            dead = step_input.dead_neuron_mask
            metrics = level_metrics(self.levels, x, clean, l0.detach(), sparsity, self.parents, dead)
            metrics["reparented_share"] = self.reparented_share
        if self.training:
            self._check_losses(losses, squared_errors, x)
            self._end_step(acts, l0, x)
        common: dict[str, Any] = {
            "sae_in": x,
            "sae_out": self.hook_sae_recons(clean[self.cfg.output_level]),
            "loss": torch.stack(list(losses.values())).sum(),
            "losses": losses,
            "metrics": metrics,
        }
        if isinstance(acts, ActiveEntries):
            return EntriesStepOutput(acts, **common)
        return TrainStepOutput(feature_acts=acts.values, hidden_pre=acts.hidden_pre, **common)

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
    def update_hierarchy(self) -> None:
        """Recompute the forest from the parameters as they are (HSAE §3.3)."""
        before = self.parents.clone()
        similarities = [
            self._similarity(boundary, above, below) for boundary, (above, below) in enumerate(self.levels.boundaries)
        ]
        self.parents.copy_(
            parent_table(
                similarities,
                self.levels,
                self.cfg.unassigned_fraction,
                self.cfg.max_children,
                self.cfg.minimum_similarity,
                self.parents.device,
            )
        )
        children = self.parents[self.levels.widths[0] :]
        if len(children):
            self.reparented_share.copy_((children != before[self.levels.widths[0] :]).float().mean())

    @torch.no_grad()
    def finish_training(self) -> None:
        """Make decoder and forest those of the final parameters: unit rows, a last hierarchy update unless frozen."""
        self.project_parameters()
        freeze = self.cfg.freeze_hierarchy_after
        if freeze is None or int(self.n_steps) <= freeze:
            self.update_hierarchy()

    @override
    def save_inference_model(self, path: str | Path) -> tuple[Path, Path]:
        """Finish training and save the :class:`HierarchicalSAE`: the saved forest belongs to the saved weights."""
        self.finish_training()
        return super().save_inference_model(path)

    @override
    def process_state_dict_for_saving_inference(self, state_dict: dict[str, Any]) -> None:
        state_dict["W_enc"], state_dict["b_enc"] = (tensor.contiguous() for tensor in self.encoder())
        for name in set(state_dict) - set(INFERENCE_TENSORS):
            del state_dict[name]
        state_dict["threshold"] = state_dict["threshold"].to(self.dtype)
        state_dict["parents" + SUFFIX] = as_bytes(state_dict.pop("parents"))

    @override
    def process_state_dict_for_loading(self, state_dict: dict[str, Any]) -> None:
        super().process_state_dict_for_loading(state_dict)
        if unknown := sorted(set(state_dict) - set(self.state_dict())):
            raise ValueError(
                f"the weights hold {', '.join(map(repr, unknown))}, which this configuration has no use for; "
                f"resume with the configuration of the checkpoint"
            )
        self._forest_view = None

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
    def _begin_step(self, step_input: TrainStepInput) -> list[Replacement]:
        """All that comes before the gradients: checks, constraints on parameters, the forest, the draw."""
        step = int(self.n_steps)
        self.check_width(step_input.sae_in)
        check_activations(step_input.sae_in, step)
        self.project_parameters()
        cfg = self.cfg
        if not self.training:
            return []
        if self._whitening_is_due():
            self._refine_whitening(is_first=step == REFINED_AT[0])
        if self.update_is_due():
            self.update_hierarchy()
        if cfg.perturbation_rate == 0:
            return []
        parents = self._view().on_cpu
        replaced = draw_replaced(parents, cfg.perturbation_rate, cfg.perturbation_seed, step)
        return [
            Replacement(*(tensor.to(self.parents.device, non_blocking=True) for tensor in change))
            for change in replacements(replaced, parents, self.levels)
        ]

    def _refine_whitening(self, *, is_first: bool) -> None:
        old, new = self._whitening, whitening_of(self.moment_1, self.moment_2)
        if is_first:
            # Hardly anything has been learned by then that would be lost.
            encoder, bias = first_encoder(self.W_dec, new), torch.zeros_like(self.b_enc)
            self.b_dec.data.copy_(new.mean.expand_as(self.b_dec))
        else:
            encoder, bias = change_coordinates(self.W_enc, self.b_enc, Whitening(*(t.to(new.mean) for t in old)), new)
        self.W_enc.data.copy_(encoder)
        self.b_enc.data.copy_(bias)
        self.whitening_mean.copy_(new.mean)
        self.whitening_matrix.copy_(new.matrix)

    def _activations(self, sae_in: torch.Tensor) -> DenseActivations | ActiveEntries:
        """The activations in the form that is the cheaper one for this batch."""
        rule = self._rule()
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

    def _may_use_entries(self, sae_in: torch.Tensor) -> bool:
        hooked = any(point.has_hooks() for point in (self.hook_sae_acts_pre, self.hook_sae_acts_post))
        return (
            not torch.compiler.is_compiling()
            and sae_in.device.type == "cpu"
            and self.dtype in (torch.float32, torch.float64)
            and not torch.is_autocast_enabled("cpu")
            and not sae_in.requires_grad
            and not hooked
        )

    @torch.compiler.disable()
    def _clean(
        self,
        perturbed: torch.Tensor,
        acts: DenseActivations | ActiveEntries,
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
    def _structural_loss(self, acts: DenseActivations | ActiveEntries) -> torch.Tensor:
        return acts.structural_loss(self.W_dec, self._view().families)

    @torch.compiler.disable()
    def _ghost_gradients(self, errors: torch.Tensor, sae_in: torch.Tensor, dead: torch.Tensor) -> torch.Tensor:
        total = torch.zeros((), dtype=errors.dtype, device=dead.device)
        ghosts = torch.nonzero(dead).squeeze(1)
        for error, bias, own in zip(errors, self.b_dec, self.levels, strict=True):
            mine = ghosts[(ghosts >= own.start) & (ghosts < own.stop)]
            if len(mine):
                shifted = sae_in - bias if self.cfg.apply_b_dec_to_input else sae_in
                pre = shifted @ self.W_enc[:, mine] + self.b_enc[mine]
                total = total + ghost_gradient_loss(error, pre, self.W_dec[mine])
        return total

    @torch.compiler.disable()
    def _sparsity(self) -> SparsityState:
        # Copies, because a compiled graph keeps what it reads for its backward pass, which runs after _end_step.
        return SparsityState(self.log_l0_coefficient.clone(), self.l0_ema.clone())

    @torch.no_grad()
    @torch.compiler.disable()
    def _end_step(self, acts: DenseActivations | ActiveEntries, l0: torch.Tensor, x: torch.Tensor) -> None:
        """Count the step, steer λ for the next one, and follow moments and co-activation."""
        step = int(self.n_steps)
        if self.cfg.whiten_encoder and step < REFINED_AT[-1]:
            follow_moments(self.moment_1, self.moment_2, x, step)
        l0 = l0.detach().float()
        if self.whole_batch_l0 is not None:
            l0 = self.whole_batch_l0(l0)
        self.n_steps += 1
        state = control_sparsity(
            self._sparsity(),
            l0,
            torch.tensor(self.cfg.target_l0_per_level, device=l0.device),
            self.cfg.sparsity_rate,
            self.cfg.sparsity_gain,
            self.cfg.l0_ema_momentum,
        )
        self.log_l0_coefficient.copy_(state.log_coefficient)
        self.l0_ema.copy_(state.l0_ema)
        if self.cfg.hierarchy_similarity not in MEASURED_ON_ACTIVATIONS or step % COACTIVATION_EVERY:
            return
        values = acts.dense()
        if self.cfg.hierarchy_similarity == "conditional":
            follow_frequency(self.firing_frequency, values)
        for boundary, (parent_acts, child_acts) in enumerate(pairwise(self.levels.split(values))):
            follow_coactivation(self.get_buffer(f"coactivation_{boundary}"), parent_acts, child_acts)

    @torch.no_grad()
    @torch.compiler.disable()
    def _check_losses(self, losses: dict[str, torch.Tensor], squared_errors: torch.Tensor, x: torch.Tensor) -> None:
        check_losses(losses, squared_errors, x, self.named_parameters(), self.levels, int(self.n_steps))

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

    def _similarity(self, boundary: int, above: slice, below: slice) -> SimilarityBlock:
        if self.cfg.hierarchy_similarity == "encoder":
            return cosine_similarity(self.W_enc[:, above].T, self.W_enc[:, below].T)
        if self.cfg.hierarchy_similarity == "decoder":
            return cosine_similarity(self.W_dec[above], self.W_dec[below])
        coactivation = self.get_buffer(f"coactivation_{boundary}")
        if self.cfg.hierarchy_similarity == "coactivation":
            return coactivation_similarity(coactivation)
        # The running means began at 0, and hold so much of the truth by now; in the quotient it cancels.
        n_counted = -(-int(self.n_steps) // COACTIVATION_EVERY)
        reached = 1 - COACTIVATION_MOMENTUM ** max(1, n_counted)
        frequency = self.firing_frequency
        return conditional_similarity(coactivation / reached, frequency[above] / reached, frequency[below] / reached)

    def _view(self) -> _ForestView:
        table, view = self.parents, self._forest_view
        if view is None or view.table is not table or view.version != table._version:
            view = _ForestView(table, table._version, table.to("cpu", copy=True), families_of(table))
            self._forest_view = view
        return view

    def __getstate__(self) -> dict[str, Any]:
        # A copy's tensors count their versions anew, and the view would pass for that of another table.
        return {**self.__dict__, "_forest_view": None}


def check_architecture(cfg_path: Path) -> None:
    """Raise a ValueError if a saved config is of another architecture."""
    saved = read_json_object(cfg_path).get("architecture")
    if saved != ARCHITECTURE:
        raise ValueError(
            f"{cfg_path} has architecture={saved!r}, but this SAE is {ARCHITECTURE!r}; "
            f"resume from a checkpoint of this run, or train with the configuration of that one"
        )
