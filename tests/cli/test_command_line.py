"""What all commands of ``hsae`` share: help, results on stdout, everything else on stderr, exit codes."""

import io
import json
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pandas
import pytest
import torch
from host_helpers import hooked_model, runner_config, sae_at, signalling, tiny_dataset, train
from sae_lens import LanguageModelSAETrainingRunner
from small_saes import make_sae
from tqdm.auto import tqdm

from hsae_command import SUBCOMMANDS, parsers
from sae_lens_hsae import FeatureForest, HierarchicalSAE
from sae_lens_hsae.cli import demo
from sae_lens_hsae.cli import main as cli
from sae_lens_hsae.cli.clarity import CLARITY_FILENAME
from sae_lens_hsae.cli.outcome import CallError, Outcome
from sae_lens_hsae.cli.progress_bars import bars_on_terminals_only
from sae_lens_hsae.forest.files import FORMATS, write_forest
from sae_lens_hsae.hub.saved_model import EVALUATION_FILENAME
from sae_lens_hsae.interpret.circuits.circuit import Method
from sae_lens_hsae.interpret.contrast import contrast, text_activations
from sae_lens_hsae.interpret.explain.explanation import N_PATHS
from sae_lens_hsae.interpret.feature_cache.text import load_language_model
from sae_lens_hsae.interpret.labels.files import LABELS_FILENAME
from sae_lens_hsae.interpret.language_model.judging import JUDGEMENTS_FILENAME
from sae_lens_hsae.interpret.steering import METHODS
from sae_lens_hsae.training.runner import Interrupted

HSAE = [sys.executable, "-W", "ignore", "-c", "from sae_lens_hsae.cli.main import main; main()"]
EVERYONE = ["demo", "train", *cli.COMMANDS]


