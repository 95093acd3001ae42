"""Stop and go on: the resumed run is the uninterrupted one, to the bit on a CPU."""

import signal
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from host_helpers import (
    hooked_model,
    recorded_steps,
    runner_config,
    signalling,
    tiny_config,
    tiny_dataset,
    tiny_model,
    train,
)
from own_runs import begun, checkpoints_of, run_ours
from sae_lens import (
    JumpReLUTrainingSAEConfig,
    LanguageModelSAETrainingRunner,
    LoggingConfig,
    StandardTrainingSAE,
    StandardTrainingSAEConfig,
)
from sae_lens.constants import TRAINER_STATE_FILENAME
from sae_lens.training._interruption import InterruptedException
from sae_lens.training.mixing_buffer import mixing_buffer
from sae_lens.training.sae_trainer import SAETrainer
from safetensors.torch import load_file
from short_trainings import assert_equal_states, batches, new_trainer, poisoned, take_steps
from small_saes import make_sae

from sae_lens_hsae import HierarchicalSAE
from sae_lens_hsae.sae.bad_batches import BadBatchError
from sae_lens_hsae.sae.forest_updater import ForestUpdater
from sae_lens_hsae.sae.training import HierarchicalTrainingSAE
from sae_lens_hsae.training.distributed.shards import shard_of
from sae_lens_hsae.training.runner import HierarchicalSAETrainingRunner
from sae_lens_hsae.training.store import STATE_FILENAME, MixingBuffer, ResumableActivationsStore
from sae_lens_hsae.training.trainer import HierarchicalSAETrainer
from sae_lens_hsae.training.trainer_state import read_trainer_state

SIMILARITIES = ["encoder", "coactivation", "conditional"]


@pytest.mark.parametrize("trainer_class", [SAETrainer, HierarchicalSAETrainer])
@pytest.mark.parametrize(
    "fields", [*({"hierarchy_similarity": name} for name in SIMILARITIES), {"level_activation": "batchtopk"}]
)
def test_given_the_same_batches_a_resumed_trainer_takes_the_same_steps(tmp_path, trainer_class, fields):
    whole = new_trainer(trainer_class, **fields)
    data = batches()
    take_steps(whole, data, 8)
    whole.sae.save_model(tmp_path)
    whole.save_trainer_state(tmp_path)
    rest = list(islice(data, 8))
    expected = take_steps(whole, rest, 8)

    resumed = new_trainer(trainer_class, **fields)
    resumed.load_trainer_state(tmp_path)
    resumed.sae.load_weights_from_checkpoint(tmp_path)
    assert take_steps(resumed, rest, 8) == expected
    assert_equal_states(resumed.sae, whole.sae)


@pytest.mark.parametrize("mix_fraction", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("batch_size", [7, 16])
def test_the_mixing_buffer_serves_what_saelens_serves(mix_fraction, batch_size):
    def source():
        for i in range(40):
            yield torch.arange(11.0)[:, None] + 100 * i

    torch.manual_seed(3)
    theirs = list(islice(mixing_buffer(50, batch_size, source(), mix_fraction), 15))
    torch.manual_seed(3)
    ours = list(islice(MixingBuffer(50, batch_size, source(), mix_fraction), 15))
    assert len(ours) == len(theirs) == 15
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_a_buffer_that_cannot_be_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"activations_mixing_fraction=1\.5 must be from 0 to 1"):
        MixingBuffer(50, 6, iter(()), 1.5)
    message = r"n_batches_in_buffer=4 .* buffer of 48 .* of 12 positions .* train_batch_size_tokens=64; .* least 6"
    with pytest.raises(ValueError, match=message):  # before the model, of which there is none by this name
        HierarchicalSAETrainingRunner(runner_config(tmp_path, seqpos_slice=(5, -15)))


def test_what_is_done_for_nothing_or_never_is_refused(tmp_path):
    for name in ("train_batch_size_tokens", "n_batches_for_norm_estimate", "feature_sampling_window"):
        with pytest.raises(ValueError, match=f"^{name}=0 must be at least 1"):
            HierarchicalSAETrainingRunner(runner_config(tmp_path, **{name: 0}))
    with pytest.raises(ValueError, match=r"^wandb_log_frequency=0 must be at least 1"):
        HierarchicalSAETrainingRunner(runner_config(tmp_path, logger=LoggingConfig(wandb_log_frequency=0)))
    with pytest.raises(ValueError, match=r"n_eval_batches=0 must be at least 1 .* raise eval_every_n_wandb_logs"):
        HierarchicalSAETrainingRunner(runner_config(tmp_path, n_eval_batches=0, logger=LoggingConfig()))
    run_ours(tmp_path, n_eval_batches=0, training_tokens=128)


