"""Two sets of texts as the features see them: what every selector of features to steer by reads."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from sae_lens import SAE

from sae_lens_hsae.forest import FeatureForest
from sae_lens_hsae.forest.post_hoc import have_either_sign
from sae_lens_hsae.text.hook_point import checked_texts, stack_of

FEWEST = 2
"""Texts of a set: with one, nothing tells its topic from what is wanted."""


class Texts(NamedTuple):
    """One set, a text a row; a text counts once however many tokens it has."""

    x: torch.Tensor  # (texts, d_in) mean over a text's tokens of what stands at the hook point
    acts: torch.Tensor  # (texts, n_features) mean activations
    firing: torch.Tensor  # (texts, n_features) share of the text's tokens on which a feature fires


@dataclass(frozen=True, eq=False)
class Examples:
    """Texts that have what is wanted, and texts that have its opposite or lack it.

    Attributes:
        forest: of the features.
        positive, negative: the sets.
        decoder: (n_features, d_in) directions of all levels' features.
    """

    forest: FeatureForest
    positive: Texts = field(repr=False)
    negative: Texts = field(repr=False)
    decoder: torch.Tensor = field(repr=False)

    @property
    def difference(self) -> torch.Tensor:
        """(n_features,) mean activation on the positive texts less that on the negative."""
        return self.positive.acts.mean(0) - self.negative.acts.mean(0)

    def of_level(self, level: int, among: torch.Tensor | None = None) -> torch.Tensor:
        """Flat indices of the features to choose from: those of ``among``, or all of the level, else an IndexError."""
        own = self.forest.levels[level]
        return torch.arange(own.start, own.stop) if among is None else among


@torch.no_grad()
def examples_of(
    levels: Sequence[SAE[Any]] | SAE[Any],
    positive: Iterable[torch.Tensor],
    negative: Iterable[torch.Tensor],
    forest: FeatureForest | None = None,
) -> Examples:
    """Two sets of texts, what is wanted and the other set, read by all levels; ``levels`` and ``forest`` as of `steer`.

    Each item of a set holds the activations of one text, (tokens, d_in), as `text_activations` gives them.

    Raises:
        ValueError: as `steer`, or if a set has fewer than two texts, both sets are the same, a text is empty, of
            another width or holds NaN or infinity, or features fire with either sign (AbsTopK).
    """
    saes, forest = stack_of(levels, forest)
    if have_either_sign(saes):
        raise ValueError(
            "features of these SAEs fire with either sign, but selectors ask where a feature is stronger; choose "
            "features yourself and push them with add()"
        )
    with_it, without = _read("positive", positive, saes), _read("negative", negative, saes)
    if with_it.x.unique(dim=0).equal(without.x.unique(dim=0)):
        raise ValueError("positive and negative hold the same texts, so there is no contrast; give two different sets")
    decoder = torch.cat([sae.W_dec.detach().float().cpu() for sae in saes])
    return Examples(forest, with_it, without, decoder)


def _read(name: str, texts: Iterable[torch.Tensor], saes: Sequence[Any]) -> Texts:
    rows: list[tuple[torch.Tensor, ...]] = []
    for x in checked_texts(name, texts, saes[0].cfg.d_in, FEWEST):
        acts = torch.cat([sae.encode(x.to(sae.device, sae.dtype)).float().cpu() for sae in saes], dim=1)
        rows.append((x.float().cpu().mean(0), acts.mean(0), (acts != 0).float().mean(0)))
    return Texts(*(torch.stack(own) for own in zip(*rows, strict=True)))
