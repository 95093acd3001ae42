"""What commands read of a saved SAE: its dashboards, the labels of its features, text for its language model."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from sae_lens import SAE

from sae_lens_hsae.hub.saved_model import load_hierarchical_sae
from sae_lens_hsae.interpret.feature_cache import Dashboards, dashboards_folder, fingerprint
from sae_lens_hsae.interpret.feature_cache.text import load_language_model, load_tokenizer, tokens_and_activations
from sae_lens_hsae.interpret.labels import token_labels
from sae_lens_hsae.interpret.labels.files import labels_beside
from sae_lens_hsae.sae.inference import HierarchicalSAE
from sae_lens_hsae.text.as_trained import excluded_tokens
from sae_lens_hsae.text.hook_point import most_tokens
from sae_lens_hsae.text.rows import TextSource, text_rows
from sae_lens_hsae.text.token_text import TokenTexts

PAGE_FILENAME = "explorer.html"
"""Where `hsae explore` writes, in the folder of a saved SAE."""
ELSEWHERE = "what is collected goes there, so copy the SAE to a folder that can be written to"


def read_collected(folder: Path) -> tuple[Dashboards, Callable[[int], str]]:
    """The dashboards that ``hsae explore`` collected, of these very weights, and a function from token id to text."""
    sae = load_hierarchical_sae(folder)
    dashboards = dashboards_beside(folder, sae)
    if dashboards is None:
        raise FileNotFoundError(f"{folder} holds no dashboards; collect them: hsae explore {folder}")
    return dashboards, TokenTexts(load_tokenizer(sae)).__getitem__


def dashboards_beside(folder: Path, sae: HierarchicalSAE) -> Dashboards | None:
    """The dashboards beside a saved SAE, a ValueError if they are of other weights; None if there are none."""
    where = dashboards_folder(folder)
    if not where.exists():
        return None
    try:
        return Dashboards.load(where, fingerprint(sae, sae.forest))
    except (ValueError, FileNotFoundError) as error:
        raise ValueError(f"{error} (hsae explore {folder} --renew)") from error


def page_link(folder: str | Path, feature: str) -> str | None:
    """The address at which the page beside a saved SAE shows a feature, such as ``2/17``; None without a page."""
    page = Path(folder) / PAGE_FILENAME
    return f"{page.resolve().as_uri()}#feature={feature}" if page.is_file() else None


def open_labelled(
    folder: str | Path, device: str, labels: str | Path | None = None
) -> tuple[HierarchicalSAE, Callable[[Any], dict[int, str]]]:
    """A saved SAE, and a function from its model's tokenizer to labels: those given, tokens for the other features."""
    sae = load_hierarchical_sae(folder, device)
    given = labels_beside(folder, sae.forest, labels, lambda: fingerprint(sae, sae.forest))
    dashboards = dashboards_beside(Path(folder), sae)

    def labels_of(tokenizer: Any) -> dict[int, str]:
        return ({} if dashboards is None else token_labels(dashboards, TokenTexts(tokenizer).__getitem__)) | given

    return sae, labels_of


def text_source(chosen: argparse.Namespace) -> TextSource:
    """The text that the flags name; a ValueError if there are two."""
    return TextSource(chosen.text, chosen.dataset, chosen.split, chosen.column)


def as_source(text: TextSource | str | Path | None) -> TextSource:
    """A text as it may be given: a source, a file as after ``--text``, or None for what is installed."""
    return text if isinstance(text, TextSource) else TextSource(text)


def read_rows(text: TextSource | str | Path | None, sae: SAE[Any], model: Any, n_tokens: int) -> Dataset:
    """The rows of a text; on stderr what it is, whether the SAE was trained on it, and whether it is short."""
    text = as_source(text)
    print(text.said(sae.cfg.metadata), file=sys.stderr, flush=True)
    rows = text_rows(text, sae.cfg.metadata, model.tokenizer, n_tokens, limit=most_tokens(model))
    held = len(rows) * len(rows[0]["tokens"])
    if held < n_tokens:
        short = f"It fills contexts of {held:,} tokens in all, fewer than the {n_tokens:,} to read"
        print(short, file=sys.stderr, flush=True)
    return rows


def activations_of_text(
    sae: SAE[Any],
    text: TextSource | str | Path | None,
    n_tokens: int,
    model: Any = None,
    rows: Dataset | None = None,
) -> Iterator[torch.Tensor]:
    """Activations (tokens, d_in) of a text where an SAE reads its model, batch by batch, about ``n_tokens`` in all.

    Tokens that training left out are left out. ``model`` and ``rows`` are as of ``evaluate``.
    """
    model = load_language_model(sae) if model is None else model
    excluded = torch.tensor(excluded_tokens(sae, model.tokenizer), dtype=torch.long, device=sae.device)
    rows = read_rows(text, sae, model, n_tokens) if rows is None else rows
    for token_ids, x in tokens_and_activations(sae, model, rows):
        yield x[~torch.isin(token_ids, excluded)]
