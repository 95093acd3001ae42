"""Our trainer's step is SAELens' own: the same parameters and the same counts, whichever form the activations take."""

import pytest
import torch
from sae_lens.training.sae_trainer import SAETrainer
from short_trainings import BATCH, batches, new_trainer, take_steps

from sae_lens_hsae.config_checks import OBSERVED_STEPS
from sae_lens_hsae.training.trainer import HierarchicalSAETrainer


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
