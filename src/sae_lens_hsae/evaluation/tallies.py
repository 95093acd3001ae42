"""Streaming counts of a level and of a level boundary, and the records made of them.

All are kept per block of tokens, so that the intervals can leave one block out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from sae_lens_hsae.evaluation.boundary_metrics import (
    WITHOUT_DECODERS,
    BoundaryCounts,
    Pairs,
    boundary_metrics,
    edge_shares,
    living_pairs,
    why_undefined,
)
from sae_lens_hsae.evaluation.jackknife import Interval, jackknife_interval
from sae_lens_hsae.evaluation.outliers import Outliers
from sae_lens_hsae.evaluation.records import BoundaryEvaluation, LevelEvaluation
from sae_lens_hsae.evaluation.stacks import LevelSAE
from sae_lens_hsae.evaluation.token_blocks import BlockTable, SpreadTally, TokenBlocks
from sae_lens_hsae.forest import NO_PARENT, Concepts, FeatureForest


def at_least_float32(x: torch.Tensor) -> torch.Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


class Firing:
    """Which features of one level are active on the tokens of a chunk, and how strongly.

    ``tokens`` and ``features`` list the active (token, feature), about L0 per token, ordered by token. Counting over
    those instead of over the dense table is what makes wide levels cheap. Some architectures have activations of either
    sign; a feature is active where its activation is not 0. Its strength is |a| · ‖d‖, in float32 or better.
    """

    def __init__(self, acts: torch.Tensor, norms: torch.Tensor | None) -> None:
        self._acts = acts
        self._norms = norms
        self.tokens, self.features = acts.nonzero(as_tuple=True)
        self.strengths = self.strengths_of(self.tokens, self.features)

    def strengths_of(self, tokens: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        """As ``strengths``, of any (token, feature); 0 where silent."""
        acts = at_least_float32(self._acts[tokens, features]).abs()
        return acts if self._norms is None else acts * self._norms[features]


def decoder_norms(sae: LevelSAE) -> torch.Tensor | None:
    """(width,) norms of the decoder rows; None where activations hold them, all are 1 to rounding, or there is none."""
    W_dec = getattr(sae, "W_dec", None)
    if not isinstance(W_dec, torch.Tensor) or getattr(sae.cfg, "rescale_acts_by_decoder_norm", False):
        return None
    norms = at_least_float32(W_dec).norm(dim=1)
    return None if bool(((norms - 1).abs() <= 8 * torch.finfo(W_dec.dtype).eps).all()) else norms


class LevelTally:
    """What is counted of one level; ``fires`` and ``meetings`` on ordinary tokens, as much fires on an outlying one."""

    def __init__(self, blocks: TokenBlocks, level: int, sae: LevelSAE) -> None:
        self._blocks = blocks
        self._sae = sae
        self._norms = decoder_norms(sae)
        self.level = level
        self.device = sae.device
        self.fires = blocks.table(sae.cfg.d_sae, dtype=torch.int32, device=sae.device)
        self.meetings = blocks.table(dtype=torch.int64)
        self._n_active = blocks.table(dtype=torch.int64)
        self._squared_error = blocks.table(dtype=torch.float64)
        self._error_of_ordinary, self._fires_of_ordinary = 0.0, 0

    def add(self, x: torch.Tensor, ordinary: torch.Tensor) -> Firing:
        """Count a chunk (n, d_in); what fires on the tokens of it that are ``ordinary``, (n,) bool."""
        acts = self._sae.encode(x)
        firing = Firing(acts if ordinary.all() else acts * ordinary[:, None], self._norms)
        error = at_least_float32(x) - at_least_float32(self._sae.decode(acts))
        squared_error = error.square_().sum(1)
        self._squared_error.add_chunk(squared_error)
        self._n_active.add_chunk((acts != 0).sum(1))
        self.fires.count(firing.tokens, firing.features)
        n_active = torch.bincount(firing.tokens, minlength=len(x))
        self._error_of_ordinary += float(squared_error[ordinary].sum(dtype=torch.float64))
        self._fires_of_ordinary += len(firing.tokens)
        self.meetings.add_chunk(n_active * (n_active - 1) // 2)
        return firing

    def result(self, spread: SpreadTally, outliers: Outliers, n_blocks: int, confidence: float) -> LevelEvaluation:
        error, n = self._squared_error, self._blocks.n_tokens
        if not math.isfinite(error.total.item()):
            raise ValueError(f"level {self.level} reconstructs NaN or infinity; check its weights and its dtype")
        fires, n_fired, per_block = self.fires.total, self._n_active.total.item(), self._n_active.per_block.cpu()
        variance_explained = 1 - error.total.item() / spread.total if spread.total else math.nan
        without = {
            "variance_explained": 1 - (error.total - error.per_block) / spread.without,
            "l0": (n_fired - per_block).double() / (n - self._blocks.sizes),
        }
        values = {"variance_explained": variance_explained, "l0": n_fired / n}
        undefined = {} if spread.total else {"variance_explained": "the activations do not vary"}
        return LevelEvaluation(
            level=self.level,
            width=len(fires),
            n_dead=int((fires == 0).sum()),
            variance_explained_ordinary=1 - self._error_of_ordinary / outliers.spread,
            l0_ordinary=self._fires_of_ordinary / outliers.n_ordinary if outliers.n_ordinary else math.nan,
            **values,
            **_intervals(values, without, undefined, self._blocks.sizes, n_blocks, confidence),
        )


class BoundaryTally:
    """Counts per parent and per child; who is dead is known, and left out, only at the end."""

    def __init__(
        self,
        blocks: TokenBlocks,
        forest: FeatureForest,
        parents: LevelTally,
        children: LevelTally,
        n_ordinary: BlockTable,
    ) -> None:
        self._blocks, self._n_ordinary = blocks, n_ordinary
        self._parents, self._children = parents, children
        self._branching = _branching(forest, parents.level)
        above, below = forest.levels[parents.level], forest.levels[children.level]
        n_parents, n_children = above.stop - above.start, below.stop - below.start
        self._below = below
        device = parents.device
        flat = forest.parents[below].to(device)
        self._parent_of = torch.where(flat == NO_PARENT, NO_PARENT, flat - above.start)
        child = (self._parent_of != NO_PARENT).nonzero().flatten()
        self._pairs = Pairs(self._parent_of[child], child)
        count: dict[str, Any] = {"dtype": torch.int32, "device": device}
        self._predicted, self._covered = blocks.table(n_parents, **count), blocks.table(n_parents, **count)
        self._together, self._dominated = blocks.table(n_children, **count), blocks.table(n_children, **count)
        self._sibling_meetings = blocks.table(dtype=torch.int64)

    def add(self, parents: Firing, children: Firing, n_tokens: int) -> None:
        parent = self._parent_of[children.features]
        assigned = (parent != NO_PARENT).nonzero().flatten()
        token, parent, child = children.tokens[assigned], parent[assigned], children.features[assigned]
        strength = children.strengths[assigned]
        # A family is a parent and a token on which some child of it is active; ordered by parent, then token.
        key, family, n_active = torch.unique(parent * n_tokens + token, return_inverse=True, return_counts=True)
        family_parent, family_token = key // n_tokens, key % n_tokens
        parent_strength = parents.strengths_of(family_token, family_parent)

        self._predicted.count(family_token, family_parent)
        covered = parent_strength.nonzero().flatten()
        self._covered.count(family_token[covered], family_parent[covered])
        self._sibling_meetings.add(family_token, n_active * (n_active - 1) // 2)
        of_parent = parent_strength[family]
        together = of_parent.nonzero().flatten()
        self._together.count(token[together], child[together])
        dominated = (of_parent > strength).nonzero().flatten()
        self._dominated.count(token[dominated], child[dominated])

    def result(self, concepts: Concepts | None, n_blocks: int, confidence: float) -> BoundaryEvaluation:
        sizes, counts = self._blocks.sizes, self._counts()
        values = boundary_metrics(self._pairs, counts)
        shares = edge_shares(self._pairs, counts, None if concepts is None else concepts.is_copy[self._below])
        without: dict[str, list[float]] = {name: [] for name in values}
        if len(sizes) >= n_blocks:
            for block in range(len(sizes)):
                for name, value in boundary_metrics(self._pairs, counts.less(self._counts(block))).items():
                    without[name].append(value)
        undefined = {
            name: why_undefined(name, counts, self._parents.level)
            for name, value in (values | shares).items()
            if math.isnan(value)
        }
        if concepts is None:
            undefined |= dict.fromkeys(shares, WITHOUT_DECODERS)
        living = living_pairs(self._pairs, counts)
        n_unassigned = int((self._parent_of == NO_PARENT).sum())
        return BoundaryEvaluation(
            parent_level=self._parents.level,
            n_pairs=len(self._pairs.child),
            n_pairs_left_out=len(self._pairs.child) - len(living.child),
            n_parents_with_children=len(living.parent.unique()),
            n_unassigned=n_unassigned,
            unassigned_share=n_unassigned / len(self._parent_of),
            **self._branching,
            **values,
            **shares,
            **_intervals(values, without, undefined, sizes, n_blocks, confidence),
        )

    def _counts(self, block: int | None = None) -> BoundaryCounts:

        def of(table: BlockTable) -> torch.Tensor:
            return table.total if block is None else table.per_block[block]

        return BoundaryCounts(
            n_tokens=int(of(self._n_ordinary)),
            parent_fires=of(self._parents.fires),
            child_fires=of(self._children.fires),
            predicted=of(self._predicted),
            covered=of(self._covered),
            together=of(self._together),
            dominated=of(self._dominated),
            sibling_meetings=of(self._sibling_meetings),
            meetings=of(self._children.meetings),
        )


def _branching(forest: FeatureForest, parent_level: int) -> dict[str, Any]:
    """How the parents of one boundary branch, as fields of `BoundaryEvaluation`. Dead features count here."""
    n_children = forest.n_children[forest.levels[parent_level]]
    n_children = n_children[n_children > 0].double()
    return {
        "mean_children": n_children.mean().item(),
        "max_children": int(n_children.max()) if len(n_children) else 0,
        "several_children_share": (n_children > 1).double().mean().item(),
    }


def _intervals(
    values: Mapping[str, float],
    without: Mapping[str, Any],
    undefined: dict[str, str],
    sizes: torch.Tensor,
    n_blocks: int,
    confidence: float,
) -> dict[str, Any]:
    """The fields ``intervals`` and ``undefined`` of a record."""
    intervals = {}
    for name, value in values.items():
        intervals[name] = Interval(math.nan, math.nan)
        if len(sizes) >= n_blocks and not math.isnan(value):
            intervals[name] = jackknife_interval(value, without[name], sizes, confidence)
            if math.isnan(intervals[name].low):
                undefined[f"interval of {name}"] = "without one of the blocks the metric is undefined"
    return {"intervals": intervals, "undefined": undefined}
