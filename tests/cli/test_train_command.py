"""``hsae train`` and ``hsae evaluate``: where flags come from, what is refused, what is printed."""

import json
import os
import re
import signal
from pathlib import Path

import pytest
import torch
import yaml
from datasets import DatasetDict
from host_helpers import (
    restored_signal_handlers,
    runner_config,
    sae_at,
    tiny_dataset,
    tiny_model,
    train,
    write_train_flags,
)
from sae_lens.llm_sae_training_runner import _parse_cfg_args
from transformers import AutoModelForCausalLM

from hsae_command.parsers import read_line
from hsae_command.train import PRESETS, USUAL, beyond_saelens, sources
from sae_lens_hsae import HierarchicalTrainingSAE, evaluate_forest
from sae_lens_hsae.cli import main as cli
from sae_lens_hsae.cli.flags import PRESETS as OUR_PRESETS
from sae_lens_hsae.cli.outcome import CallError
from sae_lens_hsae.cli.train import KNOWN, check_known, merged_flags, parse
from sae_lens_hsae.cli.training_plan import estimate
from sae_lens_hsae.config import ARCHITECTURE
from sae_lens_hsae.forest.counts import Firing
from sae_lens_hsae.hub.saved_model import load_evaluation, load_hierarchical_sae
from sae_lens_hsae.presets import LANGUAGE_MODELS
from sae_lens_hsae.training.checkpoints import verify
from sae_lens_hsae.training.runner import HierarchicalSAETrainingRunner
from sae_lens_hsae.training.trainer import HierarchicalSAETrainer


def test_later_sources_win_and_d_sae_follows_from_the_widths(tmp_path):
    (tmp_path / "a.yaml").write_text(
        "d_in: 8\nlevel_widths: [4, 8]\ntarget_l0: [2, 3]\nlr: 0.1\nstreaming: false\ncontext_size: 256\n"
    )
    (tmp_path / "b.json").write_text('{"lr": 0.2, "level_widths": [4, 16], "model_kwargs": {"a": [1, 2]}}')
    files = [str(tmp_path / "a.yaml"), str(tmp_path / "b.json")]
    flags = merged_flags(["paper", "gpt2"], files, {"perturbation_rate": ["0.5"]})
    assert flags["d_in"] == ["8"]
    assert flags["lr"] == ["0.2"]
    assert flags["d_sae"] == ["20"]
    assert flags["structural_loss_coefficient"] == ["0.01"]
    assert flags["perturbation_rate"] == ["0.5"]
    own, cfg = parse(["--preset", "paper", "--config", files[0], "--config", files[1], "--perturbation_rate=0.5"])
    assert (cfg.sae.target_l0, cfg.sae.level_widths, cfg.streaming) == ([2, 3], [4, 16], False)
    assert cfg.model_kwargs == {"a": [1, 2]}
    assert (cfg.sae.structural_loss_coefficient, cfg.sae.perturbation_rate) == (0.01, 0.5)
    assert (own.evaluation_tokens, own.dry_run) == (0, False)


def test_a_text_and_a_data_set_take_each_others_place(tmp_path):
    """As every flag does, by what comes later."""
    (tmp_path / "data.yaml").write_text("dataset_path: some/data\nstreaming: true\n")
    (tmp_path / "text.yaml").write_text("text: old.txt\ncolumn: body\n")
    data, text = str(tmp_path / "data.yaml"), str(tmp_path / "text.yaml")
    flags = merged_flags(["gpt2"], [data], {"text": ["my.txt"]})
    assert (flags["text"], flags["dataset_path"], flags["streaming"]) == (["my.txt"], ["my.txt"], ["False"])
    assert merged_flags([], [data, text], {})["text"] == ["old.txt"]
    flags = merged_flags([], [text, data], {})
    assert not {"text", "column"} & set(flags)
    assert (flags["dataset_path"], flags["streaming"]) == (["some/data"], ["True"])


