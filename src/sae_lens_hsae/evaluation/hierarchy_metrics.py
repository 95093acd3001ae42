"""The hierarchy metrics of HSAE §4.2 and each level's own quality, in one pass over a stream of activations.

A level boundary has parents (level l) and children (level l + 1). What is measured there:

- *Hamming distance*: a parent is predicted active on a token where any of its children is; the disagreements with
  its real activity are counted, per token. Its unit is features, so it grows with L0.
- *P(parent | child)* and *P(child | parent)*: each the mean over the assigned pairs.

A feature that never fires in the evaluated tokens is neither parent nor child here; it is counted as dead.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Protocol

import torch

from sae_lens_hsae.forest import NO_PARENT, FeatureForest

if TYPE_CHECKING:
    import pandas

MAX_TOKENS_AT_ONCE = 1024
# Bounds the (tokens, features) tensors of one level: 128 MiB in float32, however wide the level.
MAX_ELEMENTS_AT_ONCE = 2**25


class LevelSAE(Protocol):
    """What is asked of a level's SAE; every SAELens SAE has it."""

    cfg: Any  # with d_in and d_sae
    device: torch.device

    def encode(self, x: torch.Tensor) -> torch.Tensor: ...
    def decode(self, feature_acts: torch.Tensor) -> torch.Tensor: ...


class SAEStack(Protocol):
    """One object that holds all levels, as `HierarchicalSAE` does."""

    cfg: Any  # with level_widths

    def level_sae(self, level: int) -> LevelSAE: ...


@dataclass(frozen=True)
class LevelEvaluation:
    """One level's own quality.

    Attributes:
        level: which level, 0 the coarsest.
        width: features of the level.
        l0: active features per token.
        variance_explained: 1 − Σ‖x − x̂‖² / Σ‖x − mean‖², over all evaluated tokens; NaN if x never varies.
        n_dead: features that never fired in the evaluated tokens.
        firing_frequency: (width,) float64, each feature's share of the tokens; not part of `to_dict`.
    """

    level: int
    width: int
    l0: float
    variance_explained: float
    n_dead: int
    firing_frequency: torch.Tensor = field(repr=False, compare=False)


@dataclass(frozen=True)
class BoundaryEvaluation:
    """How well one level's activity agrees with the next one's. Means over nothing are NaN.

    Attributes:
        parent_level: the coarser level; the children are in ``parent_level + 1``.
        hamming: Hamming distance per token over the living parents with at least one living child.
        hamming_all_parents: the same over all living parents; one without children is never predicted active.
        p_parent_given_child: mean over the evaluated pairs of P(parent active | child active).
        p_child_given_parent: mean over the evaluated pairs of P(child active | parent active).
        n_pairs: pairs (parent, child) of the forest.
        n_pairs_left_out: those of which a member never fired; the two means are over the others.
        n_parents_with_children: parents that ``hamming`` counts.
        n_unassigned: features of the children's level without a parent, dead ones included.
        unassigned_share: ``n_unassigned`` over the width of the children's level.
        parent_given_child: (children's width,) float64, P(parent active | child active) of every child, NaN where
            it has no parent or one of them never fired; not part of `to_dict`.
    """

    parent_level: int
    hamming: float
    hamming_all_parents: float
    p_parent_given_child: float
    p_child_given_parent: float
    n_pairs: int
    n_pairs_left_out: int
    n_parents_with_children: int
    n_unassigned: int
    unassigned_share: float
    parent_given_child: torch.Tensor = field(repr=False, compare=False)


