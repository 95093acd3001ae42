"""SAELens' activation store, able to go on after a stop with exactly the batches that would have come.

SAELens' store saves how many rows of the data set it has read. Lost are the activations waiting in its mixing buffer,
the random state that shuffles them, tokens carried from one row to the next, and the position in cached activations.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from itertools import islice
from pathlib import Path

import torch
from sae_lens.constants import ACTIVATIONS_STORE_STATE_FILENAME
from sae_lens.training.activations_store import ActivationsStore
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from typing_extensions import override

from sae_lens_hsae.storage.json_files import printable

STATE_FILENAME = "resumable_store_state.safetensors"
BUFFER = ("kept", "serving")


class MixingBuffer(Iterator[torch.Tensor]):
    """SAELens' ``mixing_buffer`` with its state in the open: the same batches for the same source and random state.

    Args:
        buffer_size: activations to gather before serving.
        batch_size: activations per batch.
        source: yields (n, d_in) tensors.
        mix_fraction: share of the buffer kept back to be mixed with what comes next; 0 serves in order, unshuffled.
    """

    def __init__(self, buffer_size: int, batch_size: int, source: Iterator[torch.Tensor], mix_fraction: float) -> None:
        if not 0 <= mix_fraction <= 1:
            raise ValueError(f"activations_mixing_fraction={mix_fraction} must be from 0 to 1")
        if buffer_size < batch_size:
            raise ValueError(
                f"the buffer of {buffer_size} activations (n_batches_in_buffer × context_size) is smaller than "
                f"train_batch_size_tokens={batch_size}; raise n_batches_in_buffer"
            )
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


class ResumableActivationsStore(ActivationsStore):
    """An ``ActivationsStore`` whose checkpoints hold everything that decides the next batches.

    A checkpoint is larger than SAELens' by the mixing buffer: n_batches_in_buffer × context_size × d_in numbers.
    """

    n_sequences = 0
    """Sequences taken in the current pass over the data set."""

    @override
    def _iterate_tokenized_sequences(self) -> Generator[torch.Tensor, None, None]:
        self.n_sequences = 0
        for sequence in super()._iterate_tokenized_sequences():
            self.n_sequences += 1
            yield sequence

    @override
    def get_activations(self, batch_tokens: torch.Tensor) -> torch.Tensor:
        """SAELens' activations.

        Raises:
            ValueError: if they are not ``d_in`` wide.
        """
        try:
            return super().get_activations(batch_tokens)
        except RuntimeError as error:
            if "expanded size of the tensor" not in str(error):
                raise
            raise ValueError(
                f"the activations at hook_name={self.hook_name!r} are not d_in={self.d_in} wide ({error}); "
                f"set d_in and d_sae's widths for this model, or choose another hook point"
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
        super().save_to_checkpoint(checkpoint_path)
        buffer = self._mixing_buffer()
        state = {
            "rng_state": torch.get_rng_state(),
            "n_sequences": torch.tensor(self.n_sequences),
            "current_row_idx": torch.tensor(getattr(self, "current_row_idx", 0)),
        }
        for name in BUFFER:
            tensor = getattr(buffer, name)
            if tensor is not None:
                state[name] = tensor.contiguous().clone()
        save_file(state, Path(checkpoint_path) / STATE_FILENAME)

    @override
    def load_from_checkpoint(self, checkpoint_path: str | Path) -> None:
        """Go on where the checkpoint was made.

        Raises:
            FileNotFoundError: if the checkpoint is one of SAELens' own runner, which holds no mixing buffer.
            ValueError: if the state is damaged, or of other activations or another data set.
        """
        state = self._read_state(Path(checkpoint_path))
        if self.dataset is not None:
            n_sequences = int(state["n_sequences"])
            sequences = self._iterate_tokenized_sequences()
            if sum(1 for _ in islice(sequences, n_sequences)) < n_sequences:
                raise ValueError(
                    f"{str(checkpoint_path)!r} has read {n_sequences} sequences, but the data set ends before; "
                    f"resume with the data set of the checkpoint"
                )
            self.iterable_sequences = sequences
            self.n_dataset_processed = int(state["n_dataset_processed"])
        if self.cached_activation_dataset is not None:
            self.current_row_idx = int(state["current_row_idx"])
        buffer = self._mixing_buffer()
        for name in BUFFER:
            setattr(buffer, name, state[name].to(self.device) if name in state else None)
        try:
            torch.set_rng_state(state["rng_state"])
        except RuntimeError as error:
            raise ValueError(
                f"{str(checkpoint_path)!r} is damaged ({error}); resume from another checkpoint"
            ) from error

    def _read_state(self, checkpoint: Path) -> dict[str, torch.Tensor]:
        """The store's state in a checkpoint, every tensor checked."""
        check_resumable(checkpoint)
        path = checkpoint / STATE_FILENAME
        state = _load(path)
        if self.dataset is not None:
            state |= _load(checkpoint / ACTIVATIONS_STORE_STATE_FILENAME)
            names = ("n_sequences", "current_row_idx", "n_dataset_processed")
        else:
            names = ("n_sequences", "current_row_idx")
        for name in names:
            number = state.get(name)
            if number is None or number.shape != () or number.is_floating_point() or number < 0:
                raise ValueError(f"{str(path)!r} is damaged: {name} is no number; resume from another checkpoint")
        random = state.get("rng_state")
        expected = torch.get_rng_state()
        if random is None or random.shape != expected.shape or random.dtype != expected.dtype:
            raise ValueError(f"{str(path)!r} is damaged: rng_state is none; resume from another checkpoint")
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
