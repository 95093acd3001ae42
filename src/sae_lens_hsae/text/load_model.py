"""SAELens' ``load_model`` that also takes a folder for TransformerLens, and says which hook points a model has."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from sae_lens import LanguageModelSAERunnerConfig, logger
from sae_lens.load_model import load_model as load_by_name
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

TRANSFORMER_LENS = "HookedTransformer"
RESIDUAL_STREAM = re.compile(r"(^|\.)(h|layers?|blocks?)\.\d+(\.hook_resid_post)?$")
"""Hook points after a block, as Hugging Face's models and TransformerLens name them."""
NO_MODULE = "hook_names not found"
"""How SAELens begins its refusal."""


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
        ValueError: if the model has no such hook point, or TransformerLens no model of the folder's name.
    """
    given = dict(options or {})
    if model_class_name == TRANSFORMER_LENS and Path(model_name).is_dir():
        model_name, given = _from_folder(Path(model_name), given)
    try:
        model = load_by_name(model_class_name, model_name, device, given, [hook_name, *further])
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
def model_of_run(cfg: LanguageModelSAERunnerConfig[Any], override_model: Any = None) -> Iterator[Any]:
    """The model to pass as ``override_model`` to a runner of SAELens, inside the block.

    Args:
        cfg: the runner's.
        override_model: a model that is there already; None loads the config's.

    Raises:
        ValueError: as `load_model`.
    """
    if override_model is not None:
        yield override_model
        return
    model = load_model(
        cfg.model_class_name, cfg.model_name, cfg.llm_device, cfg.model_from_pretrained_kwargs, cfg.hook_name
    )

    def wanted(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith(("You just passed in a model", "You just passed in a dataset"))

    logger.addFilter(wanted)  # it goes on to say that the config does not name this model, or this text
    try:
        yield model
    finally:
        logger.removeFilter(wanted)


def no_hook_point(name: str, names: Iterable[str]) -> str:
    """What is wrong with a hook point that a model lacks, and which of its own may be meant."""
    names = list(names)
    same = re.compile(r"\d+".join(map(re.escape, re.split(r"\d+", name))))
    alike = [each for each in names if same.fullmatch(each)] or get_close_matches(name, names)
    found = alike or list(filter(RESIDUAL_STREAM.search, names)) or names
    some = ", ".join(found) if len(found) < 4 else f"{found[0]}, {found[1]} … {found[-1]}"
    return f"hook_name={name!r} is no hook point of the model; it has {some}"


def _from_folder(folder: Path, options: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Name and options with which TransformerLens takes a folder's model."""
    from transformer_lens.loading_from_pretrained import get_official_model_name

    name = folder.resolve().name
    try:
        get_official_model_name(name)
    except ValueError as error:
        raise ValueError(
            f"model_name={str(folder)!r}: TransformerLens knows no model called {name!r}; name the folder as it names "
            "the model, or set model_class_name='AutoModelForCausalLM', whose hook points are the model's modules"
        ) from error
    dtype = options.get("torch_dtype", options.get("dtype", torch.float32))
    return name, options | {
        "hf_model": AutoModelForCausalLM.from_pretrained(folder, dtype=dtype),
        "tokenizer": AutoTokenizer.from_pretrained(folder),
    }


def _modules(model_name: str, options: Mapping[str, Any]) -> list[str]:
    trusted = {"trust_remote_code": options.get("trust_remote_code", False)}
    config = AutoConfig.from_pretrained(model_name, revision=options.get("revision"), **trusted)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, **trusted)
    return [name for name, _ in model.named_modules() if name]
