"""The sweep files: W&B's own client accepts them, every parameter is a flag, and they run without a server."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pandas
import pytest
import torch
import wandb
from host_helpers import (
    restored_signal_handlers,
    runner_config,
    tiny_config,
    tiny_dataset,
    tiny_model,
    write_train_flags,
)
from small_saes import make_sae
from wandb.apis.public.sweeps import _validate_config_and_fill_distribution
from wandb.sdk.launch.sweeps.utils import create_sweep_command_args, load_sweep_config
from wandb_runs import records

from sae_lens_hsae import HierarchicalTrainingSAEConfig, evaluate_forest
from sae_lens_hsae.cli.flags import parse_flags
from sae_lens_hsae.cli.measure import METRICS, measure, summary
from sae_lens_hsae.cli.outcome import CallError
from sae_lens_hsae.cli.sweep import _table, arguments_of, configurations, measured, read_sweep, run_sweep
from sae_lens_hsae.cli.train import parse
from sae_lens_hsae.hub.saved_model import load_evaluation, load_hierarchical_sae
from sae_lens_hsae.training.runner import HierarchicalSAETrainingRunner

ROOT = Path(__file__).parents[2]
SWEEPS = sorted(path for path in (ROOT / "examples/sweeps").glob("*.yaml") if path.stem != "base")
every_sweep = pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)


@pytest.fixture(autouse=True)
def at_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def test_the_sweeps_are_there():
    assert {path.stem for path in SWEEPS} == {"rho_r", "similarity", "target_l0", "widths"}


@every_sweep
def test_wandb_takes_the_file(path):
    """The package brings no schema; this is what its client does with a file before a server sees it."""
    config = load_sweep_config(str(path))
    assert config is not None
    _validate_config_and_fill_distribution(config)
    assert set(config) - {"metric"} == {"name", "method", "command", "parameters"}
    assert config["name"] == path.stem
    assert config["method"] in ("grid", "random", "bayes")
    if path.stem == "similarity":
        assert "metric" not in config, "the Hamming of two rules for parents does not compare"
    else:
        assert config["metric"] == {"name": next(iter(summary(_evaluation(), 0.0))), "goal": "minimize"}
    for parameter in config["parameters"].values():
        assert list(parameter) == ["values"]
        assert len(parameter["values"]) > 1


@every_sweep
def test_every_configuration_is_a_call_of_hsae_train(path):
    sweep = read_sweep(path)
    everyone = configurations(sweep)
    assert len(everyone) == math.prod(len(p["values"]) for p in sweep["parameters"].values())
    # Enough for every value; the others differ from these in combinations alone.
    covering = [c for c in everyone if sum(c[name] != everyone[0][name] for name in c) <= 1]
    for configuration in covering:
        # The words that W&B's agent would put in the place of ${args}.
        words = create_sweep_command_args({"args": {n: {"value": v} for n, v in configuration.items()}})["args"]
        from_agent = [w for part in sweep["command"][2:] for w in (words if part == "${args}" else [part])]
        own, cfg = parse(from_agent)
        for name, value in configuration.items():
            assert getattr(cfg.sae, name) == value
        assert (own.evaluation_tokens, own.variance_floor) == (50_000, 0.7)
        assert cfg.sae.d_sae == sum(cfg.sae.level_widths)
        assert parse_flags(arguments_of(sweep, configuration)) == parse_flags(from_agent)


def test_the_sweeps_of_the_forest_try_the_default_and_a_strong_loss_in_every_step():
    sweeps = {path.stem: read_sweep(path) for path in SWEEPS}
    default = HierarchicalTrainingSAEConfig(d_in=8, d_sae=12, level_widths=[4, 8], target_l0=2)
    rules = configurations(sweeps["similarity"])
    assert {name: getattr(default, name) for name in rules[0]} in rules
    for configuration in configurations(sweeps["rho_r"]):
        assert parse(arguments_of(sweeps["rho_r"], configuration))[1].sae.structural_loss_every == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "no YAML"),
        ("a: \0", "sweep.yaml' holds zero bytes"),
        ("method: grid", "no parameters"),
        ("command: [python, x.py]\nparameters: {a: {value: 1}}", "write .hsae, train"),
        ("command: [hsae, train, '${args}']\nparameters: {lr: {min: 0.1, max: 0.2}}", "parameters.lr.*list values"),
        ("command: [hsae, train, '${args}']\nparameters: {lr: {values: []}}", "parameters.lr.values=.*at least one"),
        ("command: [hsae, train, '${args}']\nparameters: {lr: {values: 0.1}}", "parameters.lr.values=0.1: give a list"),
        (
            "command: [hsae, train, '${args}']\nparameters: {lr: {value: 1}}\nmetric: {name: a}",
            "metric=.* one of forest",
        ),
        ("command: [hsae, train, '${args}']\nparameters: {seed: {values: [5, 6]}}", "every run gets its own seed"),
    ],
)
def test_sweep_files_that_are_none(tmp_path, text, message):
    (tmp_path / "sweep.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_sweep(tmp_path / "sweep.yaml")


@pytest.mark.parametrize("flag", ["--seed=7", "--structural_loss_coefficient=0.5", "--output_path=mine"])
def test_no_flag_takes_the_place_of_what_the_sweep_sets(tmp_path, flag):
    with pytest.raises(ValueError, match=f"{flag.partition('=')[0]} after -- would take the place"):
        run_sweep(SWEEPS[0], tmp_path, further=["--d_in", "16", flag])
    with pytest.raises(CallError, match="--traning_tokens is no flag; did you mean --training_tokens"):
        run_sweep(SWEEPS[0], tmp_path, further=["--traning_tokens=5"])


def test_two_configurations_run_to_the_end(tmp_path):
    """The whole way of ``hsae sweep``, its flags going to every ``hsae train``, on a tiny model from disk."""
    small = write_train_flags(
        tmp_path,
        level_widths=[4, 8, 16],
        prepend_bos=False,
        training_tokens=24 * 64,  # 16 steps only observe
        hierarchy_first_update=18,
        minimum_similarity=None,  # after eight steps nobody has a clear parent
        hierarchy_similarity="encoder",
        lr_warm_up_steps=0,
        lr=0.03,
        n_checkpoints=0,
        evaluation_tokens=300,
        device="cpu",
        verbose=False,
    )
    further = ["--config", str(small)]
    with restored_signal_handlers():
        table = run_sweep(SWEEPS[0], tmp_path / "out", seeds=2, runs=2, further=further)
    assert SWEEPS[0].stem == "rho_r"
    assert len(table) == 2
    cells = [json.loads(path.read_text()) for path in (tmp_path / "out/cells").glob("*.json")]
    assert len(cells) == 4
    assert len({cell["forest/hamming"] for cell in cells}) == 4, "seeds and configurations differ"
    for _, row in table.iterrows():
        own = [c for c in cells if all(c[n] == row[n] for n in ("structural_loss_coefficient", "perturbation_rate"))]
        values = [cell["forest/variance_explained"] for cell in own]
        assert row["forest/variance_explained"] == pytest.approx(sum(values) / 2)
        assert row["forest/variance_explained_spread"] == pytest.approx(abs(values[0] - values[1]) / 2)
    assert table["forest/hamming_at_matched_variance"].is_monotonic_increasing
    assert len(pandas.read_csv(tmp_path / "out/rho_r.csv")) == 2
    for folder in (tmp_path / "out/models").iterdir():
        assert load_evaluation(load_hierarchical_sae(folder), folder) is not None
    # A seed is a run: once more gives the same numbers, where another seed gave others.
    [first, *_] = configurations(read_sweep(SWEEPS[0]), 2)
    words = [*arguments_of(read_sweep(SWEEPS[0]), first), *further, "--seed=1", "--log_to_wandb=False"]
    with restored_signal_handlers():
        assert measured([*words, f"--output_path={tmp_path / 'again'}"], first) in cells
    # Finished runs are kept: the same call trains nothing, and gives the same.
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.safetensors")}
    again = run_sweep(SWEEPS[0], tmp_path / "out", seeds=2, runs=2, further=further)
    pandas.testing.assert_frame_equal(table, again)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.safetensors")} == before


def test_the_metric_is_in_wandbs_summary(tmp_path, offline):
    cfg = runner_config(tmp_path, training_tokens=6 * 64)
    cfg.logger.log_to_wandb, cfg.logger.log_weights_to_wandb = True, False
    with restored_signal_handlers():
        evaluation = _trained_and_measured(cfg)
    wandb.teardown()
    [path] = offline.glob("wandb/offline-run-*/run-*.wandb")
    logged = {}
    for record in records(path):
        if record.WhichOneof("record_type") == "summary":
            logged |= {item.key: json.loads(item.value_json) for item in record.summary.update}
    for name, value in summary(evaluation, 0.9).items():
        assert logged[name] == pytest.approx(value)


def test_the_model_of_a_single_level_is_safe_before_it_is_measured(tmp_path, monkeypatch):
    def fail(*_args):
        raise RuntimeError("no more memory")

    one = {"level_widths": [8], "d_sae": 8}
    cfg = runner_config(tmp_path, sae=tiny_config(**one), training_tokens=6 * 64, output_path=str(tmp_path / "out"))
    with restored_signal_handlers():
        evaluation = _trained_and_measured(cfg)
    found = summary(evaluation, 0.5)
    assert math.isnan(found["forest/hamming"])
    assert found["forest/variance_explained"] == evaluation.levels[0].variance_explained
    assert load_evaluation(load_hierarchical_sae(tmp_path / "out"), tmp_path / "out") == evaluation.to_dict()
    cfg = runner_config(tmp_path, sae=tiny_config(**one), training_tokens=6 * 64, output_path=str(tmp_path / "saved"))
    monkeypatch.setattr("sae_lens_hsae.cli.measure.evaluate_forest", fail)
    with restored_signal_handlers(), pytest.raises(RuntimeError, match="no more memory"):
        _trained_and_measured(cfg)
    assert load_hierarchical_sae(tmp_path / "saved").cfg.level_widths == [8]


def test_a_configuration_of_which_a_seed_went_wrong_comes_last(tmp_path, monkeypatch):
    def measured(words, configuration):
        strong, seed = configuration["structural_loss_coefficient"] > 0.01, "--seed=0" in words
        hamming = math.nan if strong and seed else float(not strong)
        return configuration | {"forest/hamming_at_matched_variance": hamming, "forest/variance_explained": 0.5}

    monkeypatch.setattr("sae_lens_hsae.cli.sweep.measured", measured)
    sweep = tmp_path / "rho.yaml"
    values = "{structural_loss_coefficient: {values: [0.1, 0.01, 0.001]}}"
    content = f"command: [hsae, train, '${{args}}'], parameters: {values}"
    further = ["--config", str(write_train_flags(tmp_path))]
    sweep.write_text(f"{{{content}}}")
    table = run_sweep(sweep, tmp_path / "out", seeds=2, further=further)
    assert list(table["structural_loss_coefficient"]) == [0.1, 0.01, 0.001], "without a metric nothing is ranked"
    sweep.write_text(f"{{metric: {{name: forest/hamming_at_matched_variance, goal: minimize}}, {content}}}")
    table = run_sweep(sweep, tmp_path / "out", seeds=2, further=further)
    assert list(table["structural_loss_coefficient"]) == [0.01, 0.001, 0.1]
    for name in ("forest/hamming_at_matched_variance", "forest/hamming_at_matched_variance_spread"):
        assert table[name].isna().tolist() == [False, False, True]
    assert (table["forest/variance_explained"] == 0.5).all()
    *_, last = (tmp_path / "out" / "rho.csv").read_text().splitlines()
    assert last == "0.1,NaN,0.5,NaN,0.0"


def test_a_sweep_runs_again_what_its_files_have_changed(tmp_path, monkeypatch):
    trained = []

    def train(own, cfg):
        trained.append((own.variance_floor, cfg.lr))
        return _evaluation()

    monkeypatch.setattr("sae_lens_hsae.cli.sweep.train", train)
    flags = write_train_flags(tmp_path, lr=0.01, variance_floor=0.5)
    further = ["--config", str(flags)]
    for _ in range(2):
        run_sweep(SWEEPS[0], tmp_path / "out", seeds=1, runs=1, further=further)
    flags.write_text(flags.read_text().replace("0.01", "0.02"))
    run_sweep(SWEEPS[0], tmp_path / "out", seeds=1, runs=1, further=further)
    assert trained == [(0.5, 0.01), (0.5, 0.02)]
    with pytest.raises(ValueError, match="dry_run=True is for one run"):
        run_sweep(SWEEPS[0], tmp_path / "out", seeds=1, runs=1, further=[*further, "--dry-run"])
    topk = tmp_path / "topk.yaml"
    topk.write_text("{command: [hsae, train, '${args}'], parameters: {lr: {values: [0.1]}}}")
    with pytest.raises(ValueError, match="architecture='topk': hsae train is for 'hsae' alone"):
        run_sweep(topk, tmp_path / "out", seeds=1, further=["--architecture=topk"])


def _trained_and_measured(cfg):
    runner = HierarchicalSAETrainingRunner(cfg, override_model=tiny_model(), override_dataset=tiny_dataset())
    measured = []
    runner.after_training = lambda sae: measured.append(measure(runner, sae, 200, 0.9))
    runner.run()
    [evaluation] = measured
    return evaluation


def _evaluation():
    sae = make_sae()
    return evaluate_forest(sae, sae.forest, torch.randn(200, 8, generator=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize(
    ("metric", "best"),
    [
        ({"name": METRICS[0], "goal": "minimize"}, 0.1),
        ({"name": METRICS[2], "goal": "maximize"}, 0.3),
        ({"name": METRICS[1]}, 0.2),
    ],
)
def test_the_best_is_first_by_the_sweeps_own_metric(metric, best):
    values = {0.1: (1.0, 3.0, 0.6), 0.2: (2.0, 1.0, 0.5), 0.3: (3.0, 2.0, 0.9)}
    results = [{"rho": rho} | dict(zip(METRICS, own, strict=True)) for rho, own in values.items()]
    assert _table(results, {"parameters": {"rho": {}}, "metric": metric})["rho"][0] == best


def test_missing_variance_costs_and_more_than_enough_does_not_pay():
    evaluation = _evaluation()
    variance = sum(level.variance_explained for level in evaluation.levels) / 3
    hamming = (evaluation.boundaries[0].hamming + evaluation.boundaries[1].hamming) / 2
    for floor, price in ((variance - 0.2, 0), (variance + 0.01, 10)):
        found = summary(evaluation, floor)
        assert found["forest/hamming_at_matched_variance"] == pytest.approx(hamming + price)
        assert found["forest/hamming"] == pytest.approx(hamming)
        assert found["forest/variance_explained"] == pytest.approx(variance)
    levels = tuple(replace(each, variance_explained=math.nan) for each in evaluation.levels)
    never_varies = summary(replace(evaluation, levels=levels), 0.5)
    assert math.isnan(never_varies["forest/hamming_at_matched_variance"])
