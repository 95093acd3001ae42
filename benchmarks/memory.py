"""Peak memory, measured in a process that has done nothing else."""

from __future__ import annotations

import contextlib
import multiprocessing
import resource
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import torch

T = TypeVar("T")

_STATUS = Path("/proc/self/status")


def in_fresh_process(function: Callable[..., T], *args: Any) -> T:
    """Call a function of a module in a process of its own.

    Raises:
        concurrent.futures.process.BrokenProcessPool: if the process was killed, as it is for want of memory.
    """
    # Its server imports everything once and computes nothing, so each process starts quickly and equal.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["experiments"])
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, *args).result()


def peak_bytes(action: Callable[[], object], device: str) -> int:
    """How far memory rises above what it is now while ``action`` runs; to be called in a fresh process.

    On a CPU by the kernel's record of the resident set, on a GPU by torch's of what it has allocated.
    """
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        action()
        return torch.cuda.max_memory_allocated(device) - before
    # Forget the peak of what was prepared so far, where the kernel allows it.
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    before = _resident("VmRSS")
    action()
    return max(0, _resident("VmHWM") - before)  # what is resident may be paged out meanwhile


def _resident(field: str) -> int:
    if not _STATUS.exists():  # macOS, which knows the peak alone
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(field + ":"))
    return 1024 * int(line.split()[1])
