"""Two sets of texts as a small SAE's features see them, for selectors of features to steer by."""

from typing import Any

import torch
from host_helpers import D_MODEL, HOOK
from small_saes import make_sae

from sae_lens_hsae.interpret.steering import Examples, Selection, examples_of
from sae_lens_hsae.interpret.steering.examples import Texts

LEVEL = 2
"""The finest of the SAE's three."""


def steered_sae() -> Any:
    sae = make_sae(d_in=D_MODEL, level_widths=[4, 9, 20], normalize_activations="none")
    sae.cfg.metadata.hook_name = HOOK
    return sae


def texts(seed: int, shift: float) -> list[torch.Tensor]:
    """Ten texts of 3 to 7 tokens whose first coordinates are shifted."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for i in range(10):
        x = torch.randn(3 + i % 5, D_MODEL, generator=generator)
        x[:, :4] += shift
        found.append(x)
    return found


def read_examples(sae: Any) -> Examples:
    return examples_of(sae, texts(0, 0.7), texts(1, -0.7))


def drawn_examples(sae: Any) -> Examples:
    """Activations and frequencies that do not go together, so that every part of a formula matters."""
    generator = torch.Generator().manual_seed(3)
    sets: list[Texts] = []
    for _ in range(2):
        centre = 2 * torch.rand(33, generator=generator)
        acts = (torch.randn(10, 33, generator=generator) + centre).relu() * (1 + torch.arange(33) % 4)
        sets.append(Texts(torch.randn(10, D_MODEL, generator=generator), acts, torch.rand(10, 33, generator=generator)))
    return Examples(sae.forest, sets[0], sets[1], sae.W_dec.detach())


def flat(sae: Any) -> range:
    return range(sae.levels[LEVEL].start, sae.levels[LEVEL].stop)


def mean(values: Any) -> float:
    values = list(values)
    return sum(values) / len(values)


def by_feature(selection: Selection) -> dict[int, float]:
    assert selection.level == LEVEL
    sizes = [abs(weight) for weight in selection.weights]
    assert sizes == sorted(sizes, reverse=True)
    return dict(zip(selection.features, selection.weights, strict=True))
