"""The plugin of pytest with which `release.host_tests` runs SAELens' tests: one architecture, and nothing fetched."""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import fields
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import datasets
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformer_lens import HookedTransformer, HookedTransformerConfig
from transformers import AutoTokenizer, PreTrainedTokenizerFast

ARCHITECTURE = os.environ["HOST_TESTS_ARCHITECTURE"]
ONLY: list[str] | None = json.loads(os.environ.get("HOST_TESTS_ONLY", "null"))
"""Names of tests, as the report has them."""
END = "<|endoftext|>"
N_TEXTS, N_VOCABULARY = 500, 2000

built: set[str] = set()
results: dict[str, dict[str, Any]] = {}


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests() -> None:
    """Import the SAELens that is installed, and put the stand-ins in place before tests take anything by its name."""
    # The checkout has an own sae_lens, and ``python -m pytest`` puts the present folder first.
    source = Path.cwd()
    sys.path[:] = [path for path in sys.path if Path(path).resolve() != source]
    datasets.load_dataset = _texts
    HookedTransformer.from_pretrained = classmethod(_model)  # type: ignore[method-assign]
    from sae_lens.saes.sae import SAE

    import sae_lens_hsae  # noqa: F401 - registers the architecture

    initialise = SAE.__init__

    def recorded(self: Any, cfg: Any, *args: Any, **kwargs: Any) -> None:
        if cfg.architecture() == ARCHITECTURE:
            built.add(_current())
        initialise(self, cfg, *args, **kwargs)

    SAE.__init__ = recorded  # type: ignore[method-assign]
    sys.path.append(str(source))
    helpers = importlib.import_module("tests.helpers")
    for name, value in vars(helpers).items():
        if name.startswith("ALL_") and name.endswith("ARCHITECTURES"):
            value[:] = [ARCHITECTURE]  # in place, as tests import it by name
    _replace_standard(helpers)


def _replace_standard(helpers: Any) -> None:
    """Let what the tests build without naming an architecture, SAELens' standard SAE, be of the one that is tried."""
    if ARCHITECTURE == "hsae":
        inference, runner = _inference(helpers), _runner(helpers)
        helpers.random_params = _random_params
    else:
        inference = helpers.SAE_CONFIG_BUILDERS[ARCHITECTURE]
        runner = helpers.SAE_RUNNER_CONFIG_BUILDERS[ARCHITECTURE]

    def training(**kwargs: Any) -> Any:
        return runner(**kwargs).sae

    for name, builder in (
        ("SAE_CONFIG_BUILDERS", inference),
        ("SAE_TRAINING_CONFIG_BUILDERS", training),
        ("SAE_RUNNER_CONFIG_BUILDERS", runner),
    ):
        getattr(helpers, name)[ARCHITECTURE] = builder
    helpers.build_sae_cfg, helpers.build_sae_training_cfg, helpers.build_runner_cfg = inference, training, runner
    registry = importlib.import_module("sae_lens.registry")
    instead = {
        "StandardSAE": registry.get_sae_class(ARCHITECTURE)[0],
        "StandardSAEConfig": inference,
        "StandardTrainingSAE": registry.get_sae_training_class(ARCHITECTURE)[0],
        "StandardTrainingSAEConfig": training,
    }
    for module in ("sae_lens", "sae_lens.saes", "sae_lens.saes.standard_sae"):
        for name, value in instead.items():
            setattr(importlib.import_module(module), name, value)


@pytest.hookimpl(tryfirst=True)
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Replace lists of architectures that stand in the tests themselves."""
    marks = metafunc.definition.own_markers
    for i, mark in enumerate(marks):
        if mark.name == "parametrize" and mark.args[0] == "architecture":
            marks[i] = pytest.mark.parametrize("architecture", [ARCHITECTURE]).mark


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep the tests that are asked for."""
    if ONLY is None:
        return
    kept = [item for item in items if _of_any(item.nodeid) in ONLY]
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = kept


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    known = results.get(report.nodeid, {"outcome": "passed", "reason": ""})
    if report.outcome != "passed":
        crash = getattr(report.longrepr, "reprcrash", None)
        reason = str(crash.message if crash else report.longrepr).strip().splitlines()
        known = {"outcome": report.outcome, "reason": reason[0][:200] if reason else ""}
    results[report.nodeid] = known


