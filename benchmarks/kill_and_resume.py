"""Kill a training run with SIGKILL again and again, resume it, and compare where it ends with an undisturbed run.

    python benchmarks/kill_and_resume.py --trials 200

Half of the kills come at a random moment, the others at a random file operation of checkpoint writing, deleting or
renaming. Each trial is killed a few times before it is left to finish. At the end everything in its last checkpoint is
compared with the undisturbed run's, to the bit: parameters, parents, λ, running means, the optimizer's state, random
states, and the position in the data. Runs on Linux, as it forks.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from host_helpers import runner_config, tiny_dataset, tiny_model  # type: ignore[reportMissingImports] – on the path only now
from safetensors.torch import load_file

from sae_lens_hsae import HierarchicalSAETrainingRunner
from sae_lens_hsae.storage.whole_files import UNFINISHED

KILLS_PER_TRIAL = 3
N_CHECKPOINTS = 12
WATCHED = ("open", "os.mkdir", "os.rename", "os.rmdir", "os.remove", "shutil.rmtree")


def train(folder: Path) -> None:
    """A short run that resumes by itself, and keeps the three newest checkpoints and the last."""
    cfg = runner_config(folder, n_checkpoints=N_CHECKPOINTS, save_final_checkpoint=True, resume_from_checkpoint="auto")
    runner = HierarchicalSAETrainingRunner(
        cfg, override_model=tiny_model(), override_dataset=tiny_dataset(), keep_checkpoints=3
    )
    runner.run()


def forked(folder: Path, kill_at_operation: int | None = None) -> int:
    """Start `train` in a process of its own, which may kill itself at its n-th operation on checkpoint files.

    The number of such operations stands in a file beside the folder when the process has ended well.
    """
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        log = os.open(folder.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        n_operations = 0

        def audit(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal n_operations
            if event in WATCHED and any(UNFINISHED in str(argument) for argument in arguments):
                n_operations += 1
                if n_operations == kill_at_operation:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(audit)
        train(folder)
        folder.with_suffix(".operations").write_text(str(n_operations))
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def ended(pid: int) -> int:
    """The exit code, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def final_state(folder: Path) -> dict[str, Any]:
    """All that a finished run has left."""
    (checkpoint,) = folder.glob("checkpoints/*/final_*")
    state: dict[str, Any] = {}
    for file in (*checkpoint.glob("*.safetensors"), *(folder / "out").glob("*.safetensors")):
        state |= {f"{file.parent.name}/{file.name}/{name}": tensor for name, tensor in load_file(file).items()}
    return state | {"trainer": torch.load(checkpoint / "trainer_state.pt", weights_only=True)}


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """The bytes of a tensor."""
    return tensor.contiguous().flatten().view(torch.uint8)


def equal(one: Any, other: Any) -> bool:
    """Whether two states are the same to the bit."""
    if isinstance(one, torch.Tensor):
        same = isinstance(other, torch.Tensor) and one.dtype == other.dtype and one.shape == other.shape
        return same and torch.equal(
            one.contiguous().view(-1).view(torch.uint8), other.contiguous().view(-1).view(torch.uint8)
        )
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(value, other[name]) for name, value in one.items())
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(equal, one, other))
    return type(one) is type(other) and one == other


def run_trial(folder: Path, draw: random.Random, seconds: float, n_operations: int) -> int:
    """Kill a run a few times, then let it finish; how many of the kills found it running."""
    n_killed = 0
    for _ in range(KILLS_PER_TRIAL):
        at_operation = draw.randint(1, n_operations) if draw.random() < 0.5 else None
        pid = forked(folder, at_operation)
        if at_operation is None:
            time.sleep(draw.uniform(0, seconds))
            os.kill(pid, signal.SIGKILL)
        code = ended(pid)
        if code == 0:
            return n_killed
        if code != -signal.SIGKILL:
            raise SystemExit(f"the run failed with {code}:\n{folder.with_suffix('.log').read_text()[-3000:]}")
        n_killed += 1
    code = ended(forked(folder))
    if code:
        raise SystemExit(f"the resumed run failed with {code}:\n{folder.with_suffix('.log').read_text()[-3000:]}")
    return n_killed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    draw = random.Random(chosen.seed)
    with tempfile.TemporaryDirectory() as temporary:
        undisturbed = Path(temporary) / "undisturbed"
        began = time.monotonic()
        if ended(forked(undisturbed)):
            raise SystemExit(undisturbed.with_suffix(".log").read_text()[-3000:])
        seconds = time.monotonic() - began
        n_operations = int(undisturbed.with_suffix(".operations").read_text())
        expected = final_state(undisturbed)
        n_killed = 0
        for trial in range(chosen.trials):
            folder = Path(temporary) / f"trial-{trial}"
            n_killed += run_trial(folder, draw, seconds, n_operations)
            reached = final_state(folder)
            different = [name for name in expected if not equal(expected[name], reached.get(name))]
            if different or reached.keys() != expected.keys():
                raise SystemExit(f"trial {trial} ended otherwise: {', '.join(different)}")
            shutil.rmtree(folder)
            # No progress bar: the runs would share its lock, and one that is killed holding it would stop all others.
            print(f"{trial + 1} of {chosen.trials} runs, killed {n_killed} times", file=sys.stderr, flush=True)
        print(f"{chosen.trials} runs killed {n_killed} times: all ended equal to the bit to the undisturbed run")


if __name__ == "__main__":
    main()
