"""SAELens' activation store, able to go on after a stop with exactly the batches that would have come.

SAELens' store saves how many rows of the data set it has read. Lost are the activations waiting in its mixing buffer,
the random state that shuffles them, tokens carried from one row to the next, and the position in cached activations.
Where several ranks train together, each has a store of its own, over its own rows.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from datasets import IterableDataset
from sae_lens import logger
from sae_lens.constants import ACTIVATIONS_STORE_STATE_FILENAME
from sae_lens.training.activations_store import ActivationsStore
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from typing_extensions import override

from sae_lens_hsae.storage.json_files import printable
from sae_lens_hsae.training.distributed.shards import check_rows, dealt, first_row, shard_of

STATE_FILENAME = "resumable_store_state.safetensors"
BUFFER = ("kept", "serving")
COUNTS = ("n_ranks", "n_passes", "n_rows", "current_row_idx")


class MixingBuffer(Iterator[torch.Tensor]):
    """SAELens' ``mixing_buffer`` with its state in the open: the same batches for the same source and random state.

    The source yields (n, d_in) tensors. ``mix_fraction`` of the buffer is kept back to be mixed with what comes next; 0
    serves in order, unshuffled.
    """

    def __init__(self, buffer_size: int, batch_size: int, source: Iterator[torch.Tensor], mix_fraction: float) -> None:
        if not 0 <= mix_fraction <= 1:
            raise ValueError(f"activations_mixing_fraction={mix_fraction} must be from 0 to 1")
        self.buffer_size = buffer_size
        self.batch_size = batch_size
        self.source = source
        self.mix_fraction = mix_fraction
        self.kept: torch.Tensor | None = None
        self.serving: torch.Tensor | None = None

    def __next__(self) -> torch.Tensor:
        while self.serving is None or len(self.serving) == 0:
            self._refill()
        batch, self.serving = self.serving[: self.batch_size], self.serving[self.batch_size :]
        return batch

    @torch.no_grad()
    def _refill(self) -> None:
        new = next(self.source)
        kept = new if self.kept is None else torch.cat([self.kept, new])
        if len(kept) >= self.buffer_size:
            if self.mix_fraction > 0:
                kept = kept[torch.randperm(len(kept))]
            n_to_serve = len(kept) - int(self.buffer_size * self.mix_fraction)
            cut = max(1, n_to_serve // self.batch_size) * self.batch_size
            self.serving, kept = kept[:cut], kept[cut:]
        self.kept = kept


class _Row:
    """The tokens of one text, for SAELens' concatenation, which reads them in slices; how far it is tells ``rest``."""

    def __init__(self, tokens: torch.Tensor) -> None:
        self.tokens, self.n_read = tokens, 0
        self.shape, self.device = tokens.shape, tokens.device

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, where: Any) -> torch.Tensor:
        if isinstance(where, slice):
            self.n_read = max(self.n_read, where.stop)
        return self.tokens[where]

    @property
    def rest(self) -> torch.Tensor:
        return self.tokens[self.n_read :]


