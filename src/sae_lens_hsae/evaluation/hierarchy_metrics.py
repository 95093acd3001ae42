"""The measures of a hierarchy and each level's own quality, in one pass over a stream of activations."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise

import torch
from tqdm.auto import tqdm

from sae_lens_hsae.evaluation.boundary_metrics import WITHOUT_DECODERS
from sae_lens_hsae.evaluation.outliers import Outliers, begun
from sae_lens_hsae.evaluation.results import ForestEvaluation
from sae_lens_hsae.evaluation.stacks import LevelSAE, SAEStack, check_fit, check_reconstruct, level_saes
from sae_lens_hsae.evaluation.tallies import BoundaryTally, Firing, LevelTally, at_least_float32
from sae_lens_hsae.evaluation.token_blocks import SpreadTally, TokenBlocks
from sae_lens_hsae.forest import NO_PARENT, Concepts, FeatureForest, copies_of_parents
from sae_lens_hsae.forest.activations import token_chunks, tokens_at_once
from sae_lens_hsae.forest.post_hoc import have_either_sign


@torch.no_grad()
def evaluate_forest(
    levels: Sequence[LevelSAE] | SAEStack,
    forest: FeatureForest,
    activations: Iterable[torch.Tensor],
    n_tokens: int | None = None,
    *,
    n_blocks: int = 20,
    confidence: float = 0.95,
    progress: bool = False,
) -> ForestEvaluation:
    """Measure a stack of levels and its forest on a stream of activations (HSAE §4.2 and arXiv 2606.22994).

    One pass, and memory that does not grow with the stream: at the defaults about 1 KB per feature, and at the end
    copies of the decoder rows on the CPU. The activations are taken as the SAEs' ``encode`` takes them: if the SAEs
    expect scaled inputs (``normalize_activations="expected_average_only_in"``), scale them or fold the factor first.

    The metrics are defined in `sae_lens_hsae.evaluation.boundary_metrics`, of ordinary tokens: on outlying ones much
    fires that has nothing to do with each other. Each has a confidence interval, by leaving
    out one block of the stream at a time (`jackknife`). So the order of the tokens matters to the intervals, not to
    the metrics: give texts one after the other, and so many that a block holds several.

    Args:
        levels: one SAE per level, coarse to fine, or one object for all (`HierarchicalSAE`).
        activations: tensors of shape (batch, d_in), of any batch sizes.
        n_tokens: stop after this many; None takes all. SAELens' `ActivationsStore` starts over at its end and
            never stops by itself.
        n_blocks: blocks that the intervals need at least. The stream is cut into this many to twice as many; if it has
            fewer tokens, the intervals are NaN.
        confidence: of the intervals.

    Returns:
        What cannot be measured is NaN there, with the reason in the record's ``undefined``.

    Raises:
        ValueError: if levels and forest do not fit together, the levels read different hook points, ``activations`` is
            empty, a batch has another width than d_in or holds NaN or infinity, or an argument is out of range.
        TypeError: if ``levels`` is a single SAE that has no ``level_sae``, or ``forest`` is no `FeatureForest`.
    """
    saes = level_saes(levels)
    check_fit(saes, forest)
    check_reconstruct(saes)
    if n_tokens is not None and n_tokens < 1:
        raise ValueError(f"n_tokens={n_tokens} must be at least 1; use None for all tokens")
    if n_blocks < 2:
        raise ValueError(
            f"n_blocks={n_blocks} must be at least 2, as one block is left out at a time; 20 is a good number"
        )
    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence} must be between 0 and 1, for example 0.95")
    d_in, device = saes[0].cfg.d_in, saes[0].device
    blocks = TokenBlocks(n_blocks)
    spread = SpreadTally(blocks, d_in)
    of_level = [LevelTally(blocks, level, sae) for level, sae in enumerate(saes)]
    n_ordinary = blocks.table(dtype=torch.int64)
    of_boundary = [BoundaryTally(blocks, forest, above, below, n_ordinary) for above, below in pairwise(of_level)]
    at_once = tokens_at_once(forest.level_widths[-1])

    first, chunks = begun(token_chunks(activations, d_in, at_once, n_tokens))
    if not len(first):
        raise ValueError("activations held no token; pass (batch, d_in) tensors, and no iterator that is used up")
    outliers = Outliers(at_least_float32(first.to(device)))
    with tqdm(total=n_tokens, desc="Measuring", unit="tok", disable=not progress) as bar:
        for x in chunks:
            x = x.to(device)
            blocks.extend(len(x))
            spread.add(at_least_float32(x))
            ordinary = outliers.ordinary(at_least_float32(x))
            n_ordinary.add_chunk(ordinary)
            above: Firing | None = None
            for i, tally in enumerate(of_level):
                firing = tally.add(x, ordinary)
                if above is not None:
                    of_boundary[i - 1].add(above, firing, len(x))
                above = firing
            bar.update(len(x))

    enough = len(blocks.sizes) >= n_blocks
    undefined = {}
    if not enough:
        undefined["intervals"] = f"{blocks.n_tokens} tokens are fewer than the {n_blocks} blocks that they need"
    concepts = _living_concepts(saes, forest, torch.cat([tally.fires.total.cpu() for tally in of_level]) > 0)
    if concepts is None:
        undefined["in_trees_share"] = WITHOUT_DECODERS
    return ForestEvaluation(
        n_tokens=blocks.n_tokens,
        n_outlying=blocks.n_tokens - outliers.n_ordinary,
        levels=tuple(tally.result(spread, outliers, n_blocks, confidence) for tally in of_level),
        boundaries=tuple(tally.result(concepts, n_blocks, confidence) for tally in of_boundary),
        trees_by_depth=forest.trees_by_depth,
        in_trees_share=math.nan if concepts is None else concepts.in_trees_share(3),
        n_blocks=len(blocks.sizes) if enough else 0,
        tokens_per_block=blocks.length if enough else 0,
        confidence=confidence,
        undefined=undefined,
    )


def _living_concepts(saes: Sequence[LevelSAE], forest: FeatureForest, fires: torch.Tensor) -> Concepts | None:
    """Copies joined, no edges of features that never fired, by (n_features,) bool; None if a level has no W_dec."""
    decoders = [rows.cpu() for sae in saes if isinstance(rows := getattr(sae, "W_dec", None), torch.Tensor)]
    if len(decoders) < len(saes):
        return None
    parents = forest.parents
    parents[~(fires & fires[parents])] = NO_PARENT  # who has none, −1, has none after it either
    living = FeatureForest(parents, forest.level_widths)
    return Concepts(living, copies_of_parents(living, torch.cat(decoders), have_either_sign(saes)))
