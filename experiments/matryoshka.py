"""A Matryoshka SAE read as a stack of levels: its nested groups are the levels (arXiv 2503.17547)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from tempfile import TemporaryDirectory
from typing import Any

import torch
from sae_lens import SAE, BatchTopKTrainingSAE, JumpReLUSAE, JumpReLUSAEConfig

from sae_lens_hsae.evaluation import ForestEvaluation, evaluate_forest
from sae_lens_hsae.forest import NO_PARENT, FeatureForest
from sae_lens_hsae.forest.levels import validated_widths


def inference_sae(sae: BatchTopKTrainingSAE) -> JumpReLUSAE:
    """What SAELens saves of a BatchTopK SAE, nested or not: a JumpReLU SAE with one threshold for all features."""
    with TemporaryDirectory() as folder:
        sae.save_inference_model(folder)
        saved = SAE.load_from_disk(folder, device=str(sae.device))
    assert isinstance(saved, JumpReLUSAE)
    return saved


@torch.no_grad()
def groups_and_prefixes(sae: JumpReLUSAE, prefix_widths: Sequence[int]) -> tuple[list[JumpReLUSAE], list[JumpReLUSAE]]:
    """The groups of a Matryoshka SAE as levels, and its prefixes, which is what its levels reconstruct with.

    Args:
        sae: from `inference_sae`.
        prefix_widths: SAELens' ``matryoshka_widths``: features up to the end of each group; the last is ``d_sae``.

    Returns:
        groups: the features that each prefix has beyond the one before. A group's ``decode`` gives its own part of the
            reconstruction, so that its variance explained means little (`evaluate_groups`); hierarchy measures need
            ``encode`` alone.
        prefixes: all features up to the end of each group, whose ``decode`` reconstructs x.

    Raises:
        ValueError: if the widths are no strictly increasing list that ends at ``d_sae``, or a group is not wider than
            the one before, as the levels of a forest must be.
    """
    validated_widths(prefix_widths)
    if prefix_widths[-1] != sae.cfg.d_sae:
        raise ValueError(f"prefix_widths={list(prefix_widths)} must end at d_sae={sae.cfg.d_sae}")
    bounds = [0, *prefix_widths]
    validated_widths([stop - start for start, stop in pairwise(bounds)])
    groups = [_features(sae, slice(start, stop)) for start, stop in pairwise(bounds)]
    return groups, [_features(sae, slice(0, stop)) for stop in prefix_widths]


def evaluate_groups(
    groups: Sequence[JumpReLUSAE],
    prefixes: Sequence[JumpReLUSAE],
    forest: FeatureForest,
    batches: Sequence[torch.Tensor],
) -> ForestEvaluation:
    """Measure groups as levels, but for variance explained, which is that of each group with all coarser ones.

    Args:
        groups: from `groups_and_prefixes`.
        prefixes: from the same call.
        forest: of the groups.
        batches: activations, (batch, d_in) each.
    """
    n_features = sum(sae.cfg.d_sae for sae in prefixes)
    no_edges = FeatureForest(torch.full((n_features,), NO_PARENT), [sae.cfg.d_sae for sae in prefixes])
    result, whole = evaluate_forest(groups, forest, batches), evaluate_forest(prefixes, no_edges, batches)
    levels = [
        replace(
            level,
            variance_explained=prefix.variance_explained,
            variance_explained_ordinary=prefix.variance_explained_ordinary,
            intervals={**level.intervals, **{name: i for name, i in prefix.intervals.items() if name != "l0"}},
        )
        for level, prefix in zip(result.levels, whole.levels, strict=True)
    ]
    return replace(result, levels=tuple(levels))


def _features(sae: JumpReLUSAE, own: slice) -> JumpReLUSAE:
    """An SAE of some of the features, with all of b_dec."""
    fields: dict[str, Any] = {**sae.cfg.to_dict(), "d_sae": own.stop - own.start, "metadata": sae.cfg.metadata}
    del fields["architecture"]
    part = JumpReLUSAE(JumpReLUSAEConfig(**fields))
    state = {"W_enc": sae.W_enc[:, own], "W_dec": sae.W_dec[own], "b_dec": sae.b_dec}
    part.load_state_dict({**state, "b_enc": sae.b_enc[own], "threshold": sae.threshold[own]})
    return part