@dataclass(frozen=True)
class ForestEvaluation:
    """Result of `evaluate_forest`; print it for a table.

    Attributes:
        n_tokens: tokens evaluated.
        levels: one record per level, coarse to fine.
        boundaries: one record per level boundary, coarse to fine; one fewer than levels.
    """

    n_tokens: int
    levels: tuple[LevelEvaluation, ...]
    boundaries: tuple[BoundaryEvaluation, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, ready for JSON; NaN becomes None."""
        return {
            "n_tokens": self.n_tokens,
            "levels": [_plain(record) for record in self.levels],
            "boundaries": [_plain(record) for record in self.boundaries],
        }

    def to_dataframe(self) -> pandas.DataFrame:
        """One row per level; the boundary columns describe the boundary to the level above, NaN for level 0."""
        import pandas

        return pandas.DataFrame(self._rows())

    def __str__(self) -> str:
        columns = {
            "level": "level", "width": "width", "L0": "l0", "var. explained": "variance_explained", "dead": "n_dead",
            "unassigned": "unassigned_share", "Hamming": "hamming", "(all parents)": "hamming_all_parents",
            "P(p|c)": "p_parent_given_child", "P(c|p)": "p_child_given_parent",
            "pairs": "n_pairs", "left out": "n_pairs_left_out",
        }  # fmt: skip
        table = [list(columns), *([_cell(row.get(name)) for name in columns.values()] for row in self._rows())]
        sizes = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = ["  ".join(cell.rjust(size) for cell, size in zip(line, sizes, strict=True)) for line in table]
        return "\n".join([f"{self.n_tokens} tokens; from unassigned on: the boundary to the level above", *lines])

    def _rows(self) -> list[dict[str, Any]]:
        boundary_of = {record.parent_level + 1: _plain(record) for record in self.boundaries}
        return [_plain(record) | boundary_of.get(record.level, {}) for record in self.levels]


@torch.no_grad()
def evaluate_forest(
    levels: Sequence[LevelSAE] | SAEStack,
    forest: FeatureForest,
    activations: Iterable[torch.Tensor],
    n_tokens: int | None = None,
) -> ForestEvaluation:
    """Measure a stack of levels and its forest on a stream of activations (HSAE §4.2).

    One pass and constant memory. The activations are taken as the SAEs' ``encode`` takes them: if the SAEs
    expect scaled inputs (``normalize_activations="expected_average_only_in"``), scale them or fold the factor first.

    Args:
        levels: one SAE per level, coarse to fine, or one object for all (`HierarchicalSAE`).
        forest: who is whose parent among their features.
        activations: tensors of shape (batch, d_in), of any batch sizes.
        n_tokens: stop after so many; None takes all. SAELens' `ActivationsStore` starts over at its end and
            never stops by itself.

    Raises:
        ValueError: if levels and forest do not fit together, ``activations`` is empty, or a batch has another width
            than d_in or holds NaN or infinity.
        TypeError: if ``levels`` is a single SAE that has no ``level_sae``.
    """
    saes = level_saes(levels)
    _check_fit(saes, forest)
    if n_tokens is not None and n_tokens < 1:
        raise ValueError(f"n_tokens={n_tokens} must be at least 1; use None for all tokens")
    device = saes[0].device
    spread = _SpreadTally()
    level_tallies = [_LevelTally(level, width, device) for level, width in enumerate(forest.level_widths)]
    boundary_tallies = [_BoundaryTally(forest, level, device) for level in range(len(saes) - 1)]
    tokens_at_once = max(1, min(MAX_TOKENS_AT_ONCE, MAX_ELEMENTS_AT_ONCE // forest.level_widths[-1]))

    for x in _chunks(activations, saes[0].cfg.d_in, n_tokens, tokens_at_once):
        x = x.to(device)
        spread.add(x)
        firings = [tally.add(x, sae) for sae, tally in zip(saes, level_tallies, strict=True)]
        for tally, (parents, children) in zip(boundary_tallies, pairwise(firings), strict=True):
            tally.add(parents, children)

    if not spread.n:
        raise ValueError("activations held no token; pass (batch, d_in) tensors, and no iterator that is used up")
    return ForestEvaluation(
        n_tokens=spread.n,
        levels=tuple(tally.result(spread) for tally in level_tallies),
        boundaries=tuple(
            tally.result(spread.n, parents.fires, children.fires)
            for tally, (parents, children) in zip(boundary_tallies, pairwise(level_tallies), strict=True)
        ),
    )


def level_saes(levels: Sequence[LevelSAE] | SAEStack) -> list[LevelSAE]:
    """One SAE per level, coarse to fine, from either form that `evaluate_forest` takes.

    Raises:
        TypeError: if ``levels`` is neither.
    """
    if hasattr(levels, "level_sae"):
        return [levels.level_sae(level) for level in range(len(levels.cfg.level_widths))]  # type: ignore[union-attr]
    if hasattr(levels, "encode"):
        raise TypeError(
            f"levels is a {type(levels).__name__}, which has no level_sae(); pass a list with one SAE per level"
        )
    return list(levels)  # type: ignore[arg-type]


class _Firing:
    """Which features of one level are active on the tokens of a chunk.

    ``active`` is (tokens, width) bool; ``tokens`` and ``features`` list its true entries, about L0 per token.
    Counting over those instead of over the dense table is what makes wide levels cheap.
    """

    def __init__(self, acts: torch.Tensor) -> None:
        self.active = acts > 0
        self.tokens, self.features = self.active.nonzero(as_tuple=True)


class _SpreadTally:
    """Σ‖x − mean‖² over a stream, by merging each chunk's own mean and spread (Chan et al. 1979).

    Subtracting n·mean² from Σx² at the end would lose all digits where the mean is large, as in residual streams.
    """

    def __init__(self) -> None:
        self.n = 0
        self.mean = torch.zeros(())
        self.total = 0.0

    def add(self, x: torch.Tensor) -> None:
        x = _float64(x)
        mean = x.mean(0)
        shift = mean - self.mean.to(mean)
        n = self.n + len(x)
        self.total += ((x - mean).square().sum() + shift.square().sum() * (self.n * len(x) / n)).item()
        self.mean = mean - shift * (self.n / n)
        self.n = n


class _LevelTally:
    def __init__(self, level: int, width: int, device: torch.device) -> None:
        self.level = level
        self.fires = torch.zeros(width, dtype=torch.int64, device=device)
        self.squared_error = 0.0

    def add(self, x: torch.Tensor, sae: LevelSAE) -> _Firing:
        acts = sae.encode(x)
        self.squared_error += (_float64(x) - _float64(sae.decode(acts))).square().sum().item()
        firing = _Firing(acts)
        self.fires += torch.bincount(firing.features, minlength=len(self.fires))
        return firing

    def result(self, spread: _SpreadTally) -> LevelEvaluation:
        if not math.isfinite(self.squared_error):
            raise ValueError(f"level {self.level} reconstructs NaN or infinity; check its weights and its dtype")
        return LevelEvaluation(
            level=self.level,
            width=len(self.fires),
            l0=self.fires.sum().item() / spread.n,
            variance_explained=1 - self.squared_error / spread.total if spread.total else math.nan,
            n_dead=int((self.fires == 0).sum()),
            firing_frequency=_float64(self.fires).cpu() / spread.n,
        )


class _BoundaryTally:
    """Counts per parent and per child; who is dead is known, and left out, only at the end."""

    def __init__(self, forest: FeatureForest, parent_level: int, device: torch.device) -> None:
        parents, children = forest.levels[parent_level], forest.levels[parent_level + 1]
        flat = forest.parents[children].to(device)
        self.parent_level = parent_level
        self.parent_of = torch.where(flat == NO_PARENT, NO_PARENT, flat - parents.start)
        self.together = torch.zeros_like(self.parent_of)
        self.disagreements = self.together.new_zeros(parents.stop - parents.start)

    def add(self, parents: _Firing, children: _Firing) -> None:
        parent = self.parent_of[children.features]
        assigned = parent != NO_PARENT
        token, parent, child = children.tokens[assigned], parent[assigned], children.features[assigned]

        both = parents.active[token, parent]
        self.together += torch.bincount(child[both], minlength=len(self.together))
        predicted = torch.zeros_like(parents.active)
        predicted[token, parent] = True
        _, disagreeing = (predicted ^ parents.active).nonzero(as_tuple=True)
        self.disagreements += torch.bincount(disagreeing, minlength=len(self.disagreements))

    def result(self, n_tokens: int, parent_fires: torch.Tensor, child_fires: torch.Tensor) -> BoundaryEvaluation:
        children = (self.parent_of != NO_PARENT).nonzero().flatten()
        n_pairs = len(children)
        n_unassigned = len(self.parent_of) - n_pairs
        children = children[(child_fires[children] > 0) & (parent_fires[self.parent_of[children]] > 0)]
        parents = self.parent_of[children]
        together = _float64(self.together[children])
        parent_given_child = together / _float64(child_fires[children])
        per_child = torch.full((len(self.parent_of),), math.nan, dtype=torch.float64)
        per_child[children.cpu()] = parent_given_child.cpu()
        has_children = torch.zeros_like(parent_fires, dtype=torch.bool)
        has_children[parents] = True
        return BoundaryEvaluation(
            parent_level=self.parent_level,
            hamming=self.disagreements[has_children].sum().item() / n_tokens,
            hamming_all_parents=self.disagreements[parent_fires > 0].sum().item() / n_tokens,
            p_parent_given_child=parent_given_child.mean().item(),
            p_child_given_parent=(together / _float64(parent_fires[parents])).mean().item(),
            n_pairs=n_pairs,
            n_pairs_left_out=n_pairs - len(children),
            n_parents_with_children=int(has_children.sum()),
            n_unassigned=n_unassigned,
            unassigned_share=n_unassigned / len(self.parent_of),
            parent_given_child=per_child,
        )


def _check_fit(saes: list[LevelSAE], forest: FeatureForest) -> None:
    widths = [sae.cfg.d_sae for sae in saes]
    if widths != list(forest.level_widths):
        raise ValueError(
            f"levels have the widths {widths}, but the forest has level_widths={list(forest.level_widths)}; "
            "give the SAEs coarse to fine, one per level of the forest"
        )
    d_ins = [sae.cfg.d_in for sae in saes]
    if len(set(d_ins)) > 1:
        raise ValueError(f"levels have different d_in {d_ins}; all levels must read the same activations")
    for level, sae in enumerate(saes):
        if getattr(sae, "hook_z_reshaping_mode", False):
            raise ValueError(
                f"level {level} has reshape_activations='hook_z' and takes (n_heads, d_head) activations; "
                "call its turn_off_forward_pass_hook_z_reshaping() and give them flat, as (batch, d_in)"
            )


def _chunks(
    activations: Iterable[torch.Tensor], d_in: int, n_tokens: int | None, tokens_at_once: int
) -> Iterator[torch.Tensor]:
    """The checked batches, cut to at most ``tokens_at_once`` rows and, in sum, to ``n_tokens``."""
    left = math.inf if n_tokens is None else n_tokens
    batches = [activations] if isinstance(activations, torch.Tensor) else activations
    for i, batch in enumerate(batches):
        if batch.ndim != 2 or batch.shape[1] != d_in:
            raise ValueError(
                f"activations: batch {i} has shape {tuple(batch.shape)}, expected (batch, {d_in}), d_in of the levels; "
                "flatten sequences to tokens and take the hook that the SAEs were trained on"
            )
        if not batch.isfinite().all():
            raise ValueError(f"activations: batch {i} holds NaN or infinity; leave out those tokens")
        batch = batch[: min(left, len(batch))]
        yield from batch.split(tokens_at_once) if len(batch) else ()
        left -= len(batch)
        if left <= 0:
            return


def _float64(x: torch.Tensor) -> torch.Tensor:
    # Apple's GPU has no float64.
    return x.cpu().double() if x.device.type == "mps" else x.double()


def _plain(record: LevelEvaluation | BoundaryEvaluation) -> dict[str, Any]:
    values = {f.name: getattr(record, f.name) for f in fields(record) if f.compare}
    return {name: None if isinstance(value, float) and math.isnan(value) else value for name, value in values.items()}


def _cell(value: float | int | None) -> str:
    if value is None:
        return "–"
    return f"{value:.3f}" if isinstance(value, float) else str(value)
