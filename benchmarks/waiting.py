"""The share of training that is spent waiting for activations of the real language model, all-MiniLM-L6-v2."""

from __future__ import annotations

import contextlib
import time
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from sae_lens.load_model import load_model
from sae_lens.training.activations_store import ActivationsStore
from sae_lens.training.prefetch import PrefetchingIterator
from torch.nn.functional import normalize
from transformers import AutoTokenizer

from benchmarks.contestants import CONTESTANTS, HSAE, SAELENS
from benchmarks.plan import Size
from benchmarks.planted import Planted, thresholds_at
from sae_lens_hsae.cli.demo import CONTEXT_SIZE, minilm_config
from sae_lens_hsae.text.rows import training_rows

PREFETCHED = 4
"""Batches that SAELens' `PrefetchingIterator` holds ready."""


def measure_waiting(size: Size, steps: int, device: str) -> dict[str, Any]:
    """Train on the language model, as it runs, and watch where the time goes.

    HSAE and SAELens' independent SAEs each take ``steps`` steps on batches from SAELens' `ActivationsStore`, without
    and with its `PrefetchingIterator`. θ of each level is the quantile of the first batch at which L0 is the target.

    Returns:
        ``rows``: contestant, whether prefetched, ``waiting_share``, ``activations_per_second`` and seconds per step
        of both kinds; or why all was ``left_out``.
    """
    try:
        cfg = minilm_config(device=device, n_batches_in_buffer=16, train_batch_size_tokens=size.batch)
    except ModuleNotFoundError as missing:
        return {"left_out": str(missing)}
    model = load_model(cfg.model_class_name, cfg.model_name, device=device, hook_names=[cfg.hook_name])
    tokenizer = AutoTokenizer.from_pretrained(cfg.model_name)
    buffer = cfg.n_batches_in_buffer * CONTEXT_SIZE
    rows = training_rows(cfg, tokenizer, int(1.1 * size.batch * steps) + 2 * buffer)
    results = []
    for prefetched in (False, True):
        for name in (HSAE, SAELENS):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # SAELens' about the end of the data set
                store = ActivationsStore.from_config(model, cfg, override_dataset=rows)
                results.append(_watch(name, size, steps, iter(store), prefetched, device))
    return {"size": str(size), "steps": steps, "rows": results}


def _watch(
    name: str, size: Size, steps: int, batches: Iterator[torch.Tensor], prefetched: bool, device: str
) -> dict[str, Any]:
    first = next(batches).to(device)
    scale = size.d_in**0.5 / first.norm(dim=1).mean()
    contestant = CONTESTANTS[name](size, _levels_like(first * scale, size))
    contestant.step(first * scale)
    waiting = stepping = 0.0
    with contextlib.ExitStack() as stack:
        if prefetched:
            batches = PrefetchingIterator(batches, PREFETCHED)
            stack.callback(batches.close)
        for _ in range(steps):
            start = time.perf_counter()
            x = next(batches)
            received = time.perf_counter()
            contestant.step(x.to(device) * scale)
            if device.startswith("cuda"):
                torch.cuda.synchronize(device)
            waiting += received - start
            stepping += time.perf_counter() - received
    return {
        "contestant": name,
        "prefetched": prefetched,
        "waiting_share": waiting / (waiting + stepping),
        "activations_per_second": size.batch * steps / (waiting + stepping),
        "waiting_seconds_per_step": waiting / steps,
        "seconds_per_step": stepping / steps,
    }


def _levels_like(x: torch.Tensor, size: Size) -> Planted:
    """Levels whose directions are differences of two activations, with some noise, and θ to match."""
    generator = torch.Generator().manual_seed(0)
    chosen = torch.randint(len(x), (2, size.n_features), generator=generator).to(x.device)
    noise = torch.randn(size.n_features, size.d_in, generator=generator).to(x.device)
    directions = normalize(x[chosen[0]] - x[chosen[1]] + noise, dim=1)
    return Planted(directions, thresholds_at(directions, size, x), [x])
