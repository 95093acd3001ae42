"""What patching a feature does to the metric: by gradients, or by doing it (Marks et al. 2024, §3.1).

x = Σ f_i d_i + b + ε at every place and level, so ∂m/∂f_i = ∂m/∂x · d_i, and a straight line between two values of
(f, ε) is one between two values of x: one gradient at a place serves all its levels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch

from sae_lens_hsae.interpret.circuits.circuit import Method
from sae_lens_hsae.interpret.circuits.pairs import Batch
from sae_lens_hsae.interpret.circuits.places import Place
from sae_lens_hsae.text.hook_point import run_and_keep

N_STEPS = 10
"""Points of integrated gradients."""


class Attribution:
    """Effects of features on pairs of one length; `Node.effect` says which sign. Sums over the pairs, not means.

    Args:
        model: as for `places_of`.
        places: where.
        batch: the pairs.
        method: "attribution": the gradient on the clean prompt; "integrated": its mean over ten points on the way from
            the other prompt to the clean one, at one place at a time; "patch": exactly, with a run per feature.
    """

    def __init__(self, model: Any, places: Sequence[Place], batch: Batch, method: Method) -> None:
        self._model, self._batch, self._method = model, batch, method
        names = [place.own for place in places]
        with torch.no_grad():
            logits, self._clean = run_and_keep(model, batch.clean, names)
            self.clean = batch.differences(logits)
            self.patched: torch.Tensor | None = None
            self._patch: Mapping[str, torch.Tensor] = {}
            if batch.patch is not None:
                logits, self._patch = run_and_keep(model, batch.patch, names)
                self.patched = batch.differences(logits)
        self._names = names
        self._integrated: dict[tuple[str, int], torch.Tensor] = {}

    def features(self, place: Place, level: int, features: torch.Tensor) -> torch.Tensor:
        """(k,) effects of features, given by their numbers within the level."""
        change = self._change(place, level)[..., features]
        directions = place.saes[level].W_dec[features].detach()
        if self._method == "patch":
            lost = change.new_zeros(len(features))
            for i in change.flatten(0, 1).any(0).nonzero().flatten().tolist():  # without the rest all is as it was
                lost[i] = self._lost(place, change[..., i, None] * directions[i])
            return lost
        return (change * (self.gradient(place, level) @ directions.T)).sum((0, 1))

    def error(self, place: Place, level: int) -> float:
        """The effect of what the level does not reconstruct."""
        change = self.change_along(place, level, None)
        if self._method == "patch":
            return self._lost(place, change).item()
        return (change * self.gradient(place, level)).sum().item()

    def clean_at(self, place: Place) -> torch.Tensor:
        """(pairs, context, d_in) on the clean prompts."""
        return self._clean[place.own]

    def mask(self, place: Place) -> torch.Tensor:
        """(context, 1) bool: the positions at which something is attributed."""
        x = self._clean[place.own]
        return place.trained_on(x.shape[1], self._batch.n_before).to(x.device)[:, None]

    @torch.no_grad()
    def change_along(self, place: Place, level: int, feature: int | None) -> torch.Tensor:
        """(pairs, context, d_in): what x loses by patching a feature, by its number in the level, or the error."""
        if feature is not None:
            return self._change(place, level)[..., feature, None] * place.saes[level].W_dec[feature]
        change = place.error(self._clean[place.own], level)
        if self._patch:
            change = change - place.error(self._patch[place.own], level)
        return change * self.mask(place)

    @torch.no_grad()
    def _change(self, place: Place, level: int) -> torch.Tensor:
        """(pairs, context, n_l): activations on the clean prompt less those on the other."""
        acts = place.acts(self._clean[place.own], level)
        if self._patch:
            acts = acts - place.acts(self._patch[place.own], level)
        return acts * self.mask(place)

    @torch.no_grad()
    def _lost(self, place: Place, move: torch.Tensor) -> torch.Tensor:
        """The metric's fall, summed over the pairs, where x loses ``move``."""
        return (self.clean - self._run({place.own: self._clean[place.own] - move})).sum()

    def _run(self, instead: Mapping[str, torch.Tensor], added: Mapping[str, torch.Tensor] | None = None) -> Any:
        """(pairs,) the metric, with other activations at some places, and some added to others."""

        def hook_at(name: str) -> Any:
            def hook_function(x: torch.Tensor, hook: Any) -> torch.Tensor:  # noqa: ARG001
                x = instead[name].view_as(x).to(x) if name in instead else x
                return x + added[name].view_as(x) if added and name in added else x

            return hook_function

        with self._model.hooks(fwd_hooks=[(name, hook_at(name)) for name in {*instead, *(added or ())}]):
            return self._batch.differences(self._model(self._batch.clean))

    def gradient(self, place: Place, level: int) -> torch.Tensor:
        """(pairs, context, d_in) of the metric's sum over the pairs."""
        if self._method == "attribution":
            return self._at_clean[place.own]
        # Against zero, the way begins where no feature fires and nothing is left over: at the level's bias.
        key = (place.own, 0 if self._patch else level)
        if key not in self._integrated:
            self._integrated[key] = self._on_the_way(place, level)
        return self._integrated[key]

    @cached_property
    def _at_clean(self) -> dict[str, torch.Tensor]:
        with torch.enable_grad():
            zeros = {name: torch.zeros_like(self._clean[name], requires_grad=True) for name in self._names}
            gradients = torch.autograd.grad(self._run({}, zeros).sum(), list(zeros.values()))
        return dict(zip(self._names, gradients, strict=True))

    def _on_the_way(self, place: Place, level: int) -> torch.Tensor:
        clean = self._clean[place.own]
        start = self._patch.get(place.own)
        if start is None:
            sae = place.saes[level]
            with torch.no_grad():
                bias = sae.decode(clean.new_zeros(1, sae.cfg.d_sae).to(sae.device, sae.dtype)).to(clean)
            start = bias.expand_as(clean)
        start = torch.where(self.mask(place), start, clean)
        total = torch.zeros_like(clean)
        for step in range(N_STEPS):
            x = (start + (step + 0.5) / N_STEPS * (clean - start)).requires_grad_()
            with torch.enable_grad():
                total += torch.autograd.grad(self._run({place.own: x}).sum(), x)[0]
        return total / N_STEPS