@pytest.mark.parametrize("command", EVERYONE)
def test_every_command_has_help(command, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main([command, "--help"])
    assert end.value.code == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"usage: hsae {command}")
    assert ("--json" in shown) == (command != "demo")


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--version"], 0),
        (["--help"], 0),
        (["demonstrate"], 2),
        ([], 2),
        (["--verison"], 2),
        (["evaluate", "--help"], 0),
        (["explore", "--debug", "-h"], 0),
        (["train"], 0),
        (["train", "--preset", "gpt2", "--help"], 0),
        (["contrast", "runs/demo", "a.txt"], 2),
        (["explain", "runs/demo", "--txet", "a"], 2),
        (["demo", "--steps", "3"], 2),
        (["sweep", "file.yaml", "--seed", "x", "--", "--lr", "1"], 2),
    ],
)
def test_what_needs_no_sae_waits_for_none(arguments, code):
    """An exit through SystemExit, with nothing heavy loaded until then."""
    script = (
        "import sys\nfrom hsae_command import main\ntry: main(sys.argv[1:])\n"
        "finally: print('loaded:', *sorted({name.partition('.')[0] for name in sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    loaded = done.stdout.rpartition("loaded:")[2].split()
    assert "hsae_command" in loaded
    assert not {"torch", "sae_lens", "sae_lens_hsae", "numpy", "transformers"} & set(loaded)


def test_what_the_parsers_say_of_files_and_choices_is_so():
    """They import nothing of the package, and so repeat some of its names."""
    shown = Path(parsers.__file__).read_text(encoding="utf-8")
    for name in (LABELS_FILENAME, JUDGEMENTS_FILENAME, CLARITY_FILENAME, EVALUATION_FILENAME, *FORMATS):
        assert name in shown
    for method in get_args(Method):
        assert parsers.read_line(["circuit", "a", "--pairs", "b", "--method", method]).method == method
    for method in METHODS:
        line = ["steer", "a", "--positive", "b", "--negative", "c", "--prompt", "d", "--method", method]
        assert parsers.read_line(line).method == method
    for model in demo.CONFIGS:
        assert parsers.read_line(["demo", "--model", model]).model == model
    assert parsers.read_line(["explain", "a", "--text", "b"]).paths == N_PATHS
    assert list(SUBCOMMANDS) == EVERYONE


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (ValueError("n=0 must be 1"), "hsae push: n=0 must be 1", ""),
        (ValueError("dry_run=0 is odd"), "hsae push: --dry-run=0 is odd", ""),
        (OSError("no space"), "hsae push: no space", ""),
        (FileNotFoundError(2, "No such file", "a.yaml"), "hsae push: 'a.yaml': No such file", ""),
        (KeyError("hsae"), "hsae push: KeyError: 'hsae' (--debug shows where)", ""),
        (torch.OutOfMemoryError("2 GiB"), "hsae push: OutOfMemoryError: 2 GiB (--debug shows where)", ""),
        (CallError("no such flag"), 2, "hsae push: no such flag\n"),
        (KeyboardInterrupt(), 130, "hsae push: interrupted\n"),
        (Interrupted(signal.SIGTERM), 143, "hsae push: interrupted\n"),
    ],
)
def test_errors_have_no_traceback_unless_asked_for(monkeypatch, capsys, error, code, said):
    def fail(_):
        raise error

    monkeypatch.setitem(cli.COMMANDS, "push", fail)
    with pytest.raises(SystemExit) as end:
        cli.main(["push", "folder", "someone/name"])
    assert end.value.code == code
    assert capsys.readouterr().err == said
    with pytest.raises(type(error)) as raised:
        cli.main(["push", "--debug", "folder", "someone/name"])
    assert raised.value is error


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_of_saelens_own_ends_with_the_code_of_the_signal(monkeypatch, capsys, tmp_path, number):
    def stopped(*_):
        model = hooked_model(signalling(number), at=11)
        cfg = runner_config(tmp_path, checkpoint_path=None)
        train(LanguageModelSAETrainingRunner, cfg, override_model=model, override_dataset=tiny_dataset())

    monkeypatch.setattr(cli, "demo", stopped)
    with pytest.raises(SystemExit) as end:
        cli.main(["demo"])
    assert end.value.code == 128 + number
    assert capsys.readouterr().err.endswith("hsae demo: interrupted\n")


def test_an_output_that_cannot_be_written_is_refused_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setitem(cli.COMMANDS, "evaluate", lambda _: pytest.fail("it began"))
    (tmp_path / "file").touch()
    for output, message in (
        (tmp_path, f"output={str(tmp_path)!r} is a folder; give a file"),
        (tmp_path / "file" / "a", f"output={str(tmp_path / 'file' / 'a')!r}: .*file' is no folder; give another path"),
        (Path("/proc/a/b"), "output='/proc/a/b': '/proc' cannot be written to; give another path"),
    ):
        with pytest.raises(SystemExit) as end:
            cli.main(["evaluate", "folder", "--output", str(output)])
        assert re.search(message, str(end.value.code))


@pytest.mark.parametrize("command", ["evaluate", "clarity", "explore", "label"])
def test_a_folder_that_cannot_be_written_to_is_refused_before_the_work(monkeypatch, command):
    """What a command writes there without ``--output``."""
    monkeypatch.setenv("OPENAI_API_KEY", "any")
    for module in ("evaluate", "explore"):
        monkeypatch.setattr(f"sae_lens_hsae.cli.{module}.load_hierarchical_sae", lambda *_: None)
    call = [command, "/proc/self", *(["--model", "a"] if command == "label" else [])]
    with pytest.raises(SystemExit, match=r"'/proc/self.*' cannot be written to; "):
        cli.main(call)
    if command == "label":  # an estimate writes nothing
        with pytest.raises(SystemExit, match="no saved SAE"):
            cli.main([*call, "--estimate"])


