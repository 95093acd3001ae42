"""The processes that train together, as PyTorch's launcher starts them: who they are, and what they tell each other.

``torchrun`` gives each process its number, its rank, and says where the first one is to be found. Gradients and counts
go over NCCL where there are GPUs. What must never leave anybody waiting in silence goes over gloo, on the CPU, whose
errors Python can catch: it is little, but for what fired, which the ranks tell before a hierarchy update.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

T = TypeVar("T")

ROLL_CALL_SECONDS = 10
"""Time for all that are not stuck to come to the roll call: one that gives up ends the waiting of its neighbours."""


class StepOfAll(NamedTuple):
    """What the ranks say of one step together."""

    l0: torch.Tensor  # mean L0 of every level over the whole batch, (n_levels,)
    bad: list[int]  # the ranks that cannot train on their part of it
    stop: bool  # whether any was asked to stop


@dataclass(frozen=True)
class Ranks:
    """This process among those that train together."""

    rank: int  # its number, from 0; rank 0 logs and saves
    n_ranks: int
    timeout: float  # seconds to wait for the others
    control: Any  # gloo's group for small messages
    roll_call: Any  # gloo's group for finding out who is missing, which no broken message has gone through
    began_here: bool  # whether `join` made torch's groups, so that `leave` ends them

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def agree_on_step(self, l0: torch.Tensor, *, bad: bool, stop: bool) -> StepOfAll:
        """Tell the others of this rank's part of a step, its mean L0 (n_levels,) first, and hear of theirs.

        A RuntimeError names the ranks that did not answer in time.
        """
        marks = torch.zeros(self.n_ranks + 1, dtype=torch.float64)
        marks[self.rank], marks[-1] = bad, stop
        own = torch.zeros_like(l0) if bad else l0  # it may not be a number
        told = torch.cat([own.to("cpu", torch.float64), marks])
        self._naming_the_missing(lambda: dist.all_reduce(told, group=self.control))
        of_levels, marks = told[: len(l0)] / self.n_ranks, told[len(l0) :]
        return StepOfAll(of_levels.to(l0), marks[:-1].nonzero().flatten().tolist(), bool(marks[-1]))

    def mean_of_numbers(self, own: Iterable[float]) -> list[float]:
        """The mean over ranks of each of some numbers."""
        numbers = torch.tensor(list(own), dtype=torch.float64)
        self._naming_the_missing(lambda: dist.all_reduce(numbers, group=self.control))
        return (numbers / self.n_ranks).tolist()

    def average(self, tensors: Iterable[torch.Tensor]) -> None:
        """Replace tensors by their mean over ranks, in place, on the device they are on."""
        for tensor in tensors:
            dist.all_reduce(tensor)  # gloo knows no mean
            tensor.div_(self.n_ranks)

    def gather(self, own: torch.Tensor) -> torch.Tensor:
        """The rows of all ranks, which have as many each, by rank."""
        parts = [torch.empty_like(own) for _ in range(self.n_ranks)]
        dist.all_gather(parts, own.contiguous())
        return torch.cat(parts)

    def add_up(self, tensors: Iterable[torch.Tensor]) -> None:
        """Replace tensors by their sum over ranks, in place, on the device they are on."""
        for tensor in tensors:
            dist.all_reduce(tensor)

    def take_from_first(self, tensors: Iterable[torch.Tensor]) -> None:
        """Replace tensors by those of rank 0, in place."""
        for tensor in tensors:
            dist.broadcast(tensor, 0)

    def told_by_first(self, message: T) -> T:
        """Rank 0's message, a small object."""
        box = [message]
        self._naming_the_missing(lambda: dist.broadcast_object_list(box, 0, group=self.control))
        return box[0]

    def told_by_all(self, message: T) -> list[T]:
        """Everybody's message, by rank."""
        messages: list[Any] = [None] * self.n_ranks
        self._naming_the_missing(lambda: dist.all_gather_object(messages, message, group=self.control))
        return messages

    def leave(self) -> None:
        """End what `join` began."""
        if self.began_here:
            dist.destroy_process_group()

    def _naming_the_missing(self, exchange: Callable[[], Any]) -> None:
        try:
            exchange()
        except RuntimeError as error:
            limit = timedelta(seconds=ROLL_CALL_SECONDS)
            try:
                dist.monitored_barrier(self.roll_call, limit, wait_all_ranks=True)
            except RuntimeError as missing:
                raise RuntimeError(
                    f"rank {self.rank} waited for the others in vain, up to {self.timeout:g} s; those at fault are "
                    f"named here: {missing}; see what these ranks were doing, or raise rank_timeout"
                ) from error
            raise


def n_launched() -> int:
    """How many processes the launcher started; 1 where there was none."""
    return dist.get_world_size() if dist.is_initialized() else int(os.environ.get("WORLD_SIZE", "1"))


def is_first_launched() -> bool:
    """Whether this process has number 0 among those that the launcher started, or there was no launcher."""
    rank = dist.get_rank() if dist.is_initialized() else int(os.environ.get("RANK", "0"))
    return n_launched() == 1 or rank == 0


def join(device: str, timeout: float) -> Ranks | None:
    """Meet the other processes on "cpu" or "cuda", if the launcher started more than one; None if it is alone.

    A ValueError if the device is one of another kind, or there are too few GPUs.
    """
    if n_launched() == 1:
        return None
    if timeout <= 0:
        raise ValueError(f"rank_timeout={timeout} must be a number of seconds above 0")
    own = own_device(device)
    if own.startswith("cuda"):
        torch.cuda.set_device(own)
    limit = timedelta(seconds=timeout)
    begins_here = not dist.is_initialized()
    if begins_here:
        store, rank, n_ranks = next(rendezvous("env://", timeout=limit))
        # torchrun keeps its store when it starts the processes again, and gloo would read there where the former were.
        name = f"{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}-{n_ranks}"
        store = dist.PrefixStore(name, store)  # type: ignore[reportPrivateImportUsage]
        backend = "cpu:gloo,cuda:nccl" if own.startswith("cuda") else "gloo"
        # The large groups wait longer, so that who is missing is found out in the small one, which can name it.
        dist.init_process_group(backend, store=store, rank=rank, world_size=n_ranks, timeout=2 * limit)
    return Ranks(
        dist.get_rank(),
        dist.get_world_size(),
        timeout,
        dist.new_group(backend="gloo", timeout=limit),
        dist.new_group(backend="gloo", timeout=limit),
        begins_here,
    )


def own_device(device: str) -> str:
    """The device of this process; a ValueError if it is neither "cpu" nor "cuda", or there are too few GPUs."""
    if device == "cpu":
        return device
    local, n_local = int(os.environ.get("LOCAL_RANK", "0")), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if device != "cuda":
        raise ValueError(
            f'device={device!r}: with several processes each takes the GPU of its number; give "cuda", or "cpu"'
        )
    if n_local > torch.cuda.device_count():
        raise ValueError(
            f"{n_local} processes were started on this machine, which has {torch.cuda.device_count()} GPUs; start one "
            f"for each GPU: torchrun --nproc-per-node {torch.cuda.device_count()}"
        )
    return f"cuda:{local}"
