"""The hierarchy update of a million parents and two million children, run and not extrapolated.

    python -m benchmarks.largest_update --d-in 16

Time grows with d_in · parents · children, and with parents · children for looking at each similarity once; memory does
not depend on d_in but for the weights.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

import torch

from benchmarks.machine import machine
from benchmarks.memory import peak_bytes
from sae_lens_hsae.forest.levels import NO_PARENT, Levels
from sae_lens_hsae.forest.parents import PAPER_RULE, cosine_similarity, parent_table


def largest_update(d_in: int, n_parents: int, n_children: int, device: str) -> str:
    """Run one update by the cosine of random encoder columns, in float32; a line of Markdown says what it took."""
    levels = Levels((n_parents, n_children))
    W_enc = torch.randn(d_in, levels.n_features, generator=torch.Generator().manual_seed(0)).to(device)
    above, below = levels
    table = []
    began, computed = time.perf_counter(), time.process_time()

    def update() -> None:
        similarity = cosine_similarity(W_enc[:, above].T, W_enc[:, below].T)
        table.append(parent_table([similarity], levels, PAPER_RULE, device).cpu())

    held = peak_bytes(update, device)
    seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - computed
    assigned = int((table[0] != NO_PARENT).sum())
    on = machine(device)
    return (
        f"{n_parents:,} × {n_children:,} features, d {d_in}, float32, on {on['gpu'] or on['cpu']}, {on['threads']} "
        f"threads, torch {on['torch']}: {seconds / 60:.1f} minutes ({cpu_seconds / 60:.1f} of the processor), "
        f"{held / 1e6:,.0f} MB beyond the weights' {W_enc.nbytes / 1e6:,.0f} MB; {assigned:,} children have a parent."
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.largest_update", description="One large update.")
    parser.add_argument("--d-in", type=int, default=16, help="of the activations (%(default)s)")
    parser.add_argument("--parents", type=int, default=1_000_000, help="(%(default)s)")
    parser.add_argument("--children", type=int, default=2_000_000, help="(%(default)s)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (%(default)s)")
    chosen = parser.parse_args(arguments)
    print(largest_update(chosen.d_in, chosen.parents, chosen.children, chosen.device))


if __name__ == "__main__":
    main()
