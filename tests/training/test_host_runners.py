"""SAELens' own runners, unmodified, train the architecture, and ours takes the same steps."""

import copy
import itertools
import os
import shutil
from statistics import mean
from typing import Any

import pytest
import torch
from host_helpers import (
    CONTEXT,
    D_MODEL,
    HOOK,
    assert_saved_as_trained,
    recorded_steps,
    residual_activations,
    runner_config,
    tiny_config,
    tiny_dataset,
    tiny_model,
    train,
)
from own_runs import checkpoints_of
from sae_lens import (
    CacheActivationsRunner,
    CacheActivationsRunnerConfig,
    LanguageModelSAETrainingRunner,
    LoggingConfig,
    TrainingSAE,
)
from sae_lens.constants import SPARSITY_FILENAME
from sae_lens.llm_sae_training_runner import _parse_cfg_args
from sae_lens.synthetic import (
    SyntheticModel,
    SyntheticModelConfig,
    SyntheticSAERunner,
    SyntheticSAERunnerConfig,
    ZipfianFiringProbabilityConfig,
)
from safetensors.torch import load_file
from small_saes import tensors_of

from sae_lens_hsae import HierarchicalTrainingSAE, HierarchicalTrainingSAEConfig
from sae_lens_hsae.training.runner import HierarchicalSAETrainingRunner

RUNNERS = [LanguageModelSAETrainingRunner, HierarchicalSAETrainingRunner]
both_runners = pytest.mark.parametrize("runner", RUNNERS)


def losses(steps: list[Any]) -> list[float]:
    return [step.loss for step in steps]


# Every runner: what is saved is what was trained.


@both_runners
def test_language_model_runner(tmp_path, runner):
    with recorded_steps() as steps:
        sae = train(runner, runner_config(tmp_path))
    assert len(steps) == 30
    loaded = assert_saved_as_trained(tmp_path / "out", sae, residual_activations())
    # The forest is that of the final weights, and not one that an update during training left.
    assert not torch.equal(loaded.parents, steps[0].parents)
    before = sae.parents.clone()
    sae.update_hierarchy()
    assert torch.equal(loaded.parents, before)
    assert torch.equal(sae.parents, before)
    assert loaded.cfg.metadata.hook_name == HOOK
    assert loaded.cfg.metadata.training_architecture == "hsae"
    sparsity = load_file(tmp_path / "out" / SPARSITY_FILENAME)["sparsity"]
    assert ((sparsity > -3) & (sparsity <= 0)).any(), "the frequencies saved are those of the training"
    assert sum(losses(steps)[-5:]) < sum(losses(steps)[:5])


@both_runners
def test_cached_activations(tmp_path, gpt2, runner):
    common: dict[str, Any] = {
        "model_name": str(gpt2),
        "model_class_name": "AutoModelForCausalLM",
        "hook_name": "transformer.h.0",
        "context_size": CONTEXT,
        "prepend_bos": False,
    }
    cached = CacheActivationsRunner(
        CacheActivationsRunnerConfig(
            dataset_path="",
            d_in=D_MODEL,
            training_tokens=64 * CONTEXT,
            model_batch_size=4,
            new_cached_activations_path=str(tmp_path / "cached"),
            buffer_size_gb=1e-4,
            device="cpu",
            model_from_pretrained_kwargs={},
            **common,
        ),
        override_dataset=tiny_dataset(),
    ).run()
    with recorded_steps() as steps:
        sae = train(
            runner,
            runner_config(
                tmp_path, use_cached_activations=True, cached_activations_path=str(tmp_path / "cached"), **common
            ),
            override_dataset=tiny_dataset(),
        )
    assert len(steps) == 30
    x = torch.tensor(cached[0]["transformer.h.0"])
    loaded = assert_saved_as_trained(tmp_path / "out", sae, x)
    assert loaded.cfg.metadata.model_class_name == "AutoModelForCausalLM"


