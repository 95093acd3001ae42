"""What stands beside a saved SAE for the commands that name its features: dashboards, and the text of its tokens."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from sae_lens_hsae.hub.saved_model import load_hierarchical_sae
from sae_lens_hsae.interpret.feature_cache import Dashboards, dashboards_folder, fingerprint
from sae_lens_hsae.interpret.feature_cache.text import load_tokenizer
from sae_lens_hsae.interpret.labels import token_labels
from sae_lens_hsae.sae.inference import HierarchicalSAE
from sae_lens_hsae.text.token_text import TokenTexts

PAGE_FILENAME = "explorer.html"
"""Where `hsae explore` writes, in the folder of a saved SAE."""


def read_collected(folder: Path) -> tuple[Dashboards, Callable[[int], str]]:
    """The dashboards that ``hsae explore`` collected, and a function from token id to text.

    Raises:
        FileNotFoundError: if the folder holds no SAE or no dashboards.
        ValueError: if it holds another architecture, or dashboards of other weights.
    """
    sae = load_hierarchical_sae(folder)
    dashboards = dashboards_beside(folder, sae)
    if dashboards is None:
        raise FileNotFoundError(f"{folder} holds no dashboards; collect them: hsae explore {folder}")
    return dashboards, TokenTexts(load_tokenizer(sae)).__getitem__


def dashboards_beside(folder: Path, sae: HierarchicalSAE) -> Dashboards | None:
    """The dashboards in the folder of a saved SAE; None if there are none.

    Raises:
        ValueError: if they are of other weights or cannot be read.
    """
    where = dashboards_folder(folder)
    if not where.exists():
        return None
    try:
        return Dashboards.load(where, fingerprint(sae, sae.forest))
    except (ValueError, FileNotFoundError) as error:
        raise ValueError(f"{error} (hsae explore {folder} --renew)") from error


def page_link(folder: str | Path, feature: str) -> str | None:
    """The address at which the explorer page beside a saved SAE shows a feature; None without a page.

    Args:
        folder: where the SAE was saved.
        feature: its name, such as ``2/17``.
    """
    page = Path(folder) / PAGE_FILENAME
    return f"{page.resolve().as_uri()}#feature={feature}" if page.is_file() else None


def labels_by_tokens(dashboards: Dashboards | None, tokenizer: Any) -> dict[int, str]:
    """A label of tokens for each feature; none without dashboards."""
    if dashboards is None:
        return {}
    return token_labels(dashboards, TokenTexts(tokenizer).__getitem__)
