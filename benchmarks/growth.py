"""How cost grows: a step with the widths, an evaluation with the tokens, a hierarchy update with the features."""

from __future__ import annotations

import time
from collections.abc import Sequence
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from sae_lens import SAE

from benchmarks.contestants import CONTESTANTS, ENCODER, HSAE, SAELENS, Trained
from benchmarks.memory import in_fresh_process, peak_bytes
from benchmarks.plan import LARGEST_UPDATE, Size
from benchmarks.planted import Planted, plant
from benchmarks.steps import measure_size
from benchmarks.timing import alternate, linear_fit, ratio, spread
from sae_lens_hsae import HierarchicalSAE, evaluate_forest
from sae_lens_hsae.forest.levels import Levels
from sae_lens_hsae.forest.parents import PAPER_RULE, cosine_similarity, parent_table

BYTES_PER_CHILD = 64
"""What an update holds for each child beyond a block: similarity, parent, place in the order, what sorting takes.

Counted in `choose_parents`, not measured: beside a block it is lost in the noise at any size that is run."""
UPDATE_RUNS = 3


def step_growth(sizes: Sequence[Size], rounds: int, device: str) -> dict[str, Any]:
    """Time and memory of a step at each size, and for each contestant a line through its times."""
    rows = [measure_size(size, (HSAE, SAELENS, ENCODER), rounds, device) for size in sizes]
    features = [float(size.n_features) for size in sizes]
    fits = {
        name: linear_fit(features, [row["contestants"][name]["seconds"]["median"] for row in rows])
        for name in rows[0]["contestants"]
    }
    return {"sizes": rows, "fits": fits}


def evaluation_growth(size: Size, n_tokens: Sequence[int], rounds: int, device: str) -> dict[str, Any]:
    """Time of `evaluate_forest` against the number of tokens, and against encoding them twice over."""
    planted = plant(size, device)
    sae = _inference_sae(size, planted)
    forest = sae.forest
    rows = []
    for number in n_tokens:
        n_batches = -(-number // size.batch)
        batches = [planted.batches[i % len(planted.batches)] for i in range(n_batches)]
        batches[-1] = batches[-1][: number - (n_batches - 1) * size.batch]

        @torch.no_grad()
        def encode_twice(batches: list[torch.Tensor] = batches) -> None:
            for x in batches:
                sae.encode(x)
                sae.encode(x)

        def evaluate(batches: list[torch.Tensor] = batches) -> None:
            evaluate_forest(sae, forest, batches)

        seconds = alternate({"evaluate": evaluate, "encode_twice": encode_twice}, rounds, device)
        row = {name: spread(times) for name, times in seconds.items()}
        multiple = ratio(seconds["evaluate"], seconds["encode_twice"])
        rows.append({"n_tokens": number, **row, "evaluate_as_multiple": multiple})
    fit = linear_fit(list(map(float, n_tokens)), [row["evaluate"]["median"] for row in rows])
    return {"size": str(size), "rows": rows, "fit": fit}


def _inference_sae(size: Size, planted: Planted) -> HierarchicalSAE:
    contestant = CONTESTANTS[HSAE](size, planted)
    assert isinstance(contestant, Trained)
    with TemporaryDirectory() as folder:
        contestant.trainers[0].sae.save_inference_model(folder)
        sae = SAE.load_from_disk(folder, device=str(planted.directions.device))
    assert isinstance(sae, HierarchicalSAE)
    return sae


def update_growth(updates: Sequence[tuple[int, int, int]], device: str) -> dict[str, Any]:
    """Time and memory of the hierarchy update of one level boundary, and both at ``LARGEST_UPDATE`` by extrapolation.

    Returns:
        ``rows``, each with ``seconds`` and ``extra_bytes`` beyond the weights, and ``extrapolated``: time by a line
        through the products d_in · parents · children of the rows of the largest d_in; memory as the most that a
        row took, which is that of one block, and ``BYTES_PER_CHILD`` for every child. Nothing of that size was run.
        The time is the least to expect: this many parents leave only a few children per block, and the product's
        speed falls.
    """
    rows = []
    for d_in, n_parents, n_children in updates:
        seconds, extra = in_fresh_process(update_cost, d_in, n_parents, n_children, device)
        rows.append(
            {
                "d_in": d_in,
                "parents": n_parents,
                "children": n_children,
                "seconds": seconds,
                "extra_bytes": extra,
                "weight_bytes": 4 * d_in * (n_parents + n_children),
            }
        )
    slow = [row for row in rows if row["d_in"] == max(row["d_in"] for row in rows)]
    work = [float(row["d_in"] * row["parents"] * row["children"]) for row in slow]
    of_time = linear_fit(work, [row["seconds"] for row in slow])
    d_in, n_parents, n_children = LARGEST_UPDATE
    return {
        "rows": rows,
        "fits": {"seconds": of_time},
        "extrapolated": {
            "d_in": d_in,
            "parents": n_parents,
            "children": n_children,
            "seconds": of_time["slope"] * d_in * n_parents * n_children + of_time["intercept"],
            "extra_bytes": max(row["extra_bytes"] for row in rows) + BYTES_PER_CHILD * n_children,
        },
    }


def update_cost(d_in: int, n_parents: int, n_children: int, device: str) -> tuple[float, int]:
    """Median seconds, and peak bytes beyond the weights, of one boundary's update; for a fresh process."""
    levels = Levels((n_parents, n_children))
    W_enc = torch.randn(d_in, levels.n_features, generator=torch.Generator().manual_seed(0)).to(device)
    seconds = []

    def update() -> None:
        start = time.perf_counter()
        above, below = levels
        similarity = cosine_similarity(W_enc[:, above].T, W_enc[:, below].T)
        parent_table([similarity], levels, PAPER_RULE, device).cpu()
        seconds.append(time.perf_counter() - start)

    warm_up = torch.eye(2, device=device)
    parent_table([cosine_similarity(warm_up[:1], warm_up)], Levels((1, 2)), PAPER_RULE, device)
    extra = peak_bytes(update, device)
    for _ in range(UPDATE_RUNS - 1):
        update()
    return median(seconds), extra
