"""Where few of many numbers are, on the CPU: NumPy's searches, which skip what torch's look at one by one."""

from __future__ import annotations

import numpy as np
import torch


def places_of(found: torch.Tensor) -> torch.Tensor:
    """Flat indices, ascending, of what is true, (n,) int64."""
    return torch.from_numpy(np.flatnonzero(found.numpy()))


def positions_in(places: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Where each of ``wanted`` stands among the ascending ``places``, (n,) int64; all must be there."""
    return torch.from_numpy(np.searchsorted(places.numpy(), wanted.numpy()))
