"""Small real models, data and configurations to run SAELens with; no network."""

from __future__ import annotations

import os

# Read when huggingface_hub is imported, so before anything that imports it: a look-up by mistake fails at once.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import json
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from datasets import Dataset
from sae_lens import (
    SAE,
    HookedSAETransformer,
    LanguageModelSAERunnerConfig,
    LoggingConfig,
)
from sae_lens.analysis.sae_transformer_bridge import SAETransformerBridge
from sae_lens.load_model import load_model
from sae_lens.saes.sae import TrainStepOutput
from sae_lens.training.sae_trainer import SAETrainer
from small_saes import make_sae
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformer_lens import HookedTransformer, HookedTransformerConfig
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from sae_lens_hsae import HierarchicalSAE, HierarchicalTrainingSAE, HierarchicalTrainingSAEConfig
from sae_lens_hsae.presets import PAPER

D_MODEL = 16
VOCABULARY = 100
CONTEXT = 32
WIDTHS = [8, 16, 32]
HOOK = "blocks.0.hook_resid_post"


def _model_config(n_layers: int) -> HookedTransformerConfig:
    return HookedTransformerConfig(
        n_layers=n_layers,
        d_model=D_MODEL,
        n_ctx=CONTEXT,
        d_head=8,
        n_heads=2,
        d_mlp=32,
        act_fn="gelu",
        d_vocab=VOCABULARY,
        device="cpu",
        seed=0,
    )


def tiny_model() -> HookedTransformer:
    """A TransformerLens model with random weights, always the same, and no tokenizer."""
    return HookedTransformer(_model_config(1))


def hooked_model(
    action: Callable[[torch.Tensor], torch.Tensor], at: int | None = None, after: int = 0
) -> HookedTransformer:
    """As `tiny_model`; an action changes the activations when it is asked for its n-th batch, or from then on."""
    model, n_calls = tiny_model(), 0

    def hook(tensor: torch.Tensor, hook: object) -> torch.Tensor:  # noqa: ARG001 – TransformerLens passes it by name
        nonlocal n_calls
        n_calls += 1
        return action(tensor) if n_calls == at or (at is None and n_calls > after) else tensor

    model.hook_dict[HOOK].add_perma_hook(hook)
    return model


def signalling(*numbers: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """An action for `hooked_model` that sends signals to this process."""

    def action(tensor: torch.Tensor) -> torch.Tensor:
        for number in numbers:
            os.kill(os.getpid(), number)
        return tensor

    return action


def tiny_sae_transformer() -> HookedSAETransformer:
    """As `tiny_model`, of the class that SAEs can be attached to."""
    return HookedSAETransformer(_model_config(2))


@pytest.fixture(scope="session")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`save_tiny_gpt2`, once for all tests, none of which may write there."""
    return save_tiny_gpt2(tmp_path_factory.mktemp("gpt2"))


@pytest.fixture(scope="session")
def tokenizer(gpt2: Path) -> Any:
    """Of the words ``w1 … w98``."""
    return AutoTokenizer.from_pretrained(gpt2)


@torch.no_grad()
def activations_at(model: Any, hook: str) -> torch.Tensor:
    """(2, CONTEXT, d_in): what a model has at a hook point on `tiny_tokens`, other hooks at work."""
    kept = []
    with model.hooks(fwd_hooks=[(hook, lambda x, hook: kept.append(x.clone()))]):  # noqa: ARG005
        model(tiny_tokens(2))
    return kept[0]


HOOKED = ("sae_transformer", "bridge", "bridge by alias", "proxy")
"""The ways in which SAELens hooks a model."""
BRIDGE_HOOK = "blocks.0.hook_out"
"""TransformerBridge's own name of `HOOK`; an alias will not do to cache activations for training."""


def boot_bridge(folder: Path) -> SAETransformerBridge:
    """TransformerLens' wrapper of a Hugging Face model; a folder in place of a name needs no network."""
    return SAETransformerBridge.boot_transformers(str(folder), device="cpu")


def hooked(kind: str, gpt2: Path) -> tuple[Any, str]:
    """A model with a tokenizer, one of `HOOKED`, and a hook point of its own."""
    if kind == "sae_transformer":
        model = tiny_sae_transformer()
        model.tokenizer = AutoTokenizer.from_pretrained(gpt2)
        return model, HOOK
    if kind.startswith("bridge"):
        return boot_bridge(gpt2), HOOK if kind.endswith("alias") else BRIDGE_HOOK
    return load_model("AutoModelForCausalLM", str(gpt2)), "transformer.h.0"


def sae_at(hook: str, seed: int = 0, model: Path | None = None, **overrides: Any) -> Any:
    """A random SAE of 4, 9 and 20 features that fire often, of a hook point, and of a model on disk where one is given.

    Args:
        overrides: fields of its metadata, and of its configuration.
    """
    of_config = {field.name for field in fields(HierarchicalTrainingSAEConfig)}
    metadata = {name: overrides.pop(name) for name in overrides.keys() - of_config}
    sae = make_sae(seed, **{"d_in": D_MODEL, "normalize_activations": "none"} | overrides)
    sae.threshold.data.mul_(0.1)
    if model is not None:
        metadata |= {"model_name": str(model), "model_class_name": "AutoModelForCausalLM"}
    for name, value in (metadata | {"hook_name": hook}).items():
        setattr(sae.cfg.metadata, name, value)
    return sae


def save_tiny_gpt2(path: Path) -> Path:
    """A folder as the hub has them, with a random GPT-2 and a tokenizer of the words ``w1 … w98``."""
    torch.manual_seed(0)
    specials = {"<|endoftext|>": 0, "<unk>": VOCABULARY - 1}
    words = {f"w{i}": i for i in range(1, VOCABULARY - 1)}
    word_level = Tokenizer(WordLevel({**specials, **words}, unk_token="<unk>"))
    word_level.pre_tokenizer = Whitespace()  # type: ignore[reportAttributeAccessIssue]
    end = "<|endoftext|>"
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=word_level, bos_token=end, eos_token=end, pad_token=end, unk_token="<unk>"
    )
    tokenizer.save_pretrained(path)
    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=CONTEXT,
        n_embd=D_MODEL,
        n_layer=2,
        n_head=2,
        bos_token_id=0,
        eos_token_id=0,
    )
    model = GPT2LMHeadModel(config)
    for parameter in model.parameters():
        # GPT-2's initial weights are so small that no layer changes the prediction, and no SAE could either.
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(path)
    return path


