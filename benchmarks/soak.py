"""Train the demo's model for an hour, with a checkpoint every minute, and see whether anything grows or slows down.

    python -m benchmarks.soak --minutes 60

Training runs in a process of its own, as any user would run it: W&B offline, SAELens' evaluation and the forest's
measures every few minutes, the three newest checkpoints kept. From outside this process samples the other's resident
memory, open file handles and threads, and counts progress by the checkpoints. What it finds goes to ``--out`` as JSON,
again with every checkpoint, and as a summary to the terminal. Ctrl-C, or SIGTERM to the process that trains, ends it
early.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise
from multiprocessing.process import BaseProcess
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import psutil
from sae_lens import LanguageModelSAERunnerConfig, LoggingConfig
from scipy.stats import theilslopes
from transformers import AutoTokenizer

from benchmarks.machine import machine
from sae_lens_hsae import ForestLogging, HierarchicalSAETrainingRunner
from sae_lens_hsae.cli.demo import BATCH_SIZE, minilm_config, minilm_folder
from sae_lens_hsae.cli.showcase import paper_optimizer
from sae_lens_hsae.storage.whole_files import file_written_whole
from sae_lens_hsae.text.rows import training_rows
from sae_lens_hsae.training.checkpoints import MANIFEST

TEXT_TOKENS = 2_000_000
PILOT_STEPS = 60
KEPT = 3
MINUTES_PER_EVALUATION = 3
LOG_EVERY = 10
SAMPLES = 720
"""Samples in the planned time."""
MEANS = 30
"""Means of equal stretches of time that the slope is fitted to: what repeats every minute is not taken for growth."""


@dataclass(frozen=True)
class Sample:
    """The training process at one moment.

    Attributes:
        seconds: since the watch began.
        resident: bytes of memory.
        handles: open files, sockets and pipes.
        threads: of the process.
        trained: activations trained on, as the newest checkpoint says.
    """

    seconds: float
    resident: int
    handles: int
    threads: int
    trained: int


# The process that trains.


def train(folder: Path, minutes: float) -> None:
    """Train for about ``minutes``; how many steps that takes is found by a pilot of `PILOT_STEPS`."""
    for name in ("WANDB_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR", "WANDB_ARTIFACT_DIR"):
        os.environ[name] = str(folder)
    os.environ |= {"WANDB_MODE": "offline", "HF_HUB_OFFLINE": "1"}
    tokenizer = AutoTokenizer.from_pretrained(minilm_folder())
    pilot = minilm_config(
        None,
        training_tokens=PILOT_STEPS * BATCH_SIZE,
        lr_warm_up_steps=0,
        n_batches_in_buffer=64,
        n_batches_for_norm_estimate=4,
    )
    rows = training_rows(pilot, tokenizer, TEXT_TOKENS)
    began = time.monotonic()
    HierarchicalSAETrainingRunner(pilot, override_dataset=rows).run()
    steps_per_minute = 60 * PILOT_STEPS / (time.monotonic() - began)
    cfg = config(folder, max(20, round(minutes * steps_per_minute)), minutes)
    runner = HierarchicalSAETrainingRunner(
        cfg, override_dataset=rows, forest_logging=ForestLogging(trees=True), keep_checkpoints=KEPT
    )
    runner.run()


def config(folder: Path, n_steps: int, minutes: float) -> LanguageModelSAERunnerConfig[Any]:
    """The demo's configuration for another number of steps, with all that is written in a long run."""
    model = folder / "minilm"  # a short path: W&B's artifacts are named after it, in at most 128 characters
    model.symlink_to(minilm_folder())
    steps_per_evaluation = n_steps * min(MINUTES_PER_EVALUATION / minutes, 0.3)
    return minilm_config(
        str(folder / "out"),
        model_name=str(model),
        training_tokens=n_steps * BATCH_SIZE,
        checkpoint_path=str(folder / "checkpoints"),
        n_checkpoints=max(6, round(minutes)) - 1,
        save_final_checkpoint=True,
        n_eval_batches=2,
        eval_batch_size_prompts=8,  # the logits of 30,522 tokens are kept for each place
        logger=LoggingConfig(
            log_to_wandb=True,
            wandb_log_frequency=LOG_EVERY,
            eval_every_n_wandb_logs=max(1, round(steps_per_evaluation / LOG_EVERY)),
        ),
        **paper_optimizer(n_steps, lr=6e-3),
    )


# The process that watches.


def watch(process: BaseProcess, checkpoints: Path, seconds_per_sample: float) -> Iterator[Sample]:
    """Samples of a running process until it ends."""
    assert process.pid is not None
    seen = psutil.Process(process.pid)
    began = time.monotonic()
    while process.is_alive():
        try:
            with seen.oneshot():
                resident, threads = seen.memory_info().rss, seen.num_threads()
            yield Sample(time.monotonic() - began, resident, seen.num_fds(), threads, trained(checkpoints))
        except psutil.NoSuchProcess:
            return
        process.join(seconds_per_sample)


def trained(checkpoints: Path) -> int:
    """Activations trained on, by the name of the newest of a run's checkpoints; 0 without any."""
    names = (path.parent.name for path in checkpoints.glob(f"*/[!.]*/{MANIFEST}"))
    return max((int(name.removeprefix("final_")) for name in names), default=0)