def pytest_sessionfinish() -> None:
    of_any = {_of_any(name): each | {"built": name in built} for name, each in results.items()}
    Path(os.environ["HOST_TESTS_REPORT"]).write_text(json.dumps(of_any))


def _of_any(name: str) -> str:
    """A test's name without the architecture among its parameters."""
    test, bracket, parameters = name.partition("[")
    return test + bracket + parameters.replace(ARCHITECTURE, "…")


def _current() -> str:
    return os.environ.get("PYTEST_CURRENT_TEST", "").rpartition(" ")[0]


def _random_params(model: torch.nn.Module) -> None:
    """Fill the parameters alone: buffers hold the forest and the state of a training, such as λ."""
    for parameter in model.parameters():
        parameter.data = torch.rand_like(parameter)


def _levels(d_sae: int) -> list[int]:
    coarse = max(1, d_sae // 4)
    return [coarse, d_sae - coarse]


def _inference(helpers: Any) -> Any:
    from sae_lens_hsae import HierarchicalSAEConfig

    def build(**kwargs: Any) -> Any:
        like = helpers.build_jumprelu_sae_cfg(**kwargs)
        return HierarchicalSAEConfig(**_common(HierarchicalSAEConfig, like), level_widths=_levels(like.d_sae))

    return build


def _runner(helpers: Any) -> Any:
    from sae_lens_hsae import HierarchicalTrainingSAEConfig

    def build(**kwargs: Any) -> Any:
        runner = helpers.build_jumprelu_runner_cfg(**kwargs)
        widths = _levels(runner.sae.d_sae)
        # Without what would have the first steps observe only: most tests take fewer.
        own = {"level_widths": widths, "target_l0": max(1, widths[0] // 2), "outlier_limit": None}
        runner.sae = HierarchicalTrainingSAEConfig(**_common(HierarchicalTrainingSAEConfig, runner.sae) | own)
        return runner

    return build


def _common(kind: type[Any], like: Any) -> dict[str, Any]:
    """The fields that two configs share."""
    names = {field.name for field in fields(like)}
    return {each.name: getattr(like, each.name) for each in fields(kind) if each.name in names and each.init}


def _lines() -> Iterator[str]:
    from sae_lens_hsae.text.installed import installed_text

    for _, text in zip(range(N_TEXTS), installed_text(), strict=False):
        yield text[:2000]


def _texts(*_: Any, **__: Any) -> datasets.Dataset:
    """In place of any data set: definitions of an English dictionary."""
    return datasets.Dataset.from_dict({"text": list(_lines())})


@cache
def _tokenizer() -> str:
    """A folder, as TransformerLens reads a tokenizer again from where it came from."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    backend.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=N_VOCABULARY, initial_alphabet=alphabet, special_tokens=[END], show_progress=False
    )
    backend.train_from_iterator(_lines(), trainer)
    folder = mkdtemp()
    made = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=END, eos_token=END, pad_token=END)
    made.save_pretrained(folder)
    return folder


def _model(cls: type[Any], model_name: str, device: Any = "cpu", **_: Any) -> Any:
    """In place of TinyStories-1M and others as small: its shape with random weights."""
    if not any(small in model_name.lower() for small in ("tiny", "solu-1l")):
        raise OSError(f"{model_name} has no stand-in")
    torch.manual_seed(0)
    shape = HookedTransformerConfig(
        n_layers=8, d_model=64, n_heads=16, d_head=4, n_ctx=512, d_mlp=256, act_fn="gelu_new", d_vocab=50257, seed=0,
        device=str(device), model_name=model_name,
    )  # fmt: skip
    return cls(shape, tokenizer=AutoTokenizer.from_pretrained(_tokenizer()))