def test_synthetic_runner(tmp_path):
    torch.manual_seed(0)
    model = SyntheticModel(
        SyntheticModelConfig(
            num_features=32,
            hidden_dim=D_MODEL,
            firing_probability=ZipfianFiringProbabilityConfig(max_prob=0.4, min_prob=0.05),
            seed=0,
        )
    )
    cfg = SyntheticSAERunnerConfig(
        synthetic_model=model.cfg,
        sae=tiny_config(),
        training_samples=30 * 64,
        batch_size=64,
        lr=3e-3,
        eval_samples=256,
        n_batches_for_norm_estimate=3,
        output_path=str(tmp_path / "out"),
        checkpoint_path=None,
        logger=LoggingConfig(log_to_wandb=False),
    )
    with recorded_steps() as steps:
        result = SyntheticSAERunner(cfg, override_synthetic_model=model).run()
    assert len(steps) == 30
    assert_saved_as_trained(tmp_path / "out", result.sae, model.sample(64))
    assert result.final_eval is not None
    assert result.final_eval.sae_l0 > 0
    assert result.final_eval.explained_variance > 0


def test_command_line():
    line = "--architecture hsae --d_in 384 --d_sae 896 --level_widths 128 256 512 --target_l0 16 --max_children 2"
    cfg = _parse_cfg_args(line.split()).sae
    assert type(cfg) is HierarchicalTrainingSAEConfig
    assert cfg.level_widths == [128, 256, 512]
    assert cfg.target_l0_per_level[-1] == 16
    assert cfg.max_children == 2
    # What is not on the command line has the class's default.
    assert cfg == HierarchicalTrainingSAEConfig(
        d_in=384, d_sae=896, level_widths=[128, 256, 512], target_l0=16, max_children=2, metadata=cfg.metadata
    )
    line = "--architecture hsae --d_in 384 --d_sae 384 --level_widths 128 256 --target_l0"
    cfg = _parse_cfg_args([*line.split(), "[8, 16.5]"]).sae
    assert isinstance(cfg, HierarchicalTrainingSAEConfig)
    assert cfg.target_l0_per_level == (8, 16.5)


# Our runner against SAELens'.


def test_both_runners_take_the_same_steps(tmp_path):
    runs = []
    for runner in RUNNERS:
        with recorded_steps() as steps:
            train(runner, runner_config(tmp_path / runner.__name__))
        runs.append(steps)
    stock, ours = runs
    # One Adam is fused and one is not, which rounds differently.
    torch.testing.assert_close(losses(ours), losses(stock), rtol=1e-5, atol=0)
    assert all(torch.equal(a.parents, b.parents) for a, b in zip(stock, ours, strict=True))
    # Equal only because they saw the same batches: other batches give other losses.
    with recorded_steps() as other:
        train(HierarchicalSAETrainingRunner, runner_config(tmp_path / "other"), seed=2)
    assert abs(losses(other)[-1] - losses(stock)[-1]) > 1e-2
    # And ours leaves the decoder rows at unit norm after every step.
    norms = torch.stack([step.row_norms for step in ours])
    torch.testing.assert_close(norms, torch.ones_like(norms), atol=1e-6, rtol=0)


@pytest.mark.parametrize("given", [False, True], ids=["new SAE", "given SAE"])
def test_the_seed_decides_a_run_whatever_the_random_state_was(tmp_path, given):
    sae = HierarchicalTrainingSAE(tiny_config())

    def trained(name: str, state: int, seed: int) -> dict[str, torch.Tensor]:
        overrides: dict[str, Any] = {"override_model": tiny_model(), "override_dataset": tiny_dataset()}
        if given:
            overrides["override_sae"] = copy.deepcopy(sae)
        torch.manual_seed(state)
        cfg = runner_config(tmp_path / name, seed=seed, training_tokens=5 * 64)
        return HierarchicalSAETrainingRunner(cfg, **overrides).run().state_dict()

    one, again, other = trained("one", 1, 5), trained("again", 2, 5), trained("other", 1, 6)
    assert all(torch.equal(tensor, again[name]) for name, tensor in one.items())
    assert not torch.equal(one["W_enc"], other["W_enc"])


# Options.


