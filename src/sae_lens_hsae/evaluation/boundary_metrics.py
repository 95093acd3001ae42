"""The metrics of one level boundary, as formulas over counts.

A level boundary has parents (level l) and children (level l + 1). A feature that never fires in the counted tokens is
neither parent nor child here. Of HSAE §4.2:

- *Hamming distance*: a parent is predicted active on a token where any of its children is; the disagreements with
  its real activity are counted, per token. Its unit is features, so it grows with L0.
- *P(parent | child)* and *P(child | parent)*: each the mean over the assigned pairs. The former is also what
  arXiv 2606.22994 calls activation implication, and S_cov of arXiv 2605.07922, the share of a child's firings that its
  parent covers.

Of arXiv 2606.22994 ("Do Sparse Autoencoders Learn Meaningful Concept Hierarchies?"):

- *Coverage* (refinement frequency): P(some child active | parent active), mean over the parents with children.
- *Dominance*: P(a_parent > a_child | both active), mean over the pairs that are ever active together. An activation
  counts as the norm of its contribution here, a · ‖d‖, so that rescaling decoder rows changes nothing; with rows of
  unit norm it is a itself.

- *Sibling co-activation*: how often siblings fire together, relative to features that fire independently. Over all
  pairs of siblings, Σ P(both) / Σ P(one) P(other): a ratio of sums, as the mean of ratios would be ruled by
  pairs of rare features that met once. The pairs of the level that are no siblings are measured likewise, all of them
  and not a sample, and the *lift* is the first over the second: 1 if being siblings makes no difference.

Of the pairs that are no copies (`copies_of_parents`), those are *weak* whose similarity, P(parent | child) −
2 P(parent), is below 0.5, and *clear* from 0.65 on. Their shares have no intervals: a threshold suits no jackknife.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch

from sae_lens_hsae.forest.parents import BREADTH_PENALTY, CLEAR_SIMILARITY, WEAK_SIMILARITY

WITHOUT_DECODERS = "a level has no decoder rows W_dec, (width, d_in), which tell copies"


class Pairs(NamedTuple):
    """The assigned pairs of a boundary, each member by its number within its level; (n_pairs,) each."""

    parent: torch.Tensor
    child: torch.Tensor


class BoundaryCounts(NamedTuple):
    """What was counted at a boundary, over all tokens or some; (n_parents,) or (n_children,) whole numbers."""

    n_tokens: int  # tokens counted
    parent_fires: torch.Tensor  # tokens on which each parent is active
    child_fires: torch.Tensor  # the same of each child
    predicted: torch.Tensor  # tokens on which some child of the parent is active
    covered: torch.Tensor  # those of them on which the parent is active
    together: torch.Tensor  # tokens on which the child and its parent are active
    dominated: torch.Tensor  # those of them on which the parent's activation is higher
    sibling_meetings: torch.Tensor  # () over tokens, pairs of siblings that are both active
    meetings: torch.Tensor  # () over tokens, pairs of features of the children's level that are both active

    def less(self, part: BoundaryCounts) -> BoundaryCounts:
        """The counts over the tokens that are not in ``part``."""
        left: list[Any] = [own - of_part for own, of_part in zip(self, part, strict=True)]
        return BoundaryCounts(*left)._replace(n_tokens=max(1, self.n_tokens - part.n_tokens))


def living_pairs(pairs: Pairs, counts: BoundaryCounts) -> Pairs:
    living = (counts.parent_fires[pairs.parent] > 0) & (counts.child_fires[pairs.child] > 0)
    return Pairs(pairs.parent[living], pairs.child[living])


def boundary_metrics(pairs: Pairs, counts: BoundaryCounts) -> dict[str, float]:
    """The metrics of a boundary; NaN where there is nothing to average."""
    parent, child = living_pairs(pairs, counts)
    together = float64(counts.together[child])
    has_children = torch.zeros_like(counts.parent_fires, dtype=torch.bool)
    has_children[parent] = True
    disagreements = counts.predicted + counts.parent_fires - 2 * counts.covered
    met = together > 0
    return {
        "hamming": _sum(disagreements[has_children]) / counts.n_tokens,
        "p_parent_given_child": _mean(together / float64(counts.child_fires[child])),
        "p_child_given_parent": _mean(together / float64(counts.parent_fires[parent])),
        "coverage": _mean(float64(counts.covered[has_children]) / float64(counts.parent_fires[has_children])),
        "dominance": _mean(float64(counts.dominated[child])[met] / together[met]),
        **_sibling_metrics(pairs, counts),
    }


def edge_shares(pairs: Pairs, counts: BoundaryCounts, is_copy: torch.Tensor | None) -> dict[str, float]:
    """The kinds of living pairs, given which children are copies, (n_children,) on the CPU; NaN if that is unknown."""
    if is_copy is None:
        return dict.fromkeys(("copy_share", "weak_share", "clear_share"), math.nan)
    parent, child = living_pairs(pairs, counts)
    given_child = float64(counts.together[child]) / float64(counts.child_fires[child])
    similarity = given_child - BREADTH_PENALTY * float64(counts.parent_fires[parent]) / counts.n_tokens
    copies = is_copy[child.cpu()]
    others = similarity.cpu()[~copies]
    return {
        "copy_share": _mean(copies.double()),
        "weak_share": _mean((others < WEAK_SIMILARITY).double()),
        "clear_share": _mean((others >= CLEAR_SIMILARITY).double()),
    }


def _sibling_metrics(pairs: Pairs, counts: BoundaryCounts) -> dict[str, float]:
    fires = float64(counts.child_fires)
    # Expected of features that fire independently: of all pairs, (Σ p)² − Σ p² counts each twice.
    of_siblings = _per_family(pairs, counts, fires).square().sum() - _per_family(pairs, counts, fires.square()).sum()
    of_level = fires.sum().square() - fires.square().sum()
    # Siblings that fire, whether their parent does or not.
    n_siblings = int(_pairs_among(_per_family(pairs, counts, (counts.child_fires > 0).long())).sum())
    n_others = int(_pairs_among((fires > 0).sum())) - n_siblings
    sibling_meetings = counts.sibling_meetings.item()
    other_meetings = counts.meetings.item() - sibling_meetings
    twice = 2 * counts.n_tokens
    siblings = twice * sibling_meetings / of_siblings.item() if n_siblings else math.nan
    others = twice * other_meetings / (of_level - of_siblings).item() if n_others else math.nan
    return {
        "sibling_coactivation": siblings,
        "non_sibling_coactivation": others,
        "sibling_lift": siblings / others if others > 0 else math.nan,
    }


def _per_family(pairs: Pairs, counts: BoundaryCounts, of_children: torch.Tensor) -> torch.Tensor:
    """Sums over the children of each parent."""
    sums = torch.zeros(len(counts.parent_fires), dtype=of_children.dtype, device=of_children.device)
    parent, child = pairs.parent.to(sums.device), pairs.child.to(sums.device)
    return sums.index_add_(0, parent, of_children[child])


def _pairs_among(n: torch.Tensor) -> torch.Tensor:
    return n * (n - 1) // 2


def why_undefined(metric: str, counts: BoundaryCounts, parent_level: int) -> str:
    for level, fires in ((parent_level, counts.parent_fires), (parent_level + 1, counts.child_fires)):
        concerned = level > parent_level or "sibling" not in metric
        if concerned and not fires.any():
            return f"level {level} is dead: none of its {len(fires)} features fires on an ordinary token"
    return {
        "hamming": "no parent that fires has a child that fires",
        "p_parent_given_child": "of no pair do both members fire",
        "p_child_given_parent": "of no pair do both members fire",
        "coverage": "no parent that fires has a child that fires",
        "dominance": "no child is ever active together with its parent",
        "sibling_coactivation": "no parent has two children that fire",
        "non_sibling_coactivation": "all features that fire are siblings",
        "sibling_lift": "there are no two siblings that fire, or no two other features are ever active together",
        "copy_share": "no parent that fires has a child that fires",
        "weak_share": "there is no edge but copies between features that fire",
        "clear_share": "there is no edge but copies between features that fire",
    }[metric]


def float64(x: torch.Tensor) -> torch.Tensor:
    """``x`` in float64, on the CPU if its device is Apple's GPU, which has none."""
    return x.cpu().double() if x.device.type == "mps" else x.double()


def _sum(values: torch.Tensor) -> float:
    return values.sum().item() if len(values) else math.nan


def _mean(values: torch.Tensor) -> float:
    return values.mean().item() if len(values) else math.nan
