"""Hierarchy update: with the parameters fixed, every child takes its most similar parent (HSAE §3.3).

The similarity of all pairs, one row per parent and one column per child, is made and read block by block: at a million
features it would have no room.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import torch

from sae_lens_hsae.forest.counts import Counts, PairShares
from sae_lens_hsae.forest.levels import NO_PARENT, Levels
from sae_lens_hsae.storage.json_files import is_count, is_number

BLOCK = 512
"""Parents and children of a block: 1 MiB in float32, which a processor's cache still holds when it is read."""

Z = 1.96
"""Standard deviations on each side of a 95 % confidence interval."""

BREADTH_PENALTY = 2.0
"""How many times its own frequency a parent must make up for; 1 would be chance alone."""

WEAK_SIMILARITY = 0.5
"""Half of the edges of a lower P(parent | child) − 2 P(parent) were unrelated to a reader (docs/edges.md)."""

CLEAR_SIMILARITY = 0.65
"""Edges from this one on were seldom unrelated."""

Similarity = Literal["encoder", "decoder", "coactivation", "conditional"]
MEASURED_ON_ACTIVATIONS = ("coactivation", "conditional")
"""Similarities that parameters alone do not give."""


def check(settings: object, name: str, holds: bool, remedy: str) -> None:
    """Refuse the value of a field that does not hold, with the remedy."""
    if not holds:
        raise ValueError(f"{name}={getattr(settings, name)!r}: {remedy}")


@dataclass(frozen=True)
class ParentRule:
    """Which feature of the level above is a child's parent; the defaults are those of training.

    Attributes:
        similarity: cosine of "encoder" or "decoder" directions, or, measured on activations, "coactivation", the share
            of tokens on which both are active, or "conditional" (`conditional_similarity`).
        minimum_similarity: a child whose best similarity is not above it stays without a parent; None sets no bar.
        unassigned_fraction: share of each level's children, those least similar to any parent, that stay without one.
        max_children: most children of a parent; None sets no limit.

    Raises:
        ValueError: naming the field, its value and the remedy.
    """

    similarity: Similarity = "conditional"
    minimum_similarity: float | None = 0.25
    unassigned_fraction: float = 0.0
    max_children: int | None = None

    def __post_init__(self) -> None:
        share, bar, most = self.unassigned_fraction, self.minimum_similarity, self.max_children
        known = get_args(Similarity)
        check(self, "similarity", self.similarity in known, f"choose one of {', '.join(map(repr, known))}")
        fits = is_number(share) and 0 <= share < 1
        check(self, "unassigned_fraction", fits, "it is a share of the children, at least 0 and below 1")
        fits = most is None or (is_count(most) and most >= 1)
        check(self, "max_children", fits, "use 1 or more, or None for no limit")
        check(self, "minimum_similarity", bar is None or is_number(bar), "give a number, or None for no bar")
        check(
            self,
            "minimum_similarity",
            bar is None or bar < 0.1 or self.similarity != "coactivation",
            'of "coactivation" it is a share of all tokens, which hardly any pair exceeds; use None',
        )

    @property
    def is_measured(self) -> bool:
        """Whether the similarity is measured on activations; weights alone do not give it."""
        return self.similarity in MEASURED_ON_ACTIVATIONS


DEFAULT_RULE = ParentRule()
"""The rule of a training by default."""

PAPER_RULE = ParentRule("encoder", minimum_similarity=None, unassigned_fraction=0.2)
"""The rule as published (HSAE §3.3), by weights alone."""

SimilarityBlock = Callable[[slice, torch.Tensor], torch.Tensor]
"""Maps a slice of m parents and k child indices to their (m, k) similarities; −inf for pairs that cannot be."""


PairTable = torch.Tensor | PairShares
"""A matrix of parents and children of which blocks are read."""


