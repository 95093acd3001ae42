"""What the page is given: the dashboards, cut to size, in arrays that JavaScript reads as they are."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from sae_lens_hsae.forest import FeatureForest
from sae_lens_hsae.forest.concepts import Concepts
from sae_lens_hsae.forest.parents import CLEAR_SIMILARITY, WEAK_SIMILARITY
from sae_lens_hsae.interpret.explain import Explanation
from sae_lens_hsae.interpret.feature_cache import Dashboards
from sae_lens_hsae.interpret.feature_cache.statistics import bin_edges, quantiles
from sae_lens_hsae.interpret.labels import label_detection
from sae_lens_hsae.interpret.labels.detection import REASONS
from sae_lens_hsae.interpret.page.first_view import first_view
from sae_lens_hsae.text.token_text import BYTE, whole_characters

QUANTILES = (0.5, 0.9, 0.99)
SHADES = 255
BINS_MERGED = 4
MANY_FEATURES = 8_000

Block = tuple[dict[str, Any], dict[str, np.ndarray]]


@dataclass(frozen=True)
class PageLimits:
    """How much of the dashboards the page takes; what they do not hold is left out.

    Attributes:
        n_top, n_sampled, n_counterexamples: contexts of each kind per feature (per edge and direction).
        window: tokens per context.
        features_per_block: features that are decoded together.
    """

    n_top: int = 8
    n_sampled: int = 6
    n_counterexamples: int = 2
    window: int = 32
    features_per_block: int = 64

    @classmethod
    def for_features(cls, n_features: int) -> PageLimits:
        """Everything, or for large forests what keeps 30,720 features below 30 MB."""
        return cls() if n_features <= MANY_FEATURES else cls(6, 4, 1, 24, 128)


class PageContent:
    """Blocks of the page.

    Tokens are renumbered by first use, from 1; 0 is no token. Activations are shades, 0 for silent and 1 … 255 up to
    the feature's own maximum.
    """

    def __init__(
        self,
        dashboards: Dashboards,
        forest: FeatureForest,
        text_of: Callable[[int], str],
        labels: Mapping[int, str],
        limits: PageLimits,
        found_again: Mapping[str, torch.Tensor] | None = None,
    ) -> None:
        self._data = dashboards
        self._forest = forest
        self._text = text_of
        self._labels = labels
        self._others = list(found_again or {})
        self._found_again = torch.stack(list(found_again.values())).sum(0) if found_again else None
        self._per_block = limits.features_per_block
        had = dashboards.settings
        self._window = min(limits.window, had.window)
        wanted = (limits.n_top, limits.n_sampled, limits.n_counterexamples, limits.n_counterexamples)
        taken = [min(n, kind.stop - kind.start) for n, kind in zip(wanted, had.kinds, strict=True)]
        self._kinds = dict(zip(("top", "sampled", "parent_alone", "child_alone"), taken, strict=True))
        self._slots = [
            slot for kind, n in zip(had.kinds, taken, strict=True) for slot in range(kind.start, kind.start + n)
        ]
        self._n_family = taken[0] + taken[1]
        self._local = torch.zeros(0, dtype=torch.int64)
        self._texts: list[str] = [""]
        self._wholes: dict[str, int] = {}

    def forest_block(self, title: str, texts: Sequence[str] = (), separators: Collection[str] = ()) -> Block:
        """Everything the tree, the overview and the search by token need, about all features; and the texts."""
        data = self._data
        detection = label_detection(data, self._text)
        concepts = Concepts(self._forest, data.is_copy)
        counts = self._found_again
        shares = None if counts is None else counts.double() / len(self._others)
        first = first_view(data, self._forest, concepts, detection.score, self._text, self._labels, shares)
        plain = {
            "title": title,
            "levelWidths": list(data.level_widths),
            "nTokens": data.n_tokens,
            "kinds": self._kinds,
            "window": self._window,
            "perBlock": self._per_block,
            "nStrongest": data.strongest_tokens.shape[1],
            "nNearest": data.nearest.shape[1],
            "nPromoted": 0 if data.promoted_tokens is None else data.promoted_tokens.shape[1],
            "quantiles": list(QUANTILES),
            "binEdges": bin_edges()[::BINS_MERGED].tolist(),
            "labels": {str(feature): label for feature, label in self._labels.items()},
            "texts": list(texts),
            "separators": sorted(separators),
            "noDetection": REASONS,
            "otherTrainings": self._others,
            "weak": WEAK_SIMILARITY,
            "clear": CLEAR_SIMILARITY,
        }
        arrays = {
            "parents": _array(data.parents, np.int32),
            "isCopy": _array(concepts.is_copy, np.uint8),
            "foundAgain": _array(torch.zeros(len(data.parents)) if counts is None else counts, np.uint8),
            "families": _array(first.families, np.int32),
            "alone": _array(first.alone, np.int32),
            "frequency": _array(data.frequency, np.float32),
            "meanActivation": _array(data.mean_activation, np.float32),
            "maximum": _array(data.max_activation, np.float32),
            "agreement": _array(data.agreement, np.float32),
            "detection": _array(detection.score, np.float32),
            "detectionReason": _array(detection.reason, np.uint8),
            "nHeldOutFiring": _array(detection.n_firing, np.uint32),
            "nHeldOutSilent": _array(detection.n_silent, np.uint32),
            "anyChildGivenParent": _array(data.n_with_any_child / data.n_firing, np.float32),
            "parentGivenChild": _array(data.parent_given_child, np.float32),
            "childGivenParent": _array(data.child_given_parent, np.float32),
            "parentCosine": _array(data.parent_cosine, np.float32),
            "parentProjection": _array(data.parent_projection, np.float32),
            "strongest": self._tokens(data.strongest_tokens),
        }
        return plain, arrays

    def feature_blocks(self) -> Iterator[Block]:
        """Contexts, histogram and neighbours, of ``features_per_block`` features each, in their flat order."""
        for start in range(0, self._data.n_features, self._per_block):
            yield {}, self._of_features(slice(start, min(start + self._per_block, self._data.n_features)))

    def vocabulary_block(self) -> Block:
        """Texts of the tokens that occur in the other blocks; make it last."""
        return {"tokens": self._texts}, {}

    def _of_features(self, own: slice) -> dict[str, np.ndarray]:
        data, slots = self._data, self._slots
        features = torch.arange(own.start, own.stop)
        parents = data.parents[own]
        children = self._forest.edges()
        inside = (children[:, 0] >= own.start) & (children[:, 0] < own.stop)
        of_block = children[inside]
        of_block = of_block[of_block[:, 0].argsort(stable=True)]

        positions = data.peak_positions[own][:, slots].long()
        cut = (positions - self._window // 2).clamp(0, data.settings.window - self._window)
        where = cut[..., None] + torch.arange(self._window)
        where_child = where[of_block[:, 0] - own.start][:, : self._n_family]
        histogram = data.histogram[own].view(len(features), -1, BINS_MERGED).sum(2)
        arrays = {
            "tokens": self._contexts(data.token_ids[own][:, slots].gather(2, where)),
            "shades": self._shades(data.activations[own][:, slots].gather(2, where), features),
            "parentShades": self._shades(data.parent_activations[own][:, slots].gather(2, where), parents.clamp(min=0)),
            "childShades": self._shades(
                data.activations_on_parent[of_block[:, 1]][:, slots[: self._n_family]].gather(2, where_child),
                of_block[:, 1],
            ),
            "peaks": _array(data.peaks[own][:, slots], np.float32),
            "numbers": _array(data.context_numbers[own][:, slots], np.int32),
            "histogram": _array(histogram, np.uint32),
            "quantiles": _array(quantiles(data.histogram[own], torch.tensor(QUANTILES)), np.float32),
            "nearest": _array(data.nearest[own], np.int32),
            "nearestCosines": _array(data.nearest_cosines[own], np.float32),
        }
        for kind in ("promoted", "suppressed"):
            tokens, logits = getattr(data, f"{kind}_tokens"), getattr(data, f"{kind}_logits")
            if tokens is not None:
                arrays[f"{kind}Tokens"] = self._tokens(tokens[own])
                arrays[f"{kind}Logits"] = _array(logits[own], np.float32)
        return arrays

    def _shades(self, activations: torch.Tensor, scaled_by: torch.Tensor) -> np.ndarray:
        maximum = self._data.max_activation[scaled_by].clamp(min=1e-30)
        shades = (activations.float() / maximum[:, None, None] * SHADES).ceil().clamp(0, SHADES)
        return _array(shades, np.uint8)

    def _tokens(self, ids: torch.Tensor) -> np.ndarray:
        """Token ids as the page's own numbers; new ones get the next numbers and their text is asked for."""
        ids = ids.long()
        used = ids[ids >= 0].unique()
        if len(used) and int(used[-1]) >= len(self._local):
            self._local = torch.cat([self._local, torch.zeros(int(used[-1]) + 1 - len(self._local), dtype=torch.int64)])
        new = used[self._local[used] == 0]
        self._local[new] = torch.arange(len(self._texts), len(self._texts) + len(new))
        self._texts.extend(map(self._text, new.tolist()))
        local = torch.where(ids >= 0, self._local[ids.clamp(min=0)] if len(self._local) else 0, 0)
        return _array(local, np.uint16 if len(self._texts) <= 2**16 else np.uint32)

    def _contexts(self, ids: torch.Tensor) -> np.ndarray:
        """As `_tokens`, of windows (…, window): a token that completes a character has that as a text of its own."""
        local = self._tokens(ids)
        parts = [number for number, text in enumerate(self._texts) if BYTE.search(text)]
        windows = local.reshape(-1, local.shape[-1]).astype(np.uint32)
        for i in np.flatnonzero(np.isin(windows, parts).any(1)):
            texts = [self._texts[number] for number in windows[i]]
            for j, (text, whole) in enumerate(zip(texts, whole_characters(texts), strict=True)):
                if whole != text:
                    windows[i, j] = self._number_of(whole)
        return windows.reshape(local.shape).astype(np.uint16 if len(self._texts) <= 2**16 else np.uint32)

    def _number_of(self, text: str) -> int:
        if text not in self._wholes:
            self._wholes[text] = len(self._texts)
            self._texts.append(text)
        return self._wholes[text]


def explained_block(explanation: Explanation) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Tokens, shares and entries by token; those of token p stand at ``starts[p] : starts[p + 1]``."""
    counts = np.bincount(explanation.positions.numpy(), minlength=len(explanation.tokens))
    arrays = {
        "levelShares": _array(explanation.level_shares, np.float32).ravel(),
        "starts": np.concatenate([[0], counts.cumsum()]).astype(np.int32),
        "features": _array(explanation.features, np.int32),
        "activations": _array(explanation.activations, np.float32),
        "shares": _array(explanation.shares, np.float32),
    }
    return {"tokens": list(explanation.tokens), "outlying": list(explanation.outlying)}, arrays


def _array(tensor: torch.Tensor, dtype: type[np.generic]) -> np.ndarray:
    return tensor.numpy().astype(dtype)
