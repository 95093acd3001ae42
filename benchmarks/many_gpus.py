"""What data-parallel training sends and holds, by formula, and the formulas checked on two processes of this machine.

    python -m benchmarks.many_gpus

prints the tables of docs/many_gpus.md. The formulas need nothing but sizes; what they assume of a machine are the
flags. The check trains in two processes over the loopback interface, and compares the bytes that went over it and the
memory of each process with the formulas.
"""

from __future__ import annotations

import argparse
import os
import socket
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import cycle
from typing import Any, NamedTuple

import torch

from benchmarks.contestants import hsae
from benchmarks.memory import in_fresh_process, peak_bytes
from benchmarks.naive import PlainHSAE
from benchmarks.plan import Size
from benchmarks.planted import plant
from benchmarks.sharding import LAYOUTS, N_RANKS, bytes_sent, loopback_bytes
from sae_lens_hsae.forest.levels import Levels
from sae_lens_hsae.presets import PAPER
from sae_lens_hsae.sae.recent_firing import tokens_kept
from sae_lens_hsae.training.distributed.data_parallel import DataParallelTrainer
from sae_lens_hsae.training.distributed.ranks import join

FLOAT = 4
TOKEN = 2
"""Bytes of a token's number within a batch of fewer than 65,536."""
L0 = 50
"""Of every level of the table, as in the paper."""
GB = 1e9
D_IN = 2304
BATCH = 1024
"""Activations of one rank per step."""
FEATURES = (16_384, 65_536, 262_144, 1_048_576, 4_194_304, 10_485_760)
SHARDED = (1_048_576, 10_485_760)
"""Features at which layouts are compared: replicas no longer fit."""
N_LEVELS = 4
LANGUAGE_MODEL = 1.3e9
"""Parameters below the hook point: half of gemma-2-2b."""
FLOPS = 2e14
"""That a GPU reaches per second, not what its maker states."""
BANDWIDTHS = {"NVLink, 450 GB/s": 450e9, "400 Gbit/s": 50e9, "100 Gbit/s": 12.5e9}
PARAMETER_COPIES = 7
"""At the peak of a step: parameters, gradients, Adam's two moments, and three while gradients are added up and
arranged."""
DENSE_COPIES = 23
"""Of (batch, features) float32 numbers at the peak of a step in the dense form, which GPUs use. Both numbers were
chosen to fit the check, on a CPU."""
SETTINGS: dict[str, dict[str, Any]] = {"paper": PAPER, "defaults": {}}
"""Fields of the SAE's config. What decides here is whether the similarity is measured on activations."""
CHECKED = (
    (Size(256, (256, 512, 1024, 2048), 64, 16), "paper"),
    (Size(256, (256, 512, 1024, 2048), 1024, 16), "paper"),
    (Size(512, (512, 1024, 2048, 4096), 512, 16), "paper"),
    (Size(1024, (512, 1024, 2048, 4096), 64, 16), "paper"),
    (Size(256, (256, 512, 1024, 2048), 1024, 16), "defaults"),
    (Size(512, (512, 1024, 2048, 4096), 512, 16), "defaults"),
    (Size(256, (1024, 2048, 4096, 8192), 64, 16), "defaults"),
)
CHECKED_SHARDED = (
    Size(256, (256, 512, 1024, 2048), 64, 16),
    Size(256, (256, 512, 1024, 2048), 1024, 16),
    Size(512, (512, 1024, 2048, 4096), 64, 16),
)
STEPS = 4


def parameters(d_in: int, n_features: int, n_levels: int) -> int:
    """W_enc, W_dec, b_enc, θ and one b_dec per level."""
    return 2 * d_in * n_features + 2 * n_features + n_levels * d_in


def all_reduce_bytes(n_bytes: float, n_ranks: int) -> float:
    """What each rank sends to have all hold the sum: a ring sends every part around twice, but for one hop."""
    return 2 * (n_ranks - 1) / n_ranks * n_bytes


def step_bytes(d_in: int, n_features: int, n_levels: int, n_ranks: int) -> float:
    """What each rank sends per step: gradients, firing counts, and L0 with the ranks' marks."""
    marks = 8 * (n_levels + n_ranks + 1)
    return all_reduce_bytes(FLOAT * (parameters(d_in, n_features, n_levels) + n_features) + marks, n_ranks)


def firing_bytes(widths: Sequence[int], target_l0: Sequence[float], batch: int) -> float:
    """What a rank holds more if the similarity is measured on activations: what fired on the last tokens."""
    kept = tokens_kept(Levels(tuple(widths)), target_l0)
    return kept * (TOKEN * sum(target_l0) + FLOAT * sum(widths) / batch)


def doubling_widths(n_features: int, n_levels: int) -> list[int]:
    """Widths of this many levels that double and add up to about this many features."""
    return [round(n_features * 2**level / (2**n_levels - 1)) for level in range(n_levels)]


def replica_bytes(d_in: int, n_features: int, n_levels: int, batch: int) -> float:
    """Memory of a rank at the peak of a step; without the language model and SAELens' buffer."""
    return PARAMETER_COPIES * FLOAT * parameters(d_in, n_features, n_levels) + DENSE_COPIES * FLOAT * batch * n_features