def cosine_similarity(parents: torch.Tensor, children: torch.Tensor, either_sign: bool = False) -> SimilarityBlock:
    """Cosine of encoder columns or decoder rows, (n_parents, d_in) and (n_children, d_in); of norm 0 it is −inf.

    With ``either_sign``, of features that fire with either sign, opposite directions are one.
    """
    p_norm, c_norm = (
        torch.linalg.vector_norm(table, dim=1, dtype=torch.promote_types(table.dtype, torch.float32)).float()
        for table in (parents, children)
    )
    tiny = torch.finfo(torch.float32).tiny
    p_least, c_least = p_norm.clamp(min=tiny)[:, None], c_norm.clamp(min=tiny)[:, None]

    def block(above: slice, below: torch.Tensor) -> torch.Tensor:
        p, c = parents[above].float() / p_least[above], children[below].float() / c_least[below]
        similarity = (p @ c.T).abs_() if either_sign else p @ c.T
        for dim, norm in enumerate((p_norm[above], c_norm[below])):
            # By their few indices: a mask of the block would be one more pass over it.
            similarity.index_fill_(dim, torch.nonzero(norm == 0).squeeze(1), -torch.inf)
        return similarity

    return block


def coactivation_similarity(coactivation: PairTable) -> SimilarityBlock:
    """Share of tokens on which both are active, (n_parents, n_children); −inf where they never are: no pair."""

    def block(above: slice, below: torch.Tensor) -> torch.Tensor:
        together = coactivation[above, below].float()
        return together.masked_fill(together == 0, -torch.inf)

    return block


def conditional_similarity(
    coactivation: PairTable, parent_frequency: torch.Tensor, child_frequency: torch.Tensor, n_tokens: int
) -> SimilarityBlock:
    """P(parent | child) − 2 P(parent): how much likelier the parent is where the child fires (not in the paper).

    Of P(parent | child) it takes the lower end of the 95 % confidence interval (Wilson's): a child that fired once had
    some parent's company by chance. Unlike co-activation it does not favour the parents that fire most. Once P(parent)
    is what chance alone would give. Taken off once more, it keeps a broad parent, of which a child is but a small part,
    from all children that it does not accompany nearly always. A parent is the more general of the two, or as general:
    it fires at least as often as the child. Features that were never active together, or whose parent would be the
    rarer, cannot be a pair (−inf).

    Takes the shares of ``n_tokens`` tokens on which both are active, (n_parents, n_children), and on which each one is:
    (n_parents,), (n_children,).
    """

    def block(above: slice, below: torch.Tensor) -> torch.Tensor:
        together = coactivation[above, below].float()
        of_parents, of_children = parent_frequency[above, None], child_frequency[below]
        raised = lower_end(together / of_children, of_children * n_tokens) - BREADTH_PENALTY * of_parents
        return raised.masked_fill_((together == 0) | (of_parents < of_children), -torch.inf)

    return block


def lower_end(share: torch.Tensor, n: torch.Tensor) -> torch.Tensor:
    """The lower end of Wilson's 95 % confidence interval of a share that was seen in ``n`` cases."""
    doubt = Z**2 / n
    return (share + doubt / 2 - (doubt * share * (1 - share) + doubt**2 / 4).clamp_(min=0).sqrt_()) / (1 + doubt)


def measured_similarities(
    similarity: Similarity, counts: Counts, levels: Levels, device: torch.device | str
) -> Iterator[SimilarityBlock]:
    """The similarity of each level boundary by what was counted, one after the other, as each takes memory."""
    frequency = counts.frequency.to(device)
    for above, below in levels.boundaries:
        together = counts.together(above, below)
        if similarity == "coactivation":
            yield coactivation_similarity(together)
        else:
            yield conditional_similarity(together, frequency[above], frequency[below], counts.n_tokens)


def parent_table(
    similarities: Iterable[SimilarityBlock], levels: Levels, rule: ParentRule, device: torch.device | str = "cpu"
) -> torch.Tensor:
    """The forest of a stack of levels, (n_features,) int64: `choose_parents` at every boundary, coarse to fine."""
    parents = torch.full((levels.n_features,), NO_PARENT, dtype=torch.int64, device=device)
    # In bfloat16, autocast's, many similarities are equal and the forest is another one.
    with torch.autocast(torch.device(device).type, enabled=False):
        for (above, below), similarity in zip(levels.boundaries, similarities, strict=True):
            n_parents, n_children = above.stop - above.start, below.stop - below.start
            quota, room, bar = rule.unassigned_fraction, rule.max_children, rule.minimum_similarity
            chosen = choose_parents(similarity, n_parents, n_children, quota, room, bar, device)
            parents[below] = torch.where(chosen == NO_PARENT, NO_PARENT, chosen + above.start)
    return parents


