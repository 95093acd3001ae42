"""Numbers that are not finite: the step, the level and the cause are named, and nothing good is overwritten."""

import pytest
import torch
from host_helpers import hooked_model
from own_runs import run_ours
from short_trainings import BAD, assert_equal_states, batches, huge, new_trainer, poisoned, take_steps, with_bad_batches
from small_saes import make_sae

from sae_lens_hsae.sae.bad_batches import BadBatchError
from sae_lens_hsae.training.trainer import HierarchicalSAETrainer


def empty(batch):
    return batch[:0]


@pytest.mark.parametrize("bad", [*BAD, empty])
def test_skipped_batches_change_nothing(bad, caplog):
    undisturbed = new_trainer(HierarchicalSAETrainer)
    expected = take_steps(undisturbed, batches(), 12)
    trainer = new_trainer(HierarchicalSAETrainer)
    trainer.max_bad_batches = 3
    trainer.data_provider = data = with_bad_batches(bad, {0, 3, 7})
    losses = take_steps(trainer, data, 12)
    if bad is huge:  # found after the decoder rows are brought to unit norm, which rounds anew each time
        assert losses == pytest.approx(expected, rel=1e-5)
    else:
        assert losses == expected
        assert_equal_states(trainer.sae, undisturbed.sae)
    assert trainer.n_bad_batches == 3
    assert trainer.n_training_samples == undisturbed.n_training_samples
    assert caplog.text.count("skipped bad batch") == 3


@pytest.mark.parametrize("bad", [*BAD, empty])
def test_a_bad_batch_too_many_ends_training(bad):
    trainer = new_trainer(HierarchicalSAETrainer)
    with pytest.raises(BadBatchError, match=r"training step 4 (are|overflows|holds no token)"):
        take_steps(trainer, with_bad_batches(bad, {4}), 9)
    trainer = new_trainer(HierarchicalSAETrainer)
    trainer.max_bad_batches = 1
    trainer.data_provider = data = with_bad_batches(bad, {4, 6})
    with pytest.raises(BadBatchError, match=r"training step 6 .*max_bad_batches=1 batches were skipped"):
        take_steps(trainer, data, 9)
    with pytest.raises(ValueError, match="d_in"):
        trainer.step(next(data)[:, 1:])
    assert trainer.n_training_samples == 32 * trainer.n_training_steps


def test_the_step_the_level_and_the_cause_are_named():
    sae = make_sae()
    trainer = HierarchicalSAETrainer(cfg=new_trainer(HierarchicalSAETrainer).cfg, sae=sae, data_provider=batches())
    batch = next(batches())
    with pytest.raises(BadBatchError, match=r"of 32 tokens, 1 have NaN and 0 infinite"):
        trainer.step(poisoned(torch.nan)(batch.clone()))
    with pytest.raises(BadBatchError, match=r"mse_loss.* of training step 0 overflows at level 0, 1, 2"):
        trainer.step(huge(batch))
    with pytest.raises(BadBatchError, match=r"training step 0 are all zero.*normalize_activations"):
        trainer.step(0 * batch)
    take_steps(trainer, batches(), 2)
    own = sae.levels[1]
    for name, at in (("W_enc", (0, own.start)), ("W_dec", (own.start, 0)), ("b_dec", (1, 0)), ("b_enc", (own.start,))):
        broken = make_sae()
        trainer = HierarchicalSAETrainer(cfg=trainer.cfg, sae=broken, data_provider=batches())
        take_steps(trainer, batches(), 2)
        getattr(broken, name).data[at] = torch.nan
        with pytest.raises(ValueError, match=rf"diverged: before training step 2, {name} is NaN .* at level 1;"):
            trainer.step(batch)


def test_what_has_diverged_is_not_saved(tmp_path):
    trainer = new_trainer(HierarchicalSAETrainer)
    trainer.max_bad_batches = 100
    take_steps(trainer, batches(), 1)
    trainer.save_checkpoint("good", base_path=tmp_path)
    trainer.sae.b_enc.data[0] = torch.inf
    with pytest.raises(ValueError, match="training has diverged: after training step 1, b_enc"):
        trainer.save_checkpoint("bad", base_path=tmp_path)
    with pytest.raises(ValueError, match="training has diverged"):
        trainer.set_final_sae_metadata()
    with pytest.raises(ValueError, match="training has diverged: before"):
        trainer.step(next(batches()))
    assert [path.name for path in tmp_path.iterdir()] == ["good"]


def test_activations_that_are_all_zero_leave_nothing_to_scale(tmp_path):
    model = hooked_model(lambda x: 0 * x)
    with pytest.raises(ValueError, match=r"activations of the 3 batches before training, .* are all zero; check the"):
        run_ours(tmp_path, model=model)


def test_a_bad_batch_in_the_estimate_of_the_scale_can_be_skipped(tmp_path):
    model = hooked_model(lambda x: torch.full_like(x, torch.inf), at=1)
    _, sae = run_ours(tmp_path, model=model, options={"max_bad_batches": 20})
    assert all(parameter.isfinite().all() for parameter in sae.parameters())
    assert sae.cfg.normalize_activations == "none"
