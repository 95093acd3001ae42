"""Does a child mean a special case of what its parent means? The pairs of a forest judged by WordNet.

For every assigned pair whose parent and child both have a concept (`feature_concepts`) it is asked where the child's
concept stands (strictly under the parent's, the same, or neither), whether it is more specific, and how much the two
share. A parent whose concept is ``(anything)`` has every child under it, so no rate means something alone. The control
is the same forest with its pairs shuffled: each child gets another's parent, one that fires about as often.
"""

from __future__ import annotations

import math

import torch

from experiments.wordnet.concepts import FeatureConcepts
from experiments.wordnet.database import NO_CONCEPT, WordNet
from experiments.wordnet.report import BoundaryMeaning, ForestMeaning, PairRates, TreeMeaning
from sae_lens_hsae.evaluation.cluster_bootstrap import resampled_means
from sae_lens_hsae.forest import NO_PARENT, FeatureForest

MIN_PAIRS_PER_TREE = 4
RELATIONS = ("under", "equal", "above", "unrelated")
MEASURES = tuple(PairRates.__dataclass_fields__)
SHARES = MEASURES[:-1]


@torch.no_grad()
def judge_forest(
    concepts: FeatureConcepts,
    forest: FeatureForest,
    *,
    n_shuffles: int = 20,
    parents_per_bin: int = 20,
    n_resamples: int = 2000,
    n_trees: int = 20,
    seed: int = 0,
) -> ForestMeaning:
    """Judge every assigned pair of a forest by the concepts of its features.

    The intervals are 95 % percentiles of a bootstrap over parents.

    Args:
        n_shuffles: how often the pairs are shuffled; a pair's control is the mean over these.
        parents_per_bin: the parents of a level are sorted by firing frequency and this many neighbours make a bin; a
            child gets the parent of another child of its bin.
        n_resamples: of the bootstrap.
        n_trees: how many best and worst trees are named.
        seed: of shuffles and bootstrap.

    Raises:
        ValueError: if forest and concepts do not fit together, or a number is out of range.
    """
    for name, value, least in (
        ("n_shuffles", n_shuffles, 1),
        ("parents_per_bin", parents_per_bin, 2),
        ("n_resamples", n_resamples, 2),
    ):
        if value < least:
            raise ValueError(f"{name}={value} must be at least {least}")
    generator = torch.Generator().manual_seed(seed)
    pairs = _JudgedPairs(concepts, forest)
    control = pairs.shuffled_measures(n_shuffles, parents_per_bin, generator)

    records = []
    for level in [*range(len(forest.levels) - 1), None]:
        here = pairs.of_level(level)
        both = torch.cat([pairs.measures[here], control[here]], dim=1)
        means = resampled_means(both, pairs.parent[here], n_resamples, generator)
        n = len(MEASURES)
        records.append(
            BoundaryMeaning(
                parent_level=level,
                n_pairs=len(pairs.parent[here]),
                n_pairs_left_out=pairs.n_assigned(level) - len(pairs.parent[here]),
                forest=PairRates(*(means.estimate(i, name in SHARES) for i, name in enumerate(MEASURES))),
                shuffled=PairRates(*(means.estimate(n + i, name in SHARES) for i, name in enumerate(MEASURES))),
                gain=PairRates(*(means.difference(i, n + i) for i in range(n))),
                undefined=_reasons(pairs.parent[here], control[here]),
            )
        )
    trees = _trees(concepts, forest, pairs)
    return ForestMeaning(
        boundaries=tuple(records[:-1]),
        overall=records[-1],
        best_trees=tuple(trees[:n_trees]),
        worst_trees=tuple(trees[::-1][:n_trees]),
        n_trees=len(trees),
    )


def relations(wordnet: WordNet, parent_concepts: torch.Tensor, child_concepts: torch.Tensor) -> torch.Tensor:
    """(n,) where each child's concept stands to the parent's, as an index into ``RELATIONS``."""
    relation = torch.full_like(child_concepts, RELATIONS.index("unrelated"))
    relation[wordnet.is_under(parent_concepts, child_concepts)] = RELATIONS.index("above")
    relation[parent_concepts == child_concepts] = RELATIONS.index("equal")
    relation[wordnet.is_under(child_concepts, parent_concepts)] = RELATIONS.index("under")
    return relation


def _measures(wordnet: WordNet, parent_concepts: torch.Tensor, child_concepts: torch.Tensor) -> torch.Tensor:
    """(n, len(MEASURES)) float64: what every pair adds to each mean; NaN where it does not count."""
    relation = relations(wordnet, parent_concepts, child_concepts)
    under, equal = relation == RELATIONS.index("under"), relation == RELATIONS.index("equal")
    common = wordnet.common_hypernyms(torch.stack([parent_concepts, child_concepts], dim=1))
    more_specific = wordnet.information[child_concepts] > wordnet.information[parent_concepts]
    columns = {
        "under": under,
        "equal": equal,
        "neither": ~(under | equal),
        "subsumed": under | equal,
        "more_specific": torch.where(equal, math.nan, more_specific.double()),
        "shared_information": wordnet.information[common],
    }
    return torch.stack([columns[name].double() for name in MEASURES], dim=1)


