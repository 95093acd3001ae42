"""Do siblings fire on more similar activations than unrelated features?"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from tqdm.auto import tqdm

from sae_lens_hsae.evaluation.cluster_bootstrap import Estimate, resampled_means
from sae_lens_hsae.evaluation.outliers import begun, usual
from sae_lens_hsae.evaluation.stacks import LevelSAE, SAEStack, check_fit, level_saes
from sae_lens_hsae.forest import FeatureForest
from sae_lens_hsae.forest.activations import token_chunks

N_FAMILIES = 100
MAX_PER_FAMILY = 6
"""Siblings of a large family that are drawn."""
N_STRONGEST = 16
"""Tokens per feature."""
TOKENS_AT_ONCE = 1024
N_RESAMPLES = 2000


@dataclass(frozen=True, eq=False)
class SiblingDistances:
    """Mean cosine distance between the activations that trigger a feature and those that trigger others.

    Every feature counts once; the 95 % intervals resample whole families.

    Attributes:
        siblings: to its siblings.
        unrelated: to features of other trees, of the same level.
        difference: the first minus the second; below 0 where siblings lie closer together.
        level: of the features.
        features: (n,) flat indices of the features compared.
        families: (n,) their parents.
    """

    siblings: Estimate
    unrelated: Estimate
    difference: Estimate
    level: int
    features: torch.Tensor = field(repr=False)
    families: torch.Tensor = field(repr=False)

    def __str__(self) -> str:
        n_families = len(self.families.unique())
        return (
            f"cosine distance of triggering activations, {len(self.features)} features of level {self.level} in "
            f"{n_families} families: siblings {self.siblings}, unrelated {self.unrelated}, difference {self.difference}"
        )


@torch.no_grad()
def sibling_distances(
    levels: Sequence[LevelSAE] | SAEStack,
    forest: FeatureForest,
    activations: Iterable[torch.Tensor],
    level: int = -1,
    progress: bool = True,
) -> SiblingDistances:
    """Measure whether siblings are triggered by more similar activations than features of other trees (HSAE §4.2).

    From the 16 strongest tokens of each feature in 100 families drawn at random, of large ones some siblings. A pair of
    features is compared over all pairs of their tokens but those that are one and the same token, which would make
    features that fire together look alike. Outlying tokens are left out: an attention sink is among the strongest of
    nearly every feature. Memory does not grow with the stream.

    Args:
        levels: one SAE per level, coarse to fine, or one object for all (``HierarchicalSAE``).
        activations: (batch, d_in) tensors.
        level: whose features are compared; negative levels count from the finest.

    Raises:
        IndexError: if there is no such level.
        ValueError: if levels and forest do not fit together, there is no token, the level has no siblings, or too few
            of them fire.
    """
    saes = level_saes(levels)
    check_fit(saes, forest)
    level = forest.levels.number(level)
    generator = torch.Generator().manual_seed(0)
    features = _drawn_families(forest, level, N_FAMILIES, generator)
    sae, own = saes[level], features - forest.levels[level].start
    peaks = torch.zeros(len(features), N_STRONGEST)
    numbers = torch.full((len(features), N_STRONGEST), -1)
    x = torch.zeros(len(features), N_STRONGEST, sae.cfg.d_in)
    total, seen = torch.zeros(sae.cfg.d_in, dtype=torch.float64), 0
    first, chunks = begun(token_chunks(activations, sae.cfg.d_in, TOKENS_AT_ONCE))
    if not len(first):
        raise ValueError("activations held no token; pass (batch, d_in) tensors, and no iterator that is used up")
    ordinary = usual(first.float())
    for everything in tqdm(chunks, desc="Siblings", disable=not progress):
        chunk = everything[ordinary.holds(everything.float())]
        acts = sae.encode(chunk.to(sae.device)).float()[:, own.to(sae.device)].abs().T.cpu()
        vectors = chunk.float().cpu()
        values, at = acts.topk(min(N_STRONGEST, len(chunk)), dim=1)
        peaks, best = torch.cat([peaks, values], dim=1).topk(N_STRONGEST, dim=1)
        numbers = torch.cat([numbers, at + seen], dim=1).gather(1, best)
        x = torch.cat([x, vectors[at]], dim=1).gather(1, best[..., None].expand(-1, -1, x.shape[2]))
        total += vectors.double().sum(0)
        seen += len(chunk)

    fires = peaks > 0
    alive = fires.any(1)
    features, fires, numbers, x = features[alive], fires[alive], numbers[alive], x[alive]
    x = (x - (total / max(seen, 1)).float()) * fires[..., None]
    families = forest.parents[features]
    trees = torch.tensor([forest.path(int(feature))[0] for feature in features], dtype=torch.int64)
    alike = (families[:, None] == families) & ~torch.eye(len(features), dtype=torch.bool)
    apart = trees[:, None] != trees
    if not alike.any() or not apart.any():
        raise ValueError(
            f"of the {len(alive)} features drawn from level {level}, {len(features)} fire on these {seen} ordinary "
            "tokens: no two siblings, or none of two trees; give more activations"
        )
    distance = _distances(x, numbers.masked_fill(~fires, -1))
    values = torch.stack([distance.masked_fill(~which, torch.nan).nanmean(1) for which in (alike, apart)], dim=1)
    values[values.isnan().any(1)] = torch.nan  # the same features on both sides
    means = resampled_means(values, families, N_RESAMPLES, generator)
    return SiblingDistances(means.estimate(0), means.estimate(1), means.difference(0, 1), level, features, families)


def _drawn_families(forest: FeatureForest, level: int, n: int, generator: torch.Generator) -> torch.Tensor:
    """Features of a level in families of at least two, at most ``MAX_PER_FAMILY`` of each of ``n`` families."""
    own = forest.levels[level]
    parents = forest.parents[own]
    order = torch.randperm(len(parents), generator=generator)
    parents = parents[order]
    n_children = torch.bincount(parents[parents >= 0], minlength=1)
    several = (n_children > 1).nonzero().flatten()
    if not len(several):
        raise ValueError(f"no parent of level {level}'s features has two children, so there are no siblings to compare")
    drawn = several[torch.randperm(len(several), generator=generator)[:n]]
    features = [order[parents == parent][:MAX_PER_FAMILY] + own.start for parent in drawn]
    return torch.cat(features)


def _distances(x: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    """(n, k, d_in), (n, k) → (n, n) mean cosine distance over pairs of tokens; −1 is none, equal ones are left out."""
    n, k, _ = x.shape
    unit = torch.nn.functional.normalize(x, dim=2).flatten(0, 1)
    flat = numbers.flatten()
    rows = []
    for own, tokens in zip(unit.view(x.shape), numbers, strict=True):
        counts = (tokens[:, None] != flat) & (tokens[:, None] >= 0) & (flat >= 0)
        cosine = (own @ unit.T) * counts
        of_feature = cosine.view(k, n, k).sum((0, 2)) / counts.view(k, n, k).sum((0, 2))  # 0 / 0 is NaN: no such pair
        rows.append(1 - of_feature)
    return torch.stack(rows)
