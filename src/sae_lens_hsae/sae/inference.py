"""The inference SAE of the architecture ``hsae``, and what it shares with the training SAE: wiring, saving, loading."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from sae_lens.constants import ACTIVATION_SCALER_CFG_FILENAME, SAE_CFG_FILENAME
from sae_lens.saes.jumprelu_sae import JumpReLUSAE, JumpReLUSAEConfig
from sae_lens.saes.sae import SAE, SAEMetadata
from torch import nn
from typing_extensions import override

from sae_lens_hsae.config import HierarchicalSAEConfig
from sae_lens_hsae.forest import Concepts, FeatureForest, copies_of_parents, validate_parents
from sae_lens_hsae.forest.levels import Levels
from sae_lens_hsae.sae.model_files import check_model_files, scale_beside
from sae_lens_hsae.sae.recent_firing import STATE
from sae_lens_hsae.sae.stacked import check_stackable, stacked_config, stacked_tensors
from sae_lens_hsae.sae.standardized_input import INPUT_SCALE
from sae_lens_hsae.storage.exact_storage import SUFFIX, as_bytes, from_bytes
from sae_lens_hsae.storage.whole_files import files_written_whole

if TYPE_CHECKING:
    _Base = SAE[Any]
else:
    _Base = object

UNFOLDED = "the SAE reads activations times a factor"
"""How the warning begins that it is not folded in."""
CAST_TENSORS = ("W_enc", "b_enc", "threshold", "W_dec", "b_dec")
"""Tensors of the SAE's own dtype. All others keep every bit, whatever dtype it is cast, saved or loaded to."""


