"""What two sharded layouts of the dictionary really send: torch's FSDP2 and DTensor on two processes of this machine.

The levels here are plain ReLU SAEs: what a layout sends depends on the shapes of parameters and activations alone. The
bytes are those of the loopback interface, and stand beside the formulas of `many_gpus.layouts`.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from benchmarks.memory import in_fresh_process
from benchmarks.plan import Size

STEPS = 4
N_RANKS = 2

LossOf = Callable[[torch.Tensor], torch.Tensor]


class Level(nn.Module):
    """A ReLU SAE of the same tensors as a level has."""

    def __init__(self, d_in: int, width: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(width)
        self.W_enc = nn.Parameter(torch.randn(d_in, width, generator=generator) / d_in**0.5)
        self.W_dec = nn.Parameter(torch.randn(width, d_in, generator=generator) / d_in**0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x @ self.W_enc).relu() @ self.W_dec


class Levels(nn.ModuleList):
    """All levels; each reconstructs x, as a sum of squared errors tells."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([(level(x) - x).square().sum() for level in self]).sum()


def fsdp_by_level(size: Size, mesh: DeviceMesh) -> LossOf:
    """FSDP2, one group per level: parameters are gathered for the forward and for the backward pass."""
    levels = Levels([Level(size.d_in, width) for width in size.widths])
    for level in levels:
        fully_shard(level, mesh=mesh)
    fully_shard(levels, mesh=mesh)
    return levels


def dictionary_sharded(size: Size, mesh: DeviceMesh) -> LossOf:
    """DTensor: each rank has some features of every level, and computes them for all ranks' activations."""
    tables = []
    for width in size.widths:
        level = Level(size.d_in, width)
        W_enc, W_dec = level.W_enc.detach(), level.W_dec.detach()
        sharded = distribute_tensor(W_enc, mesh, [Shard(1)]), distribute_tensor(W_dec, mesh, [Shard(0)])
        tables.append([tensor.requires_grad_() for tensor in sharded])

    def loss(x: torch.Tensor) -> torch.Tensor:
        everyones = DTensor.from_local(x, mesh, [Shard(0)]).redistribute(mesh, [Replicate()])
        # All levels' reconstructions are sent together; of each rank's tokens the sums go back to it.
        parts: Any = torch.stack([(everyones @ W_enc).relu() @ W_dec for W_enc, W_dec in tables], dim=1)
        own = parts.redistribute(mesh, [Shard(0)]).to_local()
        return (own - x[:, None]).square().sum()

    return loss


LAYOUTS = {"FSDP2, by level": fsdp_by_level, "dictionary sharded": dictionary_sharded}


def bytes_sent(layout: str, size: Size) -> tuple[float, float]:
    """Bytes that each of two processes sent per step, forward and backward, and the loss of both together."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = listening.getsockname()[1]
    with ThreadPoolExecutor(N_RANKS) as pool:
        ranks = pool.map(lambda rank: in_fresh_process(_train_as_rank, rank, port, layout, size), range(N_RANKS))
        sent, losses = zip(*ranks, strict=True)
    return sent[0], sum(losses)


def _train_as_rank(rank: int, port: int, layout: str, size: Size) -> tuple[float, float]:
    os.environ.update({"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)})
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=N_RANKS)
    try:
        loss_of = LAYOUTS[layout](size, init_device_mesh("cpu", (N_RANKS,)))
        x = batch_of(rank, size)
        seen = []
        loss = torch.zeros(())
        for _ in range(STEPS):
            dist.barrier()
            seen.append(loopback_bytes())
            loss = loss_of(x)
            loss.backward()
        dist.barrier()
        seen.append(loopback_bytes())
    finally:
        dist.destroy_process_group()
    # The first step also makes connections.
    return (seen[-1] - seen[1]) / (len(seen) - 2) / N_RANKS, float(loss.detach())


def batch_of(rank: int, size: Size) -> torch.Tensor:
    """A rank's activations, (batch, d_in)."""
    return torch.randn(size.batch, size.d_in, generator=torch.Generator().manual_seed(rank))


def loopback_bytes() -> int:
    """Sent over the loopback interface so far."""
    line = next(line for line in Path("/proc/net/dev").read_text().splitlines() if line.strip().startswith("lo:"))
    return int(line.split(":")[1].split()[8])
