"""Forests at the places of a model that they read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import torch

from sae_lens_hsae.evaluation.hook_names import own_name
from sae_lens_hsae.forest import FeatureForest
from sae_lens_hsae.forest.model_names import same_model
from sae_lens_hsae.forest.stack_checks import metadata
from sae_lens_hsae.interpret.circuits.circuit import Node
from sae_lens_hsae.text.as_trained import positions
from sae_lens_hsae.text.hook_point import hook_point, run_and_keep, stack_of


@dataclass(frozen=True)
class Place:
    """A forest at its hook point."""

    hook: str  # the name it was given by
    own: str  # the model's own name of it
    saes: tuple[Any, ...]  # one per level, coarse to fine
    forest: FeatureForest

    def level(self, level: int) -> int:
        """A level's number from 0; negative ones count from the finest. An IndexError names the hook point."""
        try:
            return self.forest.levels.number(level)
        except IndexError as error:
            raise IndexError(f"{self.hook}: {error}") from None

    def node(self, level: int, feature: int, effect: float) -> Node:
        name, parent = self.forest.levels.name(feature), self.forest.parent(feature)
        return Node(self.hook, level, feature, name, effect, parent=parent)

    def acts(self, x: torch.Tensor, level: int) -> torch.Tensor:
        """(…, d_in) → (…, n_l): the activations of one level."""
        sae = self.saes[level]
        return sae.encode(x.to(sae.device, sae.dtype))

    def error(self, x: torch.Tensor, level: int) -> torch.Tensor:
        """(…, d_in): what the level does not reconstruct."""
        sae = self.saes[level]
        return x.to(sae.device, sae.dtype) - sae.decode(self.acts(x, level))

    def trained_on(self, n_positions: int, n_before: int) -> torch.Tensor:
        """(positions,) bool: those that hold text, and were trained on."""
        own = torch.zeros(n_positions, dtype=torch.bool)
        own[positions(self.saes[0].cfg.metadata)] = True
        own[:n_before] = False
        return own


def places_of(model: Any, forests: Mapping[str, Any]) -> list[Place]:
    """The places, in the order in which the forests are given, by hook point.

    A ValueError if there is none, one has no forest or was trained at another hook point than it is given for, they are
    of different models or stand at the same place, or the model has no such hook point.
    """
    check_one_model(forests)
    found = []
    for hook, levels in forests.items():
        saes, forest = stack_of(levels, None)
        reads = metadata(levels, "hook_name")
        if reads is not None and own_name(model, reads) != own_name(model, hook):
            raise ValueError(f"the forest given for {hook!r} was trained at {reads!r}; name it so")
        for sae in saes:
            sae.cfg.metadata.hook_name = hook
        found.append(Place(hook, hook_point(model, saes), tuple(saes), forest))
    owns = [place.own for place in found]
    if len(set(owns)) < len(owns):
        raise ValueError(f"two forests stand at one hook point, {max(owns, key=owns.count)!r}; give one for each")
    return found


def in_order(model: Any, places: Sequence[Place], tokens: torch.Tensor) -> list[Place]:
    """The places as the model comes by them on tokens (batch, context), which is not how it lists its hook points."""
    if len(places) == 1:
        return list(places)
    came_by = list(run_and_keep(model, tokens, [place.own for place in places])[1])
    return sorted(places, key=lambda place: came_by.index(place.own))


def total_features(places: Sequence[Place]) -> tuple[int, ...]:
    """Features of each level, all places together."""
    return tuple(map(sum, zip_longest(*(place.forest.level_widths for place in places), fillvalue=0)))


def check_one_model(forests: Mapping[str, Any]) -> None:
    """Check, before the model is loaded, that there are forests, and all read the same model; by any names."""
    if not forests:
        raise ValueError("forests is empty; give at least one, by hook point")
    for hook, levels in forests.items():
        if not hasattr(levels, "forest"):
            raise ValueError(
                f"forests[{hook!r}] is a {type(levels).__name__} without a .forest; circuits take models that "
                "have one, such as a HierarchicalSAE"
            )
    trained = {own: metadata(levels, "model_name") for own, levels in forests.items()}
    names = [name for name in trained.values() if name is not None]
    if not all(same_model(names[0], name) for name in names[1:]):
        listed = ", ".join(f"{own} reads {name!r}" for own, name in trained.items())
        raise ValueError(f"the forests read different models: {listed}; give forests of one model")