class _JudgedPairs:
    """The assigned pairs whose members both have a concept.

    ``parent`` and ``child`` (n_pairs,) are flat indices, ``level`` (n_pairs,) the parents' level, ``measures``
    (n_pairs, len(MEASURES)) what they add to the means.
    """

    def __init__(self, concepts: FeatureConcepts, forest: FeatureForest) -> None:
        if forest.levels != concepts.levels:
            raise ValueError(
                f"concepts are of levels of the widths {list(concepts.levels.widths)}, but the forest has "
                f"level_widths={list(forest.level_widths)}; take the concepts of the forest's own levels"
            )
        self.concepts = concepts
        parent, child = forest.edges().T.contiguous()
        self.edge_level = forest.levels.level_of(parent)
        judged = (concepts.concept[parent] != NO_CONCEPT) & (concepts.concept[child] != NO_CONCEPT)
        self.parent, self.child = parent[judged], child[judged]
        self.level = self.edge_level[judged]
        self.measures = self._measures_with(self.parent, self.child)

    def of_level(self, level: int | None) -> torch.Tensor:
        """(n_pairs,) bool: pairs whose parent is of the level; all for None."""
        return torch.ones_like(self.level, dtype=torch.bool) if level is None else self.level == level

    def n_assigned(self, level: int | None) -> int:
        return len(self.edge_level) if level is None else int((self.edge_level == level).sum())

    def shuffled_measures(self, n_shuffles: int, parents_per_bin: int, generator: torch.Generator) -> torch.Tensor:
        """As ``measures``, with other parents: means over the shuffles, NaN for a child that never got another one."""
        bins = _bins(self.parent, self.level, self.concepts.firing_frequency, parents_per_bin)
        total, n = torch.zeros_like(self.measures), torch.zeros_like(self.measures)
        for _ in range(n_shuffles):
            parent = self.parent[_shuffled_within(bins, generator)]
            changed = parent != self.parent
            measures = self._measures_with(parent[changed], self.child[changed])
            total[changed] += measures.nan_to_num(0.0)
            n[changed] += (~measures.isnan()).double()
        return total / n

    @property
    def score(self) -> torch.Tensor:
        """(n_pairs,) the information that parent and child share minus the parent's that the child lacks."""
        return 2 * self.measures[:, MEASURES.index("shared_information")] - self.concepts.information[self.parent]

    def score_per_feature(self) -> torch.Tensor:
        """(n_features,) the score of every child's pair, NaN where none was judged."""
        return torch.full((self.concepts.levels.n_features,), math.nan, dtype=torch.float64).scatter(
            0, self.child, self.score
        )

    def _measures_with(self, parent: torch.Tensor, child: torch.Tensor) -> torch.Tensor:
        concept = self.concepts.concept
        return _measures(self.concepts.wordnet, concept[parent], concept[child])


def _reasons(parent: torch.Tensor, control: torch.Tensor) -> dict[str, str]:
    n_parents = len(parent.unique())
    if n_parents == 0:
        return {"forest": "no assigned pair whose parent and child have a concept"}
    reasons = {}
    if control.isnan().all():
        reasons["shuffled"] = "no bin has 2 parents to exchange"
    if n_parents == 1:
        reasons["intervals"] = "all pairs are of one parent"
    return reasons


def _bins(parent: torch.Tensor, level: torch.Tensor, frequency: torch.Tensor, parents_per_bin: int) -> torch.Tensor:
    """(n_pairs,) which bin each pair is in: parents of one level that fire about equally often.

    A level's parents, sorted by frequency, are cut into bins of ``parents_per_bin`` or a few more, so none is small.
    """
    bin_of = torch.zeros(len(frequency), dtype=torch.int64)
    n_bins = 0
    for this_level in level.unique():
        parents = parent[level == this_level].unique()
        parents = parents[frequency[parents].argsort(stable=True)]
        n_here = max(1, len(parents) // parents_per_bin)
        bin_of[parents] = n_bins + torch.arange(len(parents)) * n_here // len(parents)
        n_bins += n_here
    return bin_of[parent]


def _shuffled_within(bins: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """A random permutation that leaves every element in its bin."""
    shuffled = torch.empty_like(bins)
    # Both list the elements bin by bin: in their own order, and in a random one.
    in_order = bins.argsort(stable=True)
    random_order = torch.randperm(len(bins), generator=generator)
    shuffled[in_order] = random_order[bins[random_order].argsort(stable=True)]
    return shuffled


def _trees(concepts: FeatureConcepts, forest: FeatureForest, pairs: _JudgedPairs) -> list[TreeMeaning]:
    """The roots with enough judged pairs below them, best first."""
    top = torch.arange(forest.n_features)
    parents = forest.parents
    for _, children in forest.levels.boundaries:
        above = parents[children]
        top[children] = torch.where(above == NO_PARENT, top[children], top[above.clamp(min=0)])
    top_of = top[pairs.child]
    n_pairs = torch.bincount(top_of, minlength=forest.n_features)
    subsumed = pairs.measures[:, MEASURES.index("subsumed")]
    n_subsumed = torch.bincount(top_of[subsumed > 0], minlength=forest.n_features)
    mean = torch.zeros(forest.n_features, dtype=torch.float64).index_add(0, top_of, pairs.score) / n_pairs
    score = pairs.score_per_feature()

    roots = forest.roots()
    roots = roots[n_pairs[roots] >= MIN_PAIRS_PER_TREE]
    trees = []
    for root in roots[mean[roots].argsort(descending=True, stable=True)].tolist():
        children = [child for child in forest.children(root) if not math.isnan(score[child])]
        children.sort(key=lambda child: -score[child].item())
        trees.append(
            TreeMeaning(
                root=root,
                concept=concepts.name(root),
                score=mean[root].item(),
                n_pairs=int(n_pairs[root]),
                n_subsumed=int(n_subsumed[root]),
                children=tuple(concepts.name(child) for child in children),
            )
        )
    return trees
