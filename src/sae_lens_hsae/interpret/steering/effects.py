"""What an intervention changes, and how much of that is off target."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from sae_lens import SAE

from sae_lens_hsae.forest import FeatureForest
from sae_lens_hsae.interpret.steering.edits import Edit, steps_of
from sae_lens_hsae.interpret.steering.steer import edited, steer
from sae_lens_hsae.text.hook_point import hook_point, run_and_keep, stack_of


@dataclass(frozen=True)
class Effect:
    """Means over tokens; *on* target are those on which the target fires without the edits, *off* all others.

    Attributes:
        n_on, n_off: tokens.
        norm: length of the change of x at the hook point.
        change_on, change_off: relative change of the logits: ‖after − before‖ / ‖before‖.
        kl_on, kl_off: KL divergence of the predictions, without from with the edits, in nats.
        loss_on, loss_off: rise of the cross-entropy of the next token, in nats.
        family_share: of the change of all features' activations at the hook point, the share in the target's
            ancestors and subtree.
    """

    n_on: int
    n_off: int
    norm: float
    change_on: float
    change_off: float
    kl_on: float
    kl_off: float
    loss_on: float
    loss_off: float
    family_share: float


@torch.no_grad()
def effect_of(
    model: Any,
    levels: Sequence[SAE[Any]] | SAE[Any],
    edits: Sequence[Edit],
    tokens: torch.Tensor,
    target: int | str,
    forest: FeatureForest | None = None,
) -> Effect:
    """Run the model on ``tokens`` with and without the edits and compare, on and off the target.

    To compare a coarse with a fine intervention, give both the same ``target`` and, for pushes, the same amount:
    decoder directions have norm 1, so both changes of x have the same ``norm``. Arguments and errors are as of `steer`,
    but no push may be spread over children, and:

    Args:
        tokens: (batch, context); a ValueError if there are none.
        target: the feature, by flat index or name, that says which tokens are on target.
    """
    saes, forest = stack_of(levels, forest)
    target = forest.index(target)
    family = torch.tensor(sorted({*forest.path(target), *forest.subtree(target)}))
    steps = steps_of(edits, saes, forest, None)
    at = hook_point(model, saes)
    if not tokens.numel():
        raise ValueError(f"tokens of shape {tuple(tokens.shape)} are none; give (batch, context)")

    before, kept = run_and_keep(model, tokens, [at])
    with steer(model, saes, edits, forest):
        after = model(tokens)

    x = kept[at]
    x_after = edited(x, saes, steps)
    acts, acts_after = (
        torch.cat([sae.encode(each.to(sae.device, sae.dtype)) for sae in saes], dim=-1) for each in (x, x_after)
    )
    moved = (acts_after - acts).abs().flatten(0, 1).double().sum(0)
    on = (acts[..., target] != 0).cpu()
    change = ((after - before).norm(dim=-1) / before.norm(dim=-1).clamp(min=1e-12)).cpu()
    log_p, log_q = (each.float().log_softmax(-1) for each in (before, after))
    kl = (log_p.exp() * (log_p - log_q)).sum(-1).cpu()
    loss = torch.full(on.shape, math.nan)
    following = tokens[:, 1:, None].to(log_p.device)
    loss[:, :-1] = (log_p - log_q)[:, :-1].gather(-1, following)[..., 0].cpu()
    return Effect(
        n_on=int(on.sum()),
        n_off=int((~on).sum()),
        norm=(x_after - x).norm(dim=-1).mean().item(),
        change_on=change[on].nanmean().item(),
        change_off=change[~on].nanmean().item(),
        kl_on=kl[on].nanmean().item(),
        kl_off=kl[~on].nanmean().item(),
        loss_on=loss[on].nanmean().item(),
        loss_off=loss[~on].nanmean().item(),
        family_share=(moved[family.to(moved.device)].sum() / moved.sum().clamp(min=1e-12)).item(),
    )
