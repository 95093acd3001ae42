"""Where a command computes."""

from __future__ import annotations

import torch


def check_device(device: str) -> None:
    """Check that one can compute there, before anything is loaded.

    Raises:
        ValueError: if not.
    """
    try:
        torch.zeros(1, device=device).item()
    except Exception as error:  # torch answers with errors of many kinds
        why = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"device={device!r} cannot be used here ({why}); cpu always can") from error