@pytest.mark.parametrize("output", ["/proc/levels", "/proc/forest.json"])
def test_convert_says_where_it_cannot_write(tmp_path, output):
    make_sae(normalize_activations="none").save_inference_model(tmp_path / "sae")
    with pytest.raises(SystemExit, match=f"output='{output}': '/proc' cannot be written to; give another path"):
        cli.main(["convert", str(tmp_path / "sae"), output])


def test_convert_refuses_a_checkpoint_without_its_scale(tmp_path):
    make_sae(normalize_activations="expected_average_only_in").save_model(tmp_path / "sae")
    with pytest.raises(SystemExit, match="reads activations times a factor, which is not known here"):
        cli.main(["convert", str(tmp_path / "sae"), str(tmp_path / "levels")])
    assert not (tmp_path / "levels").exists()


def test_the_result_alone_is_on_stdout(monkeypatch, capsys):
    def talkative(_):
        print("Loaded pretrained model")
        list(tqdm(range(3), desc="bar", disable=False))
        return Outcome("two trees", {"trees": 2, "share": float("nan"), "path": ["ρ", float("inf")]})

    monkeypatch.setitem(cli.COMMANDS, "push", talkative)
    cli.main(["push", "folder", "someone/name", "--json"])
    out, err = capsys.readouterr()
    assert json.loads(out) == {"trees": 2, "share": None, "path": ["ρ", None]}
    assert err == "Loaded pretrained model\n"
    cli.main(["push", "folder", "someone/name"])
    assert capsys.readouterr().out == "two trees\n"


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
@pytest.mark.parametrize("as_json", [False, True])
def test_what_stdout_has_no_bytes_for_is_spelled_out(monkeypatch, encoding, as_json):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding=encoding))
    text = "├─ 1/2 → é \ud800"
    Outcome(text, {"text": text}).show(as_json)
    shown = written.getvalue().decode(encoding)
    if as_json:
        assert json.loads(shown)["text"].replace("\\ud800", "\ud800") == text
    else:
        assert "1/2" in shown


def test_what_the_commands_heed_is_not_said(tmp_path, recwarn):
    sae = make_sae(normalize_activations="none")
    sae.cfg.metadata.model_from_pretrained_kwargs = {"center_writing_weights": False}
    sae.save_inference_model(tmp_path / "sae")
    cli.main(["convert", str(tmp_path / "sae"), str(tmp_path / "levels")])
    assert [str(each.message) for each in recwarn if "from_pretrained" in str(each.message)] == []


def test_bars_are_shown_on_a_terminal_and_come_back(monkeypatch):
    terminal, pipe = io.StringIO(), io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", terminal)
    with bars_on_terminals_only():
        list(tqdm(range(3), desc="seen"))
    assert "seen" in terminal.getvalue()
    monkeypatch.setattr(sys, "stderr", pipe)
    with bars_on_terminals_only():
        list(tqdm(range(3), desc="unseen", disable=False))
    assert pipe.getvalue() == ""
    list(tqdm(range(3), desc="again"))
    assert "again" in pipe.getvalue()


