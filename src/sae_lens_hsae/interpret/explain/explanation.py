"""`Explanation`: the active features of one text, as paths of the forest and as tables; reading it needs no model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import pandas as pd
import torch

from sae_lens_hsae.forest import FeatureForest


@dataclass(frozen=True, eq=False)
class Explanation:
    """What a stack of SAEs sees in a text. Entries are the pairs (token, feature that fires on it), in that order.

    Attributes:
        forest: of the features.
        text: as it was given.
        tokens: text of each token, with its leading space.
        level_shares: (tokens, levels) float64, see `explain`; NaN where x is the level's bias alone, at positions that
            were not trained on, and on outlying tokens.
        positions: (entries,) the token.
        features: (entries,) the feature, flat.
        activations: (entries,) other than 0.
        shares: (entries,) the feature's part of its level's share; the parts of a level add up to it.
        without_parent: (entries,) bool, whether the feature has a parent and that does not fire.
        labels: text for some of the features, by flat index.
        outlying: positions of tokens that are left out, such as attention sinks.
    """

    forest: FeatureForest = field(repr=False)
    text: str
    tokens: tuple[str, ...] = field(repr=False)
    level_shares: torch.Tensor = field(repr=False)
    positions: torch.Tensor = field(repr=False)
    features: torch.Tensor = field(repr=False)
    activations: torch.Tensor = field(repr=False)
    shares: torch.Tensor = field(repr=False)
    without_parent: torch.Tensor = field(repr=False)
    labels: Mapping[int, str] = field(default_factory=dict, repr=False)
    outlying: tuple[int, ...] = ()

    def entries(self, position: int) -> dict[int, int]:
        """The features that fire on a token, each with the number of its entry."""
        return self._entries[position]

    def paths(self, position: int) -> list[tuple[int, ...]]:
        """The active paths on a token, from their topmost feature down to one that fires.

        A path goes down as far as anything fires; features in between may be silent. Every feature that fires is on
        at least one. Strongest first, by the shares of its features together.
        """
        firing = self.entries(position)
        shares = {feature: self.shares[entry].item() for feature, entry in firing.items()}
        by_end = {feature: tuple(self.forest.path(feature)) for feature in firing}
        inner = {feature for path in by_end.values() for feature in path[:-1]}
        strength = {
            path: sum(shares.get(feature, 0.0) for feature in path) for end, path in by_end.items() if end not in inner
        }
        return sorted(strength, key=lambda path: (-strength[path], path))

    def to_frame(self) -> pd.DataFrame:
        """One row per entry: token, level, feature, its label, activation and share, and its place in the forest."""
        levels = self.forest.levels
        features = self.features.tolist()
        return pd.DataFrame(
            {
                "position": self.positions.numpy(),
                "token": [self.tokens[position] for position in self.positions.tolist()],
                "level": levels.level_of(self.features).numpy(),
                "feature": self.features.numpy(),
                "name": [levels.name(feature) for feature in features],
                "label": [self.labels.get(feature, "") for feature in features],
                "activation": self.activations.numpy(),
                "share": self.shares.numpy(),
                "parent": self.forest.parents[self.features].numpy(),
                "without_parent": self.without_parent.numpy(),
                "path": [" › ".join(levels.name(each) for each in self.forest.path(feature)) for feature in features],
            }
        )

    def levels_to_frame(self) -> pd.DataFrame:
        """One row per token: its text, whether it is left out as outlying, and the share that each level explains."""
        names = [f"level_{level}" for level in range(len(self.forest.levels))]
        frame = pd.DataFrame(self.level_shares.numpy(), columns=names)
        frame.insert(0, "token", self.tokens)
        frame.insert(1, "outlying", [position in self.outlying for position in range(len(self.tokens))])
        return frame.rename_axis("position")

    def __rich__(self) -> Any:
        from sae_lens_hsae.interpret.explain.terminal import drawn

        return drawn(self)

    @cached_property
    def _entries(self) -> list[dict[int, int]]:
        found: list[dict[int, int]] = [{} for _ in self.tokens]
        for entry, (position, feature) in enumerate(zip(self.positions.tolist(), self.features.tolist(), strict=True)):
            found[position][feature] = entry
        return found