def choose_parents(
    similarity: SimilarityBlock,
    n_parents: int,
    n_children: int,
    unassigned_fraction: float,
    max_children: int | None = None,
    minimum_similarity: float | None = None,
    device: torch.device | str = "cpu",
) -> torch.Tensor:
    """The parent of every child of one level boundary, (n_children,) int64 within its level, −1 where there is none.

    Each child takes its most similar parent, the first of equals. The ⌊unassigned_fraction · n_children⌋ children whose
    best similarity is lowest stay unassigned, and of equals those of highest index (partial tree); so does a child that
    is similar to nothing, or to no parent by more than ``minimum_similarity``.

    With ``max_children`` a parent keeps the most similar of the children that want it, and the others ask their next
    best parent that has room for them: the one assignment in which no parent and child prefer each other to whom they
    have, which is also that of walking through all pairs from most to least similar. A child that finds no parent stays
    unassigned.
    """
    everyone = torch.arange(n_children, device=device)
    no_bar = torch.full((n_parents,), -torch.inf if minimum_similarity is None else minimum_similarity, device=device)
    best, parent = _best_parent(similarity, everyone, no_bar)
    best_first = torch.argsort(best, descending=True, stable=True)
    # A little more than the product: 0.29 · 100 is 28.999… in floating point, and its floor must be 29.
    n_assigned = n_children - math.floor(unassigned_fraction * n_children + 1e-9)
    unassigned = best_first[n_assigned:]
    parent[unassigned] = NO_PARENT
    if max_children is not None:
        _make_room(similarity, best, parent, no_bar, max_children)
    return parent


def _best_parent(
    similarity: SimilarityBlock, children: torch.Tensor, bar: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Best similarity of each child above the parents' bar, and that parent (−1 if there is none)."""
    lowest = bar.min()
    bars_differ = bool((bar != lowest).any())
    best = lowest.repeat(len(children))
    parent = torch.full_like(children, NO_PARENT)
    for own in (slice(start, start + BLOCK) for start in range(0, len(children), BLOCK)):
        for above in (slice(start, start + BLOCK) for start in range(0, len(bar), BLOCK)):
            block = similarity(above, children[own])
            if bars_differ:
                block.masked_fill_(block <= bar[above, None], -torch.inf)
            # Where the best stands is asked only where there is a better one, which is rare after a few blocks; of
            # equals the first stays.
            highest = block.amax(dim=0)
            better = torch.nonzero(highest > best[own]).squeeze(1)
            if len(better):
                best[own][better] = highest[better]
                parent[own][better] = above.start + block[:, better].max(dim=0).indices
    best[parent == NO_PARENT] = -torch.inf
    return best, parent


def _make_room(
    similarity: SimilarityBlock, best: torch.Tensor, parent: torch.Tensor, no_bar: torch.Tensor, room: int
) -> None:
    """Deferred acceptance, in place: parents reject all but their ``room`` best, and the rejected ask again."""
    while True:
        held = torch.nonzero(parent != NO_PARENT).squeeze(1)
        # By parent, most similar child first; equal ones by index.
        order = held[torch.argsort(best[held], descending=True, stable=True)]
        order = order[torch.argsort(parent[order], stable=True)]
        holder = parent[order]
        counts = torch.bincount(holder, minlength=len(no_bar))
        rank = torch.arange(len(order), device=order.device) - (torch.cumsum(counts, 0) - counts)[holder]
        rejected = order[rank >= room]
        if len(rejected) == 0:
            return
        last_held = rank == room - 1
        bar = no_bar.clone()
        bar[holder[last_held]] = best[order[last_held]]
        best[rejected], parent[rejected] = _best_parent(similarity, rejected, bar)


def is_update_due(step: int, first: int, every: int, freeze_after: int | None = None) -> bool:
    """Whether the forest is recomputed at the start of a training step.

    It is at ``first``, and then whenever the training has become twice as long: features change fastest early on, and a
    run shorter than ``every`` must have a forest too. Once that would be more than ``every`` steps apart it is at every
    multiple of ``every``. Never after ``freeze_after``.
    """
    if step < first or (freeze_after is not None and step > freeze_after):
        return False
    if step > first and step >= every:
        return step % every == 0
    due = first
    while due < step:
        due *= 2
    return due == step
