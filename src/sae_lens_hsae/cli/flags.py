"""Flags of ``hsae train`` from files, presets and the command line, brought into one line for SAELens' own parser."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from sae_lens_hsae.cli.outcome import CallError
from sae_lens_hsae.presets import INDEPENDENT, LANGUAGE_MODELS, PAPER
from sae_lens_hsae.storage.text_files import read_text

Flags = dict[str, list[str]]
"""Values of each flag, by its name without dashes."""

OF_JSON = ("target_l0", "minimum_similarity", "outlier_limit")
"""Fields that SAELens' parser reads as one JSON value, not as several words."""

LISTS = ("exclude_special_tokens",)
"""Fields in which a list of one means something else than its item: [1] is a token, and 1 is yes."""

NONE = (["None"], ["null"])
"""How a flag says ``None``."""

NESTED_CONFIGS = ("sae", "logger")
"""Configs inside SAELens' config, whose fields are flags."""

PRESETS: dict[str, dict[str, Any]] = {"paper": PAPER, "independent": INDEPENDENT, **LANGUAGE_MODELS}


def read_flags(path: str | Path) -> Flags:
    """Flags from a YAML or JSON file: one mapping from a flag's name to its value; null is ``None``."""
    try:
        content = yaml.safe_load(read_text(path))  # JSON is YAML, too
    except FileNotFoundError as error:
        raise FileNotFoundError(f"config={str(path)!r} does not exist, seen from {str(Path.cwd())!r}") from error
    except yaml.YAMLError as error:
        raise ValueError(f"config={str(path)!r} is neither YAML nor JSON: {error}") from error
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise ValueError(f"config={str(path)!r} must map names of flags to values, such as 'target_l0: 32'")
    return as_flags(content)


def as_flags(values: Mapping[str, Any]) -> Flags:
    """Python values as words of a command line."""
    flags = Flags()
    for name, value in values.items():
        if isinstance(value, dict) and name in NESTED_CONFIGS:
            raise ValueError(f"{name}={value!r}: flags are flat; write its entries as flags of their own")
        if isinstance(value, dict) or name in OF_JSON or (name in LISTS and isinstance(value, (list, tuple))):
            flags[name] = [json.dumps(value)]
        else:
            flags[name] = [str(item) for item in value] if isinstance(value, (list, tuple)) else [str(value)]
    return flags


def parse_flags(words: Sequence[str]) -> Flags:
    """Flags of a command line: ``--name value …`` or ``--name=value``, where a value may be a list such as [8, 16]."""
    flags, current = Flags(), None
    for word in words:
        if word.startswith("--"):
            name, given, value = word[2:].partition("=")
            current = flags[name] = [value] if given else []
        elif current is None:
            raise CallError(f"{word!r} belongs to no flag; write --name {word}")
        else:
            current.append(word)
    return {
        name: _joined(values) if name in OF_JSON else values if name in LISTS else spread(values)
        for name, values in flags.items()
    }


def preset_flags(names: Sequence[str]) -> Flags:
    """The flags of presets, later ones over earlier ones."""
    values: dict[str, Any] = {}
    for name in names:
        if name not in PRESETS:
            raise CallError(f"preset={name!r}: choose one of {', '.join(PRESETS)}")
        values |= PRESETS[name]
    return as_flags(values)


def command_line(flags: Flags) -> list[str]:
    """The words that `parse_flags` reads."""
    return [word for name, values in flags.items() for word in (f"--{name}", *values)]


def _joined(values: list[str]) -> list[str]:
    if values in NONE:
        return ["null"]
    return values if len(values) < 2 else [f"[{', '.join(values)}]"]


def spread(values: list[str]) -> list[str]:
    """The items of a list that stands in one word, such as [8, 16]; other words as they are."""
    if len(values) == 1 and values[0].startswith("["):
        try:
            return [str(item) for item in json.loads(values[0])]
        except ValueError:
            return values
    return values