@pytest.mark.parametrize(
    "change",
    [
        {"lr": 1e-4},
        {"lr": 1e-4, "lr_end": 1e-5, "lr_scheduler_name": "cosineannealing"},
        {"training_tokens": 40 * 64},
        {"lr_warm_up_steps": 25, "lr_decay_steps": 4, "lr_end": 1e-4},
        {"adam_beta2": 0.9},
        {"lr_scheduler_name": "constant"},
    ],
)
def test_a_run_is_resumed_with_another_learning_rate_or_length(tmp_path, caplog, change):
    first: dict[str, Any] = {"lr": 1e-2, "lr_end": 1e-3, "lr_scheduler_name": "cosineannealing"}
    _, checkpoint = begun(tmp_path, **first)
    with recorded_steps() as steps:
        resumed, _ = run_ours(tmp_path, "resumed", resume_from_checkpoint=str(checkpoint), **first | change)
    assert steps
    # As if it had been trained by the new configuration from the start.
    rates: list[float] = []
    plain = SAETrainer(resumed.to_sae_trainer_config(), make_sae(), batches())
    for _ in range(resumed.training_tokens // resumed.train_batch_size_tokens):
        rates.append(plain.optimizer.param_groups[0]["lr"])
        plain.optimizer.step()
        plain.lr_scheduler.step()
    assert [step.lr for step in steps] == pytest.approx(rates[-len(steps) :])
    assert {tuple(step.betas) for step in steps} == {(resumed.adam_beta1, resumed.adam_beta2)}
    assert "is of a run with another " in caplog.text
    assert all(name in caplog.text for name, value in change.items() if first.get(name) != value)


def test_another_text_under_the_same_name_is_told(tmp_path, caplog):
    _, checkpoint = begun(tmp_path)
    for name, rows, told in (("same", tiny_dataset(), False), ("other", tiny_dataset().select(range(150)), True)):
        caplog.clear()
        run_ours(tmp_path, name, dataset=rows, resume_from_checkpoint=str(checkpoint))
        assert ("has read another data set than this one" in caplog.text) == told


def test_the_configuration_says_how_an_sae_that_was_trained_before_is_trained(tmp_path, caplog):
    cfg, checkpoint = begun(tmp_path)
    wanted = replace(cfg.sae, target_l0=[1.0, 2.0, 2.5])
    again = runner_config(tmp_path / "again", from_pretrained_path=str(checkpoint), sae=wanted)
    runner = HierarchicalSAETrainingRunner(again, override_model=tiny_model(), override_dataset=tiny_dataset())
    assert again.sae.target_l0 == runner.sae.cfg.target_l0 == cfg.sae.target_l0
    assert "has another target_l0 than sae" in caplog.text


def test_an_sae_made_of_the_configuration_leaves_that_as_it_was(tmp_path):
    config = tiny_config()
    cfg, sae = run_ours(tmp_path, sae=config, options={"override_sae": HierarchicalTrainingSAE(config)})
    assert sae.cfg.metadata.hook_name
    assert cfg.sae.to_dict() == tiny_config().to_dict()


def test_auto_finds_the_checkpoints_of_a_run_that_goes_on_from_a_trained_sae(tmp_path, caplog):
    _, source = begun(tmp_path, n_checkpoints=0, save_final_checkpoint=True)
    # Its scale is folded, and its configuration another than ours.
    flags = {"from_pretrained_path": str(source), "n_checkpoints": 2}
    on, _ = run_ours(tmp_path, "on", **flags)
    assert caplog.text.count("if a scale was folded into it, as at the end of a training") == 1  # of two runs
    again = runner_config(tmp_path / "on", resume_from_checkpoint="auto", **flags)
    caplog.clear()
    HierarchicalSAETrainingRunner(again, override_model=tiny_model(), override_dataset=tiny_dataset())
    assert again.resume_from_checkpoint == str(checkpoints_of(on)[-1])
    assert "is of a run with another" not in caplog.text


@pytest.mark.parametrize(("number", "n_rows"), [(signal.SIGINT, 300), (signal.SIGTERM, 45)])
def test_a_run_stopped_by_a_signal_resumes_where_it_was(tmp_path, number, n_rows):
    """Also where it has passed over all rows by then."""
    rows = tiny_dataset(n_rows)
    _, whole = run_ours(tmp_path, "whole", dataset=rows)
    with pytest.raises(InterruptedException):
        run_ours(tmp_path, "stopped", model=hooked_model(signalling(number), at=14), dataset=rows)
    (checkpoint,) = tmp_path.glob("stopped/checkpoints/*/*")
    assert not (tmp_path / "stopped" / "out").exists()
    assert (int(load_file(checkpoint / STATE_FILENAME)["n_passes"]) > 1) == (n_rows == 45)
    _, resumed = run_ours(tmp_path, "resumed", dataset=rows, resume_from_checkpoint=str(checkpoint))
    assert_equal_states(resumed, whole)


def failing(error: Exception, n_rows: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """An action for `hooked_model` that raises at a batch of so many contexts: 4 for a step, 2 for an evaluation."""

    def action(tensor: torch.Tensor) -> torch.Tensor:
        if len(tensor) == n_rows:
            raise error
        return tensor

    return action


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize(
    ("fault", "at", "error"),
    [
        (poisoned(torch.nan), 7, BadBatchError),
        (failing(ConnectionError("the stream has ended"), 4), 7, ConnectionError),
        (failing(KeyError("an evaluation"), 2), None, KeyError),
    ],
)
def test_a_run_that_an_error_ends_goes_on_after_its_last_step(tmp_path, caplog, fault, at, error):
    logger = LoggingConfig(log_to_wandb=True, wandb_log_frequency=14, eval_every_n_wandb_logs=1)
    flags = {"n_eval_batches": 1, "eval_batch_size_prompts": 2, "resume_from_checkpoint": "auto"}
    with recorded_steps() as steps:
        with pytest.raises(error, match=r"in part NaN|the stream has ended|an evaluation"):
            run_ours(tmp_path, model=hooked_model(fault, at), logger=logger, **flags)
        (checkpoint,) = tmp_path.glob("run/checkpoints/*/*")
        assert f"ended by {error.__name__}, the batch in flight may be lost; resume with" in caplog.text
        state = read_trainer_state(checkpoint / TRAINER_STATE_FILENAME)
        assert 0 < state["n_training_steps"] * 64 == state["n_training_samples"] == len(steps) * 64
        run_ours(tmp_path, **flags)
    assert len(steps) == 30


def test_a_step_that_fails_again_leaves_the_checkpoint_as_it_was(tmp_path, monkeypatch):
    def fail(*_: Any) -> None:
        raise RuntimeError("no more memory")

    _, checkpoint = begun(tmp_path, output_path=None)
    written = (checkpoint / "manifest.json").read_text()  # with a hash of every file
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", fail)
    with pytest.raises(RuntimeError, match="no more memory"):
        run_ours(tmp_path, "begun", resume_from_checkpoint="auto")
    assert (checkpoint / "manifest.json").read_text() == written


@pytest.mark.parametrize(
    ("called", "overrides"),
    [("set_final_sae_metadata", {}), ("full_sparsity_window_log", {"checkpoint_path": None})],
)
def test_a_trained_model_is_saved_where_what_comes_after_the_last_step_fails(
    tmp_path, monkeypatch, caplog, called, overrides
):
    usual = getattr(SAETrainer, called)

    def fail(trainer: Any) -> Any:
        if trainer.n_training_samples >= trainer.cfg.total_training_samples:
            raise ConnectionError("the log is gone")
        return usual(trainer)

    monkeypatch.setattr(SAETrainer, called, fail)
    with pytest.raises(ConnectionError, match="the log is gone"):
        run_ours(tmp_path, **overrides)
    assert f"ConnectionError after the last step; the trained model is in '{tmp_path / 'run' / 'out'}'" in caplog.text
    saved = HierarchicalSAE.load_from_disk(tmp_path / "run" / "out")
    monkeypatch.undo()
    run_ours(tmp_path, "whole")
    whole = HierarchicalSAE.load_from_disk(tmp_path / "whole" / "out")
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(saved.state_dict()[name], value, msg=name)


def test_a_model_whose_last_update_fails_is_saved_with_the_forest_as_it_is(tmp_path, monkeypatch, caplog):
    usual, tables = ForestUpdater.update, []

    def update(updater, parents, *weights):
        if updater.steps_taken() == 30:
            raise MemoryError("no room for similarities")
        usual(updater, parents, *weights)
        tables.append(parents.clone())

    monkeypatch.setattr(ForestUpdater, "update", update)
    with pytest.raises(MemoryError, match="no room"):
        run_ours(tmp_path)
    assert "the last hierarchy update failed, the forest stays as it is: no room for similarities" in caplog.text
    assert torch.equal(HierarchicalSAE.load_from_disk(tmp_path / "run" / "out").parents, tables[-1])


def test_an_error_before_the_first_step_leaves_nothing_to_go_on_from(tmp_path):
    sae = tiny_config(normalize_activations="none")
    with pytest.raises(ConnectionError):
        run_ours(tmp_path, sae=sae, model=hooked_model(failing(ConnectionError(), 4)))
    assert not list(tmp_path.glob("run/checkpoints/*/*"))


@pytest.mark.parametrize("concatenated", [True, False])
@pytest.mark.parametrize("form", ["rows", "few rows", "stream"])
def test_a_resumed_run_tokenises_none_of_the_text_that_was_read(tmp_path, gpt2, monkeypatch, form, concatenated):
    """Texts shorter and longer than a context, so that the stop comes in the middle of one."""
    texts = [" ".join(f"w{1 + (7 * i + 3 * j) % 97}" for j in range(5 + 37 * i % 150)) for i in range(90)]
    texts = texts[:2] if form == "few rows" else texts  # the last one is begun at every checkpoint
    data: Any = Dataset.from_dict({"text": texts})
    data = data.to_iterable_dataset() if form == "stream" else data
    tokenised: list[str] = []
    row, original = ResumableActivationsStore._iterate_raw_dataset, ResumableActivationsStore.get_batch_tokens

    def raw(store):
        for text in row(store):
            tokenised.append(text)
            yield text

    def run(name, **overrides):
        tokenised.clear()
        batches.clear()
        of_model = {"model_name": str(gpt2), "model_class_name": "AutoModelForCausalLM", "hook_name": "transformer.h.0"}
        how = {"prepend_bos": True, "disable_concat_sequences": not concatenated, "n_checkpoints": 4}
        cfg = runner_config(tmp_path / name, **of_model, **how, **overrides)
        return cfg, train(HierarchicalSAETrainingRunner, cfg, override_dataset=data)

    def batch(store, *args, **kwargs):
        batches.append(original(store, *args, **kwargs))
        return batches[-1]

    batches: list[torch.Tensor] = []
    monkeypatch.setattr(ResumableActivationsStore, "_iterate_raw_dataset", raw)
    monkeypatch.setattr(ResumableActivationsStore, "get_batch_tokens", batch)
    cfg, whole = run("whole")
    all_batches, all_texts = list(batches), list(tokenised)
    for checkpoint in Path(str(cfg.checkpoint_path)).iterdir():
        _, resumed = run(checkpoint.name, resume_from_checkpoint=str(checkpoint))
        assert_equal_states(resumed, whole)
        assert all(torch.equal(a, b) for a, b in zip(batches, all_batches[-len(batches) :], strict=True))
        assert tokenised == all_texts[len(all_texts) - len(tokenised) :]
        state = load_file(checkpoint / STATE_FILENAME)
        before = int(state["n_rows"]) + (int(state["n_passes"]) - 1) * len(texts)
        assert len(tokenised) == len(all_texts) - before


@pytest.mark.parametrize("n_read", [1, 4, 5])
def test_of_a_divided_stream_each_rank_skips_rows_of_its_own(n_read):
    data = Dataset.from_dict({"text": [str(i) for i in range(10)]}).to_iterable_dataset()  # of a single file
    store = ResumableActivationsStore.__new__(ResumableActivationsStore)
    store.dataset, store.tokens_column = shard_of(data, 1, 2), "text"
    store.n_rows = store.n_dataset_processed = n_read
    assert list(store._iterate_raw_dataset()) == ["1", "3", "5", "7", "9"][n_read:]


def test_a_data_set_that_ends_before_the_checkpoint_is_refused(tmp_path):
    _, checkpoint = begun(tmp_path)
    with pytest.raises(ValueError, match=r"has read \d+ rows, but the data set has 20; resume with the data set of"):
        run_ours(tmp_path, dataset=tiny_dataset(20), resume_from_checkpoint=str(checkpoint))


def test_signal_handlers_are_put_back(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    run_ours(tmp_path, training_tokens=128)
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_checkpoint_of_the_stock_runner_is_refused_with_the_way_out(tmp_path):
    cfg = runner_config(tmp_path, n_checkpoints=1)
    train(LanguageModelSAETrainingRunner, cfg)
    with pytest.raises(FileNotFoundError, match=rf"{STATE_FILENAME} is missing.*LanguageModelSAETrainingRunner"):
        run_ours(tmp_path, resume_from_checkpoint=str(checkpoints_of(cfg)[0]))


def test_the_runner_refuses_other_architectures_and_inexact_resumes(tmp_path):
    other = JumpReLUTrainingSAEConfig(d_in=16, d_sae=32)
    with pytest.raises(ValueError, match=r"sae=JumpReLUTrainingSAEConfig is not a HierarchicalTrainingSAEConfig"):
        HierarchicalSAETrainingRunner(runner_config(tmp_path, sae=other))
    with pytest.raises(ValueError, match=r"prefetch_llm_batches=True.*set it to False, or n_checkpoints=0"):
        HierarchicalSAETrainingRunner(runner_config(tmp_path, prefetch_llm_batches=True, n_checkpoints=1))


def test_what_is_no_checkpoint_or_no_hierarchical_sae_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no cfg\.json; give the folder of one checkpoint"):
        run_ours(tmp_path, resume_from_checkpoint=str(tmp_path))
    other = {"override_sae": StandardTrainingSAE(StandardTrainingSAEConfig(d_in=16, d_sae=56))}
    with pytest.raises(ValueError, match="override_sae=StandardTrainingSAE is not a HierarchicalTrainingSAE"):
        run_ours(tmp_path, options=other)


def test_a_model_of_another_width_is_refused(tmp_path):
    message = r"activations at hook_name='blocks.0.hook_resid_post' are 16 wide, not d_in=8; set d_in"
    with pytest.raises(ValueError, match=message):
        run_ours(tmp_path, sae=tiny_config(d_in=8))


def test_a_resumed_run_writes_no_checkpoint_that_it_has_passed(tmp_path):
    cfg, _ = run_ours(tmp_path, "a", n_checkpoints=3)
    _, second, third = checkpoints_of(cfg)
    again, _ = run_ours(tmp_path, "b", n_checkpoints=3, resume_from_checkpoint=str(second))
    assert [path.name for path in checkpoints_of(again)] == [third.name]


def test_adam_is_fused_also_after_resuming(tmp_path):
    trainer = new_trainer(HierarchicalSAETrainer)
    take_steps(trainer, batches(), 2)
    stock = new_trainer(SAETrainer)
    take_steps(stock, batches(), 2)
    stock.save_trainer_state(tmp_path)
    trainer.load_trainer_state(tmp_path)
    assert all(group["fused"] for group in trainer.optimizer.param_groups)
    take_steps(trainer, batches(), 1)


@pytest.mark.parametrize(
    ("runner", "normalize", "bad_from", "message"),
    [
        (LanguageModelSAETrainingRunner, "expected_average_only_in", 0, "activations of training step 0 are"),
        (HierarchicalSAETrainingRunner, "expected_average_only_in", 0, "activations of training step 0 are"),
        (HierarchicalSAETrainingRunner, "none", 6, r"activations of training step \d+ are in part NaN"),
    ],
)
def test_nothing_saved_is_overwritten_when_activations_turn_bad(tmp_path, runner, normalize, bad_from, message):
    """In the estimate of their norm, or later."""
    cfg = runner_config(tmp_path, sae=tiny_config(normalize_activations=normalize))
    train(runner, cfg)
    before = {path: path.read_bytes() for path in Path(str(cfg.output_path)).iterdir()}
    assert before
    model = hooked_model(lambda x: torch.where(x == x.max(), torch.inf, x), after=bad_from)
    with pytest.raises(ValueError, match=message):
        train(runner, cfg, override_model=model, override_dataset=tiny_dataset())
    assert {path: path.read_bytes() for path in Path(str(cfg.output_path)).iterdir()} == before
