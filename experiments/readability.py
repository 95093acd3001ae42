"""Do children belong under their parents? Copies and trees counted, words by WordNet, and a list for a reader.

Copies, children whose direction is nearly their parent's, are counted by themselves. Each share stands beside the same
with a stranger in place of the child, a feature of the child's level: what chance alone gives.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from experiments.wordnet.database import DEBIAN_FOLDER, WordNet, read_wordnet
from sae_lens_hsae.cli.collected import read_collected
from sae_lens_hsae.cli.showcase import trees
from sae_lens_hsae.forest import Concepts, FeatureForest
from sae_lens_hsae.hub.saved_model import load_hierarchical_sae
from sae_lens_hsae.interpret.family_text import context_of
from sae_lens_hsae.interpret.feature_cache import Dashboards
from sae_lens_hsae.interpret.feature_cache.text import load_tokenizer
from sae_lens_hsae.interpret.labels import token_labels
from sae_lens_hsae.interpret.labels.token_labels import SEPARATOR

RELATED = 4.0
"""Nats of information of the lowest concept over two words: it is over less than one synset in fifty."""
TREES_DRAWN = 6
CHILDREN_DRAWN = 3
ENDINGS = ("", "s", "es", "ed", "d", "ing", "ly")

Edge = tuple[int, int]


def readability(
    folder: str | Path, n_listed: int = 40, seed: int = 0
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Measure the edges of a saved forest beside its dashboards, and draw some for a reader.

    Args:
        folder: where the SAE was saved and ``hsae explore`` has collected its dashboards.
        n_listed: edges to list, copies among them.
        seed: of the draw and of the strangers.

    Returns:
        One row per measure: ``edges`` judged, the ``share`` that pass, and the same for ``strangers``; and one row per
        edge drawn.
    """
    dashboards, text_of = read_collected(Path(folder))
    return measures(dashboards, text_of, wordnet_of_debian(), seed), listed(dashboards, text_of, n_listed, seed)


def wordnet_of_debian() -> WordNet | None:
    """WordNet, where Debian's ``wordnet-base`` is installed."""
    return read_wordnet() if Path(DEBIAN_FOLDER).is_dir() else None


def drawn_trees(folder: str | Path) -> str:
    """Six trees of a saved forest, chosen and drawn as the demo does, from the dashboards beside it.

    Raises:
        FileNotFoundError: if the folder holds no SAE or no dashboards.
    """
    sae = load_hierarchical_sae(folder)
    return trees(sae, read_collected(Path(folder))[0], load_tokenizer(sae), TREES_DRAWN, CHILDREN_DRAWN)


def measures(
    dashboards: Dashboards, text_of: Callable[[int], str], wordnet: WordNet | None, seed: int = 0
) -> list[dict[str, Any]]:
    """The rows of `readability`, without WordNet where there is none."""
    forest = FeatureForest(dashboards.parents, dashboards.level_widths)
    edges: list[Edge] = [(parent, child) for parent, child in forest.edges().tolist()]
    copies = [edge for edge in edges if dashboards.is_copy[edge[1]]]
    others = sorted(set(edges) - set(copies))
    labels = {feature: label.split(SEPARATOR) for feature, label in token_labels(dashboards, text_of).items()}
    generator = torch.Generator().manual_seed(seed)
    strangers = [stranger(forest, child, generator) for _, child in others]

    is_copy = torch.zeros(forest.n_features, dtype=torch.bool)
    is_copy[[child for _, child in copies]] = True
    rows: list[dict[str, Any]] = [
        {
            "measure": "copies of their parents",
            "edges": len(edges),
            "share": len(copies) / max(len(edges), 1),
            "strangers": None,
        },
        {
            "measure": "features in trees of three concepts",
            "edges": len(edges),
            "share": Concepts(forest, is_copy).in_trees_share(3),
            "strangers": None,
        },
    ]
    if wordnet is not None:
        related = _Related(wordnet)
        rows.append(
            _row(
                "words related by WordNet",
                *(
                    [
                        related(labels.get(parent, []), labels.get(other, []))
                        for (parent, _), other in zip(others, of, strict=True)
                    ]
                    for of in ([child for _, child in others], strangers)
                ),
            )
        )
    return rows


def listed(dashboards: Dashboards, text_of: Callable[[int], str], n: int, seed: int = 0) -> list[dict[str, Any]]:
    """Random edges with labels and contexts of both ends, and whether the child is a copy."""
    forest = FeatureForest(dashboards.parents, dashboards.level_widths)
    edges = forest.edges()
    chosen = edges[torch.randperm(len(edges), generator=torch.Generator().manual_seed(seed))[:n]].tolist()
    labels = token_labels(dashboards, text_of)
    rows = []
    for parent, child in chosen:
        row: dict[str, Any] = {}
        for name, feature in (("parent", parent), ("child", child)):
            row[name] = f"{forest.levels.name(feature)} {labels.get(feature, '–')}"
            row[f"{name} in context"] = context_of(dashboards, feature, text_of)
        rows.append(row | {"copy": "copy" if dashboards.is_copy[child] else ""})
    return rows


def _row(measure: str, *verdicts: Sequence[bool | None]) -> dict[str, Any]:
    judged = [[verdict for verdict in each if verdict is not None] for each in verdicts]
    share, strangers = (sum(each) / len(each) if each else None for each in judged)
    return {"measure": measure, "edges": len(judged[0]), "share": share, "strangers": strangers}


def stranger(forest: FeatureForest, child: int, generator: torch.Generator) -> int:
    """A feature of the child's level that is no child of its parent."""
    own = forest.levels[int(forest.levels.level_of(torch.tensor(child)))]
    family = set(forest.children(forest.parent(child) or 0)) | {child}
    while True:
        other = own.start + int(torch.randint(own.stop - own.start, (), generator=generator))
        if other not in family or len(family) >= own.stop - own.start:
            return other


@dataclass
class _Related:
    """Whether some word of one label and some other word of another have a telling concept above both."""

    wordnet: WordNet

    def __post_init__(self) -> None:
        self._senses: dict[str, list[int]] = {}
        for i, synset in enumerate(self.wordnet.synsets):
            for lemma in synset.lemmas:
                self._senses.setdefault(lemma.casefold(), []).append(i)

    def __call__(self, parent: Sequence[str], child: Sequence[str]) -> bool | None:
        """None where WordNet does not know the words, or the child has none of its own."""
        above = [self._of(word) for word in parent]
        below = [self._of(word) for word in child if word not in parent]
        pairs = [(a, b) for x in above for y in below for a in x for b in y if a != b]
        if not pairs:
            return None
        common = self.wordnet.common_hypernyms(torch.tensor(pairs))
        return bool((self.wordnet.information[common] >= RELATED).any())

    def _of(self, word: str) -> list[int]:
        """The usual senses of a word, or of the word without an ending."""
        for ending in ENDINGS:
            stem = word.casefold().removesuffix(ending)
            if word.casefold().endswith(ending) and stem in self._senses:
                return self._senses[stem][:3]
        return []
