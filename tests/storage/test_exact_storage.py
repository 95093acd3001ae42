"""Bytes that no cast can touch."""

import pytest
import torch

from sae_lens_hsae.storage.exact_storage import as_bytes, from_bytes


@pytest.mark.parametrize("cast", [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.uint8])
@pytest.mark.parametrize(
    "tensor",
    [
        torch.tensor([-1, 0, 255, 256, 1059, 65_537, 2**40 + 1, -(2**62)]),
        torch.tensor([0.1, -3e38, 1e-30]),
        torch.tensor(123456789),
        torch.rand(2, 3),
        torch.rand(2, 3, dtype=torch.float64),
    ],
)
def test_round_trip_through_any_dtype(tensor, cast):
    back = from_bytes(as_bytes(tensor).to(cast), tensor.dtype)
    assert back.dtype == tensor.dtype
    assert back.shape == tensor.shape
    assert torch.equal(back, tensor)


@pytest.mark.parametrize(
    "damaged",
    [
        torch.zeros(3, 5),
        torch.full((3, 8), 0.5),
        torch.full((3, 8), 256.0),
        torch.full((2, 8), float("nan")),
    ],
)
def test_what_holds_no_bytes_is_refused(damaged):
    with pytest.raises(ValueError, match=r"holds no bytes of torch.int64 numbers"):
        from_bytes(damaged, torch.int64)
