"""`Dashboards` and how they stand on disk: a folder with ``manifest.json`` and ``dashboards.safetensors``."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from sae_lens import SAE
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from sae_lens_hsae.evaluation import level_saes
from sae_lens_hsae.forest import FeatureForest
from sae_lens_hsae.forest.concepts import COPY_COSINE
from sae_lens_hsae.forest.levels import Levels
from sae_lens_hsae.interpret.feature_cache.statistics import N_BINS
from sae_lens_hsae.sae.inference import LevelStack
from sae_lens_hsae.storage.json_files import printable, read_json_object
from sae_lens_hsae.storage.whole_files import folder_written_whole

FORMAT = "sae_lens_hsae/dashboards"
FORMAT_VERSION = 1
MANIFEST = "manifest.json"
TENSORS = "dashboards.safetensors"
AGAIN = "collect the dashboards again"


@dataclass(frozen=True)
class DashboardSettings:
    """How much is kept per feature.

    Attributes:
        n_top: strongest contexts.
        n_sampled: contexts drawn across the range of activations.
        n_counterexamples: contexts per edge where the parent fires without the child, and as many the other way.
        window: tokens shown of a context, around its peak.
        n_strongest_tokens: tokens of highest mean activation; also tokens promoted, and tokens suppressed.
        n_candidate_tokens: tokens per feature whose mean is followed.
        min_token_count: occurrences a token needs to be among the strongest.
        n_nearest: neighbours by decoder cosine.
        seed: of the sampling.

    Raises:
        ValueError: if a number is too small.
    """

    n_top: int = 8
    n_sampled: int = 6
    n_counterexamples: int = 2
    window: int = 32
    n_strongest_tokens: int = 8
    n_candidate_tokens: int = 48
    min_token_count: int = 5
    n_nearest: int = 6
    seed: int = 0

    def __post_init__(self) -> None:
        least = {"n_top": 1, "window": 1, "n_strongest_tokens": 1, "min_token_count": 1}
        for name, value in asdict(self).items():
            if not isinstance(value, int) or isinstance(value, bool) or value < least.get(name, 0):
                raise ValueError(f"{name}={value!r} must be a whole number, at least {least.get(name, 0)}")
        if self.n_candidate_tokens < self.n_strongest_tokens:
            raise ValueError(
                f"n_candidate_tokens={self.n_candidate_tokens} is below n_strongest_tokens={self.n_strongest_tokens}; "
                "follow a few times as many as are shown"
            )

    @property
    def kinds(self) -> tuple[slice, slice, slice, slice]:
        """Slots of the strongest contexts, the sampled ones, parent without child, child without parent."""
        first, second = self.n_top, self.n_top + self.n_sampled
        third, last = second + self.n_counterexamples, second + 2 * self.n_counterexamples
        return slice(0, first), slice(first, second), slice(second, third), slice(third, last)

    @property
    def n_family_slots(self) -> int:
        """Slots whose contexts are kept for the feature's children too: the strongest and the sampled ones."""
        return self.n_top + self.n_sampled

    @property
    def n_slots(self) -> int:
        """Slots of contexts of a feature, all kinds together."""
        return self.kinds[-1].stop


def _is(dtype: torch.dtype, *shape: str, optional: bool = False) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "optional": optional}


_PROMOTED_TOKENS = _is(torch.int32, "features", "promoted", optional=True)
_PROMOTED_LOGITS = _is(torch.float32, "features", "promoted", optional=True)