@both_runners
def test_checkpoints_hold_the_state_and_training_resumes_from_them(tmp_path, runner):
    with recorded_steps() as whole:
        cfg = runner_config(tmp_path, n_checkpoints=2, save_final_checkpoint=True)
        sae = train(runner, cfg)
    saved = {path.name: path for path in checkpoints_of(cfg)}
    assert len(saved) == 3
    for name, path in saved.items():
        loaded = TrainingSAE.load_from_disk(path)
        assert type(loaded) is HierarchicalTrainingSAE
        n_steps = int(name.removeprefix("final_")) // 64
        assert loaded.forest_updater.steps_taken() == n_steps
        if not name.startswith("final_"):
            assert torch.equal(loaded.parents, whole[n_steps - 1].parents)
        torch.testing.assert_close(loaded.sparsity.log_l0_coefficient.exp(), whole[n_steps - 1].coefficients)
    if runner is HierarchicalSAETrainingRunner:
        final = TrainingSAE.load_from_disk(saved[f"final_{30 * 64}"])
        for name in ("W_enc", "b_enc", "threshold", "W_dec", "b_dec", "parents"):
            # Saving scales the decoder rows to unit norm once more, which rounds.
            torch.testing.assert_close(getattr(final, name), getattr(sae, name), rtol=0, atol=1e-6)

    name = next(name for name in saved if name.isdecimal())
    n_before = int(name) // 64
    assert 0 < n_before < 30
    # The seed is another one, so that only the checkpoint can make the runs alike.
    with recorded_steps() as rest:
        again = runner_config(tmp_path / "resumed", resume_from_checkpoint=str(saved[name]))
        resumed = train(runner, again, seed=2)
    assert len(rest) == 30 - n_before
    assert rest[0].scale == whole[0].scale
    assert torch.equal(rest[0].parents, whole[n_before].parents)
    assert_saved_as_trained(tmp_path / "resumed" / "out", resumed, residual_activations())
    # λ goes on from where it was, and has moved by then.
    assert torch.equal(rest[0].coefficients_before, whole[n_before - 1].coefficients)
    assert not torch.equal(rest[0].coefficients_before, whole[0].coefficients_before)
    # SAELens' store comes back with other batches, ours with those that would have come.
    if runner is HierarchicalSAETrainingRunner:
        assert losses(rest) == losses(whole)[n_before:]
        assert torch.equal(resumed.parents, sae.parents)


@both_runners
@pytest.mark.parametrize(("dtype", "autocast"), [("float32", True), ("bfloat16", False)], ids=["autocast", "bfloat16"])
def test_half_precision(tmp_path, runner, dtype, autocast):
    with recorded_steps() as exact:
        train(runner, runner_config(tmp_path / "exact"))
    cfg = runner_config(tmp_path, sae=tiny_config(dtype=dtype), dtype=dtype, autocast=autocast)
    with recorded_steps() as steps:
        sae = train(runner, cfg)
    # Thresholds and the controller move by steps that half precision would round away.
    for name in ("threshold", "log_l0_coefficient", "l0_ema"):
        assert tensors_of(sae)[name].dtype == torch.float32
    loaded = assert_saved_as_trained(tmp_path / "out", sae, residual_activations())
    assert {str(getattr(loaded, name).dtype) for name in ("W_enc", "W_dec", "b_dec")} == {f"torch.{dtype}"}
    # Were the losses equal, half precision would not have been in use.
    assert losses(steps)[0] != losses(exact)[0]
    torch.testing.assert_close(losses(steps)[0], losses(exact)[0], rtol=0.02, atol=0)
    torch.testing.assert_close(mean(losses(steps)), mean(losses(exact)), rtol=0.03, atol=0)


@pytest.mark.skipif(
    shutil.which(os.environ.get("CXX", "g++")) is None,
    reason="torch.compile's inductor needs a C++ compiler: $CXX, or else g++ on PATH",
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_compiled_training(tmp_path):
    # Two levels, and parents replaced in every step: few distinct graphs, of which each takes seconds to compile.
    cfg = tiny_config(level_widths=[8, 16], perturbation_rate=0.5, hierarchy_first_update=2, hierarchy_update_every=4)
    runs = []
    for compile_sae in (False, True):
        out = tmp_path / str(compile_sae)
        torch._dynamo.reset()
        with recorded_steps() as steps:
            sae = train(
                LanguageModelSAETrainingRunner,
                runner_config(out, sae=copy.deepcopy(cfg), training_tokens=14 * 64, compile_sae=compile_sae, lr=1e-2),
            )
        assert_saved_as_trained(out / "out", sae, residual_activations())
        runs.append(steps)
    plain, compiled = runs
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    torch.testing.assert_close(losses(compiled), losses(plain), rtol=1e-4, atol=0)
    assert all(torch.equal(a.parents, b.parents) for a, b in zip(plain, compiled, strict=True))
    changes = [not torch.equal(a.parents, b.parents) for a, b in itertools.pairwise(compiled)]
    assert sum(changes) >= 2
    for name in ("structural_loss", "l0_loss", "mse_loss"):
        torch.testing.assert_close(
            [step.losses[name] for step in compiled], [step.losses[name] for step in plain], rtol=1e-3, atol=1e-5
        )
