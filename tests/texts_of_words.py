"""A tokenizer of words with every kind of special token, texts in them, and trainings on those."""

import json
from pathlib import Path
from typing import Any

from datasets import Dataset
from host_helpers import VOCABULARY, restored_signal_handlers, runner_config, save_tiny_gpt2
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from sae_lens_hsae import HierarchicalSAETrainingRunner
from sae_lens_hsae.hub.saved_model import load_hierarchical_sae
from sae_lens_hsae.interpret.explain import Explanation, explain
from sae_lens_hsae.interpret.feature_cache.text import load_language_model

CHAT = ["<start_of_turn>", "<end_of_turn>"]
WORDS = VOCABULARY - 5
TEXTS = [" ".join(f"w{1 + (7 * i + j) % WORDS}" for j in range(3 + i % 60)) for i in range(80)] + ["", "w1"]


def tokenizer_of_words(bos: str | None = "<bos>", eos: str | None = "<eos>") -> PreTrainedTokenizerFast:
    names = ["<bos>", "<eos>", *CHAT, "<unk>", *(f"w{i}" for i in range(1, WORDS + 1))]
    backend = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {name: token for name, token in (("bos_token", bos), ("eos_token", eos)) if token}
    made = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", **special)
    made.add_special_tokens({"additional_special_tokens": CHAT})
    return made


def save_model(folder: Path, **special: Any) -> Path:
    """A random GPT-2 with a tokenizer of words, with or without a first and a last token."""
    save_tiny_gpt2(folder)
    tokenizer_of_words(**special).save_pretrained(folder)
    return folder


def text_folder(folder: Path, texts: list[str] = TEXTS) -> Path:
    folder.mkdir()
    (folder / "train.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    return folder


def configured(folder: Path, model: Path, **overrides: Any) -> Any:
    fields: dict[str, Any] = {
        "model_name": str(model),
        "model_class_name": "AutoModelForCausalLM",
        "hook_name": "transformer.h.0",
        "is_dataset_tokenized": False,
        "streaming": False,
        "prepend_bos": True,
        "training_tokens": 20 * 64,
        "n_batches_in_buffer": 16,
        "checkpoint_path": None,
    }
    return runner_config(folder, **{**fields, **overrides})


def trained(folder: Path, model: Path, texts: list[str] = TEXTS, **overrides: Any) -> tuple[Any, Path]:
    """Train on texts; the store that training read from, and where the SAE lies."""
    cfg = configured(folder, model, **overrides)
    runner = HierarchicalSAETrainingRunner(cfg, override_dataset=Dataset.from_dict({"text": texts}))
    with restored_signal_handlers():
        runner.run()
    return runner.activations_store, folder / "out"


def read_back(folder: Path) -> tuple[Any, Any]:
    """A saved SAE, and its language model."""
    sae = load_hierarchical_sae(folder)
    return sae, load_language_model(sae)


def explain_text(folder: Path, text: str) -> Explanation:
    return explain(*read_back(folder), text)
