"""Messages call by its flag what somebody typed as a flag."""

import argparse
import json
import re
from dataclasses import fields
from pathlib import Path

import pytest
from host_helpers import sae_at
from sae_lens import LanguageModelSAERunnerConfig

from hsae_command import parsers
from sae_lens_hsae.cli import main as cli
from sae_lens_hsae.cli.flag_names import in_flags
from sae_lens_hsae.config import HierarchicalTrainingSAEConfig


def options(command: str) -> dict[str, str]:
    [commands] = [each for each in parsers._parser()._actions if isinstance(each, argparse._SubParsersAction)]
    own = commands.choices[command]._actions
    return {
        each.dest: each.option_strings[-1] for each in own if each.option_strings and each.dest not in ("help", "json")
    }


@pytest.mark.parametrize("command", [name for name in cli.COMMANDS if options(name)])
def test_every_flag_is_named_as_it_was_typed(command, monkeypatch, capsys, tmp_path):
    flags = options(command)

    def fail(_):
        raise ValueError("; ".join(f"{name}=0 is wrong, so change {name}" for name in flags))

    monkeypatch.setitem(cli.COMMANDS, command, fail)
    line = argparse.Namespace(command=command, debug=False, further=[], folder=tmp_path)
    monkeypatch.setattr(cli, "read_line", lambda _: line)
    with pytest.raises(SystemExit) as end:
        cli.main([])
    said = str(end.value.code) + capsys.readouterr().err
    for name, flag in flags.items():
        assert f"{flag}=0 is wrong, so change {flag if '_' in name else name}" in said


def test_fields_of_a_training_are_flags_too():
    for config in (LanguageModelSAERunnerConfig, HierarchicalTrainingSAEConfig):
        for field in fields(config):
            if field.name not in ("sae", "logger"):
                assert in_flags(f"{field.name}=0 is wrong", "train") == f"--{field.name}=0 is wrong"
    told = in_flags("level_widths=[8, 4] is not increasing; write level_widths=[4, 8], or d_sae", "sweep")
    assert told == "--level_widths=[8, 4] is not increasing; write --level_widths=[4, 8], or --d_sae"
    assert in_flags("the SAE's n_tokens=3 and features' n_tokens=4", "evaluate").count("--n-tokens=") == 2
    assert in_flags("seeds=0 must be 1", "sweep") == "--seeds=0 must be 1"
    assert in_flags("level_widths=[8, 4] do not fit", "evaluate") == "level_widths=[8, 4] do not fit"


@pytest.mark.parametrize(
    "message",
    [
        "'runs/n_tokens=3/a.txt' is no text",
        '"n_tokens=3" has no token',
        "runs/n_tokens=3 holds no SAE",
        "set the SAE's metadata.n_tokens to 3",
        "my_n_tokens=3",
        "give more text, or another model",
    ],
)
def test_nothing_else_is_renamed(message):
    assert in_flags(message, "evaluate") == message


@pytest.fixture(scope="module")
def saved(gpt2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "run"
    sae_at("transformer.h.0", model=gpt2, prepend_bos=True).save_inference_model(folder)
    return folder


WRONG = [
    ("evaluate", ["--n-tokens", "0"]),
    ("evaluate", ["--device", "nowhere"]),
    ("evaluate", ["--text", "none.txt"]),
    ("evaluate", ["--text", "a", "--dataset", "b"]),
    ("explore", ["--n-tokens", "0", "--text", "text.txt"]),
    ("explore", ["--explain", ""]),
    ("explore", ["--circuit", "none.json"]),
    ("explore", ["--labels", "text.txt"]),
    ("explain", ["--text", ""]),
    ("explain", ["--text", "w1", "--paths", "0"]),
    ("explain", ["--text", "w1", "--labels", "none.json"]),
    ("contrast", ["text.txt", "text.txt", "--max-tokens", "1"]),
    ("contrast", ["text.txt", "text.txt", "--localising-share", "3"]),
    ("steer", ["--positive", "text.txt", "--negative", "text.txt", "--prompt", "w1"]),
    ("steer", ["--positive", "text.txt", "--negative", "text.txt", "--prompt", ""]),
    ("circuit", ["--pairs", "none.jsonl"]),
    ("circuit", ["--pairs", "pairs.jsonl", "--threshold", "-1"]),
    ("circuit", ["--pairs", "pairs.jsonl", "--edges", "-1"]),
]


@pytest.mark.parametrize(("command", "wrong"), WRONG, ids=[" ".join((command, *wrong)) for command, wrong in WRONG])
def test_a_wrong_call_is_told_no_name_that_python_alone_has(tmp_path, monkeypatch, capsys, saved, command, wrong):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("\n".join(f"w{i} w{i + 1}" for i in range(1, 40)))
    (tmp_path / "pairs.jsonl").write_text(json.dumps({"clean": "w1 w2", "answer": "w3", "foil": "w4"}))
    with pytest.raises(SystemExit) as end:
        cli.main([command, str(saved), *wrong])
    said = str(end.value.code) + capsys.readouterr().err
    assert end.value.code not in (0, 2)
    typed = [word for word in wrong if word.startswith("--")]
    fields_named = set(re.findall(r"(?<![\w.\-])([a-z]\w*)=", re.sub(r"(?<!\w)'[^']*'", "", said)))
    assert not fields_named & options(command).keys(), said
    assert any(flag in said for flag in typed) or "none.json" in said, said
