"""Cells of a comparison: each finished one is kept as a JSON file, and a later call computes the rest."""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from sae_lens_hsae.cli.progress_bars import disable_bars
from sae_lens_hsae.storage.whole_files import write_whole


@dataclass(frozen=True)
class Cell:
    """One result."""

    name: str  # of its file, without ``.json``; unique
    compute: Callable[..., dict[str, Any]]  # a module's function, for workers to import; ready for JSON
    arguments: tuple[Any, ...]

    def path(self, folder: Path) -> Path:
        return folder / f"{file_name(self.name)}.json"

    def finish(self, folder: Path) -> None:
        """Compute and keep the result; the file appears whole or not at all."""
        write_whole(self.path(folder), json.dumps(self.compute(*self.arguments)))


def file_name(text: str) -> str:
    """``text`` with everything but letters, digits and ``.=-_`` replaced."""
    return "".join(letter if letter.isalnum() or letter in ".=-" else "_" for letter in text)


def missing(cells: Sequence[Cell], folder: Path) -> list[Cell]:
    return [cell for cell in cells if not cell.path(folder).exists()]


def finish_cells(cells: Sequence[Cell], folder: Path, title: str, workers: int = 1) -> list[dict[str, Any]]:
    """Compute what ``folder`` does not hold yet, with a progress bar; all results, in the order of the cells.

    The first error is raised at once. What other workers are at then they finish and keep, and no more is begun. The
    workers share the cores; with one it all happens in this process.
    """
    if workers < 1:
        raise ValueError(f"workers={workers} must be at least 1")
    folder.mkdir(parents=True, exist_ok=True)
    to_do = missing(cells, folder)
    with tqdm(total=len(cells), initial=len(cells) - len(to_do), desc=title, unit="cell") as progress:
        if workers == 1:
            for cell in to_do:
                cell.finish(folder)
                progress.update()
        else:
            threads = max(1, (os.cpu_count() or 1) // workers)
            context = multiprocessing.get_context("spawn")
            pool = ProcessPoolExecutor(workers, context, _start_worker, (threads,))
            try:
                # No more than there are workers: what a pool has queued for them cannot be taken back.
                waiting, running = iter(to_do), set[Future[None]]()
                while True:
                    running |= {pool.submit(cell.finish, folder) for cell in islice(waiting, workers - len(running))}
                    if not running:
                        break
                    done, running = wait(running, return_when=FIRST_COMPLETED)
                    for future in done:
                        future.result()
                        progress.update()
            finally:
                pool.shutdown(wait=False, cancel_futures=True)  # as a context it would wait for them
    return [json.loads(cell.path(folder).read_text()) for cell in cells]


def _start_worker(threads: int) -> None:
    torch.set_num_threads(threads)
    # A worker's result is a file: the bar and the result that are shown are the caller's.
    sys.stdout = sys.stderr
    disable_bars()