@dataclass(frozen=True, eq=False)
class Dashboards:
    """What every feature fires on. Features are flat, coarse to fine; −1 stands for no feature, token or context.

    Attributes:
        settings: how much was kept.
        fingerprint: of the SAEs' weights and the forest, see `fingerprint`.
        level_widths: features of each level.
        n_tokens: tokens counted.
        n_contexts: contexts read.
        parents: each feature's parent.
        n_firing: tokens each feature fires on.
        n_with_parent: of those, how many its parent fires on too.
        n_any_child: tokens any of its children fires on.
        n_with_any_child: tokens it and any of its children fire on.
        mean_activation, max_activation: over the tokens it fires on.
        histogram: tokens per bin of activation, edges in ``statistics.bin_edges``.
        context_numbers: a slot's context, by its number in the stream.
        peaks: highest activation of a slot; for counter-examples of parent without child, of the parent.
        peak_positions: where in the window that is.
        token_ids: the window's tokens.
        activations, parent_activations: of the feature and of its parent on the window.
        activations_on_parent: of the feature on the windows of its *parent's* slots.
        strongest_tokens: tokens of highest mean activation over all their occurrences.
        nearest, nearest_cosines: features of the same level by decoder cosine.
        parent_cosine, parent_projection: decoder cosine with the parent, and ⟨d_child, d_parent⟩ / ‖d_parent‖².
        promoted_tokens, promoted_logits, suppressed_tokens, suppressed_logits: None without an unembedding.
        text: what was read, in words; empty where that is not recorded.
    """

    settings: DashboardSettings
    fingerprint: str
    level_widths: tuple[int, ...]
    n_tokens: int
    n_contexts: int
    parents: torch.Tensor = field(repr=False, metadata=_is(torch.int64, "features"))
    n_firing: torch.Tensor = field(repr=False, metadata=_is(torch.int64, "features"))
    n_with_parent: torch.Tensor = field(repr=False, metadata=_is(torch.int64, "features"))
    n_any_child: torch.Tensor = field(repr=False, metadata=_is(torch.int64, "features"))
    n_with_any_child: torch.Tensor = field(repr=False, metadata=_is(torch.int64, "features"))
    mean_activation: torch.Tensor = field(repr=False, metadata=_is(torch.float32, "features"))
    max_activation: torch.Tensor = field(repr=False, metadata=_is(torch.float32, "features"))
    histogram: torch.Tensor = field(repr=False, metadata=_is(torch.int32, "features", "bins"))
    context_numbers: torch.Tensor = field(repr=False, metadata=_is(torch.int64, "features", "slots"))
    peaks: torch.Tensor = field(repr=False, metadata=_is(torch.float32, "features", "slots"))
    peak_positions: torch.Tensor = field(repr=False, metadata=_is(torch.int16, "features", "slots"))
    token_ids: torch.Tensor = field(repr=False, metadata=_is(torch.int32, "features", "slots", "window"))
    activations: torch.Tensor = field(repr=False, metadata=_is(torch.bfloat16, "features", "slots", "window"))
    parent_activations: torch.Tensor = field(repr=False, metadata=_is(torch.bfloat16, "features", "slots", "window"))
    activations_on_parent: torch.Tensor = field(
        repr=False, metadata=_is(torch.bfloat16, "features", "family_slots", "window")
    )
    strongest_tokens: torch.Tensor = field(repr=False, metadata=_is(torch.int32, "features", "strongest"))
    nearest: torch.Tensor = field(repr=False, metadata=_is(torch.int32, "features", "nearest"))
    nearest_cosines: torch.Tensor = field(repr=False, metadata=_is(torch.float32, "features", "nearest"))
    parent_cosine: torch.Tensor = field(repr=False, metadata=_is(torch.float32, "features"))
    parent_projection: torch.Tensor = field(repr=False, metadata=_is(torch.float32, "features"))
    promoted_tokens: torch.Tensor | None = field(default=None, repr=False, metadata=_PROMOTED_TOKENS)
    promoted_logits: torch.Tensor | None = field(default=None, repr=False, metadata=_PROMOTED_LOGITS)
    suppressed_tokens: torch.Tensor | None = field(default=None, repr=False, metadata=_PROMOTED_TOKENS)
    suppressed_logits: torch.Tensor | None = field(default=None, repr=False, metadata=_PROMOTED_LOGITS)
    text: str = ""

    @property
    def n_features(self) -> int:
        """Features of all levels together."""
        return len(self.parents)

    @cached_property
    def forest(self) -> FeatureForest:
        """Who is whose parent."""
        return FeatureForest(self.parents, self.level_widths)

    @property
    def is_copy(self) -> torch.Tensor:
        """(features,) bool: which features are copies of their parents, as `copies_of_parents` has it."""
        return self.parent_cosine > COPY_COSINE

    @property
    def frequency(self) -> torch.Tensor:
        """(features,) float64: share of the tokens each feature fires on."""
        return self.n_firing.double() / self.n_tokens

    @property
    def parent_given_child(self) -> torch.Tensor:
        """(features,) float64: P(parent fires | the feature fires); NaN without parent or if it never fires."""
        return (self.n_with_parent.double() / self.n_firing).masked_fill(self.parents < 0, torch.nan)

    @property
    def child_given_parent(self) -> torch.Tensor:
        """(features,) float64: P(the feature fires | its parent fires); NaN without a parent that ever fires."""
        of_parent = self.n_firing[self.parents.clamp(min=0)]
        return (self.n_with_parent.double() / of_parent).masked_fill(self.parents < 0, torch.nan)

    @property
    def narrowing(self) -> torch.Tensor:
        """(features,) float64: (P(parent | it) − P(parent)) · (1 − P(it | parent)); NaN without a firing parent.

        High where the feature lies within its parent and is only a part of it; a copy of the parent scores nothing.
        """
        of_parent = self.frequency[self.parents.clamp(min=0)]
        return (self.parent_given_child - of_parent) * (1 - self.child_given_parent)

    @property
    def agreement(self) -> torch.Tensor:
        """(features,) float64: of the tokens the feature or any child fires on, how many both do; NaN without children.

        The tokens on which a prediction of the parent by its children is wrong are the rest (the Hamming distance).
        """
        either = self.n_firing + self.n_any_child - self.n_with_any_child
        return (self.n_with_any_child.double() / either).masked_fill(~self.forest.has_children, torch.nan)

    def distinct_contexts(self, own: slice, slots: slice) -> torch.Tensor:
        """(features, slots) bool: slots that hold a context, each once: one of the strongest may also be a sample."""
        numbers = self.context_numbers[own, slots]
        earlier = torch.ones(numbers.shape[1], numbers.shape[1], dtype=torch.bool).tril(-1)
        return (numbers >= 0) & ~((numbers[:, :, None] == numbers[:, None, :]) & earlier).any(2)

    @staticmethod
    def check_replaceable(folder: Path) -> None:
        """Check that `save` would replace nothing but dashboards, even incomplete ones; a FileExistsError if not."""
        if folder.exists() and (others := sorted({path.name for path in folder.iterdir()} - {MANIFEST, TENSORS})):
            raise FileExistsError(f"{folder} holds something else than dashboards, {others[0]!r}; move or delete it")

    def save(self, folder: str | Path) -> None:
        """Write ``manifest.json`` and ``dashboards.safetensors`` to a new folder, then put it in the target's place."""
        folder = Path(folder)
        self.check_replaceable(folder)
        with folder_written_whole(folder) as new:
            tensors = {name: getattr(self, name) for name in _tensor_fields()}
            save_file({name: t.contiguous() for name, t in tensors.items() if t is not None}, new / TENSORS)
            plain = {f.name: getattr(self, f.name) for f in fields(self) if not f.metadata}
            plain["settings"] = asdict(self.settings)
            names = [name for name, tensor in tensors.items() if tensor is not None]
            manifest = {"format": FORMAT, "format_version": FORMAT_VERSION, **plain, "tensors": names}
            (new / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path, expected_fingerprint: str | None = None) -> Dashboards:
        """Read what `save` wrote.

        Args:
            expected_fingerprint: of the SAEs and forest the dashboards must be of; None takes any.

        Raises:
            FileNotFoundError: if a file is missing.
            ValueError: if the files are of a newer version, damaged, incomplete, or of other SAEs.
        """
        folder = Path(folder)
        for name in (MANIFEST, TENSORS):
            if not (folder / name).is_file():
                raise FileNotFoundError(f"{folder} holds no {name}, so no complete dashboards; collect them again")
        manifest = {"text": ""} | read_json_object(folder / MANIFEST)
        if manifest.get("format") != FORMAT:
            raise ValueError(f"{folder / MANIFEST} does not describe dashboards (format {FORMAT!r})")
        if manifest.get("format_version") != FORMAT_VERSION:
            raise ValueError(
                f"{folder}: format_version={manifest.get('format_version')!r} cannot be read, only {FORMAT_VERSION}; "
                f"read it with the version of sae-lens-hsae that wrote it, or a newer one, or {AGAIN}"
            )
        found = manifest.get("fingerprint")
        if expected_fingerprint is not None and found != expected_fingerprint:
            raise ValueError(
                f"{folder} was made for other weights or another forest (fingerprint {printable(found)[:12]}…, "
                f"expected {expected_fingerprint[:12]}…); {AGAIN}"
            )
        try:
            tensors = load_file(folder / TENSORS)
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{folder / TENSORS} is damaged ({printable(error)}); {AGAIN}") from error
        plain = [f.name for f in fields(cls) if not f.metadata]
        required = [name for name, meta in _tensor_fields().items() if not meta["optional"]]
        missing = [name for name in (*plain, *required) if name not in (manifest if name in plain else tensors)]
        missing += [name for name in manifest.get("tensors", ()) if name not in tensors]
        if missing:
            raise ValueError(f"{folder} lacks {printable(', '.join(dict.fromkeys(map(str, missing))))}; {AGAIN}")
        values: dict[str, Any] = {name: manifest[name] for name in plain}
        try:
            values["settings"] = DashboardSettings(**values["settings"])
            values["level_widths"] = Levels(tuple(values["level_widths"])).widths
            values["text"] = printable(values["text"])
        except (TypeError, ValueError) as error:
            raise ValueError(f"{folder / MANIFEST} is damaged ({printable(error)}); {AGAIN}") from error
        values |= {name: tensors.get(name) for name in _tensor_fields()}
        _check_shapes(folder, values)
        return cls(**values)


