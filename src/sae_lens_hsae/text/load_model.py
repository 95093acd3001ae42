"""SAELens' ``load_model`` that also takes a folder for TransformerLens, and says which hook points a model has."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from sae_lens import LanguageModelSAERunnerConfig, MultiSAETrainingRunnerConfig, logger
from sae_lens.load_model import load_model as load_by_name
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from sae_lens_hsae.evaluation.hook_names import no_hook_point
from sae_lens_hsae.text.hook_point import check_length

TRANSFORMER_LENS = "HookedTransformer"
NO_MODULE = "hook_names not found"
"""How SAELens begins its refusal."""
OVERRIDDEN = ("You just passed in a model", "You just passed in a dataset", "override_model", "override_dataset")
"""How its runners begin to say that a model or a text is not the config's."""


def load_model(
    model_class_name: str,
    model_name: str,
    device: Any,
    options: Mapping[str, Any] | None,
    hook_name: str,
    *further: str,
) -> Any:
    """A language model as SAELens loads it, with the hook point that is read.

    TransformerLens takes no folder: it knows a model by its name. So a folder is taken for the model that it is called
    after, as ``gemma-3-270m`` in ``/models/gemma-3-270m``, with the weights and the tokenizer that lie there.

    Args:
        model_class_name: ``HookedTransformer``, for models that TransformerLens knows, or ``AutoModelForCausalLM``.
        model_name: a name, or a folder of a model in Hugging Face's format.
        device: where to.
        options: for its ``from_pretrained``.
        hook_name: the hook point.
        further: more of them.

    Raises:
        ValueError: if the model has no such hook point, there is no such folder, or TransformerLens knows no model of
            the name, or of the folder's.
        OSError: if there is no model of the name, here or on the hub.
    """
    given = dict(options or {})
    folder, holds_model = Path(model_name), (Path(model_name) / "config.json").is_file()
    if not holds_model and (folder.is_absolute() or model_name.startswith((".", "~")) or len(folder.parts) > 2):
        raise ValueError(
            f"model_name={model_name!r} is no folder with a model (it holds no config.json); give one in Hugging "
            "Face's format, or a model's name"
        )
    if model_class_name == TRANSFORMER_LENS:
        own_name = folder.resolve().name if holds_model else model_name
        _check_known(own_name, model_name)
        if holds_model:
            model_name, given = own_name, given | _read(folder, given)
    try:
        model = load_by_name(model_class_name, model_name, device, given, [hook_name, *further])
    except OSError as error:
        raise OSError(f"model_name={model_name!r} cannot be loaded: {error}") from error
    except ValueError as error:
        if NO_MODULE not in str(error):
            raise
        modules = _modules(model_name, given)
        missing = next((name for name in (hook_name, *further) if name not in modules), hook_name)
        raise ValueError(no_hook_point(missing, modules)) from error
    for name in (hook_name, *further):
        if name not in model.hook_dict:
            raise ValueError(no_hook_point(name, model.hook_dict))
    return model


@contextmanager
def model_of_run(
    cfg: LanguageModelSAERunnerConfig[Any] | MultiSAETrainingRunnerConfig, override_model: Any = None
) -> Iterator[Any]:
    """The model to pass as ``override_model`` to a runner of SAELens in the block: the given one or the config's.

    Raises:
        ValueError: as `load_model`, or if the contexts are longer than the model takes.
    """
    if override_model is not None:
        check_length(override_model, cfg.context_size, "context_size")
        yield override_model
        return
    several = isinstance(cfg, MultiSAETrainingRunnerConfig)
    hooks = dict.fromkeys(cfg.hook_names_per_sae.values()) if several else [cfg.hook_name]
    model = load_model(cfg.model_class_name, cfg.model_name, cfg.llm_device, cfg.model_from_pretrained_kwargs, *hooks)

    check_length(model, cfg.context_size, "context_size")

    def wanted(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith(OVERRIDDEN)

    logger.addFilter(wanted)  # it goes on to say that the config does not name this model, or this text
    try:
        yield model
    finally:
        logger.removeFilter(wanted)


def _check_known(own_name: str, model_name: str) -> None:
    """Refuse a model, or a folder's, that TransformerLens knows by no name."""
    from transformer_lens.loading_from_pretrained import make_model_alias_map

    known = make_model_alias_map()
    if own_name.lower() in known:
        return
    alike = get_close_matches(own_name.lower(), known)
    meant = f"; it knows {', '.join(alike)}" if alike else ""
    rename = "name the folder as it names the model, or " if own_name != model_name else ""
    raise ValueError(
        f"model_name={model_name!r}: TransformerLens knows no model called {own_name!r}{meant}; {rename}set "
        "model_class_name='AutoModelForCausalLM', whose hook points are the model's modules"
    )


def _read(folder: Path, options: Mapping[str, Any]) -> dict[str, Any]:
    """A folder's model and tokenizer, as options for TransformerLens."""
    dtype = options.get("torch_dtype", options.get("dtype", torch.float32))
    return {
        "hf_model": AutoModelForCausalLM.from_pretrained(folder, dtype=dtype),
        "tokenizer": AutoTokenizer.from_pretrained(folder),
    }


def _modules(model_name: str, options: Mapping[str, Any]) -> list[str]:
    trusted = {"trust_remote_code": options.get("trust_remote_code", False)}
    config = AutoConfig.from_pretrained(model_name, revision=options.get("revision"), **trusted)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, **trusted)
    return [name for name, _ in model.named_modules() if name]
