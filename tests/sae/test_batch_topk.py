"""BatchTopK levels: the same as SAELens' own, from all activations and from entries alone; L0; running thresholds."""

import pytest
import torch
from host_helpers import runner_config, tiny_config, tiny_dataset, tiny_model, train
from hypothesis import given, settings
from hypothesis import strategies as st
from ranks import FORK, on_ranks
from sae_lens.saes.batchtopk_sae import BatchTopK
from small_saes import D_IN, make_sae, step_input, tensors_of

from sae_lens_hsae import HierarchicalSAE
from sae_lens_hsae.config_checks import OBSERVED_STEPS
from sae_lens_hsae.forest.levels import Levels
from sae_lens_hsae.sae.batch_topk import BatchTopKLevels, follow_threshold
from sae_lens_hsae.sae.level_activation import PreActivations
from sae_lens_hsae.training.distributed.data_parallel import DataParallelTrainer
from sae_lens_hsae.training.runner import HierarchicalSAETrainingRunner

TARGETS = [1.3, 2.0, 4.7]


def batch_topk_sae(**overrides):
    return make_sae(**{"level_activation": "batchtopk", "target_l0": TARGETS, **overrides})


@settings(max_examples=60, deadline=None)
@given(
    widths=st.sampled_from([(1, 2), (3, 7), (2, 5, 11)]),
    batch=st.integers(1, 9),
    target=st.sampled_from([0.05, 0.5, 1.0]),
    guess=st.sampled_from([0.0, 0.5, 3.0, 1e6]),
    outlying=st.booleans(),
    seed=st.integers(0, 10_000),
)
def test_both_forms_choose_what_saelens_chooses_wherever_they_look_first(widths, batch, target, guess, outlying, seed):
    generator = torch.Generator().manual_seed(seed)
    levels = Levels(widths)
    bias = torch.randn(levels.n_features, generator=generator, dtype=torch.float64)
    product = torch.randn(levels.n_features, batch, generator=generator, dtype=torch.float64)
    pre = PreActivations(product, bias)
    scale = torch.rand(batch, generator=generator, dtype=torch.float64) if outlying else None
    rule = BatchTopKLevels(levels, [target] * len(levels), torch.full((levels.n_features,), guess), scale)
    compared = pre.dense() if scale is None else pre.dense() * scale[:, None]
    theirs = torch.cat([BatchTopK(target)(compared[:, own]) for own in levels], dim=1)
    values, fired = rule.of_all(pre.dense())
    assert torch.equal(values, pre.dense() * (theirs != 0))
    assert torch.equal(fired != 0, theirs != 0)
    assert torch.equal(rule.found(pre).T, theirs != 0)


def test_a_sink_takes_no_features_from_other_tokens():
    torch.manual_seed(0)
    sae = batch_topk_sae(outlier_limit=3.0, target_l0=[0.5, 0.5, 0.5])
    batches = torch.randn(40, 256, D_IN)
    batches[:, :8] *= 300
    *before, last = batches
    for x in before:
        sae.training_forward_pass(step_input(x))
    fired = sae.training_forward_pass(step_input(last)).feature_acts.detach() != 0
    # Each takes as many as a token at the limit would, and not all that are positive.
    assert [fired[8:, own].sum(1).float().mean().item() > 0.38 for own in sae.levels] == [True] * 3


def test_of_equal_pre_activations_no_more_fire_than_may():
    levels = Levels((2, 5))
    values, _ = BatchTopKLevels(levels, [1.0, 1.5], torch.zeros(7)).of_all(torch.ones(4, 7))
    assert [int((own > 0).sum()) for own in levels.split(values)] == [4, 6]


def test_thresholds_are_running_means_that_a_silent_level_leaves_as_they_are():
    levels = Levels((1, 2))
    threshold = torch.zeros(3)
    seen = [2.0, 4.0, 3.0, *[7.0] * 200]
    for step, least in enumerate(seen):
        silent = torch.tensor(torch.inf if step else 5.0)
        follow_threshold(threshold, [torch.tensor(least), silent], levels, step)
    expected = 0.0
    for step, least in enumerate(seen):
        weight = max(1 / (step + 1), 0.01)
        expected += weight * (least - expected)
    assert threshold.tolist() == pytest.approx([expected, 5.0, 5.0])


