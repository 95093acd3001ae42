"""`explain`: one text, token by token, as a stack of SAEs sees it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from sae_lens import SAE

from sae_lens_hsae.evaluation.outliers import FEWEST_TOKENS, usual
from sae_lens_hsae.forest import NO_PARENT, FeatureForest
from sae_lens_hsae.interpret.explain.explanation import Explanation
from sae_lens_hsae.interpret.labels.files import Labels, by_feature
from sae_lens_hsae.text.as_trained import begins_bare
from sae_lens_hsae.text.as_trained import positions as trained_positions
from sae_lens_hsae.text.hook_point import check_length, device_of, hook_point, ids_of_text, run_and_keep, stack_of
from sae_lens_hsae.text.token_text import TokenTexts, whole_characters


@torch.no_grad()
def explain(
    levels: Sequence[SAE[Any]] | SAE[Any],
    model: Any,
    text: str,
    forest: FeatureForest | None = None,
    labels: Labels | None = None,
) -> Explanation:
    """Which features fire on each token of a text, and how much of the activation they explain.

    Let x be the activation on a token and b what a level reconstructs when none of its features fires. With s the sum
    of what its active features add, the level's share is

        1 − ‖x − b − s‖² / ‖x − b‖²,

    1 for a perfect reconstruction, 0 for one no better than b, below 0 for a worse one. The part of a single feature,
    which adds s_f, is ⟨s_f, 2 (x − b) − s⟩ / ‖x − b‖². It is the feature's Shapley value: the mean of what it adds to
    the share over all orders in which the features could be added. So the parts of a level add up to its share; that
    of a feature that makes the reconstruction worse is below 0.

    Args:
        levels: as of `steer`, like ``forest`` and ``model``, which has a tokenizer.
        text: at most as long as the model takes. The token that stood before texts in training is put before it and
            not explained, and neither are tokens at positions that training left out (``seqpos_slice``), nor outlying
            ones, such as attention sinks and a first position with nothing before it: what fires there is about the
            place, not about the word.
        labels: text for some of the features, by flat index or name.

    Raises:
        TypeError: if ``text`` is no text.
        ValueError: as `steer`, or if the text has no token, or too many, the model has no tokenizer, what stands at the
            hook point is of another width or holds NaN or infinity, or labels do not fit.
    """
    saes, forest = stack_of(levels, forest)
    name = hook_point(model, saes)
    start, ids = _ids(model, saes[0], text)
    own_labels = by_feature(labels, forest.index)

    tokens = torch.tensor([[*start, *ids]], device=device_of(model))
    _, kept = run_and_keep(model, tokens, [name])
    x = kept[name][0, len(start) :]
    if x.shape[-1] != saes[0].cfg.d_in:
        raise ValueError(
            f"the model's activations at {name} are {x.shape[-1]} wide, but d_in={saes[0].cfg.d_in}; "
            "load the SAEs' own model"
        )
    if not x.isfinite().all():
        raise ValueError(f"the model's activations at {name} hold NaN or infinity on this text; load it in float32")

    level_shares, acts, shares = (
        torch.cat(each, dim=1) for each in zip(*(_level(sae, x) for sae in saes), strict=True)
    )
    read = range(len(start) + len(ids))[trained_positions(saes[0].cfg.metadata)]
    unread = [position for position in range(len(ids)) if position + len(start) not in read]
    outlying = _outlying(x)
    if begins_bare(saes[0].cfg.metadata, start):
        outlying[0] = True
    level_shares[unread], acts[unread] = torch.nan, 0
    level_shares[outlying], acts[outlying] = torch.nan, 0
    positions, features = acts.nonzero(as_tuple=True)
    parents = forest.parents[features]
    texts = TokenTexts(model.tokenizer)
    return Explanation(
        forest=forest,
        text=text,
        tokens=tuple(whole_characters([texts[id_] for id_ in ids])),
        level_shares=level_shares,
        positions=positions,
        features=features,
        activations=acts[positions, features],
        shares=shares[positions, features],
        without_parent=(parents != NO_PARENT) & (acts[positions, parents.clamp(min=0)] == 0),
        labels=own_labels,
        outlying=tuple(outlying.nonzero().flatten().tolist()),
    )


def _outlying(x: torch.Tensor) -> torch.Tensor:
    """Which tokens of a text (tokens, d_in) are outlying, (tokens,) bool; a short text has no usual distance."""
    if len(x) < FEWEST_TOKENS:
        return torch.zeros(len(x), dtype=torch.bool)
    return ~usual(x.float()).holds(x.float()).cpu()


def check_text(text: str, name: str = "text") -> None:
    """Refuse, without a model, what is no text (TypeError) or empty (ValueError)."""
    if not isinstance(text, str):
        raise TypeError(f"{name} is a {type(text).__name__}; give one text, and call explain() for each of several")
    if not text:
        raise ValueError(f"{name}='' has no token; give a text with words")


def _ids(model: Any, sae: Any, text: str) -> tuple[list[int], list[int]]:
    check_text(text)
    start, ids = ids_of_text(model, sae, text)
    if not ids:
        raise ValueError(f"the text {text!r} has no token; give a text with words")
    check_length(model, len(start) + len(ids), "text")
    return start, ids


def _level(sae: Any, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The level's share (tokens, 1), its activations and its features' parts (tokens, features); on the CPU."""
    x = x.to(sae.device, sae.dtype)
    acts = sae.encode(x)
    reconstruction = sae.decode(acts).float()
    # Once more, because an SAE that scales x itself forgets the scale when it decodes.
    without = sae.decode(torch.zeros_like(sae.encode(x))).float()
    rest, added = x.float() - without, reconstruction - without
    directions = sae.W_dec.float()
    plain = acts.float() @ directions
    # 1, except in an SAE that scales x itself.
    unit = (added * plain).sum(1, keepdim=True) / (plain * plain).sum(1, keepdim=True)
    unit = unit.nan_to_num(nan=1.0)
    norm = (rest * rest).sum(1, keepdim=True).double()
    share = 1 - (rest - added).square().sum(1, keepdim=True).double() / norm
    parts = unit * acts.float() * ((2 * rest - added) @ directions.T)
    return share.cpu(), acts.float().cpu(), (parts.double() / norm).cpu()
