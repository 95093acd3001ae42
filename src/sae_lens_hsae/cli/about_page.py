"""What an explorer page says of itself: its model and its text. Files and folders go by their names alone."""

from __future__ import annotations

from pathlib import Path

import sae_lens_hsae
from sae_lens_hsae.interpret.feature_cache import Dashboards
from sae_lens_hsae.sae.inference import HierarchicalSAE
from sae_lens_hsae.text.rows import TextSource


def about_page(sae: HierarchicalSAE, dashboards: Dashboards) -> dict[str, str]:
    """What the page is of, by name."""
    l0 = [each.sum().item() for each in dashboards.frequency.split(list(dashboards.level_widths))]
    tokens = f"{dashboards.n_tokens:,} tokens in {dashboards.n_contexts:,} contexts"
    return {
        "Model": _name(sae.cfg.metadata.model_name),
        "Hook point": str(sae.cfg.metadata.hook_name),
        "Features of the levels": ", ".join(f"{width:,}" for width in dashboards.level_widths),
        "L0 on this text": ", ".join(f"{each:.1f}" for each in l0),
        "Text": f"{tokens}, of {dashboards.text or 'a text that was not recorded'}",
        "Weights": dashboards.fingerprint,
        "Written by": f"sae-lens-hsae {sae_lens_hsae.__version__}",
    }


def text_read(source: TextSource) -> str:
    """A source in words, files and folders by their names."""
    if source.is_installed:
        return str(source)
    if source.file is not None:
        return _name(source.file)
    return f"{_name(source.dataset)}, split {source.split}, column {source.column}"


def _name(given: object) -> str:
    """The name of a file or folder; what is none, such as a model's name, as it is."""
    text = str(given)
    return Path(text).resolve().name if Path(text).is_absolute() or Path(text).exists() else text
