"""Reconstructions from the active features alone equal the SAE's own, or the SAE decodes."""

from typing import Any

import pytest
import torch
from hierarchy_reference import jumprelu
from sae_lens import AbsTopKSAE, AbsTopKSAEConfig, JumpReLUSAE, JumpReLUSAEConfig, TopKSAE, TopKSAEConfig

from sae_lens_hsae.evaluation import evaluate_forest
from sae_lens_hsae.evaluation.decoding import Decoder, decoder_norms
from sae_lens_hsae.forest import FeatureForest

D_IN, WIDTH = 6, 40


def filled(sae: Any, seed: int = 0) -> Any:
    generator = torch.Generator().manual_seed(seed)
    for parameter in sae.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(parameter.dtype)
    if hasattr(sae, "threshold"):
        sae.threshold.data = sae.threshold.data.abs() + 5
    return sae.eval()


def chunks(seed: int = 1) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, D_IN, generator=generator, dtype=torch.float64) for n in (30, 1, 50)]


class Counting:
    """Counts the calls of ``decode``."""

    def __init__(self, sae: Any) -> None:
        self.calls, own = 0, sae.decode

        def decode(acts: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            return own(acts)

        sae.decode = decode


def decoded(sae: Any) -> tuple[torch.Tensor, torch.Tensor, int]:
    """From the Decoder, from the SAE, and how often the former asked the latter."""
    found, expected = [], []
    with torch.no_grad():
        for x in chunks():
            expected.append(sae.decode(sae.encode(x.to(sae.dtype))))
        counting, decoder = Counting(sae), Decoder(sae)
        for x in chunks():
            acts = sae.encode(x.to(sae.dtype))
            tokens, features = acts.nonzero(as_tuple=True)
            found.append(decoder(acts, tokens, features, acts[tokens, features]))
    return torch.cat(found), torch.cat(expected), counting.calls


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_sparse_activations_are_decoded_once_by_the_sae(dtype: str):
    found, expected, calls = decoded(filled(jumprelu(D_IN, WIDTH, dtype)))
    torch.testing.assert_close(found, expected)
    assert calls == 1


def test_dense_activations_are_decoded_by_the_sae():
    sae = filled(jumprelu(D_IN, WIDTH))
    sae.threshold.data -= 100
    sae.b_enc.data += 10
    found, expected, calls = decoded(sae)
    torch.testing.assert_close(found, expected)
    assert calls == 3


@pytest.mark.parametrize(
    "sae",
    [
        JumpReLUSAE(JumpReLUSAEConfig(d_in=D_IN, d_sae=WIDTH, dtype="float64", normalize_activations="layer_norm")),
        JumpReLUSAE(JumpReLUSAEConfig(d_in=D_IN, d_sae=WIDTH, dtype="bfloat16")),
        TopKSAE(TopKSAEConfig(d_in=D_IN, d_sae=WIDTH, dtype="float64", k=3, rescale_acts_by_decoder_norm=True)),
    ],
    ids=["normalising", "bfloat16", "rescaling"],
)
def test_what_is_not_the_plain_sum_is_decoded_by_the_sae(sae: Any):
    found, expected, calls = decoded(filled(sae))
    assert torch.equal(found, expected)
    assert calls == 3


def test_normalisation_is_noticed_before_it_shows():
    normalize: Any = "constant_norm_rescale"
    sae = filled(
        JumpReLUSAE(JumpReLUSAEConfig(d_in=D_IN, d_sae=WIDTH, dtype="float64", normalize_activations=normalize))
    )
    first, *others = chunks()
    first *= D_IN**0.5 / first.norm(dim=1, keepdim=True)  # what it is rescaled to anyway
    decoder = Decoder(sae)
    for x in (first, *others):
        with torch.no_grad():
            expected = sae.decode(sae.encode(x))
            acts = sae.encode(x)  # once more, as decoding takes back what encoding left behind
            tokens, features = acts.nonzero(as_tuple=True)
            torch.testing.assert_close(decoder(acts, tokens, features, acts[tokens, features]), expected)


def test_hooks_see_every_reconstruction():
    sae = filled(jumprelu(D_IN, WIDTH))
    seen = []
    sae.hook_sae_recons.add_hook(lambda tensor, *, hook: seen.append(len(tensor)))  # noqa: ARG005
    _, _, calls = decoded(sae)
    assert calls == 3
    assert seen == [30, 1, 50] * 2


def test_negative_activations_are_decoded_and_counted():
    sae = filled(AbsTopKSAE(AbsTopKSAEConfig(d_in=D_IN, d_sae=WIDTH, dtype="float64", k=4)))
    x = torch.cat(chunks())
    with torch.no_grad():
        acts = sae.encode(x)
        error = (sae.decode(acts) - x).square().sum()
    assert (acts < 0).any()
    (level,) = evaluate_forest([sae], FeatureForest([-1] * WIDTH, [WIDTH]), chunks()).levels
    assert level.l0 == pytest.approx(float((acts != 0).sum(1).double().mean()))
    assert level.variance_explained == pytest.approx(float(1 - error / (x - x.mean(0)).square().sum()))


def test_decoder_norms():
    sae = filled(jumprelu(D_IN, WIDTH))
    norms = decoder_norms(sae)
    assert norms is not None
    torch.testing.assert_close(norms, sae.W_dec.norm(dim=1).detach())
    sae.fold_W_dec_norm()
    assert decoder_norms(sae) is None
    assert decoder_norms(object()) is None  # type: ignore[arg-type]
