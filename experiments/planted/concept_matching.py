"""Which features of a stack of SAEs stand for which concepts of a known generator.

A *concept* is a feature of the generator that made the activations. Within a level each is matched to at most one
feature and each feature to at most one concept, by the Hungarian algorithm; across levels a coarse concept
legitimately reappears, so it may have a feature in every level.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from scipy.optimize import linear_sum_assignment

from sae_lens_hsae.evaluation.stacks import LevelSAE, SAEStack, level_saes
from sae_lens_hsae.forest.levels import Levels
from sae_lens_hsae.forest.stack_checks import check_same_input

NO_CONCEPT = -1
FLOOR = 0.5
"""Similarity below which a feature stands for no concept."""

ROWS_AT_ONCE = 1024

Samples = Iterable[tuple[torch.Tensor, torch.Tensor]]
"""Pairs of activations (batch, d_in) and the concepts behind them (batch, n_concepts), active where above 0."""


@dataclass(frozen=True, eq=False)
class ConceptMatches:
    """Which concept each feature stands for; within a level no two features share one.

    Attributes:
        concept_of: (n_features,) int64, flat as in the forest; -1 for a feature without a concept.
        similarity: (n_features,) float64, of the feature to its concept; NaN without one.
        level_widths: number of features of each level, coarse to fine.
        n_concepts: how many concepts there are.
    """

    concept_of: torch.Tensor
    similarity: torch.Tensor = field(repr=False)
    level_widths: tuple[int, ...]
    n_concepts: int

    def features_of(self, level: int) -> torch.Tensor:
        """(n_concepts,) each concept's feature, counted within ``level``; -1 for none."""
        concepts = self.concept_of[Levels(self.level_widths)[level]]
        features = torch.full((self.n_concepts,), -1)
        matched = (concepts != NO_CONCEPT).nonzero().flatten()
        features[concepts[matched]] = matched
        return features


@torch.no_grad()
def match_features(levels: Sequence[LevelSAE] | SAEStack, samples: Samples) -> ConceptMatches:
    """Match features to concepts by when they are active.

    Similarity is φ, the Pearson correlation of the two 0/1 firings; per level the Hungarian algorithm maximises its
    sum over one-to-one pairs of at least `FLOOR`. What never fires, or always, is matched to nothing. One pass;
    memory holds one (width, n_concepts) table of counts per level.

    Args:
        levels: one SAE per level, coarse to fine, or one object for all (`HierarchicalSAE`).
        samples: activations, as the SAEs' ``encode`` takes them, with their concepts.

    Raises:
        ValueError: if there are no samples, or they do not fit the SAEs.
        TypeError: if ``levels`` is a single SAE that has no ``level_sae``.
    """
    saes = level_saes(levels)
    widths = tuple(sae.cfg.d_sae for sae in saes)
    zeros: dict[str, Any] = {"dtype": torch.int64, "device": saes[0].device}
    fires = [torch.zeros(width, **zeros) for width in widths]
    concept_fires, together, n = torch.zeros(0, **zeros), list[torch.Tensor](), 0
    for x, concepts in sample_chunks(saes, samples):
        if not n:
            concept_fires = torch.zeros(concepts.shape[1], **zeros)
            together = [torch.zeros(width, concepts.shape[1], **zeros) for width in widths]
        n += len(x)
        concept_fires += concepts.sum(0)
        active_concepts = concepts.float()
        for sae, own_fires, own_together in zip(saes, fires, together, strict=True):
            active = sae.encode(x) != 0
            own_fires += active.sum(0)
            # Sums of at most ROWS_AT_ONCE ones, which float32 holds exactly.
            own_together += (active.float().T @ active_concepts).to(torch.int64)
    similarities = (
        _phi(own_together, own_fires, concept_fires, n) for own_together, own_fires in zip(together, fires, strict=True)
    )
    return _matched(similarities, widths, len(concept_fires))


def sample_chunks(
    saes: Sequence[LevelSAE], samples: Samples, n_concepts: int | None = None
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Checked samples on the SAEs' device, at most `ROWS_AT_ONCE` at a time.

    Args:
        saes: what is to read the activations.
        samples: in batches of any size.
        n_concepts: how many every batch must have; None takes the first batch's.

    Yields:
        Activations (rows, d_in), and which concepts are active (rows, n_concepts) bool.

    Raises:
        ValueError: if there is no sample, the SAEs read different activations, or a batch does not fit them or holds
            NaN or infinity.
    """
    check_same_input(saes)
    d_in, device, empty = saes[0].cfg.d_in, saes[0].device, True
    for i, (x, concepts) in enumerate(samples):
        n_concepts = concepts.shape[-1] if n_concepts is None else n_concepts
        if x.ndim != 2 or x.shape[1] != d_in or concepts.shape != (len(x), n_concepts):
            raise ValueError(
                f"samples: batch {i} has activations of shape {tuple(x.shape)} and concepts of shape "
                f"{tuple(concepts.shape)}, expected (batch, {d_in}) and (batch, {n_concepts})"
            )
        if not x.isfinite().all():
            raise ValueError(f"samples: batch {i} holds NaN or infinity")
        for rows, own in zip(x.split(ROWS_AT_ONCE), concepts.split(ROWS_AT_ONCE), strict=True):
            if len(rows):
                empty = False
                yield rows.to(device), (own > 0).to(device)
    if empty:
        raise ValueError("samples held nothing; pass (activations, concepts) pairs, and no iterator that is used up")


def _phi(together: torch.Tensor, fires: torch.Tensor, concept_fires: torch.Tensor, n: int) -> torch.Tensor:
    """φ of features and concepts, (width, n_concepts) float64 on the CPU; 0 where one of them never or always fires."""
    both, rows, columns = (counts.cpu().double() for counts in (together, fires, concept_fires))
    spread = torch.outer((rows * (n - rows)).sqrt(), (columns * (n - columns)).sqrt())
    covariance = both.mul_(n).sub_(torch.outer(rows, columns))
    return torch.where(spread > 0, covariance / spread, 0.0)


def _matched(similarities: Iterable[torch.Tensor], widths: tuple[int, ...], n_concepts: int) -> ConceptMatches:
    levels = Levels(widths)
    concept_of = torch.full((levels.n_features,), NO_CONCEPT)
    similarity = torch.full((levels.n_features,), math.nan, dtype=torch.float64)
    for own, level in zip(similarities, levels, strict=True):
        # Pairs under the floor are worth nothing from the start: dropped only afterwards, they would cost good ones.
        worth = torch.where(own >= FLOOR, own, 0.0)
        rows, columns = worth.any(1).nonzero().flatten(), worth.any(0).nonzero().flatten()
        worth = worth[rows][:, columns]
        row, column = (torch.from_numpy(index) for index in linear_sum_assignment(worth.numpy(), maximize=True))
        kept = worth[row, column] > 0
        row, column = row[kept], column[kept]
        concept_of[level.start + rows[row]] = columns[column]
        similarity[level.start + rows[row]] = worth[row, column]
    return ConceptMatches(concept_of, similarity, widths, n_concepts)
