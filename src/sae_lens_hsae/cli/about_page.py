"""What an explorer page says of itself: its model, text and command. Files and folders go by their names alone."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

import sae_lens_hsae
from sae_lens_hsae.interpret.feature_cache import Dashboards
from sae_lens_hsae.sae.inference import HierarchicalSAE
from sae_lens_hsae.text.rows import TextSource


def about_page(sae: HierarchicalSAE, dashboards: Dashboards, source: TextSource | None) -> dict[str, str]:
    """What the page is of, by name; ``source`` is the text that was read, None where it is not known."""
    l0 = [each.sum().item() for each in dashboards.frequency.split(list(dashboards.level_widths))]
    tokens = f"{dashboards.n_tokens:,} tokens in {dashboards.n_contexts:,} contexts"
    return {
        "Model": _name(sae.cfg.metadata.model_name),
        "Hook point": str(sae.cfg.metadata.hook_name),
        "Features of the levels": ", ".join(f"{width:,}" for width in dashboards.level_widths),
        "L0 on this text": ", ".join(f"{each:.1f}" for each in l0),
        "Text": f"{tokens}, of {_text(source)}",
        "Weights": dashboards.fingerprint,
        "Written by": f"sae-lens-hsae {sae_lens_hsae.__version__}",
    }


def as_command(folder: Path, source: TextSource, flags: Mapping[str, object], renew: bool) -> str:
    """The call of ``hsae explore`` as one line; a flag that was given several values is repeated."""
    other = {"--split": (source.split, "train"), "--column": (source.column, "text")}
    of_source = {flag: given if given != usual else None for flag, (given, usual) in other.items()}
    words = ["hsae", "explore", folder.resolve().name]
    for flag, given in ({"--text": source.file, "--dataset": source.dataset} | of_source | dict(flags)).items():
        several = given if isinstance(given, Sequence) and not isinstance(given, str) else [given]
        for each in several:
            words += [] if each is None else [flag, str(each) if flag == "--explain" else _name(each)]
    return shlex.join([*words, "--renew"] if renew else words)


def _text(source: TextSource | None) -> str:
    if source is None:
        return "a text that was not recorded"
    if source.is_installed:
        return str(source)
    if source.file is not None:
        return _name(source.file)
    return f"{_name(source.dataset)}, split {source.split}, column {source.column}"


def _name(given: object) -> str:
    """The name of a file or folder; what is none, such as a model's name, as it is."""
    text = str(given)
    return Path(text).resolve().name if Path(text).is_absolute() or Path(text).exists() else text
