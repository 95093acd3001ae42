"""A trainer on random activations, some of them bad, step by step."""

from itertools import islice
from pathlib import Path

import torch
from host_helpers import runner_config
from small_saes import D_IN, make_sae

BATCH = 32


def trainer_config(n_steps):
    cfg = runner_config(
        Path(),
        checkpoint_path=None,
        training_tokens=n_steps * BATCH,
        train_batch_size_tokens=BATCH,
        lr=1e-2,
        lr_end=0.0,
        lr_scheduler_name="cosineannealing",
        lr_warm_up_steps=3,
        adam_beta1=0.0,
        adam_beta2=0.995,
        dead_feature_window=4,
        feature_sampling_window=100,
        n_batches_for_norm_estimate=1,
    )
    return cfg.to_sae_trainer_config()


def batches():
    generator = torch.Generator().manual_seed(0)
    while True:
        yield torch.randn(BATCH, D_IN, generator=generator) * 2


def new_trainer(trainer_class, **overrides):
    fields = {"hierarchy_first_update": 3, "hierarchy_update_every": 7, "perturbation_rate": 0.5}
    sae = make_sae(**fields | overrides)
    return trainer_class(cfg=trainer_config(20), sae=sae, data_provider=batches())


def take_steps(trainer, data, n_steps):
    losses = []
    for batch in islice(data, n_steps):
        losses.append(trainer.step(batch).loss.item())
        trainer.n_training_steps += 1
    return losses


def assert_equal_states(one, other):
    ours, theirs = one.state_dict(), other.state_dict()
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name


def with_bad_batches(bad, at):
    for i, batch in enumerate(batches()):
        if i in at:
            yield bad(batch.clone())
        yield batch


def poisoned(value):
    def bad(batch):
        batch[3, 2] = value
        return batch

    return bad


def huge(batch):
    return batch * 1e20  # finite, and its square is not


BAD = [poisoned(torch.nan), poisoned(torch.inf), huge, torch.zeros_like]