def test_the_home_folder_can_be_written_as_the_shell_has_it(tmp_path, monkeypatch):
    """Which puts it into no file, and into no ``--flag=~/…``."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "run.yaml").write_text("model_name: ~/models/gpt2\noutput_path: ~/runs/mine\nrun_name: ~/mine\n")
    _, cfg = parse(["--preset=gpt2", "--training_tokens=9999", "--config=~/run.yaml", "--checkpoint_path=~/kept"])
    paths = (cfg.model_name, cfg.output_path, str(cfg.checkpoint_path).rpartition("/")[0])
    assert paths == tuple(f"{tmp_path}/{name}" for name in ("models/gpt2", "runs/mine", "kept"))
    assert cfg.logger.run_name == "~/mine"
    own, cfg = parse(["--preset=gpt2", "--training_tokens=9999", "--text=~/my.txt"])
    assert (own.text, cfg.dataset_path) == (f"{tmp_path}/my.txt", f"{tmp_path}/my.txt")
    read = read_line(["explore", "run", "--text=~/my.txt", "--output=~/page.html", "--explain=~/ is home"])
    assert (read.text, read.output, read.explained) == (own.text, f"{tmp_path}/page.html", ["~/ is home"])
    assert read_line(["sweep", "a.yaml", "--output=~/sweep"]).output == tmp_path / "sweep"


@pytest.mark.parametrize("name", LANGUAGE_MODELS)
def test_language_models_presets_are_whole_configs(name):
    _, cfg = parse(["--preset", name])
    assert {"gpt2": "gpt2", "gemm": "gemma-2-2b", "qwen": "Qwen/Qwen3-4B"}[name[:4]] == cfg.model_name
    assert name == "gpt2" or cfg.hook_name == f"blocks.{name.rpartition('-')[2]}.hook_resid_post"
    assert cfg.sae.d_sae == sum(cfg.sae.level_widths)
    cfg.sae.device = "meta"
    HierarchicalTrainingSAE(cfg.sae)


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        (["--config", "null.yaml"], "outlier_limit", None),
        (["--outlier_limit", "2.5"], "outlier_limit", 2.5),
        (["--target_l0", "8", "16", "32"], "target_l0", [8, 16, 32]),
        (["--target_l0=[8, 16, 32]"], "target_l0", [8, 16, 32]),
        (["--target_l0", "16.5"], "target_l0", 16.5),
        (["--seqpos_slice", "4", "None"], "seqpos_slice", (4, None)),
        (["--seqpos_slice=[4, null, 2]"], "seqpos_slice", (4, None, 2)),
        (["--seqpos_slice", "5", "-5"], "seqpos_slice", (5, -5)),
        (["--exclude_special_tokens", "1", "2"], "exclude_special_tokens", [1, 2]),
        (["--exclude_special_tokens=[7]"], "exclude_special_tokens", [7]),
        (["--exclude_special_tokens=[0]"], "exclude_special_tokens", [0]),
        (["--exclude_special_tokens=[1]"], "exclude_special_tokens", [1]),
        (["--exclude_special_tokens", "[0, 7]"], "exclude_special_tokens", [0, 7]),
        (["--exclude_special_tokens", "True"], "exclude_special_tokens", True),
    ],
)
def test_fields_of_several_numbers_arrive(tmp_path, monkeypatch, words, name, value):
    monkeypatch.chdir(tmp_path)
    Path("null.yaml").write_text("outlier_limit: null\n")
    Path("run.yaml").write_text(yaml.safe_dump({name: list(value) if isinstance(value, tuple) else value}))
    for given in (words, ["--config", "run.yaml"]):
        _, cfg = parse([*GPT2, *given])
        assert getattr(cfg.sae if hasattr(cfg.sae, name) else cfg, name) == value


@pytest.mark.parametrize("none", ["None", "null"])
def test_none_can_be_given_on_the_shell(tmp_path, none):
    (tmp_path / "set.yaml").write_text("max_children: 8\ncheckpoint_path: kept\n")
    words = ["--preset", "gpt2", "--training_tokens", "1024000", "--config", str(tmp_path / "set.yaml")]
    fields = ("minimum_similarity", "outlier_limit", "max_children", "decoder_init_norm")
    places = ("output_path", "checkpoint_path", "lr_end")
    given = [word for name in (*fields, *places) for word in (f"--{name}", none)]
    _, cfg = parse([*words, *given, "--hierarchy_similarity", "coactivation"])
    assert [getattr(cfg.sae, name) for name in fields] == [None] * 4
    assert (cfg.output_path, cfg.checkpoint_path, cfg.lr_end) == (None, None, cfg.lr / 10)
    with pytest.raises(CallError, match="--d_in cannot be None"):
        parse([*words, "--d_in", none])
    (tmp_path / "null.yaml").write_text("max_children: null\n")
    _, cfg = parse([*words, "--config", str(tmp_path / "null.yaml")])
    assert cfg.sae.max_children is None


@pytest.mark.parametrize("form", ["saved", "saved splits", "parquet"])
def test_a_folder_of_tokenised_rows_trains_as_the_same_rows_do(tmp_path, form):
    rows = tiny_dataset()
    if form == "parquet":
        (tmp_path / "rows").mkdir()
        rows.to_parquet(tmp_path / "rows" / "train.parquet")
    else:
        (rows if form == "saved" else DatasetDict({"train": rows})).save_to_disk(tmp_path / "rows")
    expected = train(HierarchicalSAETrainingRunner, runner_config(tmp_path / "a"))
    cfg = runner_config(tmp_path / "b", dataset_path=str(tmp_path / "rows"), streaming=False)
    found = train(HierarchicalSAETrainingRunner, cfg, override_model=tiny_model())
    assert torch.equal(found.W_dec, expected.W_dec)
    DatasetDict({"test": rows}).save_to_disk(tmp_path / "other")
    other = runner_config(tmp_path / "c", dataset_path=str(tmp_path / "other"))
    with pytest.raises(ValueError, match=r"dataset_path=.* holds test, and no split 'train'"):
        train(HierarchicalSAETrainingRunner, other, override_model=tiny_model())


def test_a_dry_run_fits_a_screen_and_says_what_is_hardly_meant(tmp_path, capsys):
    call = ["train", "--preset", "gpt2", "--dry-run"]
    cli.main([*call, "--preset", "paper", "--training_tokens", "30000000"])
    said = capsys.readouterr().out
    assert "Warning" not in said
    shown = "gpt2, blocks.8.hook_resid_post", "29,296 steps", "512, 2,048, 8,192 features", "ρ 0.01, r 0.05"
    assert all(value in said for value in shown)
    (tmp_path / "my.txt").write_text("four letters " * 400)
    flags = ["--training_tokens=102400", "--lr_warm_up_steps=101", "--n_batches_in_buffer=401"]
    flags += ["--n_batches_for_norm_estimate=101", "--text", str(tmp_path / "my.txt")]
    cli.main([*call, *flags])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) < 24
    for wanted in (
        "before its first forest (hierarchy_first_update=300)",
        "lr_warm_up_steps=101",
        "n_batches_in_buffer=401 has it read 102,656 tokens",
        "n_batches_for_norm_estimate=101 has it read 103,424 tokens",
        "the text has about 1,300 tokens, so each is read about 78.8 times",
    ):
        [line] = [line for line in lines if line.startswith("Warning: ") and wanted in line]
        assert ";" in line
    cli.main([*call, *flags, "--json"])
    assert len(json.loads(capsys.readouterr().out)["warnings"]) == 5


@pytest.mark.parametrize("name", ["my.txt", "my.jsonl", "body.jsonl", "folder"])
def test_a_text_of_ones_own_trains_as_the_same_data_set_does(tmp_path, capsys, name):
    path = write_train_flags(tmp_path)
    flags = yaml.safe_load(path.read_text())
    texts = [json.loads(line)["text"] for line in (tmp_path / "text" / "train.jsonl").read_text().splitlines()]
    own = ["--config", str(tmp_path / "own.yaml"), "--text", str(tmp_path / name)]
    if name == "my.txt":
        texts = ["\n".join(texts)]
        (tmp_path / name).write_text(texts[0])
    elif name.endswith(".jsonl"):
        column = "text" if name == "my.jsonl" else "body"
        (tmp_path / name).write_text("\n".join(json.dumps({column: text}) for text in texts))
        own += [] if column == "text" else ["--column", column]
    else:
        (tmp_path / name).mkdir()
        for i, text in enumerate(texts):
            (tmp_path / name / f"{i:03}.txt").write_text(text)
    (tmp_path / "text" / "train.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    (tmp_path / "own.yaml").write_text(yaml.safe_dump({k: v for k, v in flags.items() if k != "dataset_path"}))
    trained = []
    for call in (["--config", str(path)], own):
        with restored_signal_handlers():
            cli.main(["train", *call, "--output_path", str(tmp_path / "trained")])
        trained.append(load_hierarchical_sae(tmp_path / "trained"))
    for tensor, other in zip(trained[0].state_dict().values(), trained[1].state_dict().values(), strict=True):
        assert torch.equal(tensor, other)
    assert "fewer samples" not in capsys.readouterr().err


def test_a_dry_run_shows_the_target_of_every_level(capsys):
    call = ["train", "--preset", "gpt2", "--level_widths", "512", "1024", "2048", "--dry-run"]
    cli.main([*call, "--target_l0", "32", "32", "48"])
    assert "L0 32, 32, 48 (jumprelu)" in capsys.readouterr().out


@pytest.mark.parametrize("given", [None, "7"])
def test_language_models_presets_warm_up_over_a_tenth_of_the_steps(given):
    words = ["--preset", "gpt2", "--training_tokens", "2048000"]
    _, cfg = parse(words if given is None else [*words, "--lr_warm_up_steps", given])
    assert (cfg.lr, cfg.lr_scheduler_name, cfg.lr_end) == (6e-3, "cosineannealing", 0.0)
    assert (cfg.adam_beta1, cfg.adam_beta2) == (0.0, 0.995)
    assert cfg.lr_warm_up_steps == (200 if given is None else 7)


def test_a_dry_run_says_what_it_would_do(capsys):
    cli.main(["train", "--preset", "gpt2", "--training_tokens", "1024000", "--dry-run", "--json"])
    printed = json.loads(capsys.readouterr().out)
    assert printed["config"]["sae"]["level_widths"] == [512, 2048, 8192]
    assert printed["estimate"]["steps"] == 1000
    assert printed["estimate"]["sae_teraflop"] == pytest.approx(6 * 2 * 768 * 10752 * 1024000 / 1e12)


def test_the_estimate_counts_what_there_is(tmp_path):
    cfg = runner_config(tmp_path)
    sae = HierarchicalTrainingSAE(cfg.sae)
    found = estimate(cfg)
    assert found["parameters"] == sum(p.numel() for p in sae.parameters())
    assert found["firing_gb"] == 0
    # It is the SAE's own type that counts; what waits in SAELens' buffer is in float32.
    assert found["buffer_gb"] == 4 * cfg.n_batches_in_buffer * cfg.context_size * cfg.sae.d_in / 1e9
    cfg.dtype = "bfloat16"
    assert estimate(cfg) == found
    cfg.sae.dtype = "bfloat16"
    for name in ("weights_gb", "batch_gb"):
        assert estimate(cfg)[name] == found[name] / 2
    assert estimate(cfg)["buffer_gb"] == found["buffer_gb"]
    cfg.sae.dtype = "float32"
    for similarity in ("coactivation", "conditional"):
        cfg.sae.hierarchy_similarity = similarity
        sae, batch = HierarchicalTrainingSAE(cfg.sae), cfg.train_batch_size_tokens
        recent = sae.forest_updater.recent
        assert recent is not None
        n_fired = round(batch * sum(cfg.sae.target_l0_per_level))
        features, tokens = (torch.arange(n_fired) % n for n in (cfg.sae.d_sae, batch))
        kept = 0
        while kept < recent.tokens_kept:
            recent.count(Firing.of_entries(features.sort().values, tokens, (cfg.sae.d_sae, batch), 10**6 + kept))
            kept += batch
        counted = sum(of_batch.times.nbytes + of_batch.tokens.nbytes for of_batch in recent.unpacked())
        assert estimate(cfg)["firing_gb"] == pytest.approx(counted / 1e9, rel=batch / recent.tokens_kept)


GPT2 = ["--preset", "gpt2", "--training_tokens", "9999"]
WIDTHS = ["--level_widths", "4", "8", "--target_l0", "2"]
WRONG_CALLS = [
    ([*WIDTHS, "--d_inn", "4"], "--d_inn is no flag; did you mean --d_in"),
    (["--coloum", "body"], "--coloum is no flag; did you mean --column[?]"),
    ([*GPT2, "--seqpos_slice", "4", "a"], "--seqpos_slice cannot be '4 a': give whole numbers"),
    ([*GPT2, "--exclude_special_tokens", "4", "None"], "--exclude_special_tokens cannot hold None"),
    ([*GPT2, "--model_from_pretrained_kwargs", '{"token": "hf_secret"'], "_kwargs is no JSON object; hsae train"),
    (["--sae", "topk"], "--sae is no flag;"),
    (["--zzz", "1"], "--zzz is no flag; hsae train --help-all lists them all"),
    (
        ["--architecture=topk", "--k=2"],
        "architecture='topk': .* 'hsae' alone; take python -m sae_lens.llm_sae_tr",
    ),
    (["--level_widths", "4", "eight"], "eight.*hsae train --help-all"),
    (["--d_in"], "d_in.*hsae train --help-all"),
    (["--minimum_similarity", "high"], "--minimum_similarity cannot be 'high'; hsae train --help-all"),
    (["--variance_floor", "high"], "variance_floor cannot be 'high'; hsae train --help-all"),
    (["4"], "belongs to no flag"),
    (["--text", "a.txt", "--dataset_path", "b"], "text='a.txt' and dataset_path='b': give one"),
    (["--preset", "big"], "preset='big': choose one of paper"),
]
WRONG_VALUES = [
    (["--level_widths", "8", "4"], "not strictly increasing"),
    ([*GPT2, "--text", "no.txt"], "text='no.txt' does not exist"),
    ([*GPT2, "--text", "body.jsonl", "--dry-run"], "no text under column='text'; it has body"),
    ([*GPT2, "--column", "body"], "column='body' is only for a text of JSON lines; .*rename the data set's column"),
    ([*GPT2, "--text", "short.txt", "--dry-run"], "'short.txt' holds 9 characters, too few for context_size=256"),
    (["--config", "missing.yaml"], "config='missing.yaml' does not exist, seen from '/"),
    (["--config", "binary.yaml"], "'binary.yaml' is no text in UTF-8"),
    ([*GPT2, "--training_tokens", "0"], "training_tokens=0 is less than one step of train_batch_size_tokens"),
    ([*GPT2, "--training_tokens", "0", "--dry-run"], "training_tokens=0 is less than"),
    ([*GPT2, "--train_batch_size_tokens", "0"], "train_batch_size_tokens=0 must be at least 1"),
    ([*GPT2, "--context_size", "0"], "context_size=0 must be at least 1"),
    ([*GPT2, "--wandb_log_frequency", "0"], "wandb_log_frequency=0 must be at least 1"),
    ([*GPT2, "--store_batch_size_prompts", "0"], "store_batch_size_prompts=0 must be at least 1"),
    ([*GPT2, "--seed", "-1"], "seed=-1 must be a whole number from 0 to 4294967295"),
    ([*GPT2, "--n_batches_in_buffer=3", "--dry-run"], "buffer of 768 .*train_batch_size_tokens=1024; raise .* 4, or"),
    ([*GPT2, "--dtype=bfloat16", "--dry-run"], "dtype='bfloat16' is .* trained in float32: give --autocast True .*"),
    ([*GPT2, "--dtype=float16"], "dtype='float16' is the type of cached activations alone.* or --sae.dtype float16"),
    ([*GPT2, "--n_checkpoints", "-1"], "n_checkpoints=-1 must be at least 0"),
    ([*GPT2, "--seqpos_slice", "300", "None"], "leaves none of .*context_size=256 positions"),
    ([*GPT2, "--lr", "-1"], "lr=-1.0 must be at least 0"),
    ([*GPT2, "--evaluation_tokens", "-1"], "evaluation_tokens=-1 must be 0 for none, or more; 50000"),
    ([*GPT2, "--variance_floor", "2"], "variance_floor=2.0 must be a share of the variance"),
    ([*GPT2, "--device", "nowhere"], "device='nowhere' cannot be used here"),
    (
        [*GPT2, "--output_path=/proc/mine", "--dry-run"],
        "output_path='/proc/mine': '/proc' cannot be written to; give",
    ),
    ([*GPT2, "--max_bad_batches=-1", "--dry-run"], "max_bad_batches=-1 must be a whole number, 0 or more"),
    ([*GPT2, "--n_batches_for_norm_estimate=0", "--dry-run"], "n_batches_for_norm_estimate=0 must be at least 1"),
    (["--config", "list.yaml"], "must map names of flags to values"),
    (["--config", "broken.yaml"], "neither YAML nor JSON"),
    (["--config", "nested.yaml"], "flags are flat"),
    ([*WIDTHS, "--perturbation_rate", "2"], "r is a probability"),
]


@pytest.mark.parametrize(
    ("arguments", "message", "is_call"),
    [*((*wrong, True) for wrong in WRONG_CALLS), *((*wrong, False) for wrong in WRONG_VALUES)],
)
def test_a_wrong_call_is_one_line(tmp_path, monkeypatch, capsys, arguments, message, is_call):
    monkeypatch.chdir(tmp_path)
    for name, text in {"list": "[1]", "broken": "a: [", "nested": "sae: {d_in: 4}"}.items():
        Path(f"{name}.yaml").write_text(text)
    Path("short.txt").write_text("too short")
    Path("body.jsonl").write_text('{"body": "too short"}')
    Path("binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SystemExit) as end:
        cli.main(["train", *arguments])
    # Without a number the process writes the text to stderr, and ends with code 1.
    said = capsys.readouterr().err.rstrip("\n") if end.value.code == 2 else str(end.value.code)
    assert (end.value.code == 2) == is_call
    assert re.search(message, said)
    assert said.startswith("hsae train: ")
    assert len(said.splitlines()) == 1
    with pytest.raises((ValueError, OSError)):
        cli.main(["train", *arguments, "--debug"])


def test_the_flags_that_are_known_are_those_that_there_are(capsys):
    ours = {option.lstrip("-") for parser in (sources(), beyond_saelens()) for option in parser._option_string_actions}
    with pytest.raises(SystemExit):
        _parse_cfg_args(["--architecture", ARCHITECTURE, "--help"])
    fields = capsys.readouterr().out
    there_are = {name.rstrip(".").rpartition(".")[2] for name in re.findall(r"--([\w.]+)", fields)} - {"sae"}
    assert {name for name in there_are if not {name, name.removeprefix("no")} & KNOWN} == set()
    assert KNOWN - there_are == ours | {"help-all"}


def test_what_the_short_help_of_train_says_is_so(capsys):
    """It is written without importing anything, and so repeats names."""
    assert set(PRESETS) == set(OUR_PRESETS)
    with pytest.raises(SystemExit):
        cli.main(["train", "-h", "--help-all"])
    _, fields = capsys.readouterr().out.split("usage: ", 2)[1:]
    for name in USUAL:
        assert f"--{name} " in fields
    with pytest.raises(SystemExit):
        cli.main(["train", "--help"])
    short = capsys.readouterr().out
    every = {name.rstrip(".") for name in re.findall(r"--([\w.]+)", fields)}
    assert len(every) > 80
    check_known(every - {"sae"})
    assert all(f"--{name} " in short for name in USUAL)
    assert len(short.splitlines()) < 60


def test_a_run_that_is_stopped_ends_with_the_conventional_code_and_can_go_on(tmp_path, monkeypatch, capsys):
    flags = str(write_train_flags(tmp_path))
    original, n_steps = HierarchicalSAETrainer._train_step, []

    def step(trainer, *args, **kwargs):
        n_steps.append(trainer.n_training_steps)
        if len(n_steps) == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(trainer, *args, **kwargs)

    monkeypatch.setattr(HierarchicalSAETrainer, "_train_step", step)
    with restored_signal_handlers(), pytest.raises(SystemExit) as end:
        cli.main(["train", "--config", flags])
    assert end.value.code == 143
    assert "Traceback" not in capsys.readouterr().err
    (manifest,) = tmp_path.glob("checkpoints/*/*/manifest.json")
    assert verify(manifest.parent).n_training_samples == 5 * 64
    with restored_signal_handlers():
        cli.main(["train", "--config", flags, "--resume_from_checkpoint", "auto"])
    assert n_steps == list(range(20))
    assert load_hierarchical_sae(tmp_path / "out").cfg.level_widths


@pytest.fixture
def evaluating(gpt2, tmp_path):
    """A call of ``hsae evaluate`` for a random SAE of a tiny GPT-2 on ten contexts of text."""
    sae_at("transformer.h.0", model=gpt2, context_size=32, prepend_bos=False).save_inference_model(tmp_path / "out")
    (tmp_path / "text.txt").write_text(" ".join(f"w{1 + i % 97}" for i in range(320)))
    return ["evaluate", str(tmp_path / "out"), "--text", str(tmp_path / "text.txt"), "--n-tokens"]


def test_evaluate_measures_what_evaluate_forest_does(evaluating, gpt2, tokenizer, tmp_path, capsys):
    cli.main([*evaluating, "320", "--json"])
    printed = json.loads(capsys.readouterr().out)
    sae = load_hierarchical_sae(tmp_path / "out")
    assert printed == load_evaluation(sae, tmp_path / "out")
    # The same by hand: transformers' own model on the same rows of 32.
    model = AutoModelForCausalLM.from_pretrained(gpt2)
    ids = tokenizer((tmp_path / "text.txt").read_text())["input_ids"]
    with torch.no_grad():
        x = model(torch.tensor(ids).view(-1, 32), output_hidden_states=True).hidden_states[1]
    expected = evaluate_forest(sae, sae.forest, x.flatten(0, 1), 320)
    assert printed["n_tokens"] == 320
    for found, level in zip(printed["levels"], expected.levels, strict=True):
        assert found["variance_explained"] == pytest.approx(level.variance_explained, rel=1e-4)
    for found, boundary in zip(printed["boundaries"], expected.boundaries, strict=True):
        assert found["hamming"] == pytest.approx(boundary.hamming, rel=1e-4)


def test_a_worse_evaluation_replaces_no_better_one(evaluating, tmp_path):
    saved, own = tmp_path / "out" / "evaluation.json", tmp_path / "own.json"
    cli.main([*evaluating, "192"])
    before = saved.read_bytes()
    with pytest.raises(SystemExit, match=r"--n-tokens=10, but .*evaluation\.json was measured on 192.*--output"):
        cli.main([*evaluating, "10"])
    cli.main([*evaluating, "10", "--output", str(own)])
    assert saved.read_bytes() == before
    assert json.loads(own.read_text())["evaluation"]["n_tokens"] == 10
    cli.main([*evaluating, "320"])
    assert json.loads(saved.read_text())["evaluation"]["n_tokens"] == 320
    # Of other weights: no better one.
    saved.write_text(json.dumps({"weights": "other", "evaluation": {"n_tokens": 10**9}}))
    cli.main([*evaluating, "10"])
    assert json.loads(saved.read_text())["evaluation"]["n_tokens"] == 10
