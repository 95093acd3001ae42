"""Rolling differences up the forest: one finding per cause, with its coarsest and its finest feature."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from sae_lens_hsae.forest import FeatureForest

SAME_TOKENS = 0.5
"""Cosine over tokens from which on two features show one cause."""


@dataclass(frozen=True)
class Finding:
    """One difference between the sets, wherever in the forest it shows.

    Attributes:
        coarsest: the topmost feature that carries it.
        finest: the deepest feature below that still holds nearly all of it.
        path: from the coarsest down to the finest.
        n_features: features that differ in the same direction and hang together with these: by edges, or because they
            fire on the same tokens.
        more_in_a: whether the activation is higher in the first set.
        example: of the set in which the activation is higher, the number of the text on which the finest feature is
            strongest, and where in it that is; None where that is not known.
    """

    coarsest: int
    finest: int
    path: tuple[int, ...]
    n_features: int
    more_in_a: bool
    example: tuple[int, int] | None = None


def roll_up(
    forest: FeatureForest,
    significant: torch.Tensor,
    auc: torch.Tensor,
    share_of_parent: torch.Tensor,
    localising_share: float,
) -> list[Finding]:
    """Findings, strongest first by the AUC of their coarsest feature.

    Features that differ in the same direction and are linked by edges are one finding. From its topmost feature the way
    leads down to the child that holds the largest share of the parent's difference, as long as that share is at least
    ``localising_share``; a difference that several children make together stays with their parent. The tensors are
    those of `Contrast`.
    """
    parents = forest.parents
    higher = auc > 0.5
    above = parents.clamp(min=0)
    linked = significant & (parents >= 0) & significant[above] & (higher == higher[above])
    findings = []
    for top in (significant & ~linked).nonzero().flatten().tolist():
        path = [top]
        while below := [child for child in forest.children(path[-1]) if linked[child]]:
            child = max(below, key=lambda each: share_of_parent[each].item())
            if not share_of_parent[child] >= localising_share:
                break
            path.append(child)
        members, n_members = [top], 0
        while members:
            n_members += 1
            members += [child for child in forest.children(members.pop()) if linked[child]]
        findings.append(Finding(top, path[-1], tuple(path), n_members, bool(higher[top])))
    return sorted(findings, key=lambda each: (-abs(auc[each.coarsest].item() - 0.5), each.coarsest))


def join_alike(findings: Sequence[Finding], activations: torch.Tensor) -> list[Finding]:
    """Findings that show the same cause as one: levels repeat each other, and not every repetition has an edge.

    A finding is joined to the strongest one before it that has the same direction and whose coarsest feature fires on
    the same tokens: the cosine of their activations (tokens, findings) is at least `SAME_TOKENS`.
    """
    unit = torch.nn.functional.normalize(activations.double(), dim=0)
    alike = unit.T @ unit >= SAME_TOKENS
    kept: dict[int, Finding] = {}
    for i, finding in enumerate(findings):
        same = (j for j, other in kept.items() if alike[i, j] and other.more_in_a == finding.more_in_a)
        first = next(same, None)
        if first is None:
            kept[i] = finding
        else:
            kept[first] = replace(kept[first], n_features=kept[first].n_features + finding.n_features)
    return list(kept.values())
