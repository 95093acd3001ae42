"""`steer`: edits of features while a model runs, as a context manager over SAELens' hooked models."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from sae_lens import SAE

from sae_lens_hsae.evaluation.hook_names import LOAD_ANEW
from sae_lens_hsae.forest import FeatureForest
from sae_lens_hsae.interpret.steering.edits import Edit, Step, steps_of
from sae_lens_hsae.text.hook_point import hook_point, stack_of


@contextmanager
def steer(
    model: Any,
    levels: Sequence[SAE[Any]] | SAE[Any],
    edits: Sequence[Edit],
    forest: FeatureForest | None = None,
    typical: torch.Tensor | None = None,
    *,
    rest: torch.Tensor | None = None,
) -> Iterator[None]:
    """While this is open, the model runs with edited features; whatever happens inside, its hooks are then removed.

    Each edited feature moves the activation x along its decoder direction by the change of its activation. What the
    SAE does not reconstruct stays in x, as with SAELens' error term, and so do all other features. Several
    edits of one feature act one after the other. Contexts may be nested; the inner one reads what the outer one left.

    Args:
        model: ``HookedSAETransformer``, ``SAETransformerBridge``, or what ``load_language_model`` gives; without
            an SAE attached at the hook point.
        levels: one SAE per level, coarse to fine, or one object for all (``HierarchicalSAE``), with a hook name.
        edits: what to do.
        forest: of their features; None takes ``levels.forest``.
        typical: (n_features,) typical activations, for a push that is spread over children.
        rest: (d_in,) what is added to x besides.

    Raises:
        IndexError: if a feature does not exist.
        ValueError: if the model has no such hook point, levels, forest and edits do not fit together, or ``rest`` is
            not ``d_in`` wide.

    Warns:
        UserWarning: at the end, if the model did not run or did not come by the hook point.
    """
    saes, forest = stack_of(levels, forest)
    steps = steps_of(edits, saes, forest, typical)
    if rest is not None and rest.shape != (saes[0].cfg.d_in,):
        raise ValueError(f"rest has shape {tuple(rest.shape)}; give one number for each of d_in={saes[0].cfg.d_in}")

    name, came_by = hook_point(model, saes), []

    def change(x: torch.Tensor, hook: Any) -> torch.Tensor:
        came_by.append(hook.name)
        return edited(x, saes, steps, rest)

    with model.hooks(fwd_hooks=[(name, change)]):
        yield
    if not came_by:
        warnings.warn(
            f"nothing came by the hook point {name!r}, so nothing was steered; if the model ran, {LOAD_ANEW}",
            stacklevel=3,
        )


def scales_by_itself(sae: Any) -> bool:
    """Whether an SAE's reconstruction is scaled token by token, or its activations by the decoder's norms."""
    scaled = sae.cfg.normalize_activations in {"layer_norm", "constant_norm_rescale"}
    return scaled or getattr(sae.cfg, "rescale_acts_by_decoder_norm", False)


def edited(
    x: torch.Tensor, saes: Sequence[Any], steps: Sequence[Step], rest: torch.Tensor | None = None
) -> torch.Tensor:
    """x, (…, d_in) or (…, heads, d_head), else a ValueError, with the steps' changes and ``rest`` (d_in,)."""
    d_in = saes[0].cfg.d_in
    flat = x if x.shape[-1] == d_in else x.flatten(-2)
    if flat.shape[-1] != d_in:
        raise ValueError(f"activations of shape {tuple(x.shape)} do not fit d_in={d_in}; load the SAEs' own model")
    change = torch.zeros_like(flat)
    for level in sorted({step.level for step in steps}):
        sae = saes[level]
        before = sae.encode(flat.to(sae.device, sae.dtype))
        after = before.clone()
        for step in (step for step in steps if step.level == level):
            features = step.features.to(after.device)
            after[..., features] = step.changed(after[..., features])
        if scales_by_itself(sae):
            with_before = sae.decode(before)
            sae.encode(flat.to(sae.device, sae.dtype))  # decoding forgets the scale of what was encoded
            change += (sae.decode(after) - with_before).to(change)
            continue
        touched = torch.cat([step.features for step in steps if step.level == level]).unique().to(after.device)
        change += ((after - before)[..., touched] @ sae.W_dec[touched]).to(change)
    if rest is not None:
        change += rest.to(change)
    return (flat + change).view_as(x)
