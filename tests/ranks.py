"""Several real processes that train together over gloo, as ``torchrun`` would start them; forked, so that they start at
once. What a test has them do returns, or raises, in each."""

from __future__ import annotations

import multiprocessing
import os
import socket
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

FORK = multiprocessing.get_context("fork") if "fork" in multiprocessing.get_all_start_methods() else None
SECONDS = 120


def on_ranks(n_ranks: int, folder: Path, action: Callable[[int], Any], *, hanging: int | None = None) -> list[Any]:
    """What ``action(rank)`` gives in each of this many processes; an exception is given as itself.

    Args:
        folder: for the processes' results.
        action: gives what ``torch.save`` can write.
        hanging: a rank that is not waited for; it is killed when the others have ended, and gives None.
    """
    assert FORK is not None
    folder.mkdir(parents=True, exist_ok=True)
    port = _free_port()
    processes = []
    for rank in range(n_ranks):
        surroundings = {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(n_ranks),
            "LOCAL_WORLD_SIZE": str(n_ranks),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
        process = FORK.Process(target=_act, args=(action, rank, surroundings, folder / f"result-{rank}.pt"))
        process.start()
        processes.append(process)
    limit = time.monotonic() + SECONDS
    for rank, process in enumerate(processes):
        if rank != hanging:
            process.join(max(0.0, limit - time.monotonic()))
    for process in processes:
        if process.is_alive():
            process.kill()
        process.join()
    return [_result(folder / f"result-{rank}.pt") for rank in range(n_ranks)]


def _act(action: Callable[[int], Any], rank: int, surroundings: dict[str, str], path: Path) -> None:
    os.environ.update(surroundings)
    torch.set_num_threads(1)
    log = os.open(path.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    try:
        result = action(rank)
    except BaseException as error:
        traceback.print_exc()
        result = type(error)(error.code if isinstance(error, SystemExit) else str(error))
    aside = path.with_suffix(".aside")
    torch.save(result, aside)
    aside.rename(path)
    os._exit(0)  # without what belongs to the parent: pytest, its threads, its temporary folders


def _result(path: Path) -> Any:
    return torch.load(path, weights_only=False) if path.exists() else None


def _free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]