class Times(NamedTuple):
    """Seconds of a rank's step."""

    sae: float
    language_model: float
    sending: float


def step_times(d_in: int, n_features: int, batch: int, n_ranks: int, bandwidth: float, flops: float) -> Times:
    """Dense products, a forward pass of the language model, and the all-reduce, were nothing of it overlapped."""
    return Times(
        12 * d_in * n_features * batch / flops,
        2 * LANGUAGE_MODEL * batch / flops,
        step_bytes(d_in, n_features, N_LEVELS, n_ranks) / bandwidth,
    )


def batch_of_balance(n_ranks: int, bandwidth: float, flops: float) -> float:
    """Activations per rank and step at which sending gradients takes as long as the SAE's arithmetic, at any width."""
    return all_reduce_bytes(2 * FLOAT, n_ranks) * flops / (12 * bandwidth)


def width_of_balance(d_in: int, batch: int, n_ranks: int, bandwidth: float, flops: float) -> float | None:
    """Features beyond which sending outweighs all arithmetic, the language model's included; None if none do."""
    per_feature = all_reduce_bytes(2 * FLOAT * d_in, n_ranks) / bandwidth - 12 * d_in * batch / flops
    return 2 * LANGUAGE_MODEL * batch / flops / per_feature if per_feature > 0 else None


@dataclass(frozen=True)
class Layout:
    """One way of spreading training over n ranks: bytes held and sent by each, as functions of the size."""

    name: str
    held: float
    sent: float


def layouts(d_in: int, n_features: int, n_levels: int, batch: int, n_ranks: int) -> list[Layout]:
    """Memory and bytes per step of each rank: as built, and what sharding would make of them."""
    whole = FLOAT * parameters(d_in, n_features, n_levels)
    state = PARAMETER_COPIES * whole
    activations = DENSE_COPIES * FLOAT * batch * n_features
    hop = (n_ranks - 1) / n_ranks
    finest = 2**-1 / (1 - 2**-n_levels)  # share of the finest level, where widths double
    reconstructions = all_reduce_bytes(FLOAT * n_ranks * batch * n_levels * d_in, n_ranks)
    gathered, gathered_by_levels = (FLOAT * (n - 1) * batch * d_in for n in (n_ranks, n_levels))
    return [
        Layout("replicas (as built)", state + activations, step_bytes(d_in, n_features, n_levels, n_ranks)),
        Layout("optimizer sharded", state - 2 * whole * hop + activations, 2 * hop * whole),
        Layout("FSDP2, by level", state / n_ranks + finest * whole + activations, 3 * hop * whole),
        # A rank computes its features for the batches of all ranks.
        Layout("dictionary sharded", state / n_ranks + activations, gathered + reconstructions),
        Layout("one level per rank", finest * (state + n_levels * activations), gathered_by_levels),
    ]


def growth_table(n_ranks: int, flops: float) -> str:
    """From 16k to 10M features: what a rank holds, sends and computes."""
    head = ["features", "parameters", "replica GB", "firing GB", "sharded GB", "sent GB", "SAE ms", *BANDWIDTHS]
    lines = [head, ["---:"] * len(head)]
    for n_features in FEATURES:
        sizes = (D_IN, n_features, N_LEVELS, BATCH)
        sharded = next(each for each in layouts(*sizes, n_ranks) if each.name == "dictionary sharded")
        times = [step_times(D_IN, n_features, BATCH, n_ranks, width, flops) for width in BANDWIDTHS.values()]
        lines.append(
            [
                f"{n_features:,}",
                f"{parameters(*sizes[:3]) / 1e6:,.0f} M",
                f"{replica_bytes(*sizes) / GB:,.1f}",
                f"{firing_bytes(doubling_widths(n_features, N_LEVELS), [L0] * N_LEVELS, BATCH) / GB:,.1f}",
                f"{sharded.held / GB:,.1f}",
                f"{step_bytes(*sizes[:3], n_ranks) / GB:,.2f}",
                f"{1e3 * times[0].sae:,.1f}",
                *(f"{1e3 * each.sending:,.0f} ms" for each in times),
            ]
        )
    return _markdown(lines)


def balance_table(n_ranks: int, flops: float) -> str:
    """Where sending outweighs arithmetic."""
    batches = (1024, 4096, 16384)
    lines = [["link", "batch at which both take equally long", *(f"features at batch {batch:,}" for batch in batches)]]
    lines.append(["---", *["---:"] * (1 + len(batches))])
    for name, bandwidth in BANDWIDTHS.items():
        widths = [width_of_balance(D_IN, batch, n_ranks, bandwidth, flops) for batch in batches]
        shown = ["never" if width is None else f"{width:,.0f}" for width in widths]
        lines.append([name, f"{batch_of_balance(n_ranks, bandwidth, flops):,.0f}", *shown])
    return _markdown(lines)


