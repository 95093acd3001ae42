"""An explanation in the terminal: a tree of the active paths below every token."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from rich.console import Group
from rich.text import Text
from rich.tree import Tree

from sae_lens_hsae.storage.json_files import printable

if TYPE_CHECKING:
    from sae_lens_hsae.interpret.explain.explanation import Explanation

N_PATHS = 3


def drawn(explanation: Explanation, n_paths: int = N_PATHS) -> Group:
    """What ``rich.print`` shows: per token the level's shares and its strongest active paths, coarse to fine.

    Args:
        explanation: of a text.
        n_paths: most paths per token; how many more there are is said.

    Raises:
        ValueError: if ``n_paths`` is not positive.
    """
    if n_paths < 1:
        raise ValueError(f"n_paths={n_paths} must be at least 1")
    trees = [_token(explanation, position, n_paths) for position in range(len(explanation.tokens))]
    return Group(*trees, _summary(explanation))


def _token(explanation: Explanation, position: int, n_paths: int) -> Tree:
    if position in explanation.outlying:
        token = (_shown(explanation.tokens[position]), "bold reverse")
        return Tree(Text.assemble(token, ("  left out: outlying, such as an attention sink", "dim")))
    shares = [f"level {level} {_percent(share)}" for level, share in enumerate(explanation.level_shares[position])]
    # Text objects: what stands in square brackets in a token or a label is no style.
    tree = Tree(Text.assemble((_shown(explanation.tokens[position]), "bold reverse"), "  " + "  ".join(shares)))
    paths, firing = explanation.paths(position), explanation.entries(position)
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
    return Text(
        f"On {len(explanation.tokens)} tokens {n} times a feature with a parent fires, {n_without} times without it. "
        f"Mean share of the activation explained: {means}"
    )


def _shown(text: str) -> str:
    return printable(text).replace("\n", "\\n")


def _percent(share: torch.Tensor) -> str:
    return "–" if share.isnan() else f"{100 * share.item():.0f} %"
