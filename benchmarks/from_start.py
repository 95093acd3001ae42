"""What a whole training costs on a CPU, from its first step: early on L0 is far above its target, entries are dense.

    python -m benchmarks.from_start --steps 2000

HSAE with the package's defaults and SAELens' independent SAEs start untrained and take each step in turn, on the same
batches. SAELens' steps cost the same whatever fires, so all but every ``--every``-th may be left out.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from sae_lens import JumpReLUTrainingSAE, JumpReLUTrainingSAEConfig
from sae_lens.saes.sae import TrainingSAE
from sae_lens.training.sae_trainer import SAETrainer

from benchmarks.contestants import SAELENS
from benchmarks.machine import machine
from benchmarks.plan import MEDIUM, Size
from benchmarks.planted import activations
from benchmarks.report import table
from experiments import trainer_for
from sae_lens_hsae import HierarchicalSAETrainer, HierarchicalTrainingSAE, HierarchicalTrainingSAEConfig
from sae_lens_hsae.sae.step_output import LazyStepOutput

SIZE = Size(384, MEDIUM, 1024, 16)
SPANS = (50, 200, 600)
"""Steps at which a row of the table ends; the last one ends with the training."""


def measure(size: Size, steps: int, every: int, batches: Iterator[torch.Tensor]) -> list[dict[str, Any]]:
    """Train both from the start.

    Args:
        size: widths, d_in, batch and the target of L0.
        steps: of the training.
        every: after how many of HSAE's steps SAELens' SAEs take one.
        batches: activations, (batch, d_in).

    Returns:
        For each step ``seconds`` of HSAE and, where they took one, ``saelens_seconds``; ``l0`` of every level, the
        share of (feature, token) that is ``active``, and whether the step was in the ``dense`` form.
    """
    x = next(batches)
    for sae in (_hsae(size), *_independent(size)):  # whatever is slow but once
        _trainer(sae, size, steps).step(x)
    ours, theirs = _trainer(_hsae(size), size, steps), [_trainer(sae, size, steps) for sae in _independent(size)]
    rows = []
    for step in range(steps):
        x = next(batches)
        began = time.perf_counter()
        output = ours.step(x)
        row: dict[str, Any] = {"step": step, "seconds": time.perf_counter() - began}
        ours.n_training_steps += 1
        if step % every == 0:
            began = time.perf_counter()
            for trainer in theirs:
                trainer.step(x)
                trainer.n_training_steps += 1
            row["saelens_seconds"] = time.perf_counter() - began
        fired = output.feature_acts.detach() > 0
        row["l0"] = [own.sum(1).float().mean().item() for own in fired.split(size.widths, dim=1)]
        row["active"] = fired.float().mean().item()
        row["dense"] = not isinstance(output, LazyStepOutput)
        rows.append(row)
    return rows


def _hsae(size: Size) -> HierarchicalTrainingSAE:
    return HierarchicalTrainingSAE(
        HierarchicalTrainingSAEConfig(
            d_in=size.d_in,
            d_sae=size.n_features,
            level_widths=list(size.widths),
            target_l0=size.l0,
            normalize_activations="none",
        )
    )


def _independent(size: Size) -> list[JumpReLUTrainingSAE]:
    fields: dict[str, Any] = {"jumprelu_init_threshold": 1.0, "jumprelu_bandwidth": 1.0, "jumprelu_ste_to_input": True}
    return [
        JumpReLUTrainingSAE(JumpReLUTrainingSAEConfig(d_in=size.d_in, d_sae=width, l0_coefficient=1.0, **fields))
        for width in size.widths
    ]


def _trainer(sae: TrainingSAE[Any], size: Size, steps: int) -> SAETrainer[Any, Any]:
    kind = HierarchicalSAETrainer if isinstance(sae, HierarchicalTrainingSAE) else SAETrainer
    cfg = replace(
        trainer_for(sae, iter(()), steps).cfg,
        train_batch_size_samples=size.batch,
        total_training_samples=steps * size.batch,
    )
    return kind(cfg=cfg, sae=sae, data_provider=iter(()))  # pyright: ignore[reportArgumentType]


def markdown(record: dict[str, Any]) -> str:
    """By span of steps: times, what fires, and how many steps were dense."""
    rows, on = record["rows"], record["machine"]
    ends = [end for end in SPANS if end < len(rows)] + [len(rows)]
    lines = [_span(rows, start, end) for start, end in zip([0, *ends], ends, strict=False)]
    lines.append(["**all**", *_span(rows, 0, len(rows))[1:]])
    heads = ["steps", "HSAE, ms", f"{SAELENS}, ms", "HSAE takes", "in the dense form", "active", "L0 at the end"]
    return (
        f"## A training from its start ({record['size']}, {record['activations']})\n\n{on['cpu']}, {on['threads']} "
        f"threads, torch {on['torch']}, commit {on['commit'] or 'unknown'}, {on['date']}.\n\n{table(heads, lines)}\n"
    )


def _span(rows: Sequence[dict[str, Any]], start: int, end: int) -> list[str]:
    own = rows[start:end]
    ours = mean(row["seconds"] for row in own)
    sampled = [row["saelens_seconds"] for row in own if "saelens_seconds" in row]
    theirs = mean(sampled) if sampled else None
    return [
        f"{start}–{end - 1}",
        f"{1000 * ours:,.1f}",
        f"{1000 * theirs:,.1f}" if theirs else "",
        f"{ours / theirs:.2f}×" if theirs else "",
        f"{sum(row['dense'] for row in own)} of {len(own)}",
        f"{mean(row['active'] for row in own):.2%}",
        " ".join(f"{l0:.1f}" for l0 in own[-1]["l0"]),
    ]


def stored(path: Path, size: Size) -> Iterator[torch.Tensor]:
    """Shuffled batches of stored activations (n, d_in), scaled to mean norm √d_in, over and over."""
    x = torch.load(path, weights_only=True).float()
    x = x * (x.shape[1] ** 0.5 / x.norm(dim=1).mean())
    generator = torch.Generator().manual_seed(0)
    while True:
        order = torch.randperm(len(x), generator=generator)
        for rows in order[: len(x) // size.batch * size.batch].split(size.batch):
            yield x[rows]


def main(arguments: Sequence[str] | None = None, size: Size = SIZE) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.from_start", description="A training from its start.")
    parser.add_argument("--steps", type=int, default=2000, help="of the training (%(default)s)")
    parser.add_argument("--every", type=int, default=5, help="steps of HSAE for one of SAELens' (%(default)s)")
    parser.add_argument("--activations", type=Path, help="a tensor (n, d_in), by torch.save; without it planted ones")
    parser.add_argument("--out", type=Path, default=Path("runs/from_start"), help="folder to write to (%(default)s)")
    chosen = parser.parse_args(arguments)
    if chosen.steps < 1 or chosen.every < 1:
        parser.error("--steps and --every must be at least 1")
    batches = activations(size) if chosen.activations is None else stored(chosen.activations, size)
    if chosen.activations is not None:
        first = next(batches)
        if first.shape[1] != size.d_in:
            size = replace(size, d_in=first.shape[1])
    record = {
        "machine": machine("cpu"),
        "size": str(size),
        "activations": "planted" if chosen.activations is None else chosen.activations.name,
        "rows": measure(size, chosen.steps, chosen.every, batches),
    }
    chosen.out.mkdir(parents=True, exist_ok=True)
    (chosen.out / "results.json").write_text(json.dumps(record, indent=1), encoding="utf-8")
    (chosen.out / "results.md").write_text(markdown(record), encoding="utf-8")
    print(markdown(record))


if __name__ == "__main__":
    main()
