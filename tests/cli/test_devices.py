"""Every command that runs a language model takes a device, and loads the SAE there."""

from types import SimpleNamespace

import pytest
import torch

from hsae_command import SUBCOMMANDS
from hsae_command.parsers import read_line
from sae_lens_hsae import HierarchicalSAE
from sae_lens_hsae.cli import main as cli
from sae_lens_hsae.cli import outcome

ON_A_DEVICE = {
    "evaluate": [],
    "explore": [],
    "explain": ["--text", "w1"],
    "contrast": ["{}/a.txt", "{}/b.txt"],
    "circuit": ["--pairs", "{}/pairs.jsonl", "--output", "{}/circuit.json"],
    "steer": ["--positive", "{}/a.txt", "--negative", "{}/b.txt", "--prompt", "w1"],
}
"""Every command that runs a language model, and what else it asks for."""


@pytest.fixture
def calls(tmp_path):
    """Those commands on a folder that looks like a saved SAE."""
    (tmp_path / "cfg.json").write_text('{"architecture": "hsae"}')
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text(f"w1 {name}\n" * 9)
    (tmp_path / "pairs.jsonl").write_text('{"clean": "w1", "answer": "w2", "foil": "w3"}')
    return [[name, str(tmp_path), *(word.format(tmp_path) for word in more)] for name, more in ON_A_DEVICE.items()]


def test_every_command_that_runs_a_model_takes_a_device(capsys):
    takes = set()
    for name in SUBCOMMANDS.keys() - {"train"}:  # SAELens' own flags
        with pytest.raises(SystemExit):
            read_line([name, "--help"])
        if "--device" in capsys.readouterr().out:
            takes.add(name)
    assert takes == ON_A_DEVICE.keys()


def test_commands_fail_at_once_where_the_device_cannot_be_used(calls):
    for call in calls:
        with pytest.raises(SystemExit, match="device='nonsense' cannot be used here"):
            cli.main([*call, "--device", "nonsense"])


class Loaded(Exception):
    pass


def test_every_command_loads_the_sae_where_it_is_to_run(calls, monkeypatch):
    def load(_, device):
        raise Loaded(device)

    monkeypatch.setattr(HierarchicalSAE, "load_from_disk", load)
    monkeypatch.setattr(outcome, "torch", SimpleNamespace(zeros=lambda n, device: torch.zeros(n)))  # noqa: ARG005
    for call in calls:
        with pytest.raises(Loaded, match="cuda:7"):
            cli.main([*call, "--device", "cuda:7", "--debug"])