def test_outside_of_training_features_fire_by_the_thresholds(batch):
    sae = batch_topk_sae(structural_loss_coefficient=0.0)
    sae.training_forward_pass(step_input(batch))
    sae.threshold.mul_(0.999)  # after one batch it is a pre-activation of that, on either side by rounding
    kept = sae.threshold.clone()
    sae.eval()
    one_by_one = torch.cat([sae.training_forward_pass(step_input(row[None])).feature_acts for row in batch])
    torch.testing.assert_close(one_by_one, sae.encode(batch))
    hidden_pre = sae.hidden_pre(sae.process_sae_in(batch))
    torch.testing.assert_close(sae.encode(batch), hidden_pre * (hidden_pre > kept))
    assert torch.equal(sae.threshold, kept)


def test_it_is_saved_as_jumprelu_levels(tmp_path, batch):
    sae = batch_topk_sae()
    sae.training_forward_pass(step_input(batch))
    sae.save_inference_model(tmp_path)
    loaded = HierarchicalSAE.load_from_disk(tmp_path)
    batch = batch.flip(1)  # on the first one some activation is the threshold itself, to rounding
    torch.testing.assert_close(loaded.encode(batch), sae.encode(batch))
    for level, own in enumerate(sae.levels):
        plain = loaded.level_sae(level)
        assert len(plain.threshold.unique()) == 1
        torch.testing.assert_close(plain.encode(batch), sae.encode(batch)[:, own])


def test_l0_of_other_tokens_by_the_thresholds_is_near_the_target():
    sae = batch_topk_sae(perturbation_rate=0.0)
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        sae.training_forward_pass(step_input(torch.randn(256, D_IN, generator=generator)))
    sae.eval()
    acts = sae.encode(torch.randn(8192, D_IN, generator=generator))
    l0 = [float((own > 0).sum(-1).float().mean()) for own in sae.levels.split(acts)]
    assert l0 == pytest.approx(TARGETS, rel=0.02)


def test_thresholds_begin_at_the_first_batch_after_those_that_are_only_observed():
    sae = batch_topk_sae(perturbation_rate=0.0, outlier_limit=3.0, normalize_activations="expected_average_only_in")
    generator = torch.Generator().manual_seed(0)
    for _ in range(OBSERVED_STEPS):
        sae.training_forward_pass(step_input(torch.randn(64, D_IN, generator=generator)))
    output = sae.training_forward_pass(step_input(torch.randn(64, D_IN, generator=generator)))
    scale = float(sae.standardization.input_scale)
    for own in sae.levels:
        acts = output.feature_acts[:, own] * scale
        assert sae.threshold[own].tolist() == pytest.approx(
            [float(acts[acts > 0].min().detach())] * (own.stop - own.start)
        )


@pytest.mark.skipif(FORK is None, reason="the processes are forked")
def test_on_several_processes_each_part_has_the_l0_and_the_saved_threshold_is_the_mean(tmp_path):
    def run(_):
        own = {}
        end = DataParallelTrainer.set_final_sae_metadata

        def set_final_sae_metadata(trainer):
            own.update({name: tensors_of(trainer.sae)[name].detach().clone() for name in ("threshold", "l0_ema")})
            end(trainer)

        # Not as many steps as there are at a hierarchy update, before which running means are averaged, too.
        cfg = runner_config(tmp_path, sae=tiny_config(level_activation="batchtopk"), training_tokens=25 * 64)
        overrides = {"override_model": tiny_model(), "override_dataset": tiny_dataset(600)}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(DataParallelTrainer, "set_final_sae_metadata", set_final_sae_metadata)
            sae = train(HierarchicalSAETrainingRunner, cfg, **overrides)
        return {"own": own, "threshold": sae.threshold.detach()}

    ranks = on_ranks(2, tmp_path, run)
    assert all(isinstance(result, dict) for result in ranks), ranks
    thresholds = torch.stack([result["own"]["threshold"] for result in ranks])
    assert not torch.equal(*thresholds)
    for result in ranks:
        torch.testing.assert_close(result["own"]["l0_ema"], torch.full((3,), 3.0))
        scale = result["threshold"] / thresholds.mean(0)  # the activations' scale was folded
        torch.testing.assert_close(scale, scale[:1].expand_as(scale))
        assert torch.equal(result["threshold"], ranks[0]["threshold"])