class LevelStack(_Base):
    """What both SAE classes are: a stack of JumpReLU levels that read the same x, and one parent table.

    Mixed in before SAELens' class. Tensors, with L levels and d_sae features of all levels, coarse to fine:

    - ``W_enc`` (d_in, d_sae), ``b_enc`` (d_sae,), ``threshold`` (d_sae,), ``W_dec`` (d_sae, d_in),
    - ``b_dec`` (L, d_in): every level reconstructs x on its own, so every level has its own,
    - ``parents`` (d_sae,) int64: flat index of each feature's parent, −1 if it has none.
    """

    b_enc: nn.Parameter
    threshold: torch.Tensor
    parents: torch.Tensor

    @property
    def levels(self) -> Levels:
        """Widths of the levels and their slices of the features."""
        return self.cfg.levels

    @property
    def forest(self) -> FeatureForest:
        """The forest as it is now: an immutable copy of the parent table."""
        return FeatureForest(self.parents, self.cfg.level_widths)

    def concepts(self) -> Concepts:
        """The forest with copies joined to their parents, by the decoder's directions."""
        forest = self.forest
        return Concepts(forest, copies_of_parents(forest, self.W_dec))

    @override
    def initialize_weights(self) -> None:
        super().initialize_weights()
        n_levels, d_sae = len(self.cfg.level_widths), self.cfg.d_sae
        kind: dict[str, Any] = {"dtype": self.dtype, "device": self.device}
        self.b_dec = nn.Parameter(torch.zeros(n_levels, self.cfg.d_in, **kind))
        self.b_enc = nn.Parameter(torch.zeros(d_sae, **kind))
        self.register_buffer("parents", torch.full((d_sae,), -1, dtype=torch.int64, device=self.device))

    @override
    def process_sae_in(self, sae_in: torch.Tensor) -> torch.Tensor:
        """Like SAELens', but leaves b_dec to `hidden_pre`: there is one per level and a single encoder product.

        Raises:
            ValueError: if the activations are not ``d_in`` wide.
        """
        self.check_width(sae_in)
        sae_in = self.hook_sae_input(self.reshape_fn_in(sae_in.to(self.dtype)))
        return self.run_time_activation_norm_fn_in(sae_in)

    def check_width(self, x: torch.Tensor) -> None:
        """Raise a ValueError if activations are not ``d_in`` wide, those of attention heads together."""
        if self.hook_z_reshaping_mode:
            if x.ndim < 3 or math.prod(x.shape[-2:]) != self.cfg.d_in:
                raise ValueError(
                    f"activations of shape {tuple(x.shape)} are no (…, n_heads, d_head) that make up d_in="
                    f"{self.cfg.d_in}; for flat ones call turn_off_forward_pass_hook_z_reshaping() first"
                )
        elif x.shape[-1] != self.cfg.d_in:
            raise ValueError(
                f"activations of shape {tuple(x.shape)} are {x.shape[-1]} wide, but d_in={self.cfg.d_in}; "
                f"read them from the hook point the SAE was made for ({self.cfg.metadata.hook_name})"
            )

    def hidden_pre(self, sae_in: torch.Tensor) -> torch.Tensor:
        """Pre-activations of all levels from one encoder product: (…, d_in) → (…, d_sae).

        With ``apply_b_dec_to_input`` level l encodes x − b_l, b_l being its row of ``b_dec``. For any c that is
        (x − c) W + b_enc − (b_l − c) W. Here c is the mean of the b_l: a product with x itself, whose mean is large
        in language models, would cancel with that of b_l and lose its digits in half precision.
        """
        centre, bias = self.centre_and_bias()
        return (sae_in - centre) @ self.W_enc + bias

    def centre_and_bias(self) -> tuple[torch.Tensor, torch.Tensor]:
        """c, (d_in,), and the bias b_enc − (b_l − c) W, (d_sae,), of the one encoder product (x − c) W."""
        if not self.cfg.apply_b_dec_to_input:
            return torch.zeros_like(self.b_dec[0]), self.b_enc
        centre = self.b_dec.detach().mean(0)
        with torch.autocast(self.W_enc.device.type, enabled=False):
            offsets = zip(self.b_dec - centre, self.levels.split(self.W_enc), strict=True)
            return centre, self.b_enc - torch.cat([offset @ columns for offset, columns in offsets])

    def encoder(self, features: slice = slice(None)) -> tuple[torch.Tensor, torch.Tensor]:
        """``W_enc`` (d_in, n) and ``b_enc`` (n,) of some features, that read activations as they are."""
        return self.W_enc[:, features], self.b_enc[features]

    def thresholds(self, features: slice = slice(None)) -> torch.Tensor:
        """θ (n,) of some features, in the units of x."""
        return self.threshold[features]

    def decoder_biases(self) -> torch.Tensor:
        """b_dec (L, d_in), in the units of x."""
        return self.b_dec

    def decode_level(self, feature_acts: torch.Tensor, level: int) -> torch.Tensor:
        """Reconstruction of x from one level: activations of all levels (…, d_sae) → (…, d_in).

        Raises:
            IndexError: if there is no such level.
            ValueError: if the activations are not ``d_sae`` wide, as those of a single level.
        """
        if feature_acts.shape[-1] != self.cfg.d_sae:
            raise ValueError(
                f"feature_acts of shape {tuple(feature_acts.shape)} are {feature_acts.shape[-1]} wide, but "
                f"d_sae={self.cfg.d_sae}; give the activations of all levels, as encode() does, or decode those of one "
                "with level_sae(level)"
            )
        own = self.levels[level]
        return feature_acts[..., own] @ self.W_dec[own] + self.decoder_biases()[level]

    @override
    def decode(self, feature_acts: torch.Tensor) -> torch.Tensor:
        """Reconstruction of x from ``cfg.output_level``: (…, d_sae) → (…, d_in).

        Every level reconstructs all of x; their sum would be about L · x. The activations of the other levels have no
        part in it: changing one of them, as a hook on an attached SAE does, changes nothing, and their gradient is 0.
        To act on a feature of any level use `interpret.steering.steer`, or attach `level_sae`.

        Raises:
            IndexError: if there is no level ``cfg.output_level``.
            ValueError: as `decode_level`.
        """
        sae_out = self.hook_sae_recons(self.decode_level(feature_acts, self.cfg.output_level))
        return self.reshape_fn_out(self.run_time_activation_norm_fn_out(sae_out), self.d_head)

    @torch.no_grad()
    def level_sae(self, level: int) -> JumpReLUSAE:
        """One level as a plain SAELens SAE with unit-norm decoder rows, for tools that know no forest.

        Args:
            level: from 0, the coarsest; negative levels count from the finest.

        Raises:
            IndexError: if there is no such level.
        """
        level = self.levels.number(level)
        own = self.levels[level]
        of_all_levels = ("l0", "num_dead_features")
        metadata = {name: value for name, value in self.cfg.metadata.items() if name not in of_all_levels}
        cfg = JumpReLUSAEConfig(
            d_in=self.cfg.d_in,
            d_sae=own.stop - own.start,
            dtype=self.cfg.dtype,
            device="meta",  # as SAELens' loader does, so that no weights are drawn only to be replaced
            apply_b_dec_to_input=self.cfg.apply_b_dec_to_input,
            normalize_activations=self.cfg.normalize_activations,
            reshape_activations=self.cfg.reshape_activations,
            metadata=SAEMetadata(**metadata, hsae_level=level),
        )
        sae = JumpReLUSAE(cfg)
        W_enc, b_enc = self.encoder(own)
        tensors = {
            "W_enc": W_enc,
            "b_enc": b_enc,
            "threshold": self.thresholds(own).to(self.dtype),
            "W_dec": self.W_dec[own],
            "b_dec": self.decoder_biases()[level],
        }
        copies = {
            name: tensor.detach().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()
        }
        sae.load_state_dict(copies, assign=True)
        sae = sae.to(device=self.device)
        if not self.hook_z_reshaping_mode:
            sae.turn_off_forward_pass_hook_z_reshaping()
        # Rows that are of unit norm to rounding stay as they are, so that activations do too.
        if (sae.get_W_dec_norm() - 1).abs().max() > 4 * torch.finfo(self.dtype).eps:
            sae.fold_W_dec_norm()
        return sae

    @override
    @torch.no_grad()
    def fold_W_dec_norm(self) -> None:
        """Scale decoder rows to unit norm and activations by the inverse; reconstructions and the forest stay."""
        self.threshold.data.mul_(self.fold_and_get_W_dec_norm())

    @override
    @torch.no_grad()
    def fold_activation_norm_scaling_factor(self, scaling_factor: float) -> None:
        """Make an SAE trained on activations times ``scaling_factor`` one for the activations themselves.

        SAELens puts the factor into ``W_enc`` and its inverse into ``W_dec``. Here both keep their norm and biases and
        thresholds take the factor: the same reconstructions, with feature activations in the units of x.

        Raises:
            ValueError: if the factor is not a positive number; the SAE stays as it is.
        """
        self.check_scaling_factor(scaling_factor)
        for tensor in (self.b_enc, self.threshold, self.b_dec):
            tensor.data.div_(scaling_factor)
        self.cfg.normalize_activations = "none"

    def check_scaling_factor(self, scaling_factor: float) -> None:
        """Raise a ValueError if a scaling factor of the activations is not a positive number."""
        if not 0 < scaling_factor < math.inf:
            raise ValueError(
                f"scaling_factor={scaling_factor} is not a positive number; the activations it was estimated from hold "
                f"NaN, infinite or only zero values"
            )

    @override
    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Any:
        exact = {name: tensor for name, tensor in self.state_dict().items() if name not in CAST_TENSORS}
        exact = {name: tensor.clone() if tensor.is_floating_point() else tensor for name, tensor in exact.items()}
        out = super()._apply(fn, recurse)
        for name, after in self.state_dict().items():
            if name in exact and after.dtype != exact[name].dtype:
                attrgetter(name)(self).data = exact[name].to(after.device)
        return out

    @override
    def save_model(self, path: str | Path) -> tuple[Path, Path]:
        """SAELens' ``save_model``; weights and configuration appear whole or not at all."""
        with files_written_whole(Path(path), SAE_CFG_FILENAME) as aside:
            weights, cfg = super().save_model(aside)
        return Path(path) / weights.name, Path(path) / cfg.name

    @override
    def process_state_dict_for_saving(self, state_dict: dict[str, Any]) -> None:
        """A file names a tensor by its own name alone, whichever part of the SAE keeps it."""
        for name in list(state_dict):
            tensor, is_exact = state_dict.pop(name), name not in CAST_TENSORS
            state_dict[own_name(name) + SUFFIX * is_exact] = as_bytes(tensor) if is_exact else tensor

    @override
    def process_state_dict_for_loading(self, state_dict: dict[str, Any]) -> None:
        """Restore the exact tensors, check the rest, and name them as this SAE does.

        Raises:
            ValueError: if a tensor is missing or of another shape or kind, or the parent table is no forest.
        """
        own = self.state_dict()
        full_names = {own_name(name): name for name in own}
        expected = {own_name(name): tensor for name, tensor in own.items()}
        exact_names = {own_name(name) for name in own if name not in CAST_TENSORS}
        for stored in list(state_dict):
            state_dict[own_name(stored)] = state_dict.pop(stored)
        for stored in [name for name in state_dict if name.endswith(SUFFIX)]:
            name, values = stored.removesuffix(SUFFIX), state_dict.pop(stored)
            # A checkpoint keeps thresholds in float32, whatever dtype the SAE has that is made of them.
            dtype = expected[name].dtype if name in exact_names else torch.float32
            known = name in expected or name == INPUT_SCALE
            state_dict[name] = from_bytes(values, dtype) if known else values
        for name, tensor in expected.items():
            if name not in state_dict:
                raise ValueError(
                    f"the weights hold no tensor {name!r}, which an SAE of this configuration needs; they hold "
                    f"{sorted(state_dict)}; load them with the configuration that they were saved with"
                )
            if name not in STATE and state_dict[name].shape != tensor.shape:
                raise ValueError(
                    f"{name} has shape {tuple(state_dict[name].shape)} in the file, but level_widths="
                    f"{self.cfg.level_widths} and d_in={self.cfg.d_in} need {tuple(tensor.shape)}; "
                    f"load it with the configuration it was saved with"
                )
            exact = name in exact_names
            if state_dict[name].dtype != tensor.dtype if exact else not state_dict[name].is_floating_point():
                raise ValueError(
                    f"{name} is {state_dict[name].dtype} in the file, which is no {tensor.dtype}; the file is damaged"
                )
        validate_parents(state_dict["parents"], self.levels)
        for name, full_name in full_names.items():
            state_dict[full_name] = state_dict.pop(name)


