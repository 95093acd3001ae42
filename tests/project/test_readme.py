"""The README's code blocks run as they stand, on stand-ins for what they would fetch."""

import re
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import sae_lens
import torch
from host_helpers import restored_signal_handlers, tiny_dataset
from sae_lens import LanguageModelSAETrainingRunner
from sae_lens.saes.sae import TrainingSAEConfig
from small_saes import make_sae
from transformer_lens import HookedTransformer, HookedTransformerConfig

from sae_lens_hsae import HierarchicalTrainingSAEConfig
from sae_lens_hsae.cli.demo import LEVEL_WIDTHS

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


class RunnerOnARandomModel(LanguageModelSAETrainingRunner):
    """SAELens' runner for a few steps on a random model of GPT-2's width and depth, instead of the one from the hub."""

    def __init__(self, cfg: Any) -> None:
        short = replace(
            cfg,
            is_dataset_tokenized=True,
            exclude_special_tokens=False,
            context_size=32,
            prepend_bos=False,
            training_tokens=2 * 128,
            train_batch_size_tokens=128,
            n_batches_for_norm_estimate=1,
            checkpoint_path=None,
            logger=sae_lens.LoggingConfig(log_to_wandb=False),
        )
        model = HookedTransformer(
            HookedTransformerConfig(
                n_layers=9, d_model=768, n_ctx=32, d_head=8, n_heads=1, d_mlp=8, act_fn="gelu", d_vocab=100, seed=0
            )
        )
        super().__init__(short, override_model=model, override_dataset=tiny_dataset())


def test_every_block_runs(monkeypatch, tmp_path):
    assert len(BLOCKS) == 3
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sae_lens, "LanguageModelSAETrainingRunner", RunnerOnARandomModel)
    widths = LEVEL_WIDTHS["minilm"]  # of the forest that the demo leaves there
    make_sae(level_widths=widths).save_inference_model("runs/demo")
    x = torch.randn(10, 8)
    namespace: dict[str, Any] = {"x": x, "activations": [x, 2 * x]}
    with restored_signal_handlers():
        for block in BLOCKS:
            exec(block, namespace)
    assert sae_lens.SAE.load_from_disk("runs/gpt2").cfg.d_sae == 10_752
    assert namespace["x_hat"].shape == x.shape
    assert namespace["fine"].cfg.d_sae == widths[-1]
    assert "var. explained" in str(namespace["evaluation"])


def test_the_table_lists_every_field_with_its_default():
    rows = re.findall(r"^\| `(\w+)` \| [^|]* \| ([^|]*) \|", README, flags=re.MULTILINE)
    table = {name: default.strip().strip("`").replace("−", "-") for name, default in rows}
    of_saelens = {field.name for field in fields(TrainingSAEConfig)}
    own = [field for field in fields(HierarchicalTrainingSAEConfig) if field.name not in of_saelens]
    assert set(table) == {field.name for field in own}
    for field in own:
        if field.name == "level_widths":
            continue
        shown = table[field.name].strip('"')
        assert shown == str(field.default) or float(shown) == field.default, field.name
