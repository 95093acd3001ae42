"""PyTorch's own launcher starts the processes, and starts them again when one is killed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from host_helpers import write_train_flags
from sae_lens import SAE
from safetensors.torch import load_file

from sae_lens_hsae import HierarchicalSAE

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the processes talk over the loopback interface")

SCRIPT = Path(__file__).parents[1] / "elastic_run.py"
SECONDS = 280


def torchrun(*arguments, **surroundings):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    paths = os.pathsep.join([*sys.path, os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths, **surroundings}
    return subprocess.run(
        [*command, *map(str, arguments)], env=environment, capture_output=True, text=True, timeout=SECONDS
    )


def test_the_command_trains_in_two_processes(tmp_path):
    flags = write_train_flags(tmp_path, evaluation_tokens=300, minimum_similarity=-2.0)
    done = torchrun("-m", "sae_lens_hsae", "train", "--config", flags)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("The SAE is saved to") == 1, "rank 0 alone says the result"
    loaded = SAE.load_from_disk(str(tmp_path / "out"))
    assert isinstance(loaded, HierarchicalSAE)
    assert len(loaded.forest.edges()) > 0
    assert (tmp_path / "out" / "evaluation.json").exists()
    (checkpoint,) = tmp_path.glob("checkpoints/*/*")  # one folder, where each process would have drawn its own
    names = {path.name for path in checkpoint.glob("resumable_store_state*")}
    assert names == {"resumable_store_state.safetensors", "resumable_store_state.rank-1.safetensors"}


@pytest.mark.slow
def test_a_killed_process_costs_a_restart_and_nothing_else(tmp_path):
    whole = torchrun(SCRIPT, tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr[-3000:]
    killed = torchrun("--max-restarts", "1", SCRIPT, tmp_path / "killed", "--kill")
    assert killed.returncode == 0, killed.stderr[-3000:]
    assert (tmp_path / "killed" / "was-killed").exists()
    ended, expected = (load_file(tmp_path / name / "out" / "sae_weights.safetensors") for name in ("killed", "whole"))
    assert ended.keys() == expected.keys()
    for name, tensor in ended.items():
        assert torch.equal(tensor, expected[name]), name
