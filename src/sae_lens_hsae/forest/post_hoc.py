"""Post-hoc assignment: parents for features of SAEs that were trained without a forest (HSAE §4.2, the baseline)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import torch
from sae_lens import SAE
from sae_lens.saes.abstopk_sae import AbsTopKSAE, AbsTopKTrainingSAE

from sae_lens_hsae.forest.activations import token_chunks, tokens_at_once
from sae_lens_hsae.forest.counts import Counts, Firing
from sae_lens_hsae.forest.levels import Levels
from sae_lens_hsae.forest.parents import ParentRule, cosine_similarity, measured_similarities, parent_table
from sae_lens_hsae.forest.stack_checks import check_flat, check_one_token, check_same_input


@torch.no_grad()
def assign_parents(
    saes: Sequence[SAE[Any]], rule: ParentRule, activations: Iterable[torch.Tensor] | None
) -> torch.Tensor:
    """The parent table of a stack of SAEs, (n_features,) int64; see ``FeatureForest.from_saes``."""
    check_one_token(saes)
    _check(saes, rule, activations)
    levels = Levels(tuple(sae.cfg.d_sae for sae in saes))
    if rule.is_measured:
        assert activations is not None  # checked above
        counts = _counts(saes, activations, levels)
        similarities = measured_similarities(rule.similarity, counts, levels, saes[0].W_dec.device)
    else:
        directions = [sae.W_enc.T if rule.similarity == "encoder" else sae.W_dec for sae in saes]
        signed = have_either_sign(saes)
        similarities = [cosine_similarity(parents, children, signed) for parents, children in pairwise(directions)]
    return parent_table(similarities, levels, rule, saes[0].W_dec.device)


def have_either_sign(saes: Sequence[Any]) -> bool:
    """Whether features of one of the SAEs fire with either sign."""
    return any(isinstance(sae, (AbsTopKSAE, AbsTopKTrainingSAE)) for sae in saes)


def _counts(saes: Sequence[SAE[Any]], activations: Iterable[torch.Tensor], levels: Levels) -> Counts:
    check_flat(saes)
    chunks = []
    for number, x in enumerate(token_chunks(activations, saes[0].cfg.d_in, tokens_at_once(levels.widths[-1]))):
        fired = [sae.encode(x.to(sae.W_dec.device)) != 0 for sae in saes]
        chunks.append(Firing.of(torch.cat(fired, dim=1).T, number))
    if not chunks:
        raise ValueError("activations held no token; pass (batch, d_in) tensors, and no iterator that is used up")
    return Counts(chunks, levels)


def _check(saes: Sequence[SAE[Any]], rule: ParentRule, activations: Iterable[torch.Tensor] | None) -> None:
    if rule.is_measured and activations is None:
        raise ValueError(
            f"activations=None: similarity={rule.similarity!r} is measured on activations; pass (batch, d_in) tensors, "
            "or a rule that reads weights alone, such as sae_lens_hsae.forest.PAPER_RULE"
        )
    widths = [sae.cfg.d_sae for sae in saes]
    if any(fine <= coarse for coarse, fine in pairwise(widths)):
        raise ValueError(f"saes have the widths {widths}, which do not grow; give them coarse to fine")
    check_same_input(saes)
    missing = [type(sae).__name__ for sae in saes if not hasattr(sae, "W_enc")]
    if rule.similarity == "encoder" and missing:
        raise ValueError(f"similarity='encoder': {', '.join(missing)} has no W_enc; use another")