class ResumableActivationsStore(ActivationsStore):
    """An ``ActivationsStore`` whose checkpoints hold everything that decides the next batches.

    A checkpoint is larger than SAELens' by the mixing buffer: n_batches_in_buffer × context_size × d_in numbers.
    """

    rank, n_ranks = 0, 1  # whose part of the rows this store reads
    n_passes = 0  # passes over them begun
    n_rows = 0  # rows of the current pass read; of the last one a part may be still to come
    content = ""  # a short name for the content of the whole data set, of all ranks; empty if it is not known
    _goes_on = False
    _row = _Row(torch.zeros(0, dtype=torch.int64))

    def divide(self, rank: int, n_ranks: int) -> None:
        """Read one rank's rows from now on; before anything is read. A ValueError if there are too few."""
        self.rank, self.n_ranks = rank, n_ranks
        if self.cached_activation_dataset is not None:
            check_rows(len(self.cached_activation_dataset), n_ranks, self.store_batch_size_prompts)
            self.cached_activation_dataset = shard_of(self.cached_activation_dataset, rank, n_ranks)
        elif self.is_dataset_tokenized and not isinstance(self.dataset, IterableDataset):
            check_rows(len(self.dataset), n_ranks, self.store_batch_size_prompts)  # type: ignore[reportArgumentType]
        self.dataset = shard_of(self.dataset, rank, n_ranks)

    @override
    def _iterate_raw_dataset(self) -> Generator[Any, None, None]:
        # As SAELens', after the rows that were read before the run was resumed.
        dataset: Any = self.dataset
        if self.n_rows:
            self.n_dataset_processed += 1  # a row counts there when the next one is asked for
            if isinstance(dataset, IterableDataset):
                # Not its own skip(), which counts rows of all ranks where a stream is divided among them row by row.
                dataset = islice(dataset, self.n_rows, None)
            else:
                dataset = dataset.skip(self.n_rows) if self.n_rows < len(dataset) else ()
        for row in dataset:
            self.n_rows += 1
            yield row[self.tokens_column]
            self.n_dataset_processed += 1

    @override
    def _iterate_raw_dataset_tokens(self) -> Generator[Any, None, None]:
        if len(self._row.rest):
            self._row = _Row(self._row.rest)
            yield self._row
        for tokens in super()._iterate_raw_dataset_tokens():
            self._row = _Row(tokens)
            yield self._row

    @override
    def _iterate_tokenized_sequences(self) -> Generator[torch.Tensor, None, None]:
        if self._goes_on:
            self._goes_on = False
        else:
            self.n_passes += 1
            self.n_rows = 0
            self._row = ResumableActivationsStore._row
        yield from super()._iterate_tokenized_sequences()

    @override
    def get_activations(self, batch_tokens: torch.Tensor) -> torch.Tensor:
        """SAELens' activations; a ValueError if they are not ``d_in`` wide."""
        try:
            return super().get_activations(batch_tokens)
        except RuntimeError as error:
            width = re.search(r"must match the existing size \((\d+)\)", str(error))
            if width is None:
                raise
            raise ValueError(
                f"the activations at hook_name={self.hook_name!r} are {width[1]} wide, not d_in={self.d_in}; set d_in, "
                "or choose another hook point"
            ) from error

    @override
    def get_data_loader(self) -> MixingBuffer:
        return MixingBuffer(
            self.n_batches_in_buffer * self.training_context_size,
            self.train_batch_size_tokens,
            self._iterate_filtered_activations(),
            self.activations_mixing_fraction,
        )

    @override
    def __next__(self) -> torch.Tensor:
        return next(self._mixing_buffer())

    @override
    def save_to_checkpoint(self, checkpoint_path: str | Path) -> None:
        """Write what decides the next batches; every rank writes a file of its own."""
        if self.rank == 0:
            super().save_to_checkpoint(checkpoint_path)
        buffer = self._mixing_buffer()
        state = {name: torch.tensor(getattr(self, name, 0)) for name in COUNTS}
        # Without concatenation what is left of a text is dropped.
        state["rest"] = self._row.rest[: 0 if self.disable_concat_sequences else None].cpu().clone()
        state["rng_state"] = torch.get_rng_state()
        state["content"] = torch.tensor(list(self.content.encode()), dtype=torch.uint8)
        for name in BUFFER:
            tensor = getattr(buffer, name)
            if tensor is not None:
                state[name] = tensor.contiguous().clone()
        save_file(state, Path(checkpoint_path) / state_filename(self.rank))

    @override
    def load_from_checkpoint(self, checkpoint_path: str | Path) -> None:
        """Go on where the checkpoint was made; with the rows and the activations dealt anew if the ranks are others."""
        checkpoint = Path(checkpoint_path)
        check_resumable(checkpoint)
        state = self._read_state(checkpoint, 0)
        n_ranks = int(state["n_ranks"])
        if n_ranks == self.n_ranks:
            state = state if self.rank == 0 else self._read_state(checkpoint, self.rank)
        else:
            state = self._dealt_anew(checkpoint, n_ranks)
        then = bytes(state["content"].tolist()).decode()
        if then and self.content and then != self.content:
            logger.warning(
                f"{str(checkpoint_path)!r} has read another data set than this one: training goes on at the same place "
                "in other text, and not as it would have without the stop"
            )
        if self.dataset is not None:
            self.n_passes, self.n_rows = int(state["n_passes"]), int(state["n_rows"])
            if n_ranks == self.n_ranks and not isinstance(self.dataset, IterableDataset):
                there = len(self.dataset)  # type: ignore[reportArgumentType]
                if self.n_rows > there:
                    raise ValueError(
                        f"{str(checkpoint_path)!r} has read {self.n_rows} rows, but the data set has {there}; "
                        f"resume with the data set of the checkpoint"
                    )
            self._row, self._goes_on = _Row(state["rest"].to(self.device)), self.n_passes > 0
            self.iterable_sequences = self._iterate_tokenized_sequences()
            self.n_dataset_processed = int(state["n_dataset_processed"])
        if self.cached_activation_dataset is not None:
            self.current_row_idx = int(state["current_row_idx"])
        buffer = self._mixing_buffer()
        for name in BUFFER:
            setattr(buffer, name, state[name].to(self.device) if name in state else None)
        torch.set_rng_state(state["rng_state"])
        if n_ranks != self.n_ranks:
            torch.manual_seed(int(torch.randint(2**31, ())) + self.rank)

    def _dealt_anew(self, checkpoint: Path, n_ranks: int) -> dict[str, torch.Tensor]:
        """A state for this rank, made of those of another number of ranks."""
        if isinstance(self.dataset, IterableDataset):
            raise ValueError(
                f"{str(checkpoint)!r} was made by {n_ranks} ranks, and a streamed data set cannot be gone on with by "
                f"{self.n_ranks}; start {n_ranks}, or set streaming=False"
            )
        positions, cached, mine = [], [], []
        for rank in range(n_ranks):
            state = self._read_state(checkpoint, rank)
            positions.append((int(state["n_passes"]), int(state["n_rows"])))
            cached.append((0, int(state["current_row_idx"])))
            waiting = [state[name] for name in BUFFER if name in state]
            mine.append(dealt(waiting, self.rank, self.n_ranks))
        n_passes, n_rows = first_row(positions, self.n_ranks)
        row_of_cached = first_row(cached, self.n_ranks)[1]
        numbers = {"n_passes": n_passes, "n_rows": n_rows, "current_row_idx": row_of_cached}
        state = self._read_state(checkpoint, 0) | {name: torch.tensor(number) for name, number in numbers.items()}
        state["rest"] = state["rest"][:0]
        # All of it counts as kept back, because a part of what was being served is no whole number of batches.
        dealt_anew = {name: tensor for name, tensor in state.items() if name not in BUFFER}
        if mine := [part for part in mine if part is not None]:
            dealt_anew["kept"] = torch.cat(mine)
        return dealt_anew

    def _read_state(self, checkpoint: Path, rank: int) -> dict[str, torch.Tensor]:
        """The state of one rank's store in a checkpoint, whose files have been verified; that it fits this store."""
        path = checkpoint / state_filename(rank)
        state = _load(path)
        if self.dataset is not None:
            state |= _load(checkpoint / ACTIVATIONS_STORE_STATE_FILENAME)
        for name in BUFFER:
            held = state.get(name)
            if held is not None and (held.ndim != 2 or held.shape[1] != self.d_in or not held.is_floating_point()):
                raise ValueError(
                    f"{str(path)!r}: {name} is {held.dtype} of shape {tuple(held.shape)}, but d_in={self.d_in}; "
                    f"resume with the configuration of the checkpoint"
                )
        return state

    def _mixing_buffer(self) -> MixingBuffer:
        if self._dataloader is None:
            self._dataloader = self.get_data_loader()
        assert isinstance(self._dataloader, MixingBuffer)
        return self._dataloader


def state_filename(rank: int) -> str:
    return STATE_FILENAME if rank == 0 else f"resumable_store_state.rank-{rank}.safetensors"


def check_resumable(checkpoint: Path) -> None:
    """Raise a FileNotFoundError if a checkpoint lacks what decides the next batches."""
    path = checkpoint / STATE_FILENAME
    if not path.exists():
        raise FileNotFoundError(
            f"{path} is missing, so the next batches cannot be those of an uninterrupted run; resume this "
            f"checkpoint with SAELens' LanguageModelSAETrainingRunner, which made it"
        )


def _load(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(
            f"{str(path)!r} is missing or damaged ({printable(error)}); resume from another checkpoint"
        ) from error