def fingerprint(levels: Sequence[SAE[Any]] | LevelStack, forest: FeatureForest) -> str:
    """SHA-256 over every level's tensors (name, shape, dtype, bytes) and the parent table."""
    digest = hashlib.sha256()
    saes: list[Any] = list(level_saes(levels))
    named = [
        (f"{level}.{name}", tensor)
        for level, sae in enumerate(saes)
        for name, tensor in sorted(sae.state_dict().items())
    ]
    for name, tensor in [*named, ("parents", forest.parents)]:
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype};".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _check_shapes(folder: Path, values: dict[str, Any]) -> None:
    """Check every tensor's dtype and shape; a ValueError names the first that is wrong."""
    settings = values["settings"]
    sizes = {
        "features": sum(values["level_widths"]), "bins": N_BINS, "slots": settings.n_slots,
        "family_slots": settings.n_family_slots, "window": settings.window, "strongest": settings.n_strongest_tokens,
        "nearest": settings.n_nearest,
    }  # fmt: skip
    for name, meta in _tensor_fields().items():
        tensor = values[name]
        if tensor is None:
            continue
        expected = [sizes.get(size) for size in meta["shape"]]
        shape = tuple(tensor.shape)
        fits = len(shape) == len(expected) and all(n in (None, own) for n, own in zip(expected, shape, strict=True))
        if not fits or tensor.dtype != meta["dtype"]:
            raise ValueError(
                f"{folder}: {name} is {tensor.dtype} of shape {shape}, expected {meta['dtype']} of "
                f"({', '.join(meta['shape'])}) = {expected}; {AGAIN}"
            )


def _tensor_fields() -> dict[str, Any]:
    return {f.name: f.metadata for f in fields(Dashboards) if f.metadata}
