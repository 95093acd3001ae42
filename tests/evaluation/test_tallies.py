"""What is counted of levels whose activations are negative, or whose decoder rows have other norms than 1."""

from typing import Any

import pytest
import torch
from hierarchy_reference import jumprelu
from sae_lens import AbsTopKSAE, AbsTopKSAEConfig

from sae_lens_hsae.evaluation import evaluate_forest
from sae_lens_hsae.evaluation.tallies import decoder_norms
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
