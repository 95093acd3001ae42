"""Taking a confound out of a probe by ablating features: SHIFT (Marks et al. 2024, §4) without a human.

A probe for a topic is trained where the topic and the length of the text always go together. Features that tell long
from short texts of *other* topics are then taken out of what it reads. Whoever judged features by hand is replaced by
those other texts; the forest decides what is taken out together.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from experiments.gemma_stream import GemmaActivations
from experiments.paper_tables import Size
from experiments.steering import Subject
from experiments.steering_tasks import glosses_under
from experiments.wordnet.database import read_wordnet
from sae_lens_hsae.forest import FeatureForest
from sae_lens_hsae.interpret.contrast import text_activations
from sae_lens_hsae.interpret.steering.examples import Texts, examples_of

TOPICS = ("animal.n.01", "artifact.n.01")
OTHERS = ("plant.n.02", "person.n.01")
SHORT, LONG = 7, 13
"""Words that a short text has at most, and a long one at least."""
N_TEXTS = 300
"""Of each topic and length; half of them to train on."""
N_COARSE = 8
"""Coarsest features that are taken out."""
SEEDS = 5
NOTHING = torch.empty(0, dtype=torch.int64)
FINEST = -1


def reproduce_shift(activations: GemmaActivations, folder: Path, size: Size) -> list[dict[str, Any]]:
    """Rows of the table: accuracy on topic and on length of each way to take features out, means over five splits.

    Args:
        activations: what the forest is trained on.
        folder: where trained models are kept.
        size: of the training.
    """
    subject = Subject(activations, folder, size)
    sae, _ = subject.forest
    wordnet = read_wordnet(parts_of_speech="n")
    read = {name: _read(subject, [text for (text,) in glosses_under(wordnet, name)]) for name in (*TOPICS, *OTHERS)}
    rows = []
    for seed in range(SEEDS):
        rows += shift_rows([read[name] for name in TOPICS], [read[name] for name in OTHERS], sae, seed)
    ways = dict.fromkeys((row["taken out"], row["probe"]) for row in rows)
    return [
        {"taken out": way, "probe": probe}
        | {
            name: fmean(row[name] for row in rows if (row["taken out"], row["probe"]) == (way, probe))
            for name in ("features", "topic", "length")
        }
        for way, probe in ways
    ]


def _read(subject: Subject, glosses: Sequence[str]) -> tuple[Texts, Texts]:
    """Short and long texts, as the features see them."""
    glosses = random.Random(0).sample(glosses, len(glosses))
    by_length = [
        [text for text in glosses if len(text.split()) <= SHORT][:N_TEXTS],
        [text for text in glosses if len(text.split()) >= LONG][:N_TEXTS],
    ]
    sae, _ = subject.forest
    short, long = (text_activations(sae, subject.model, own, 64) for own in by_length)
    found = examples_of(sae, short, long)
    return found.positive, found.negative


def shift_rows(
    topics: Sequence[tuple[Texts, Texts]], others: Sequence[tuple[Texts, Texts]], sae: Any, seed: int
) -> list[dict[str, Any]]:
    """Accuracy on balanced held-out texts of a probe that was trained where topic and length go together.

    Args:
        topics: of each of two topics, short and long texts.
        others: of other topics.
        sae: with the forest.
        seed: of the division into texts to train on and held-out ones, and of random features.

    Returns:
        One row for each set of features that is taken out, and each of two probes: one trained before they were taken
        out, and one trained without them; ``length`` is the share of texts that the probe sorts by length.
    """
    generator = torch.Generator().manual_seed(seed)
    train: list[tuple[Texts, int]] = []
    held_out: list[tuple[Texts, int, int]] = []
    balanced: list[tuple[Texts, int]] = []
    for topic, by_length in enumerate(topics):
        for length, texts in enumerate(by_length):
            order = torch.randperm(len(texts.x), generator=generator)
            half = len(order) // 2
            first, second = (Texts(*(own[rows] for own in texts)) for rows in (order[:half], order[half:]))
            held_out.append((second, topic, length))
            balanced.append((first, topic))
            if topic == length:
                train.append((first, topic))
    decoder = torch.cat([level.W_dec.detach() for level in map(sae.level_sae, range(len(sae.levels)))])
    usual = torch.cat([texts.acts for texts, _ in train]).mean(0)

    def left(texts: Texts, features: torch.Tensor) -> Any:
        """(texts, d_in) what a probe reads: means over tokens, with these features as they are on average."""
        return (texts.x + (usual - texts.acts)[:, features] @ decoder[features]).numpy()

    def probe(texts: Sequence[tuple[Texts, int]], features: torch.Tensor) -> Any:
        reads = [row for own, _ in texts for row in left(own, features)]
        return _new_probe().fit(reads, [topic for own, topic in texts for _ in range(len(own.x))])

    rows = []
    before, fair = probe(train, NOTHING), probe(balanced, NOTHING)
    for way, features in ways_out(sae.forest, others, generator).items():
        probes = {"as trained": before}
        probes |= {"trained again": probe(train, features)} if len(features) else {"trained on balanced texts": fair}
        for name, own in probes.items():
            said = [(own.predict(left(texts, features)), topic, length) for texts, topic, length in held_out]
            right = {
                "topic": fmean(float((each == topic).mean()) for each, topic, _ in said),
                "length": fmean(float((each == length).mean()) for each, _, length in said),
            }
            rows.append({"taken out": way, "probe": name, "features": len(features), **right})
    return rows


def ways_out(
    forest: FeatureForest, others: Sequence[tuple[Texts, Texts]], generator: torch.Generator
) -> dict[str, torch.Tensor]:
    """Features of one level each, (k,) flat indices, by how they are chosen."""
    strength = _tells_length(others)
    coarse = forest.levels[0]
    tops = coarse.start + strength[coarse].topk(N_COARSE).indices
    finest = forest.levels[FINEST]
    below = torch.tensor(
        [f for top in tops.tolist() for f in forest.subtree(top) if finest.start <= f < finest.stop], dtype=torch.int64
    )
    n = len(below)
    return {
        "nothing": NOTHING,
        "coarse features": tops,
        "as many random coarse ones": coarse.start + _some(coarse, N_COARSE, generator),
        "as many of the finest": finest.start + strength[finest].topk(N_COARSE).indices,
        "finest features below the coarse": below,
        "as many finest features": finest.start + strength[finest].topk(n).indices,
        "as many random ones": finest.start + _some(finest, n, generator),
    }


def _some(level: slice, n: int, generator: torch.Generator) -> torch.Tensor:
    return torch.randperm(level.stop - level.start, generator=generator)[:n]


def _tells_length(others: Sequence[tuple[Texts, Texts]]) -> torch.Tensor:
    """(n_features,) |t| of the difference between short and long texts, the least over the topics."""
    found = []
    for short, long in others:
        error = (short.acts.var(0) / len(short.acts) + long.acts.var(0) / len(long.acts)).sqrt()
        found.append(((short.acts.mean(0) - long.acts.mean(0)) / error.clamp(min=1e-9)).abs())
    return torch.stack(found).amin(0)


def _new_probe() -> Any:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000))
