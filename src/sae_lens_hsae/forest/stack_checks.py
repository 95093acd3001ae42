"""Whether SAEs can be levels of one stack: what is asked of them wherever a list of SAEs is taken."""

from __future__ import annotations

from collections.abc import Sequence
from operator import eq
from typing import Any

from sae_lens.saes.temporal_sae import TemporalSAE

from sae_lens_hsae.forest.model_names import same_model


def check_one_token(saes: Sequence[Any]) -> None:
    """Check that the SAEs read one token at a time; a ValueError if one is a `TemporalSAE`, which reads a context."""
    for level, sae in enumerate(saes):
        if isinstance(sae, TemporalSAE):
            raise ValueError(
                f"level {level} is a TemporalSAE, which needs all tokens of a context; take SAEs that read one token "
                "at a time"
            )


def check_widths(saes: Sequence[Any], level_widths: Sequence[int]) -> None:
    """Check that the SAEs are as wide as the levels of a forest; a ValueError if they are not."""
    widths = [sae.cfg.d_sae for sae in saes]
    if widths != list(level_widths):
        raise ValueError(
            f"levels have the widths {widths}, but the forest has level_widths={list(level_widths)}; "
            "give the SAEs coarse to fine, one per level of the forest"
        )


def check_same_input(saes: Sequence[Any]) -> None:
    """Check that all levels read the same activations, as far as their configs say; a ValueError if they do not."""
    d_ins = [sae.cfg.d_in for sae in saes]
    if len(set(d_ins)) > 1:
        raise ValueError(f"levels have different d_in {d_ins}; all levels must read the same activations")
    for field in ("model_name", "hook_name", "hook_head_index"):
        named = {level: value for level, sae in enumerate(saes) if (value := metadata(sae, field)) is not None}
        values, same = list(named.values()), same_model if field == "model_name" else eq
        if not all(same(values[0], value) for value in values[1:]):
            listed = ", ".join(f"level {level} {value!r}" for level, value in named.items())
            raise ValueError(
                f"levels have different cfg.metadata.{field}: {listed}; all levels must read the same activations, "
                "and call them alike"
            )


def check_flat(saes: Sequence[Any]) -> None:
    """Check that the SAEs take flat activations; a ValueError if one takes them head by head."""
    for level, sae in enumerate(saes):
        if getattr(sae, "hook_z_reshaping_mode", False):
            raise ValueError(
                f"level {level} has reshape_activations='hook_z' and takes (n_heads, d_head) activations; "
                "call its turn_off_forward_pass_hook_z_reshaping() and give them flat, as (batch, d_in)"
            )


def metadata(sae: Any, field: str) -> Any:
    """A field of the SAE's metadata; None if it is not set, or there is no metadata."""
    return getattr(getattr(sae.cfg, "metadata", None), field, None)