def test_a_process_ends_as_others_do(tmp_path):
    """A reader that has gone is no error; a wrong call is code 2."""
    write_forest(FeatureForest([-1, 0, 0], [1, 2]), tmp_path / "forest.json")
    arguments = ["convert", str(tmp_path / "forest.json"), str(tmp_path / "forest.csv")]
    with subprocess.Popen([*HSAE, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        said = process.stderr.read()
    assert (process.returncode, said) == (0, "")
    assert (tmp_path / "forest.csv").is_file()
    wrong = ["train", "--level_widths", "4", "8", "--target_l0", "2", "--d_inn", "4"]
    done = subprocess.run([*HSAE, *wrong], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "--d_inn is no flag" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.fixture(scope="module")
def saved(gpt2, tmp_path_factory) -> Path:
    """A folder with an SAE of a tiny GPT-2's residual stream, and two files of texts."""
    folder = tmp_path_factory.mktemp("contrast")
    sae_at("transformer.h.0", model=gpt2, prepend_bos=False).save_inference_model(folder / "out")
    generator = torch.Generator().manual_seed(0)
    for name, low, high in (("a", 1, 8), ("b", 90, 98)):
        rows = torch.randint(low, high, (20, 12), generator=generator).tolist()
        (folder / f"{name}.txt").write_text("\n\n".join(" ".join(f"w{i}" for i in row) for row in rows) + "\n")
    return folder


def test_contrast_says_what_the_function_finds(saved, tmp_path, capsys):
    (tmp_path / "labels.json").write_text('{"0": "low words"}')
    files = [str(saved / f"{name}.txt") for name in "ab"]
    arguments = ["contrast", str(saved / "out"), *files]
    for labels, place in (("low words", ["--labels", str(tmp_path / "labels.json")]), ("found beside the model", [])):
        (saved / "out" / "labels.json").write_text('{"0": "found beside the model"}')
        cli.main([*arguments, *place, "--json", "--output", str(tmp_path / "all.csv")])
        table = pandas.read_csv(tmp_path / "all.csv", index_col="feature", keep_default_na=False)
        assert table.loc[0, "label"] == labels
    (saved / "out" / "labels.json").unlink()
    said = json.loads(capsys.readouterr().out.splitlines()[-1])

    sae = HierarchicalSAE.load_from_disk(saved / "out")
    model = load_language_model(sae)
    texts = [[line for line in Path(file).read_text().split("\n") if line] for file in files]
    a, b = (text_activations(sae, model, each) for each in texts)
    expected = contrast(sae, sae.forest, a, b)
    higher = [each for each in expected.findings if each.more_in_a]
    assert 1 < len(higher) < len(expected.findings), "else there is but one direction"
    assert (said["n_a"], said["n_b"], said["n_significant"]) == (20, 20, int(expected.significant.sum()))
    assert [tuple(each["path"]) for each in said["findings"]] == [each.path for each in expected.findings]
    assert table["auc"].tolist() == pytest.approx(expected.auc.tolist())

    cli.main(arguments)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith(f" of 33 features differ, of {len(expected.findings)} causes")
    begins = lines.index(f"More in a, a.txt: {len(higher)}")
    for finding, line, example in zip(higher[:5], lines[begins + 2 :: 2], lines[begins + 3 :: 2], strict=False):
        assert f"  {sae.forest.levels.name(finding.coarsest)}" in line
        assert finding.example is not None
        text, token = finding.example
        assert re.findall("«(.*)»", example) == [texts[0][text].split()[token]]
    assert said["findings"][0]["text"] in "\n".join(lines)

    cli.main([*arguments, "--top", "1"])
    lines = capsys.readouterr().out.splitlines()
    assert f"… {len(higher) - 1} more: --top {len(higher)}" in lines
    assert sum("«" in line for line in lines) == 2


def test_contrast_says_so_where_nothing_is_clear(saved, capsys):
    files = [str(saved / name) for name in ("out", "a.txt", "b.txt")]
    cli.main(["contrast", *files, "--alpha", "1e-9"])
    text = capsys.readouterr().out
    assert "0 of " in text
    assert text.endswith("\nNo difference is clear enough: give more texts, or raise --alpha.\n")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["{0}/out", "{0}/none.txt", "{0}/b.txt"], "none.txt"),
        (["{0}/out", "{0}/few.txt", "{0}/b.txt"], "few.txt' holds 1 texts, one a line; give at least 8"),
        (["{0}/out", "{0}/a.txt", "{0}/b.txt", "--alpha", "2"], "alpha=2.0 must lie between 0 and 1"),
        (["{0}/out", "{0}/a.txt", "{0}/b.txt", "--max-tokens", "0"], "--max-tokens=0 must be at least 2"),
    ],
)
def test_contrast_refuses(saved, changes, message):
    (saved / "few.txt").write_text("w1 w2\n")
    with pytest.raises(SystemExit, match=message):
        cli.main(["contrast", *(word.format(saved) for word in changes)])