def layout_table(features: Sequence[int], n_ranks: int) -> str:
    """What sharding would change."""
    heads = [f"{what} at {n_features:,}" for n_features in features for what in ("held GB", "sent per step GB")]
    lines = [["layout", *heads], ["---", *["---:"] * len(heads)]]
    for of_layout in zip(
        *(layouts(D_IN, n_features, N_LEVELS, BATCH, n_ranks) for n_features in features), strict=True
    ):
        numbers = [f"{number / GB:,.2f}" for each in of_layout for number in (each.held, each.sent)]
        lines.append([of_layout[0].name, *numbers])
    return _markdown(lines)


def check_table() -> str:
    """The formulas against two real processes."""
    head = ["d_in, widths, batch per rank", "settings", "sent MB", "measured", "held MB", "measured"]
    lines = [head, ["---", "---", *["---:"] * 4]]
    for size, setting in CHECKED:
        sent, held = measured(size, setting, 2)
        n_levels = len(size.widths)
        expected = replica_bytes(size.d_in, size.n_features, n_levels, size.batch)
        lines.append(
            [
                f"{size.d_in}, {'/'.join(map(str, size.widths))}, {size.batch}",
                setting,
                f"{step_bytes(size.d_in, size.n_features, n_levels, 2) / 1e6:.1f}",
                f"{sent / 1e6:.1f}",
                f"{expected / 1e6:.0f}",
                f"{held / 1e6:.0f}",
            ]
        )
    return _markdown(lines)


def measured(size: Size, setting: str, n_ranks: int) -> tuple[float, float]:
    """Bytes that each of several processes sent per step, and the largest of their peaks of memory.

    What else goes over the loopback interface in the meantime is counted too.
    """
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = listening.getsockname()[1]
    with ThreadPoolExecutor(n_ranks) as pool:
        results = list(
            pool.map(lambda rank: in_fresh_process(_train_as_rank, rank, n_ranks, port, size, setting), range(n_ranks))
        )
    return results[0][0], max(held for _, held in results)


def _train_as_rank(rank: int, n_ranks: int, port: int, size: Size, setting: str) -> tuple[float, int]:
    surroundings = {"RANK": rank, "WORLD_SIZE": n_ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in surroundings.items()})
    torch.set_num_threads(1)
    ranks = join("cpu", timeout=300)
    assert ranks is not None
    planted = plant(size, "cpu")
    seen = []

    def batches() -> Iterator[torch.Tensor]:
        for batch in cycle(planted.batches):
            seen.append(loopback_bytes())
            yield batch

    def train() -> None:
        (trainer,) = hsae(PlainHSAE, SETTINGS[setting], DataParallelTrainer)(size, planted).trainers
        assert isinstance(trainer, DataParallelTrainer)
        trainer.ranks, trainer.data_provider = ranks, batches()
        trainer.cfg = replace(trainer.cfg, total_training_samples=STEPS * n_ranks * size.batch)
        trainer.fit()

    held = peak_bytes(train, "cpu")
    ranks.leave()
    # Torch arranges the gradients anew after the first step.
    return (seen[-1] - seen[1]) / (len(seen) - 2) / n_ranks, held


def sharded_table() -> str:
    """The formulas of two sharded layouts against two real processes, whose gloo reduces by a whole all-reduce."""
    head = ["d_in, widths, batch per rank", "layout", "sent MB", "by gloo", "measured"]
    lines = [head, ["---", "---", "---:", "---:", "---:"]]
    for size in CHECKED_SHARDED:
        of_size = layouts(size.d_in, size.n_features, len(size.widths), size.batch, N_RANKS)
        formulas = {each.name: each.sent for each in of_size}
        scattered = {
            "FSDP2, by level": FLOAT * parameters(size.d_in, size.n_features, len(size.widths)),
            "dictionary sharded": FLOAT * N_RANKS * size.batch * len(size.widths) * size.d_in,
        }
        for name in LAYOUTS:
            more = scattered[name] * (N_RANKS - 1) / N_RANKS
            numbers = (formulas[name], formulas[name] + more, bytes_sent(name, size)[0])
            lines.append(
                [
                    f"{size.d_in}, {'/'.join(map(str, size.widths))}, {size.batch}",
                    name,
                    *(f"{number / 1e6:.1f}" for number in numbers),
                ]
            )
    return _markdown(lines)


def _markdown(lines: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.many_gpus", description="Data parallelism by numbers.")
    parser.add_argument("--ranks", type=int, default=8, help="GPUs (%(default)s)")
    parser.add_argument("--flops", type=float, default=FLOPS, help="that one reaches per second (%(default)g)")
    parser.add_argument("--no-check", action="store_true", help="only the formulas")
    chosen = parser.parse_args()
    print(f"d_in {D_IN}, {N_LEVELS} levels, {BATCH} activations per rank, {chosen.ranks} ranks\n")
    print(growth_table(chosen.ranks, chosen.flops), end="\n\n")
    print(balance_table(chosen.ranks, chosen.flops), end="\n\n")
    print(layout_table(SHARDED, chosen.ranks), end="\n\n")
    if not chosen.no_check:
        print(check_table(), end="\n\n")
        print(sharded_table())


if __name__ == "__main__":
    main()
