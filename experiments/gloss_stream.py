"""Activations of all-MiniLM-L6-v2 on WordNet's glosses: what the paper's experiments are repeated on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from sae_lens.load_model import load_model
from sae_lens.training.activations_store import ActivationsStore
from safetensors.torch import load_file, save_file
from tqdm.auto import tqdm
from transformers import AutoTokenizer

from experiments.wordnet.database import WordNet, read_wordnet
from experiments.wordnet.text import GlossRows, gloss_rows
from sae_lens_hsae.cli.demo import CONTEXT_SIZE, SPECIAL_TOKENS, minilm_config
from sae_lens_hsae.storage.whole_files import file_written_whole


@dataclass(frozen=True)
class GlossActivations:
    """Activations after a layer, kept in ``folder`` once computed."""

    folder: Path

    def __call__(self, layer: int, n_tokens: int) -> torch.Tensor:
        """(n_tokens, 384), shuffled, of mean norm √384."""
        path = self.folder / f"layer{layer}-{n_tokens}tokens.safetensors"
        if not path.exists():
            x = _read_glosses(layer, n_tokens)
            with file_written_whole(path) as aside:
                save_file({"x": x}, aside)
        return load_file(path)["x"]


def gloss_reader(layer: int, wordnet: WordNet, n_glosses: int | None = None) -> tuple[GlossRows, ActivationsStore]:
    """The glosses as rows of tokens, and SAELens' store that runs MiniLM over them.

    Args:
        layer: the store's hook point is its output.
        n_glosses: how many, drawn at random; None takes all.
    """
    cfg = minilm_config(hook_name=f"bert.encoder.layer.{layer}")
    model = load_model(cfg.model_class_name, cfg.model_name, device="cpu", hook_names=[cfg.hook_name])
    tokenizer = AutoTokenizer.from_pretrained(cfg.model_name)
    rows = gloss_rows(wordnet, tokenizer, CONTEXT_SIZE, separator_token=SPECIAL_TOKENS[-1], n_glosses=n_glosses)
    return rows, ActivationsStore.from_config(model, cfg, override_dataset=rows.dataset())


def _read_glosses(layer: int, n_tokens: int) -> torch.Tensor:
    _, store = gloss_reader(layer, read_wordnet())
    parts, found = [], 0
    with tqdm(total=n_tokens, desc=f"Layer {layer} on WordNet's glosses", unit="tok") as progress:
        while found < n_tokens:
            parts.append(store.get_filtered_llm_batch())
            found += len(parts[-1])
            progress.update(min(found, n_tokens) - progress.n)
    x = torch.cat(parts)[torch.randperm(found, generator=torch.Generator().manual_seed(0))][:n_tokens]
    return x * (x.shape[1] ** 0.5 / x.norm(dim=1).mean())
