"""Feature dashboards: what every feature of a forest fires on, computed in one pass over text.

`collect_dashboards` reads a stream of (tokens, activations) and returns `Dashboards`, a fixed number of
numbers per feature however long the stream. They are saved beside the model and read by the explorer page.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from itertools import tee
from pathlib import Path
from typing import Any

import torch
from sae_lens import SAE
from tqdm.auto import tqdm

from sae_lens_hsae.evaluation import level_saes
from sae_lens_hsae.evaluation.outliers import FEWEST_TOKENS, Usual, begun, usual
from sae_lens_hsae.evaluation.stacks import check_fit
from sae_lens_hsae.forest import FeatureForest
from sae_lens_hsae.interpret.feature_cache.contexts import ContextSlots
from sae_lens_hsae.interpret.feature_cache.directions import decoder_directions, promoted_tokens
from sae_lens_hsae.interpret.feature_cache.format import Dashboards, DashboardSettings, fingerprint
from sae_lens_hsae.interpret.feature_cache.statistics import Firing, FiringStatistics
from sae_lens_hsae.interpret.feature_cache.tokens import TokenMeans
from sae_lens_hsae.sae.inference import LevelStack

MANY_OUTLYING = 0.1
"""Above this share of the tokens it is the order of the contexts that makes them outlying, not attention sinks."""

Batch = tuple[torch.Tensor, torch.Tensor]

MAX_ELEMENTS_AT_ONCE = 2**24
# Bounds the (tokens, features) tensors in work: 64 MiB each in float32, unless one context alone is larger.


@torch.no_grad()
def collect_dashboards(
    levels: Sequence[SAE[Any]] | LevelStack,
    forest: FeatureForest,
    batches: Iterable[Batch],
    n_tokens: int | None = None,
    settings: DashboardSettings | None = None,
    exclude_tokens: Sequence[int] = (),
    unembedding: torch.Tensor | None = None,
    progress: bool = True,
) -> Dashboards:
    """What every feature fires on, in one pass and memory that does not grow with the stream.

    A *context* is one row of tokens. A feature's strongest contexts are those with the highest activation anywhere in
    them; the sampled ones are drawn one from each band of that peak's quantiles. SAEs whose features fire with either
    sign (AbsTopK) are read by the size of their activations: a dashboard does not tell the two signs apart.

    Outlying tokens, such as attention sinks, count as silent: there nearly every feature has its highest activations,
    whatever it stands for.

    Args:
        batches: pairs of token ids (batch, context) and activations (batch, context, d_in), as the SAEs' ``encode``
            takes them: fold an activation scale first.
        n_tokens: stop after the context that reaches this many tokens; None takes all.
        exclude_tokens: token ids on which features count as silent, such as padding; the model's special tokens.
        unembedding: (d_in, vocabulary) from the SAEs' activations to logits, for promoted and suppressed tokens.

    Raises:
        ValueError: if levels and forest do not fit together, the stream is empty, or a batch has other shapes than
            stated or holds NaN or infinity.
    """
    settings = settings or DashboardSettings()
    saes: list[Any] = list(level_saes(levels))
    check_fit(saes, forest)
    d_in = saes[0].cfg.d_in
    if n_tokens is not None and n_tokens < 1:
        raise ValueError(f"n_tokens={n_tokens} must be at least 1; use None for all tokens")
    if unembedding is not None and (unembedding.ndim != 2 or unembedding.shape[0] != d_in):
        raise ValueError(
            f"unembedding has shape {tuple(unembedding.shape)}; it maps activations to logits and must be "
            f"({d_in}, vocabulary)"
        )
    device = saes[0].device
    excluded = torch.tensor(sorted(exclude_tokens), dtype=torch.int64, device=device)
    parents = forest.parents.to(device)
    n_contexts, n_outlying = 0, 0
    contexts = ContextSlots(forest, settings, device)
    statistics = FiringStatistics(forest, device)
    token_means = TokenMeans(forest.n_features, settings, device)
    ordinary, batches = _begun(_checked(batches, d_in, n_tokens), excluded)

    with tqdm(total=n_tokens, desc="Dashboards", unit="tok", disable=not progress) as bar:
        for token_ids, x in batches:
            kept = ~torch.isin(token_ids, excluded.to(token_ids.device))
            if ordinary is not None:
                n_before = int(kept.sum())
                kept &= ordinary.holds(x.float())
                n_outlying += n_before - int(kept.sum())
            at_once = max(1, MAX_ELEMENTS_AT_ONCE // (token_ids.shape[1] * forest.n_features))
            for chunk in zip(token_ids.split(at_once), x.split(at_once), kept.split(at_once), strict=True):
                own_ids, own_x, own_kept = (tensor.to(device) for tensor in chunk)
                acts = torch.cat([sae.encode(own_x.flatten(0, 1)).float().abs() for sae in saes], dim=1)
                acts[~own_kept.flatten()] = 0
                firing = Firing(acts, parents)
                statistics.add(firing, int(own_kept.sum()))
                token_means.add(firing, own_ids.flatten(), own_kept.flatten())
                contexts.add(firing, own_ids, n_contexts)
                n_contexts += len(own_ids)
                bar.update(own_ids.numel())

    if not statistics.n_tokens:
        raise ValueError(
            "batches held no token to count; pass pairs of (batch, context) ids and (batch, context, d_in) "
            "activations, no iterator that is used up, and exclude_tokens that leave something"
        )
    if n_outlying > MANY_OUTLYING * (n_outlying + statistics.n_tokens):
        warnings.warn(
            f"{n_outlying} tokens lie far from the first ones and count as silent; shuffle the contexts",
            stacklevel=2,
        )
    tensors: dict[str, Any] = {
        **statistics.result(),
        **contexts.result(),
        **token_means.result(),
        **decoder_directions(saes, forest, settings.n_nearest),
        **promoted_tokens(saes, unembedding, settings.n_strongest_tokens),
    }
    return Dashboards(
        settings=settings,
        fingerprint=fingerprint(levels, forest),
        level_widths=forest.level_widths,
        n_tokens=statistics.n_tokens,
        n_contexts=n_contexts,
        parents=forest.parents,
        **tensors,
    )


def _begun(batches: Iterable[Batch], excluded: torch.Tensor) -> tuple[Usual | None, Iterable[Batch]]:
    """What is usual of the first tokens that count, None if these are too few; and the whole stream again."""
    ahead, batches = tee(batches)
    first, _ = begun(x[~torch.isin(token_ids, excluded.to(token_ids.device))].float() for token_ids, x in ahead)
    return (None if len(first) < FEWEST_TOKENS else usual(first)), batches


def _checked(batches: Iterable[Batch], d_in: int, n_tokens: int | None) -> Iterable[Batch]:
    """The checked batches that hold a token, until ``n_tokens``."""
    n_seen = 0
    for i, (token_ids, x) in enumerate(batches):
        if token_ids.ndim != 2 or x.shape != (*token_ids.shape, d_in):
            raise ValueError(
                f"batches: number {i} has token ids of shape {tuple(token_ids.shape)} and activations of shape "
                f"{tuple(x.shape)}; expected (batch, context) and (batch, context, {d_in}), d_in of the levels"
            )
        if not x.isfinite().all():
            raise ValueError(f"batches: number {i} holds NaN or infinity; leave out those contexts")
        length = token_ids.shape[1]
        if n_tokens is not None and length:
            left = -(-(n_tokens - n_seen) // length)
            token_ids, x = token_ids[:left], x[:left]
        if token_ids.numel():
            yield token_ids, x
        n_seen += token_ids.numel()
        if n_tokens is not None and n_seen >= n_tokens:
            return


def dashboards_folder(sae_folder: str | Path) -> Path:
    """Where the dashboards of a saved SAE stand: beside its weights."""
    return Path(sae_folder) / "dashboards"
