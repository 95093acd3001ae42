"""Levels, matches and forests of concepts, made by hand or drawn."""

import math
from collections.abc import Sequence

import torch
from hierarchy_reference import jumprelu
from sae_lens import JumpReLUSAE

from experiments.planted.concept_matching import ConceptMatches
from sae_lens_hsae.forest import FeatureForest

# Concepts 0 and 1 are roots, 2 and 3 under 0, 4 and 5 under 1, 6 under 2, and 7 is in no tree.
TRUTH = torch.tensor([-1, -1, 0, 0, 1, 1, 2, -1])


def matches_of(*levels: Sequence[int | None], n_concepts: int = len(TRUTH)) -> ConceptMatches:
    """Features that stand for the given concepts."""
    concepts = torch.tensor([-1 if concept is None else concept for level in levels for concept in level])
    similarity = torch.where(concepts < 0, math.nan, 1.0).double()
    return ConceptMatches(concepts, similarity, tuple(map(len, levels)), n_concepts)


def readouts(*levels: Sequence[int | None], d_in: int = len(TRUTH)) -> list[JumpReLUSAE]:
    """Levels whose features fire where one coordinate of x is positive; never for None."""
    saes = []
    for level in levels:
        sae = jumprelu(d_in, len(level))
        rows = torch.zeros(len(level), d_in, dtype=torch.float64)
        for feature, coordinate in enumerate(level):
            if coordinate is not None:
                rows[feature, coordinate] = 1.0
        sae.W_enc.data, sae.W_dec.data = rows.T.clone(), rows
        saes.append(sae)
    return saes


def random_case(seed: int) -> tuple[FeatureForest, ConceptMatches, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high, (), generator=generator))

    n_concepts, widths = 9, (3, 5, 7, 9)
    truth = torch.tensor([draw(-1, concept) if concept else -1 for concept in range(n_concepts)])
    order = torch.randperm(n_concepts, generator=generator)
    shuffled = torch.full((n_concepts,), -1)
    shuffled[order] = torch.where(truth < 0, -1, order[truth])
    concepts, parents = [], []
    for level, width in enumerate(widths):
        own = torch.randperm(n_concepts, generator=generator)[:width]
        concepts.append([None if draw(0, 3) == 0 else int(concept) for concept in own])
        start = sum(widths[: level - 1])
        parents += [start + draw(0, widths[level - 1]) if level and draw(0, 5) else -1 for _ in range(width)]
    return FeatureForest(parents, widths), matches_of(*concepts, n_concepts=n_concepts), shuffled
