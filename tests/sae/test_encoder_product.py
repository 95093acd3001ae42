"""The encoder product against torch's own, whatever the library."""

import pytest
import torch

from sae_lens_hsae.sae.cpu_step import encoder_product
from sae_lens_hsae.sae.cpu_step.encoder_product import product_of_rows


@pytest.mark.parametrize("onednn", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(1, 1, 1), (33, 17, 5), (300, 64, 384)])
def test_it_is_the_product_to_the_precision_of_its_numbers(monkeypatch, onednn, dtype, shape):
    if onednn and not encoder_product._has_onednn():
        pytest.skip("torch has no oneDNN here")
    monkeypatch.setattr(encoder_product, "_has_onednn", lambda: onednn)
    monkeypatch.setattr(encoder_product, "_is_intel", lambda: False)
    m, n, d = shape
    generator = torch.Generator().manual_seed(0)
    left = torch.randn(d, m, generator=generator, dtype=torch.float64)
    right = torch.randn(n, d, generator=generator, dtype=torch.float64)
    ours = product_of_rows(left.to(dtype).T.requires_grad_(), right.to(dtype))
    exact = left.to(dtype).double().T @ right.to(dtype).double().T
    assert ours.dtype == dtype
    assert not ours.requires_grad
    assert ours.is_contiguous()
    # bfloat16, to which oneDNN may be told to round, would be off by 2⁻⁹ of each term.
    assert (ours.double() - exact).abs().max() <= 8 * d * torch.finfo(dtype).eps