def write_train_flags(folder: Path, **overrides: Any) -> Path:
    """A file of flags for ``hsae train``: twenty steps of 64 tokens, with a language model and text in ``folder``."""
    save_tiny_gpt2(folder / "gpt2")
    (folder / "text").mkdir()
    rows = [" ".join(f"w{1 + (7 * i + j) % 97}" for j in range(40)) for i in range(120)]
    (folder / "text" / "train.jsonl").write_text("\n".join(json.dumps({"text": row}) for row in rows))
    flags = {
        "level_widths": WIDTHS,
        "d_in": D_MODEL,
        "target_l0": 3,
        "model_name": str(folder / "gpt2"),
        "model_class_name": "AutoModelForCausalLM",
        "hook_name": "transformer.h.0",
        "dataset_path": str(folder / "text"),
        "is_dataset_tokenized": False,
        "streaming": False,
        "context_size": CONTEXT,
        "training_tokens": 20 * 64,
        "train_batch_size_tokens": 64,
        "store_batch_size_prompts": 4,
        "n_batches_in_buffer": 4,
        "n_batches_for_norm_estimate": 2,
        "lr": 0.003,
        "output_path": str(folder / "out"),
        "checkpoint_path": str(folder / "checkpoints"),
        "n_checkpoints": 1,
        "log_to_wandb": False,
    }
    path = folder / "flags.yaml"
    path.write_text(yaml.safe_dump(flags | overrides))
    return path


def tiny_tokens(n_rows: int = 300) -> torch.Tensor:
    """(n_rows, CONTEXT) random tokens, always the same."""
    return torch.randint(0, VOCABULARY, (n_rows, CONTEXT), generator=torch.Generator().manual_seed(1))


def tiny_dataset(n_rows: int = 300) -> Dataset:
    """`tiny_tokens` as a tokenised data set."""
    return Dataset.from_dict({"tokens": tiny_tokens(n_rows).tolist()})


def tiny_config(**overrides: Any) -> HierarchicalTrainingSAEConfig:
    """Three levels over the tiny models' residual stream, with a hierarchy update at steps 3, 6 and every tenth."""
    widths = overrides.pop("level_widths", WIDTHS)
    values: dict[str, Any] = {
        **PAPER,
        "d_in": D_MODEL,
        "d_sae": sum(widths),
        "level_widths": list(widths),
        "target_l0": 3,
        "hierarchy_first_update": 3,
        "hierarchy_update_every": 10,
        "normalize_activations": "expected_average_only_in",
    }
    return HierarchicalTrainingSAEConfig(**{**values, **overrides})


def thirty_steps() -> dict[str, Any]:
    """What SAELens' configs of one SAE and of several share for thirty steps of 64 tokens."""
    return {
        "model_name": "tiny",
        "context_size": CONTEXT,
        "training_tokens": 30 * 64,
        "train_batch_size_tokens": 64,
        "store_batch_size_prompts": 4,
        "n_batches_in_buffer": 4,
        "n_batches_for_norm_estimate": 3,
        "prepend_bos": False,
        "lr": 3e-3,
        "logger": LoggingConfig(log_to_wandb=False),
        # Written into the SAE's metadata, and each SAE made from it then warns to load the model so.
        "model_from_pretrained_kwargs": {},
    }


