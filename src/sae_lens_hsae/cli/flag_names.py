"""Messages in the words of the command line: what was given as a flag is called by that flag."""

from __future__ import annotations

import argparse
import re
from dataclasses import fields

from sae_lens import LanguageModelSAERunnerConfig, LoggingConfig

from hsae_command.parsers import ARGUMENTS
from hsae_command.train import beyond_saelens, sources
from sae_lens_hsae.config import HierarchicalTrainingSAEConfig

QUOTED = r"""(?<!\w)'[^']*'|(?<!\w)"[^"]*\""""
"""What a message quotes: paths and texts, in which no name is a field's."""


def in_flags(message: str, command: str) -> str:
    """A message of the package, which names fields and arguments of Python, for somebody who typed flags.

    ``max_tokens=0 must be at least 2`` becomes ``--max-tokens=0 must be at least 2``. A name without a value counts
    only if it has an underscore, since others, such as text, are words too.
    """
    flags = own_flags(command)
    if command in ("train", "sweep"):
        flags = _fields_as_flags() | own_flags("train") | flags
    pattern = rf"{QUOTED}|(?<![\w.\-/])(?P<name>{'|'.join(flags)})(?!\w)(?P<value>=)?"

    def renamed(found: re.Match[str]) -> str:
        name = found["name"]
        is_field = name and (found["value"] or "_" in name)
        return f"{flags[name]}{found['value'] or ''}" if is_field else found[0]

    return re.sub(pattern, renamed, message)


def own_flags(command: str) -> dict[str, str]:
    """The flags of a subcommand by the names under which its code knows them: ``n_tokens`` is ``--n-tokens``."""
    if command == "train":
        parsers = [sources(), beyond_saelens()]
    else:
        parsers = [argparse.ArgumentParser(add_help=False)]
        ARGUMENTS[command](parsers[0])
    options = [action for parser in parsers for action in parser._actions if action.option_strings]
    return {action.dest: action.option_strings[-1] for action in options}


def _fields_as_flags() -> dict[str, str]:
    """Fields of the configs that SAELens' parser makes flags of."""
    configs = (LanguageModelSAERunnerConfig, HierarchicalTrainingSAEConfig, LoggingConfig)
    names = [field.name for config in configs for field in fields(config) if field.name not in ("sae", "logger")]
    return {name: f"--{name}" for name in names}
