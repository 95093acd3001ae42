"""The second ground truth: what WordNet says of the forests that were trained on its glosses."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from experiments.gloss_stream import gloss_reader
from experiments.models import BATCH_SIZE, HSAE, WIDE_FAMILIES, WIDE_POST_HOC, WIDTHS, stack_of, targets_of
from experiments.paper_tables import Activations, Size, Stream, finish_trainings, n_tokens, trained
from experiments.snmf import FACTORISED, SNMF, factor_levels
from experiments.wordnet.concepts import feature_concepts
from experiments.wordnet.database import WordNet, read_wordnet
from experiments.wordnet.judge import judge_forest
from experiments.wordnet.text import gloss_activations
from sae_lens_hsae.storage.whole_files import file_written_whole

MODELS = (HSAE, "HSAE (paper)", "post hoc", SNMF, WIDE_FAMILIES, WIDE_POST_HOC)
PLACE = (3, 16)


@dataclass(frozen=True)
class EntryWords:
    """Activations of WordNet's entry words, each in its gloss; kept in ``folder`` once computed.

    Attributes:
        folder: where they are kept.
        n_glosses: how many are read, drawn at random; None reads all.
    """

    folder: Path
    n_glosses: int | None = None

    def __call__(self, layer: int, wordnet: WordNet) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """As `gloss_activations` yields them, in the scale of the training stream."""
        path = self.folder / f"layer{layer}-{self.n_glosses or 'all'}entrywords.safetensors"
        if not path.exists():
            words = _read_entry_words(layer, wordnet, self.n_glosses)
            with file_written_whole(path) as aside:
                save_file(words, aside)
        kept = load_file(path)
        # One synset's tokens stand together, and may be cut between batches.
        yield from zip(
            (part * kept["scale"] for part in kept["x"].split(BATCH_SIZE)),
            kept["synset"].split(BATCH_SIZE),
            torch.ones(len(kept["synset"]), dtype=torch.bool).split(BATCH_SIZE),
            strict=True,
        )


def _read_entry_words(layer: int, wordnet: WordNet, n_glosses: int | None) -> dict[str, torch.Tensor]:
    rows, store = gloss_reader(layer, wordnet, n_glosses)
    parts, norms = [], []
    for x, synset, is_entry_word in gloss_activations(rows, store.get_activations):
        norms.append(x.norm(dim=1).mean())
        parts.append((x[is_entry_word], synset[is_entry_word]))
    x, synset = (torch.cat(column) for column in zip(*parts, strict=True))
    scale = x.shape[1] ** 0.5 / torch.stack(norms).mean()
    return {"x": x, "synset": synset, "scale": scale}


def reproduce_meaning(
    activations: Activations, words: EntryWords, folder: Path, size: Size, workers: int = 1
) -> list[dict[str, Any]]:
    """Judge the forests of `MODELS` on every seed; models that the paper's tables have trained are taken as they are.

    Args:
        activations: to train on.
        words: to judge by.
        folder: where trained models and finished cells are kept.
        size: of training.
        workers: processes that share the cores.
    """
    next(words(PLACE[0], read_wordnet()))  # once, before workers ask for it all together
    pairs = [(Stream(*PLACE, seed), model) for seed in range(size.seeds) for model in MODELS]
    kind = f"judge-{words.n_glosses or 'all'}glosses"
    return finish_trainings(kind, pairs, judge, activations, folder, "Table wordnet", size, workers, words)


def judge(
    model: str, stream: Stream, activations: Activations, size: Size, folder: Path, words: EntryWords
) -> dict[str, Any]:
    """What WordNet says of one model's forest; the cell's ``meaning`` is `ForestMeaning.to_dict`."""
    wordnet = read_wordnet()
    if model == SNMF:
        x = activations(stream.layer, n_tokens(size))[:FACTORISED]
        levels, forest = factor_levels(x, WIDTHS, targets_of(stream.target_l0), stream.seed)
    else:
        levels, forest = stack_of(trained(model, stream, activations, size, folder))
    concepts = feature_concepts(levels, wordnet, words(stream.layer, wordnet))
    return {**asdict(stream), "model": model, "meaning": judge_forest(concepts, forest).to_dict()}
