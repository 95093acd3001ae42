"""Absorption, measured directly: a concept is there, its feature is silent, and its child's feature fires instead."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch

from experiments.planted.concept_matching import ConceptMatches, Samples, sample_chunks
from sae_lens_hsae.evaluation.stacks import LevelSAE, SAEStack, level_saes
from sae_lens_hsae.forest import NO_PARENT


@dataclass(frozen=True)
class Absorption:
    """How often a parent's feature is silent where the parent is there and a child's feature fires.

    An occasion is a sample and a true pair (child, parent), both matched, with the parent active and the child's
    feature firing; absorbed are the occasions on which the parent's feature is silent. Shares are over all
    occasions together, and NaN where there is none.

    Attributes:
        within_level: share absorbed, both features in the same level, over all levels.
        across_levels: share absorbed, the parent's feature one level above the child's, over all level boundaries.
        by_level: ``within_level`` of each level, coarse to fine.
        by_boundary: ``across_levels`` of each boundary, coarse to fine.
        n_within: occasions of ``within_level``.
        n_across: occasions of ``across_levels``.
    """

    within_level: float
    across_levels: float
    by_level: tuple[float, ...]
    by_boundary: tuple[float, ...]
    n_within: int
    n_across: int


@torch.no_grad()
def measure_absorption(
    levels: Sequence[LevelSAE] | SAEStack, matches: ConceptMatches, true_parents: torch.Tensor, samples: Samples
) -> Absorption:
    """Measure absorption in one pass over the samples.

    Args:
        levels: the SAEs that ``matches`` are of.
        matches: which concept each feature stands for.
        true_parents: (n_concepts,) integers, each concept's parent, -1 for none.
        samples: as for `match_features`.

    Raises:
        ValueError: if there are no samples, or SAEs, matches, parents and samples do not fit together.
    """
    saes = level_saes(levels)
    check_parents(true_parents, matches.n_concepts)
    if (widths := tuple(sae.cfg.d_sae for sae in saes)) != matches.level_widths:
        raise ValueError(f"levels have the widths {list(widths)}, but matches are of {list(matches.level_widths)}")
    places = [*((level, level) for level in range(len(saes))), *pairwise(range(len(saes)))]
    features = [matches.features_of(level) for level in range(len(saes))]
    pairs = [_found_pairs(features[above], features[below], true_parents) for above, below in places]
    pairs = [pair.to(saes[0].device) for pair in pairs]
    counts = torch.zeros(len(places), 2, dtype=torch.int64, device=saes[0].device)
    for x, concepts in sample_chunks(saes, samples, matches.n_concepts):
        active = [sae.encode(x) != 0 for sae in saes]
        for count, (above, below), (concept, parent, child) in zip(counts, places, pairs, strict=True):
            occasions = concepts[:, concept] & active[below][:, child]
            count += torch.stack([(occasions & ~active[above][:, parent]).sum(), occasions.sum()])
    within, across = counts.cpu().split([len(saes), len(saes) - 1])
    return Absorption(
        within_level=_share(within.sum(0)),
        across_levels=_share(across.sum(0)),
        by_level=tuple(_share(count) for count in within),
        by_boundary=tuple(_share(count) for count in across),
        n_within=int(within[:, 1].sum()),
        n_across=int(across[:, 1].sum()),
    )


def check_parents(true_parents: torch.Tensor, n_concepts: int) -> None:
    """Check that the true parents form trees.

    Raises:
        ValueError: if ``true_parents`` is not (n_concepts,) integers from -1 to n_concepts - 1, or holds a cycle.
    """
    if true_parents.shape != (n_concepts,) or true_parents.is_floating_point() or true_parents.dtype == torch.bool:
        raise ValueError(
            f"true_parents has shape {tuple(true_parents.shape)} and dtype {true_parents.dtype}, but there are "
            f"{n_concepts} concepts; give one integer per concept, -1 for no parent"
        )
    if not ((true_parents >= NO_PARENT) & (true_parents < n_concepts)).all():
        raise ValueError(f"true_parents holds a concept outside 0 … {n_concepts - 1}; write -1 for no parent")
    above = true_parents.detach().to("cpu", torch.int64)
    # Jumping from ancestor to ancestor doubles the way each round: in the end only a cycle is still under way.
    for _ in range(n_concepts.bit_length()):
        above = torch.where(above == NO_PARENT, NO_PARENT, above[above])
    if (above != NO_PARENT).any():
        raise ValueError(f"true_parents leads from concept {int((above != NO_PARENT).int().argmax())} into a cycle")


def _found_pairs(parents: torch.Tensor, children: torch.Tensor, true_parents: torch.Tensor) -> torch.Tensor:
    """(3, n_pairs): parent concept, its feature and the child's feature, of each true pair with both features."""
    true_parents = true_parents.detach().to("cpu", torch.int64)
    child = ((true_parents != NO_PARENT) & (children >= 0)).nonzero().flatten()
    child = child[parents[true_parents[child]] >= 0]
    return torch.stack([true_parents[child], parents[true_parents[child]], children[child]])


def _share(absorbed_and_occasions: torch.Tensor) -> float:
    absorbed, occasions = absorbed_and_occasions.tolist()
    return absorbed / occasions if occasions else math.nan
