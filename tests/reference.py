"""The formulas of HSAE as plain loops in float64; shares no code with the package and is slow on purpose.

Arguments are float64 tensors (or parameters, where gradients are wanted). ``parents`` is a list of flat indices with −1
for none, ``slices`` the (start, stop) of every level.
"""

import math
from fractions import Fraction
from itertools import pairwise

import torch


def random_case(widths, d_in, batch, seed, lonely_share=0.2):
    generator = torch.Generator().manual_seed(seed)
    parents, start = [-1] * widths[0], 0
    for above, below in pairwise(widths):
        chosen = start + torch.randint(above, (below,), generator=generator)
        chosen[torch.rand(below, generator=generator) < lonely_share] = -1
        parents += chosen.tolist()
        start += above
    acts = torch.randn(batch, sum(widths), generator=generator, dtype=torch.float64).relu().requires_grad_()
    W_dec = torch.randn(sum(widths), d_in, generator=generator, dtype=torch.float64).requires_grad_()
    return acts, W_dec, torch.tensor(parents)


def children_of(parents, feature):
    return [child for child, parent in enumerate(parents) if parent == feature]


def jumprelu_acts(pre, threshold):
    return torch.where(pre > threshold, pre, torch.zeros_like(pre))


def pre_activations(x, W_enc, b_enc, b_dec, slices, apply_b_dec_to_input):
    columns = []
    for level, (start, stop) in enumerate(slices):
        for feature in range(start, stop):
            shifted = x - b_dec[level] if apply_b_dec_to_input else x
            columns.append((shifted * W_enc[:, feature]).sum(-1) + b_enc[feature])
    return torch.stack(columns, dim=-1)


def reconstruction(acts, W_dec, b_dec, parents, slices, level, replaced=()):
    """Sum of contributions of one level; each replaced feature that has children gives way to the sum of theirs."""
    rows = []
    for token in range(acts.shape[0]):
        total = b_dec[level].clone()
        for feature in range(*slices[level]):
            children = children_of(parents, feature)
            if feature in replaced and children:
                for child in children:
                    total = total + acts[token, child] * W_dec[child]
            else:
                total = total + acts[token, feature] * W_dec[feature]
        rows.append(total)
    return torch.stack(rows)


def structural_loss(acts, W_dec, parents):
    """Mean over tokens of Σ_parents ‖f_parent − Σ f_children‖², parents without children left out."""
    total = torch.zeros((), dtype=torch.float64)
    for token in range(acts.shape[0]):
        for feature in range(acts.shape[1]):
            children = children_of(parents, feature)
            if not children:
                continue
            difference = acts[token, feature] * W_dec[feature]
            for child in children:
                difference = difference - acts[token, child] * W_dec[child]
            total = total + (difference * difference).sum()
    return total / acts.shape[0]


def choose_parents(similarity, unassigned_fraction, max_children=None):
    """Parents of all children given the whole (n_parents, n_children) matrix, as nested lists of floats.

    Without ``max_children`` each child takes its best; the ⌊fraction·n⌋ worst-off stay without. With it, all
    pairs of the children that remain are walked through from most to least similar, and a pair is joined where the
    child is free and the parent has room.
    """
    n_parents, n_children = len(similarity), len(similarity[0])
    best = []
    for child in range(n_children):
        column = [similarity[parent][child] for parent in range(n_parents)]
        best.append((max(column), column.index(max(column))))
    ranked = sorted(range(n_children), key=lambda child: (-best[child][0], child))
    kept = ranked[: n_children - math.floor(Fraction(str(unassigned_fraction)) * n_children)]
    kept = [child for child in kept if best[child][0] != float("-inf")]
    chosen = [-1] * n_children
    if max_children is None:
        for child in kept:
            chosen[child] = best[child][1]
        return chosen
    room = [max_children] * n_parents
    pairs = [(similarity[p][c], c, p) for c in kept for p in range(n_parents) if similarity[p][c] != float("-inf")]
    for _, child, parent in sorted(pairs, key=lambda pair: (-pair[0], pair[1], pair[2])):
        if chosen[child] < 0 and room[parent] > 0:
            chosen[child] = parent
            room[parent] -= 1
    return chosen


def ghost_gradient_loss(error, pre, W_dec, dead):
    """Ghost gradients token by token; scales and ‖output‖² are numbers, not functions of the parameters."""
    total = torch.zeros((), dtype=torch.float64)
    for token in range(error.shape[0]):
        residual = error[token].detach()
        output = torch.zeros_like(residual)
        for feature in range(len(dead)):
            if dead[feature]:
                output = output + torch.exp(pre[token, feature]) * W_dec[feature]
        output = output * (residual.norm().item() / (2 * output.norm().item() + 1e-6))
        ghost = (output**2).sum().item() - 2 * (output * residual).sum() + (residual**2).sum()
        total = total + ghost * ((residual**2).sum().item() / (ghost.item() + 1e-6))
    return total / error.shape[0]


def lower_end(share: torch.Tensor, n: torch.Tensor) -> torch.Tensor:
    """The lower end of a 95 % confidence interval of a share seen in n cases, by Wilson's score."""
    z = 1.96
    half = z * (share * (1 - share) / n + z**2 / (4 * n**2)).sqrt()
    return (share + z**2 / (2 * n) - half) / (1 + z**2 / n)
