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

    ``method`` is "attribution", the gradient on the clean prompt; "integrated", its mean over ten points on the way
    from the other prompt to the clean one, at one place at a time; or "patch", exactly, with a run per feature.
    """

    def __init__(self, model: Any, places: Sequence[Place], batch: Batch, method: Method) -> None:
        self._model, self._batch, self._method = model, batch, method
        names = [place.own for place in places]
        with torch.no_grad():
            logits, self.clean_x = run_and_keep(model, batch.clean, names)
            self.clean = batch.differences(logits)
            self.patched: torch.Tensor | None = None
            self._patch: Mapping[str, torch.Tensor] = {}
            if batch.patch is not None:
                logits, self._patch = run_and_keep(model, batch.patch, names)
                self.patched = batch.differences(logits)
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
        return (change * (self.gradient(place, level).to(directions) @ directions.T)).sum((0, 1))

    def error(self, place: Place, level: int) -> float:
        """The effect of what the level does not reconstruct."""
        change = self.change_along(place, level, None)
        if self._method == "patch":
            return self._lost(place, change).item()
        return (change * self.gradient(place, level).to(change.device)).sum().item()

    def mask(self, place: Place) -> torch.Tensor:
        """(context, 1) bool: the positions at which something is attributed."""
        x = self.clean_x[place.own]
        return place.trained_on(x.shape[1], self._batch.n_before).to(x.device)[:, None]

    @torch.no_grad()
    def change_along(self, place: Place, level: int, feature: int | None) -> torch.Tensor:
        """(pairs, context, d_in): what x loses by patching a feature, by its number in the level, or the error."""
        if feature is not None:
            return self._change(place, level)[..., feature, None] * place.saes[level].W_dec[feature]
        change = place.error(self.clean_x[place.own], level)
        if self._patch:
            change = change - place.error(self._patch[place.own], level)
        return change * self.mask(place).to(change.device)

    @torch.no_grad()
    def _change(self, place: Place, level: int) -> torch.Tensor:
        """(pairs, context, n_l): activations on the clean prompt less those on the other."""
        acts = place.acts(self.clean_x[place.own], level)
        if self._patch:
            acts = acts - place.acts(self._patch[place.own], level)
        return acts * self.mask(place).to(acts.device)

    @torch.no_grad()
    def _lost(self, place: Place, move: torch.Tensor) -> torch.Tensor:
        """The metric's fall, summed over the pairs, where x loses ``move``."""
        return (self.clean - self._run({place.own: -move})).sum()

    def _run(self, added: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """(pairs,) the metric on the clean prompts, with something added to x at some places."""

        def hook_at(change: torch.Tensor) -> Any:
            # TransformerLens gives the hook by its name.
            return lambda x, hook: x + change.view_as(x).to(x)  # noqa: ARG005

        with self._model.hooks(fwd_hooks=[(name, hook_at(change)) for name, change in added.items()]):
            return self._batch.differences(self._model(self._batch.clean))

    @torch.enable_grad()
    def _gradients(self, added: Mapping[str, torch.Tensor]) -> list[torch.Tensor]:
        changes = {name: change.requires_grad_() for name, change in added.items()}
        return list(torch.autograd.grad(self._run(changes).sum(), list(changes.values())))

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
        zeros = {name: torch.zeros_like(x) for name, x in self.clean_x.items()}
        return dict(zip(zeros, self._gradients(zeros), strict=True))

    def _on_the_way(self, place: Place, level: int) -> torch.Tensor:
        clean = self.clean_x[place.own]
        start = self._patch.get(place.own)
        if start is None:
            sae = place.saes[level]
            with torch.no_grad():
                bias = sae.decode(clean.new_zeros(1, sae.cfg.d_sae).to(sae.device, sae.dtype)).to(clean)
            start = bias.expand_as(clean)
        way = (start - clean) * self.mask(place)
        shares = [(step + 0.5) / N_STEPS for step in range(N_STEPS)]
        return sum((self._gradients({place.own: share * way})[0] for share in shares), torch.zeros_like(way)) / N_STEPS
