"""Names of what is kept: they tell of all that decides it, so that no call takes what other settings gave."""

from __future__ import annotations

import hashlib
import json
from typing import Any


def named_by(name: str, settings: Any) -> str:
    """``name``, then eight hex digits that stand for settings that it does not spell out.

    Args:
        name: readable.
        settings: ready for JSON; numbers count to nine digits, as machines differ in the last ones of a power.
    """
    rounded = json.loads(json.dumps(settings), parse_float=lambda number: f"{float(number):.9g}")
    digest = hashlib.sha256(json.dumps(rounded, sort_keys=True).encode()).hexdigest()
    return f"{name}-{digest[:8]}"


def settings_of_config(cfg: Any) -> dict[str, Any]:
    """The fields of an SAE's config but where it runs and what SAELens notes of itself, ready for JSON."""
    return {name: value for name, value in cfg.to_dict().items() if name not in ("device", "metadata")}
