"""Text for dashboards: a saved SAE's own language model on text, as (tokens, activations)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from sae_lens import SAE
from sae_lens.training.activations_store import ActivationsStore
from transformers import AutoTokenizer

from sae_lens_hsae.evaluation.hook_names import known_name
from sae_lens_hsae.evaluation.stacks import check_scale
from sae_lens_hsae.text.as_trained import positions
from sae_lens_hsae.text.hook_point import check_length, device_of
from sae_lens_hsae.text.load_model import TRANSFORMER_LENS, load_model

CONTEXTS_AT_ONCE = 16
MODEL_OPTIONS = {
    "center_unembed",
    "center_writing_weights",
    "default_padding_side",
    "default_prepend_bos",
    "dtype",
    "first_n_layers",
    "fold_ln",
    "fold_value_biases",
    "n_ctx",
    "refactor_factored_attn_matrices",
    "revision",
    "torch_dtype",
}
"""Options of loading a language model that an SAE's metadata may set."""
PLACEMENT = {"device_map", "n_devices"}
"""Options that say where the model lay in training, and nothing about what it computes."""


def load_language_model(sae: SAE[Any], *further: str) -> Any:
    """The model that an SAE's metadata names, on the SAE's device.

    Args:
        sae: with metadata.
        further: hook points of it, beside the SAE's, that will be read.

    Raises:
        ValueError: if the metadata name no model or no hook point of it, or ask for more than a way of loading it, or
            the SAE expects activations in another scale than the model's.
    """
    metadata = sae.cfg.metadata
    for name in ("model_name", "hook_name"):
        if not getattr(metadata, name):
            raise ValueError(
                f"the SAE's metadata hold no {name}, so its activations cannot be computed; set it in cfg.json"
            )
    # An SAE may come from anybody, and trust_remote_code among these would run what its maker likes.
    options = metadata.model_from_pretrained_kwargs or {}
    refused = refused_options(options)
    if refused:
        raise ValueError(
            f"the SAE's metadata have model_from_pretrained_kwargs with {', '.join(refused)}, but only "
            f"{', '.join(sorted(MODEL_OPTIONS))} are passed on, because an SAE may come from anybody; take the others "
            "out of cfg.json to load the model without them, or load it yourself with sae_lens.load_model.load_model() "
            "and give it to evaluate(), explore(), explain() or steer()"
        )
    check_scale([sae])
    return load_model(
        metadata.model_class_name or TRANSFORMER_LENS,
        metadata.model_name,
        str(sae.device),
        {name: value for name, value in options.items() if name not in PLACEMENT},
        metadata.hook_name,
        *further,
    )


def refused_options(options: Any) -> list[str]:
    """Names of those of an SAE's ``model_from_pretrained_kwargs`` that are not passed on; values may be secret."""
    if not isinstance(options or {}, dict):
        return [f"a {type(options).__name__} in place of names and values"]
    return sorted(repr(name) for name in options or {} if name not in MODEL_OPTIONS | PLACEMENT)


def load_tokenizer(sae: SAE[Any]) -> Any:
    """The tokenizer of the model that an SAE's metadata name; also by TransformerLens' alias, as ``pythia-70m``."""
    metadata = sae.cfg.metadata
    if not metadata.model_name:
        raise ValueError("the SAE's metadata hold no model_name, so no tokenizer is known; set it in cfg.json")
    name = str(metadata.model_name)
    if metadata.model_class_name in (None, TRANSFORMER_LENS):
        name = _tokenizer_name(name)
    try:
        return AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise OSError(f"model_name={metadata.model_name!r} gives no tokenizer {name!r}: {error}") from error


def _tokenizer_name(name: str) -> str:
    if (Path(name) / "config.json").is_file():
        return name
    from transformer_lens.loading_from_pretrained import get_official_model_name, get_pretrained_model_config

    try:
        official = get_official_model_name(name)
    except ValueError:  # a folder, or a model that TransformerLens was given
        return name
    try:
        return get_pretrained_model_config(official).tokenizer_name or official
    except OSError:  # its config is not here; most have their tokenizer with them
        return official


def tokens_and_activations(sae: SAE[Any], model: Any, rows: Dataset) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Token ids (batch, context) and the activations (batch, context, d_in) that the SAE reads, row by row.

    Of every row, all of one length, in a column ``tokens``, only the positions that were trained on (``seqpos_slice``).
    """
    check_scale([sae])
    metadata = sae.cfg.metadata
    length, read = len(rows[0]["tokens"]), positions(metadata)
    check_length(model, length, "context_size in the SAE's metadata")
    store = ActivationsStore(
        model=model,
        dataset=rows,
        streaming=False,
        hook_name=known_name(model, metadata.hook_name),
        hook_head_index=metadata.hook_head_index,
        context_size=length,
        d_in=sae.cfg.d_in,
        n_batches_in_buffer=2,
        total_training_tokens=0,  # read from below, not through the store's own order of rows
        store_batch_size_prompts=CONTEXTS_AT_ONCE,
        train_batch_size_tokens=length,
        prepend_bos=bool(metadata.prepend_bos),
        normalize_activations="none",
        device=sae.device,
        dtype="float32",
        seqpos_slice=(read.start, read.stop, read.step),
    )
    for start in range(0, len(rows), CONTEXTS_AT_ONCE):
        token_ids = torch.as_tensor(rows[start : start + CONTEXTS_AT_ONCE]["tokens"], device=sae.device)
        # Not around the yield: whoever stops reading would be left without gradients.
        with torch.no_grad():
            x = store.get_activations(token_ids.to(device_of(model))).to(sae.device)
        yield token_ids[:, read], x
