"""Names of hook points: a model's own, and what to say of one that it lacks."""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any

RESIDUAL_STREAM = re.compile(r"(^|\.)(h|layers?|blocks?)\.\d+(\.hook_resid_post)?$")
"""Hook points after a block, as Hugging Face's models and TransformerLens name them."""

LOAD_ANEW = "load it anew: a TransformerBridge loses a hook point when an SAE is detached from it"


def not_come_by(name: str) -> str:
    """What is wrong with a hook point that a model has, but does not come by."""
    return f"the model ran, but not through its hook point {name!r}; {LOAD_ANEW}"


def own_name(model: Any, name: str) -> str:
    """The model's own name of a hook point: ``SAETransformerBridge`` also knows those of ``HookedTransformer``."""
    if name in model.hook_dict:
        return name
    return getattr(model, "_resolve_hook_name", lambda given: given)(name)


def known_name(model: Any, name: str) -> str:
    """`own_name` of a hook point that the model has; a ValueError if it has none of that name."""
    own = own_name(model, name)
    if not hasattr(model.hook_dict.get(own), "add_hook"):
        raise ValueError(
            f"{no_hook_point(name, model.hook_dict)}; load the SAEs' own model, or detach an SAE that stands there"
        )
    return own


def no_hook_point(name: str, names: Iterable[str]) -> str:
    """What is wrong with a hook point that a model lacks, and which of its own may be meant."""
    names = list(names)
    same = re.compile(r"\d+".join(map(re.escape, re.split(r"\d+", name))))
    alike = [each for each in names if same.fullmatch(each)] or get_close_matches(name, names)
    found = alike or list(filter(RESIDUAL_STREAM.search, names)) or names
    some = ", ".join(found) if len(found) < 4 else f"{found[0]}, {found[1]} … {found[-1]}"
    return f"hook_name={name!r} is no hook point of the model; it has {some}"