def summary(samples: list[Sample], minutes: float) -> dict[str, Any] | None:
    """What the samples say, between the first and the last checkpoint seen; None with fewer than four.

    Windows are ten minutes long, or a third of what was planned if that is less. Throughput is that between the
    checkpoints of a window. Handles and threads are medians, as single samples catch files that are being written.
    """
    marks = [after for before, after in pairwise(samples) if before.trained < after.trained]
    if len(marks) < 4:
        return None
    window = min(600.0, 20 * minutes)
    start, end = marks[0].seconds, marks[-1].seconds
    steady = [sample for sample in samples if start <= sample.seconds <= end]
    first = [sample for sample in steady if sample.seconds <= start + window]
    last = [sample for sample in steady if sample.seconds >= end - window]
    later = [sample for sample in steady if sample.seconds >= (start + end) / 2]
    rates = window_rates(marks, window)
    return {
        "minutes": (end - start) / 60,
        "checkpoints": len(marks),
        "window_minutes": window / 60,
        "resident_mb": {
            "first_window": _median(first, "resident") / 1e6,
            "last_window": _median(last, "resident") / 1e6,
            "most": max(sample.resident for sample in steady) / 1e6,
            "slope_per_hour": memory_slope(later),
        },
        **{
            name: {"first_window": _median(first, name), "last_window": _median(last, name)}
            for name in ("handles", "threads")
        },
        "tokens_per_second": {
            "windows": rates,
            "last_over_first": rates[-1] / rates[0],
        },
    }


def memory_slope(samples: list[Sample]) -> dict[str, float]:
    """Theil and Sen's slope of resident memory, in MB per hour, with its 95 % interval; by means of equal stretches."""
    parts = [part for part in np.array_split(np.array([[s.seconds, s.resident] for s in samples]), MEANS) if len(part)]
    seconds, resident = np.array([part.mean(0) for part in parts]).T
    fit: Any = theilslopes(resident / 1e6, seconds / 3600)
    return {"estimate": float(fit.slope), "low": float(fit.low_slope), "high": float(fit.high_slope)}


def window_rates(marks: list[Sample], window: float) -> list[float]:
    """Activations per second in windows one after the other; the last is as long as the others and ends the run."""
    n_windows = max(2, int((marks[-1].seconds - marks[0].seconds) / window))
    starts = [marks[0].seconds + i * window for i in range(n_windows - 1)] + [marks[-1].seconds - window]
    rates = []
    for start in starts:
        inside = [mark for mark in marks if start <= mark.seconds <= start + window]
        if len(inside) < 2:  # so slow that no window holds two checkpoints
            inside = marks
        rates.append((inside[-1].trained - inside[0].trained) / (inside[-1].seconds - inside[0].seconds))
    return rates


def described(result: dict[str, Any]) -> str:
    """The summary in words."""
    memory, slope, rates = result["resident_mb"], result["resident_mb"]["slope_per_hour"], result["tokens_per_second"]
    window = f"{result['window_minutes']:g} minutes"
    relative = ", ".join(f"{rate / rates['windows'][0]:.2f}" for rate in rates["windows"])
    return "\n".join(
        [
            f"{result['minutes']:.1f} minutes of training, {result['checkpoints']} checkpoints",
            f"resident memory   {memory['first_window']:.0f} MB in the first {window}, "
            f"{memory['last_window']:.0f} MB in the last, at most {memory['most']:.0f} MB; in the second half "
            f"{slope['estimate']:+.1f} MB per hour ({slope['low']:+.1f} to {slope['high']:+.1f})",
            *(
                f"{name:<16}  {result[name]['first_window']:g} in the first {window}, "
                f"{result[name]['last_window']:g} in the last"
                for name in ("handles", "threads")
            ),
            f"throughput        in the last {window} {rates['last_over_first']:.3f} of the first; all windows, "
            f"relative to the first: {relative}",
        ]
    )


def soak(training: Callable[[Path, float], None], minutes: float, out: Path) -> tuple[dict[str, Any] | None, int]:
    """Watch ``training(folder, minutes)`` in a process of its own, and write what is found to ``out``.

    Returns:
        What `summary` gives, and the exit code of the process.
    """
    about = {"minutes_planned": minutes, "machine": machine("cpu")}
    samples: list[Sample] = []

    def write(exit_code: int | None) -> dict[str, Any] | None:
        result = summary(samples, minutes)
        record = {**about, "exit_code": exit_code, "summary": result, "samples": [asdict(each) for each in samples]}
        with file_written_whole(out) as aside:
            aside.write_text(json.dumps(record, indent=1), encoding="utf-8")
        return result

    with TemporaryDirectory() as folder:
        # A fresh interpreter, which has of this one neither memory nor handles nor threads.
        process = multiprocessing.get_context("spawn").Process(target=training, args=(Path(folder), minutes))
        process.start()
        with contextlib.suppress(KeyboardInterrupt):  # the terminal has sent it to the other process as well
            for sample in watch(process, Path(folder) / "checkpoints", 60 * minutes / SAMPLES):
                samples.append(sample)
                if len(samples) > 1 and sample.trained > samples[-2].trained:
                    write(None)
        process.join()
    assert process.exitcode is not None  # it has been waited for
    return write(process.exitcode), process.exitcode


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60, help="about how long to train (default: 60)")
    parser.add_argument("--out", type=Path, default=Path("runs/soak.json"), help="default: runs/soak.json")
    chosen = parser.parse_args(arguments)
    if not 0 < chosen.minutes < math.inf:
        parser.error(f"--minutes {chosen.minutes:g} must be more than 0")
    result, exit_code = soak(train, chosen.minutes, chosen.out)
    print(described(result) if result else "too short: fewer than four checkpoints were written")
    print(f"written to {chosen.out}")
    sys.exit(exit_code)


def _median(samples: list[Sample], name: str) -> float:
    return float(np.median([getattr(sample, name) for sample in samples]))


if __name__ == "__main__":
    main()
