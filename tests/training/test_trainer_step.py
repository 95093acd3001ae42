"""Our trainer's step is SAELens' own: the same parameters and the same counts, whichever form the activations take.

One that fails has counted nothing.
"""

from itertools import islice

import pytest
import torch
from sae_lens.training.sae_trainer import SAETrainer
from short_trainings import BATCH, batches, new_trainer, take_steps

from sae_lens_hsae.config_checks import OBSERVED_STEPS
from sae_lens_hsae.training.trainer import COUNTED, HierarchicalSAETrainer


@pytest.mark.parametrize("density", [-1.0, 1.0], ids=["dense", "entries"])
def test_a_step_counts_and_moves_as_saelens_does(monkeypatch, density):
    monkeypatch.setattr("sae_lens_hsae.sae.forms.MAX_DENSITY", density)
    ours, theirs = new_trainer(HierarchicalSAETrainer), new_trainer(SAETrainer)
    for trainer in (ours, theirs):
        trainer.sae.threshold.data[::3] = 50  # these never fire
    # So few tokens that some features fire on one alone.
    losses = [take_steps(trainer, (x[:2] for x in batches()), 6) for trainer in (ours, theirs)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert ours.n_forward_passes_since_fired.max() == 6
    for name in ("act_freq_scores", "n_forward_passes_since_fired"):
        assert torch.equal(getattr(ours, name), getattr(theirs, name))
    assert ours.n_frac_active_samples == theirs.n_frac_active_samples > 0
    theirs.sae.project_parameters()
    for name, parameter in ours.sae.named_parameters():
        torch.testing.assert_close(parameter, theirs.sae.get_parameter(name), rtol=1e-4, atol=1e-5)


def test_steps_that_only_observe_count_no_tokens():
    ours, theirs = (new_trainer(trainer, outlier_limit=3.0) for trainer in (HierarchicalSAETrainer, SAETrainer))
    data = batches()
    take_steps(ours, data, 3)
    assert ours.log_feature_sparsity.isfinite().all()
    take_steps(ours, data, OBSERVED_STEPS + 1)
    take_steps(theirs, batches(), OBSERVED_STEPS + 4)
    assert torch.equal(ours.n_forward_passes_since_fired, theirs.n_forward_passes_since_fired)
    assert ours.n_frac_active_samples == 4 * BATCH
    ours.set_final_sae_metadata()
    assert ours.sae.cfg.metadata.l0 == pytest.approx(theirs.act_freq_scores.sum().item() / (4 * BATCH))


def fail(*_, **__):
    raise MemoryError


def counts(trainer):
    return {name: torch.as_tensor(getattr(trainer, name)) for name in COUNTED}


def in_backward(trainer, _monkeypatch):
    trainer.sae.b_dec.register_hook(fail)


def in_adam(trainer, monkeypatch):
    """With memory for one more moment alone."""
    allocators = iter([torch.zeros_like, fail])

    def begin(*_):
        monkeypatch.setattr(torch, "zeros_like", lambda *args, **kwargs: next(allocators)(*args, **kwargs))

    trainer.optimizer.register_step_pre_hook(begin)


BY_COUNTS = {"hierarchy_similarity": "conditional", "minimum_similarity": None, "hierarchy_update_every": 8}
OBSERVING = {"level_activation": "batchtopk", "outlier_limit": 3.0}


@pytest.mark.parametrize(
    ("n_steps", "fail_in", "fields"),
    [(8, in_backward, BY_COUNTS), (5, in_backward, OBSERVING), (OBSERVED_STEPS, in_adam, OBSERVING)],
)
def test_a_step_that_fails_has_counted_nothing(tmp_path, monkeypatch, n_steps, fail_in, fields):
    whole, failing, resumed = (new_trainer(HierarchicalSAETrainer, **fields) for _ in range(3))
    for trainer in (whole, failing):
        take_steps(trainer, batches(), n_steps)
    fail_in(failing, monkeypatch)
    with pytest.raises(MemoryError):
        failing.step(next(batches()))
    monkeypatch.undo()
    failing.save_checkpoint("failed", tmp_path)
    resumed.load_trainer_state(tmp_path / "failed")
    resumed.sae.load_weights_from_checkpoint(tmp_path / "failed")
    for n_more in (1, 6):  # the first of them brings b_dec to where it begins, where that is due
        rest = list(islice(batches(), n_steps, n_steps + n_more))
        assert take_steps(resumed, rest, n_more) == pytest.approx(take_steps(whole, rest, n_more))
        for one, other in ((resumed.sae.state_dict(), whole.sae.state_dict()), (counts(resumed), counts(whole))):
            torch.testing.assert_close(one, other)


def test_a_step_counts_where_what_follows_it_fails():
    trainer = new_trainer(HierarchicalSAETrainer)
    trainer.after_update = fail
    with pytest.raises(MemoryError):
        take_steps(trainer, batches(), 20)
    assert trainer.n_training_samples == 4 * BATCH == trainer.sae.forest_updater.steps_taken() * BATCH