def own_name(name: str) -> str:
    """A tensor's name without that of the part that keeps it."""
    return name.rpartition(".")[2]


def _where_it_is(normalize_activations: str) -> str:
    return (
        f"as checkpoints of the training do (normalize_activations={normalize_activations!r}): HierarchicalSAE."
        f"load_from_disk folds it in where {ACTIVATION_SCALER_CFG_FILENAME} is beside it; else call "
        "fold_activation_norm_scaling_factor"
    )


class HierarchicalSAE(LevelStack, SAE[HierarchicalSAEConfig]):
    """A stack of JumpReLU levels and the forest of their features, for inference (HSAE §3).

    ``encode`` returns the activations of all levels, ``decode`` and ``forward`` reconstruct from ``cfg.output_level``
    alone. For one level by itself use `level_sae`, for the forest `forest`. Loaded by ``SAE.load_from_disk`` and
    ``SAE.from_pretrained`` once ``sae_lens_hsae`` is imported. ``HierarchicalSAE.load_from_disk`` also checks the files
    before anything of them is read into memory: use it for files of unknown origin.
    """

    @classmethod
    def from_saes(cls, saes: Sequence[SAE[Any]], forest: FeatureForest) -> HierarchicalSAE:
        """SAEs that were trained without a forest and one made for them, as a stack that can be saved for ``hsae``.

        Level i encodes and decodes as ``saes[i]`` does; `level_sae` gives it back, with decoder rows of unit norm.
        Metadata, dtype and device are those of the first. The tensors are copies.

        Args:
            saes: SAELens' JumpReLU or standard (ReLU) SAEs of one hook point, coarse to fine. A BatchTopK SAE is
                JumpReLU once it is saved and loaded.
            forest: theirs, such as ``FeatureForest.from_saes(saes, activations=batches)``.

        Raises:
            ValueError: if the SAEs and the forest do not fit together, or an SAE is of another architecture, or scales
                its activations.
        """
        check_stackable(saes, forest)
        sae = cls(stacked_config(saes))
        tensors = stacked_tensors(saes, sae.cfg.apply_b_dec_to_input)
        sae.load_state_dict(tensors | {"parents": forest.parents}, assign=True)
        sae.turn_off_forward_pass_hook_z_reshaping()  # as that of the SAEs is, which `check_stackable` asks for
        return sae.to(saes[0].W_dec)

    @override
    @classmethod
    def load_from_disk(cls, path: str | Path, *args: Any, **kwargs: Any) -> HierarchicalSAE:
        """SAELens' ``load_from_disk``, for files that may come from anybody.

        A checkpoint of the training reads activations times a factor, which stands beside it in
        ``activation_scaler.json``; it is folded in, so that the SAE reads activations as the model has them.

        Raises:
            FileNotFoundError: if a file is missing.
            ValueError: naming the file, or the field or tensor, that is damaged.

        Warns:
            UserWarning: if a factor was folded in, or is missing.
        """
        check_model_files(Path(path))
        scale = scale_beside(Path(path))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", UNFOLDED)
            sae = super().load_from_disk(path, *args, **kwargs)
        if scale is not None and sae.cfg.normalize_activations == "expected_average_only_in":
            sae.fold_activation_norm_scaling_factor(scale)
            warnings.warn(
                f"{path} is a checkpoint of the training; its scale of the activations, {scale:.6g} "
                f"({ACTIVATION_SCALER_CFG_FILENAME}), is folded into the SAE",
                stacklevel=2,
            )
        elif sae.cfg.normalize_activations != "none":
            warnings.warn(f"{UNFOLDED}, {_where_it_is(sae.cfg.normalize_activations)}", stacklevel=2)
        return sae

    @override
    def initialize_weights(self) -> None:
        super().initialize_weights()
        self.threshold = nn.Parameter(torch.zeros(self.cfg.d_sae, dtype=self.dtype, device=self.device))

    @override
    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """Feature activations of all levels, coarse to fine: (…, d_in) → (…, d_sae); `decode` uses those of one."""
        hidden_pre = self.hook_sae_acts_pre(self.hidden_pre(self.process_sae_in(x)))
        active = (hidden_pre > self.threshold).to(hidden_pre.dtype)
        return self.hook_sae_acts_post(self.activation_fn(hidden_pre) * active)

    @override
    def process_state_dict_for_loading(self, state_dict: dict[str, Any]) -> None:
        """As in `LevelStack`; a training checkpoint's tensors become those that read activations as they are.

        Warns:
            UserWarning: if the SAE reads activations times a factor, which is not among the tensors.
        """
        super().process_state_dict_for_loading(state_dict)
        if self.cfg.normalize_activations != "none":
            what = _where_it_is(self.cfg.normalize_activations)
            warnings.warn(f"{UNFOLDED}, {what}", stacklevel=3)  # SAELens' loader is between
        if INPUT_SCALE in state_dict:
            for name in ("b_enc", "b_dec", "threshold"):
                state_dict[name] = (state_dict[name] / state_dict[INPUT_SCALE]).to(self.dtype)
        state_dict["threshold"] = state_dict["threshold"].to(self.dtype)
        for name in set(state_dict) - set(self.state_dict()):
            del state_dict[name]
