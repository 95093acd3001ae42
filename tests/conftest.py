"""What all tests share: no network, gradients that stay on, and fixtures."""

import os

# Read when huggingface_hub is imported, so before anything that imports it: a look-up by mistake fails at once.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from collections.abc import Iterator

import pytest
import torch
from small_saes import D_IN

pytest_plugins = ["forms", "hostile_page", "host_helpers", "language_model_server", "wandb_runs"]


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Name bytes by their length: what they hold may differ from one worker to the next, or be no text."""
    return f"{argname}-of-{len(val)}-bytes" if isinstance(val, bytes) else None


@pytest.fixture(autouse=True)
def _gradients_stay_on() -> Iterator[None]:
    """No code may leave the process without gradients, as a generator can that is left inside ``no_grad``."""
    yield
    left_on = torch.is_grad_enabled()
    torch.set_grad_enabled(True)
    assert left_on


@pytest.fixture
def batch() -> torch.Tensor:
    return torch.randn(16, D_IN, generator=torch.Generator().manual_seed(7)) * 2
