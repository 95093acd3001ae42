"""`Explanation`: the active features of one text, as paths of the forest, as tables and in the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import pandas as pd
import torch
from rich.console import Group
from rich.text import Text
from rich.tree import Tree

from sae_lens_hsae.forest import FeatureForest
from sae_lens_hsae.storage.json_files import printable

N_PATHS = 3


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

    @cached_property
    def entries(self) -> list[dict[int, int]]:
        """For each token the features that fire on it, each with the number of its entry."""
        found: list[dict[int, int]] = [{} for _ in self.tokens]
        for entry, (position, feature) in enumerate(zip(self.positions.tolist(), self.features.tolist(), strict=True)):
            found[position][feature] = entry
        return found

    def paths(self, position: int) -> list[tuple[int, ...]]:
        """The active paths on a token, from their topmost feature down to one that fires.

        A path goes down as far as anything fires; features in between may be silent. Every feature that fires is on
        at least one. Strongest first, by the shares of its features together.
        """
        firing = self.entries[position]
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

    def __rich__(self) -> Group:
        return drawn(self)


def drawn(explanation: Explanation, n_paths: int = N_PATHS) -> Group:
    """What ``rich.print`` shows: per token the level's shares and its strongest active paths, coarse to fine."""
    trees = [_token(explanation, position, n_paths) for position in range(len(explanation.tokens))]
    return Group(*trees, _summary(explanation))


def _token(explanation: Explanation, position: int, n_paths: int) -> Tree:
    token = (_shown(explanation.tokens[position]), "bold reverse")
    if position in explanation.outlying:
        return Tree(Text.assemble(token, ("  left out: outlying, such as an attention sink", "dim")))
    if explanation.level_shares[position].isnan().all():
        return Tree(Text.assemble(token, ("  left out: a position that was not trained on", "dim")))
    shares = [f"level {level} {_percent(share)}" for level, share in enumerate(explanation.level_shares[position])]
    # Text objects: what stands in square brackets in a token or a label is no style.
    tree = Tree(Text.assemble(token, "  " + "  ".join(shares)))
    paths, firing = explanation.paths(position), explanation.entries[position]
    nodes: dict[int, Tree] = {}
    for path in paths[:n_paths]:
        above = tree
        for feature in path:
            if feature not in nodes:
                nodes[feature] = above.add(_feature(explanation, feature, firing.get(feature)))
            above = nodes[feature]
    if len(paths) > n_paths:
        n_shown = sum(feature in firing for feature in nodes)
        rest = f"… {len(paths) - n_paths} more paths, {len(firing) - n_shown} more features"
        tree.add(Text(rest, style="dim"))
    elif not paths:
        tree.add(Text("no feature fires", style="dim"))
    return tree


def _feature(explanation: Explanation, feature: int, entry: int | None) -> Text:
    name, label = explanation.forest.levels.name(feature), _shown(explanation.labels.get(feature, ""))
    if entry is None:
        return Text("  ".join(filter(None, (name, label, "silent"))), style="dim")
    activation, share = explanation.activations[entry].item(), explanation.shares[entry]
    line = Text.assemble(
        (name, "cyan"), f"  {label}" if label else "", f"  {activation:.3g}  ", (_percent(share), "green")
    )
    if explanation.without_parent[entry]:
        line.append("  without its parent", style="yellow")
    return line


def _summary(explanation: Explanation) -> Text:
    assigned = explanation.forest.parents[explanation.features] >= 0
    n, n_without = int(assigned.sum()), int(explanation.without_parent.sum())
    shares = explanation.level_shares.nanmean(0)
    means = "  ".join(f"level {level} {_percent(share)}" for level, share in enumerate(shares))
    n_read = int((~explanation.level_shares.isnan()).any(1).sum())
    return Text(
        f"On {n_read} tokens {n} times a feature with a parent fires, {n_without} times without it. "
        f"Mean share of the activation explained: {means}"
    )


def _shown(text: str) -> str:
    return printable(text).replace("\n", "\\n")


def _percent(share: torch.Tensor) -> str:
    return "–" if share.isnan() else f"{100 * share.item():.0f} %"
