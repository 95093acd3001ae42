"""Which text each rank reads, and how another number of ranks goes on with it.

Of n ranks, rank r reads the rows r, r + n, r + 2n, … of a data set. So ranks that have read as many rows each have
together read its beginning, and any other number of ranks can go on behind it.
"""

from __future__ import annotations

from typing import Any

import torch
from datasets import Dataset, DatasetDict, IterableDataset
from datasets.distributed import split_dataset_by_node


def shard_of(dataset: Any, rank: int, n_ranks: int) -> Any:
    """The rows that one rank reads; of the whole data set, if there is one rank.

    A streamed data set is divided by ``datasets``' own rule: by files where their number allows it, else by rows.
    """
    if dataset is None or n_ranks == 1:
        return dataset
    if isinstance(dataset, IterableDataset):
        return split_dataset_by_node(dataset, rank, n_ranks)
    if isinstance(dataset, DatasetDict) or not isinstance(dataset, Dataset):
        raise ValueError(
            f"a data set of type {type(dataset).__name__} cannot be divided among {n_ranks} ranks; give one split, a "
            f"Dataset or an IterableDataset"
        )
    if len(dataset) < n_ranks:
        raise ValueError(
            f"the data set has {len(dataset)} rows, fewer than the {n_ranks} ranks; start fewer, or give more text"
        )
    # Not split_dataset_by_node's contiguous parts: after those, another number of ranks could not go on.
    return dataset.shard(n_ranks, rank, contiguous=False)


def check_rows(n_rows: int, n_ranks: int, store_batch_size_prompts: int) -> None:
    """Raise a ValueError if a rank's part of tokenised or cached rows does not fill one batch of the language model."""
    least = n_ranks * store_batch_size_prompts
    if n_rows < least:
        raise ValueError(
            f"the data set has {n_rows} rows, but {n_ranks} ranks with store_batch_size_prompts="
            f"{store_batch_size_prompts} need {least}; start fewer ranks, lower it, or give more text"
        )


def first_row(positions: list[tuple[int, int]], n_ranks: int) -> tuple[int, int]:
    """Where each rank of another number goes on: the pass, and the first row of its own part that it reads.

    Takes the same two numbers of each former rank. No row is read twice in one pass; rows that only some of the former
    ranks had reached are left out of it.
    """
    n_pass, n_rows = max(positions)
    return n_pass, -(-n_rows * len(positions) // n_ranks)


def dealt(buffers: list[torch.Tensor], rank: int, n_ranks: int) -> torch.Tensor | None:
    """The share of one rank in the activations that all former ranks had waiting, each (n, d_in); None for none."""
    mine, dealt_out = [], 0
    for buffer in buffers:
        mine.append(buffer[(rank - dealt_out) % n_ranks :: n_ranks])
        dealt_out += len(buffer)
    return torch.cat(mine) if mine else None