def runner_config(tmp_path: Path, **overrides: Any) -> LanguageModelSAERunnerConfig[HierarchicalTrainingSAEConfig]:
    """Thirty steps of 64 tokens that write to ``tmp_path/out`` and ``tmp_path/checkpoints``."""
    values: dict[str, Any] = {
        "sae": tiny_config(),
        "hook_name": HOOK,
        "seed": 1,
        "adam_beta1": 0.0,
        "output_path": str(tmp_path / "out"),
        "checkpoint_path": str(tmp_path / "checkpoints"),
        "verbose": False,
    }
    return LanguageModelSAERunnerConfig(**{**thirty_steps(), **values, **overrides})


def train(runner_class: Any, cfg: Any, *, seed: int = 1, **overrides: Any) -> Any:
    """What ``runner_class(cfg).run()`` gives for the seed, on the tiny model and data set unless overridden."""
    if not overrides:
        overrides = {"override_model": tiny_model(), "override_dataset": tiny_dataset()}
    # Now, because TransformerLens sets the seed for its model; SAELens' own runner sets none.
    cfg.seed = seed
    torch.manual_seed(seed)
    with restored_signal_handlers():
        return runner_class(cfg, **overrides).run()


@contextmanager
def restored_signal_handlers() -> Iterator[None]:
    """SAELens' runners leave their own handlers behind, which would keep Ctrl-C from ending the tests."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@dataclass
class RecordedStep:
    """One training step as it was when it ended.

    Attributes:
        loss: the step's total loss.
        losses: its terms.
        parents: the parent table that the step used.
        coefficients_before: λ of every level that the step used.
        coefficients: λ of every level after the step.
        row_norms: norms of the decoder rows after the optimizer's step.
        scale: factor of the activations.
        lr, betas: of Adam.
    """

    loss: float
    losses: dict[str, float]
    parents: torch.Tensor
    coefficients_before: torch.Tensor
    coefficients: torch.Tensor
    row_norms: torch.Tensor
    scale: float | None
    lr: float
    betas: tuple[float, float]


@contextmanager
def recorded_steps() -> Iterator[list[RecordedStep]]:
    """Record each step that any SAELens trainer takes with a hierarchical SAE."""
    steps: list[RecordedStep] = []
    original = SAETrainer.step

    def step(self: SAETrainer[Any, Any], batch: torch.Tensor) -> TrainStepOutput:
        sae = self.sae
        if not isinstance(sae, HierarchicalTrainingSAE):
            return original(self, batch)
        before = sae.sparsity.log_l0_coefficient.exp()
        (group,) = self.optimizer.param_groups
        lr = group["lr"]
        output = original(self, batch)
        steps.append(
            RecordedStep(
                loss=output.loss.item(),
                losses={name: loss.item() for name, loss in output.losses.items()},
                parents=sae.parents.clone(),
                coefficients_before=before,
                coefficients=sae.sparsity.log_l0_coefficient.exp(),
                row_norms=sae.W_dec.detach().float().norm(dim=1),
                scale=self.activation_scaler.scaling_factor,
                lr=lr,
                betas=group["betas"],
            )
        )
        return output

    SAETrainer.step = step
    try:
        yield steps
    finally:
        SAETrainer.step = original


def residual_activations(n_rows: int = 4) -> torch.Tensor:
    """(n_rows · CONTEXT, D_MODEL): what the tiny model has at `HOOK`."""
    with torch.no_grad():
        _, cache = tiny_model().run_with_cache(tiny_tokens(n_rows), names_filter=[HOOK])
    return cache[HOOK].flatten(0, 1)


def assert_saved_as_trained(path: Path | str, trained: SAE[Any], x: torch.Tensor) -> HierarchicalSAE:
    """Load what a runner saved and check that it is the trained SAE and a proper hierarchical one."""
    loaded = SAE.load_from_disk(path)
    assert type(loaded) is HierarchicalSAE
    assert isinstance(trained, HierarchicalTrainingSAE)
    assert torch.equal(loaded.parents, trained.parents)
    assert loaded.parents.dtype == torch.int64
    assert len(loaded.forest.edges()) > 0
    with torch.no_grad():
        x = x.to(loaded.dtype)
        acts = loaded.encode(x)
        # Else the outputs would be biases alone, and equal whatever the weights.
        assert (acts > 0).any()
        assert torch.equal(acts, trained.encode(x))
        assert torch.equal(loaded(x), trained(x))
    # A number of this dtype is within half its epsilon of the true one, and so is each of a row's d_in entries.
    unit = torch.ones(len(loaded.W_dec))
    torch.testing.assert_close(loaded.W_dec.float().norm(dim=1), unit, atol=2 * torch.finfo(loaded.dtype).eps, rtol=0)
    return loaded
