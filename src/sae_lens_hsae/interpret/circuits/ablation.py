"""Does a circuit alone carry the behaviour, and does the rest without it? (Marks et al. 2024, §3.2)"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from copy import copy
from typing import Any

import torch

from sae_lens_hsae.interpret.circuits.pairs import Pair, batches_of
from sae_lens_hsae.interpret.circuits.places import Place, places_of
from sae_lens_hsae.text.hook_point import run_and_keep


class Ablation:
    """Runs in which features of one level, outside a circuit, have their mean over the prompts' tokens.

    Means are those over all clean and other prompts. Downstream, what is kept follows what was changed upstream. What
    the level does not reconstruct stays, unless `without_errors` is asked.

    Args:
        model: as for `find_circuit`, like ``forests`` and ``pairs``.
        level: of every forest; −1 is the finest.

    Attributes:
        all: mean logit difference of the model as it is.
        none: the same with the level's features at their means, all of them.

    Raises:
        IndexError: if a forest has no such level.
        ValueError: as `find_circuit`.
    """

    @torch.no_grad()
    def __init__(self, model: Any, forests: Mapping[str, Any], pairs: Sequence[Pair], level: int = -1) -> None:
        self._model, self._keep_errors = model, True
        self._places = {place.own: place for place in places_of(model, forests)}
        self._level = {own: place.level(level) for own, place in self._places.items()}
        first = next(iter(self._places.values()))
        self._batches = batches_of(pairs, model, first.saes[0])
        self._means = self._mean_values()
        runs = [batch.differences(model(batch.clean)) for batch in self._batches]
        self.all = torch.cat(runs).mean().item()
        self.none = self.metric({})

    def without_errors(self) -> Ablation:
        """The same with errors that have their mean, too; faithfulness then asks what features do without them."""
        other = copy(self)
        other._keep_errors = False
        other.none = other.metric({})
        return other

    def metric(self, kept: Mapping[str, Collection[int | str]]) -> float:
        """Mean logit difference with only these features left; others of the level have their mean.

        Args:
            kept: by hook point, features by flat index or name; those of other levels are ignored.

        Raises:
            IndexError: if a feature does not exist.
            ValueError: if there are features, but none of the level, or they are given at another hook point.
        """
        return self._metric(self._left_alone(kept))

    @torch.no_grad()
    def _metric(self, left: Mapping[str, torch.Tensor]) -> float:
        """Of which of the level's features are left, (n_l,) bool by place."""

        def hook_at(own: str, n_before: int) -> Any:
            def hook_function(x: torch.Tensor, hook: Any) -> torch.Tensor:  # noqa: ARG001
                return self._replaced(x, self._places[own], left[own], n_before)

            return hook_function

        total, n = 0.0, 0
        for batch in self._batches:
            with self._model.hooks(fwd_hooks=[(own, hook_at(own, batch.n_before)) for own in self._places]):
                total += batch.differences(self._model(batch.clean)).sum().item()
            n += len(batch.clean)
        return total / n

    def faithfulness(self, kept: Mapping[str, Collection[int | str]]) -> float:
        """(m(C) − m(∅)) / (m(M) − m(∅)): 1 if the circuit is enough, 0 if it does no more than nothing.

        NaN where nothing is lost without the level's features. Argument and errors as of `metric`.
        """
        return self._faithfulness(self._left_alone(kept))

    def completeness(self, circuit: Mapping[str, Collection[int | str]]) -> float:
        """The faithfulness of all but the circuit: 0 if nothing outside carries the behaviour.

        Argument and errors as of `metric`.
        """
        return self._faithfulness({own: ~inside for own, inside in self._left_alone(circuit).items()})

    def _faithfulness(self, left: Mapping[str, torch.Tensor]) -> float:
        lost = self.all - self.none
        return (self._metric(left) - self.none) / lost if lost else math.nan

    def _left_alone(self, kept: Mapping[str, Collection[int | str]]) -> dict[str, torch.Tensor]:
        """Which features of the level are given, (n_l,) bool by place."""
        hooks = [place.hook for place in self._places.values()]
        if strangers := sorted(kept.keys() - set(hooks)):
            raise ValueError(f"features are given at {strangers}; name the hook points as the forests do: {hooks}")
        found = {}
        for own, place in self._places.items():
            left = torch.zeros(len(place.forest), dtype=torch.bool)
            left[[place.forest.index(feature) for feature in kept.get(place.hook, ())]] = True
            found[own] = left[place.forest.levels[self._level[own]]]
        if any(map(len, kept.values())) and not any(left.any() for left in found.values()):
            level = ", ".join(map(str, sorted(set(self._level.values()))))
            raise ValueError(
                f"none of the features given is of level {level}, which is ablated; give features of that level, as "
                "Circuit.at(level) does, or ablate theirs: Ablation(…, level)"
            )
        return found

    def _replaced(self, x: torch.Tensor, place: Place, left: torch.Tensor, n_before: int) -> torch.Tensor:
        flat = x.flatten(2)
        mean_acts, mean_error = self._means[place.own]
        level = self._level[place.own]
        acts = place.acts(flat, level)
        change = ((mean_acts - acts) * ~left.to(acts.device)) @ place.saes[level].W_dec
        if not self._keep_errors:
            change = change + mean_error - place.error(flat, level)
        mask = place.trained_on(x.shape[1], n_before).to(change.device)[:, None]
        return x + (change * mask).to(x).view_as(x)

    def _mean_values(self) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """By place, the mean activations (n_l,) and the mean error (d_in,)."""
        seen: dict[str, list[torch.Tensor]] = {own: [] for own in self._places}
        for batch in self._batches:
            for tokens in (batch.clean, batch.patch):
                if tokens is None:
                    continue
                _, kept = run_and_keep(self._model, tokens, list(self._places))
                for own, place in self._places.items():
                    seen[own].append(kept[own][:, place.trained_on(tokens.shape[1], batch.n_before)].flatten(0, 1))
        means = {}
        for own, place in self._places.items():
            x, level = torch.cat(seen[own]), self._level[own]
            means[own] = (place.acts(x, level).mean(0), place.error(x, level).mean(0))
        return means
