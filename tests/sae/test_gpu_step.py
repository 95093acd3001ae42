"""A step in the GPU's form, taken on a CPU: the plain form's losses and gradients, and checks that come late."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from feature_rows import Watched
from short_trainings import BAD, assert_equal_states, batches, new_trainer, take_steps, with_bad_batches
from small_saes import at_step, make_sae, step_input, tensors_of
from torch.utils._python_dispatch import _disable_current_modes

from sae_lens_hsae import HierarchicalTrainingSAE
from sae_lens_hsae.config_checks import OBSERVED_STEPS
from sae_lens_hsae.sae import training
from sae_lens_hsae.sae.bad_batches import BadBatchError
from sae_lens_hsae.sae.forms import activations_of
from sae_lens_hsae.sae.gpu_step.late_checks import LateChecks
from sae_lens_hsae.training.trainer import HierarchicalSAETrainer

LATE = OBSERVED_STEPS + 6


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have steps on a CPU take the GPU's form."""
    monkeypatch.setattr(HierarchicalTrainingSAE, "row_devices", ("cpu",))


def trainer_that_checks_late(**fields: Any) -> HierarchicalSAETrainer:
    trainer = new_trainer(HierarchicalSAETrainer, **fields)
    at_step(trainer.sae, LATE)
    trainer.sae.checks.late = LateChecks()
    return trainer


def test_a_trainers_step_reads_no_number_from_the_device(on_cpu: None, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: ARG001
    trainer = trainer_that_checks_late()
    data = batches()
    take_steps(trainer, data, 3)
    # What is on the host anyway: the draw, the parent table's copy there, and what was sent.
    for name in ("draw_replaced", "replacements"):
        monkeypatch.setattr(training, name, unwatched(getattr(training, name)))
    monkeypatch.setattr(LateChecks, "receive", unwatched(LateChecks.receive))
    x = next(data)
    with Watched() as watched:
        trainer.step(x)
    assert any("_fused_adam_" in name for name, _ in watched.seen)


def unwatched(function: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any) -> Any:
        with _disable_current_modes():
            return function(*args)

    return run


def test_what_is_told_of_a_step_waits_for_the_next_training_step(on_cpu: None) -> None:  # noqa: ARG001
    trainer = trainer_that_checks_late()
    data = with_bad_batches(BAD[0], {0})
    take_steps(trainer, data, 1)
    trainer.sae.eval()
    trainer.sae.training_forward_pass(step_input(next(data)))
    trainer.sae.train()
    with pytest.raises(BadBatchError, match=f"training step {LATE} "):
        trainer.step(next(data))
    with pytest.raises(BadBatchError, match=f"training step {LATE + 1} holds no token"):
        trainer.step(next(data)[:0])


@pytest.mark.usefixtures("on_cpu")
@pytest.mark.parametrize("activation", ["jumprelu", "batchtopk"])
@pytest.mark.parametrize("bad", [*BAD, lambda batch: batch * 1e19])
def test_a_bad_batch_changes_nothing_and_is_told_one_step_later(bad: Any, activation: str, caplog: Any) -> None:
    undisturbed = trainer_that_checks_late(level_activation=activation)
    take_steps(undisturbed, batches(), 3)
    trainer = trainer_that_checks_late(level_activation=activation)
    data = with_bad_batches(bad, {3})
    take_steps(trainer, data, 3)
    assert_equal_states(trainer.sae, undisturbed.sae)
    before = copy.deepcopy(dict(trainer.sae.named_parameters())), copy.deepcopy(tensors_of(trainer.sae))
    take_steps(trainer, data, 1)
    for name, parameter in trainer.sae.named_parameters():
        torch.testing.assert_close(parameter, before[0][name], rtol=1e-6, atol=1e-7)
    for name in ("l0_ema", "threshold", "tokens_since_fired"):
        torch.testing.assert_close(tensors_of(trainer.sae)[name], before[1][name], rtol=1e-6, atol=0)
    with pytest.raises(BadBatchError, match=f"training step {LATE + 3} "):
        trainer.step(next(data))
    assert trainer.sae.forest_updater.steps_taken() == LATE + 4

    trainer.max_bad_batches = 1
    trainer.sae.checks.late = LateChecks()
    data = with_bad_batches(bad, {1})
    trainer.data_provider = data
    n_samples = trainer.n_training_samples
    seen = [float(output.loss.detach()) for output in (trainer.step(next(data)) for _ in range(5))]
    assert sum(map(torch.isfinite, torch.tensor(seen))) >= 4
    assert trainer.n_bad_batches == 1
    assert "skipped bad batch 1" in caplog.text
    assert trainer.n_training_samples - n_samples <= 5 * 32


def test_the_count_of_steps_is_read_again_where_it_was_written() -> None:
    sae = make_sae()
    updater = sae.forest_updater
    assert updater.steps_taken() == 0
    updater.count_step()
    assert (updater.steps_taken(), int(updater.n_steps)) == (1, 1)
    assert copy.deepcopy(sae).forest_updater.steps_taken() == 1
    sae.load_state_dict({**sae.state_dict(), "forest_updater.n_steps": torch.tensor(9)})
    assert updater.steps_taken() == 9
    updater.n_steps.fill_(7)
    updater.forget()
    assert updater.steps_taken() == 7


@pytest.mark.parametrize("rows", [False, True])
@pytest.mark.parametrize("activation", ["jumprelu", "batchtopk"])
def test_autocast_rounds_no_l0_of_weighted_tokens(rows: bool, activation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HierarchicalTrainingSAE, "row_devices", ("cpu",) if rows else ())
    sae = make_sae(level_activation=activation)
    x = torch.randn(999, sae.cfg.d_in, generator=torch.Generator().manual_seed(0)).bfloat16().float()
    weights = torch.rand(999, generator=torch.Generator().manual_seed(1))
    with torch.autocast("cpu", torch.bfloat16):
        acts: Any = activations_of(sae, x, sae.activation.rule(weights), weights, sae.row_devices)
        l0 = acts.l0(weights)
    assert l0.dtype == torch.float32
    fired = acts.dense() > 0 if rows else acts.values > 0
    expected = [(own.sum(-1) * weights.double()).sum() / weights.double().sum() for own in sae.levels.split(fired)]
    assert l0.tolist() == pytest.approx(torch.stack(expected).tolist(), rel=1e-6)


@pytest.mark.parametrize("rows", [False, True])
def test_autocast_trains_with_its_logs_and_looks(rows: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HierarchicalTrainingSAE, "row_devices", ("cpu",) if rows else ())
    monkeypatch.setattr("sae_lens_hsae.training.trainer.is_look_due", lambda step: True)  # noqa: ARG005
    trainer = new_trainer(HierarchicalSAETrainer)
    trainer.autocast_if_enabled = torch.autocast("cpu", torch.bfloat16)
    losses = take_steps(trainer, batches(), 8)
    plain = new_trainer(HierarchicalSAETrainer)
    assert losses == pytest.approx(take_steps(plain, batches(), 8), rel=0.05)
    log = trainer.build_train_step_log_dict(trainer.step(next(batches())), 1)
    assert all(torch.isfinite(torch.as_tensor(value)).all() for value in log.values())
