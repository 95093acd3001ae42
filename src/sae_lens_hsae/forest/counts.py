"""How often features fire, and fire together: running shares of tokens, followed while training (HSAE §3.3)."""

from __future__ import annotations

import torch

COACTIVATION_EVERY = 4
"""Steps between two batches that are counted."""

LEAST_WEIGHT = 0.01
"""Of a counted batch in the running shares, which so hold about the last 100 of a long training."""

RECENT = 6
"""Until then they hold the last sixth: features of a short training change faster than 100 batches are counted."""

COST_OF_A_PAIR = 1000
"""What adding one to a cell of a matrix takes, in multiplications of a dense product; measured on a CPU."""


def weight_of_batch(step: int) -> float:
    """How much the batch of a step that is counted weighs in the running shares, in (0, 1].

    After n counted batches it is the larger of `LEAST_WEIGHT` and `RECENT` / (n + `RECENT`), so the first weighs 1.
    """
    return max(LEAST_WEIGHT, RECENT / (step // COACTIVATION_EVERY + RECENT))


@torch.no_grad()
def follow_coactivation(
    running: torch.Tensor, parent_acts: torch.Tensor, child_acts: torch.Tensor, weight: float
) -> None:
    """Move the running share of tokens on which parent and child are both active on by one batch, in place.

    Args:
        running: (n_parents, n_children) float32.
        parent_acts: (batch, n_parents); child_acts: (batch, n_children).
        weight: of the batch (`weight_of_batch`).
    """
    with torch.autocast(running.device.type, enabled=False):
        together = (parent_acts > 0).float().T @ (child_acts > 0).float() / len(parent_acts)
        running.lerp_(together, weight)


@torch.no_grad()
def follow_coactivation_of_entries(
    running: torch.Tensor,
    parents: tuple[torch.Tensor, torch.Tensor],
    children: tuple[torch.Tensor, torch.Tensor],
    batch: int,
    weight: float,
) -> None:
    """The same as `follow_coactivation` from the few (feature, token) that are active.

    Args:
        running: (n_parents, n_children) float32.
        parents, children: features of the level and the tokens on which they are active, two of (n,) int64.
        batch: tokens in the batch.
        weight: of the batch.
    """
    (parent, its_token), (child, token) = parents, children
    children_on = torch.bincount(token, minlength=batch)
    n_pairs = children_on[its_token]
    if COST_OF_A_PAIR * int(n_pairs.sum()) > running.numel() * batch:
        parent_acts, child_acts = running.new_zeros(batch, len(running)), running.new_zeros(batch, running.shape[1])
        parent_acts[its_token, parent] = 1
        child_acts[token, child] = 1
        return follow_coactivation(running, parent_acts, child_acts, weight)
    # Every active parent meets the children of its token, which follow one another once sorted.
    child = child[torch.argsort(token, stable=True)]
    first = children_on.cumsum(0) - children_on
    row = torch.repeat_interleave(n_pairs)
    met = torch.arange(len(row)) + (first[its_token] - (n_pairs.cumsum(0) - n_pairs))[row]
    cells = parent[row] * running.shape[1] + child[met]
    running.mul_(1 - weight)
    share = torch.full((1,), weight / batch).expand(len(cells))
    running.view(-1).index_add_(0, cells, share)
    return None


@torch.no_grad()
def follow_frequency(running: torch.Tensor, times_fired: torch.Tensor, batch: int, weight: float) -> None:
    """Move the running share of tokens on which each feature is active on by one batch, in place.

    Args:
        running: (n_features,) float32.
        times_fired: tokens of the batch on which each feature is active, (n_features,).
        batch: tokens in the batch.
        weight: of the batch.
    """
    running.lerp_(times_fired.to(running.dtype) / batch, weight)
