"""What the commands on names and judgements read: a saved SAE's dashboards, and the text of its tokens."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from sae_lens_hsae.interpret.dashboards import Dashboards, dashboards_folder, fingerprint
from sae_lens_hsae.interpret.token_text import token_texts
from sae_lens_hsae.sharing.saved_model import load_hierarchical_sae


def read_collected(folder: Path) -> tuple[Dashboards, Callable[[int], str]]:
    """The dashboards that ``hsae explore`` collected, and a function from token id to text.

    Raises:
        FileNotFoundError: if the folder holds no SAE or no dashboards.
        ValueError: if it holds another architecture, or dashboards of other weights.
    """
    from transformers import AutoTokenizer

    sae = load_hierarchical_sae(folder)
    if not dashboards_folder(folder).is_dir():
        raise FileNotFoundError(f"{folder} holds no dashboards; collect them: hsae explore {folder}")
    dashboards = Dashboards.load(dashboards_folder(folder), fingerprint(sae, sae.forest))
    tokenizer: Any = AutoTokenizer.from_pretrained(sae.cfg.metadata.model_name)
    return dashboards, token_texts(tokenizer, range(len(tokenizer))).__getitem__
