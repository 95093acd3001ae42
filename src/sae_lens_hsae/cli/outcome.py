"""What a command has to say: its result on stdout, as text or JSON, or what is wrong with how it was called."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from io import TextIOWrapper
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from rich.console import RenderableType


class CallError(ValueError):
    """The command line itself is wrong: exit code 2, as argparse has it."""


@dataclass(frozen=True)
class Outcome:
    """The result of a command."""

    text: RenderableType  # for people; what is not a string, rich prints
    data: Any  # the same for programs, ready for JSON; NaN becomes null

    def show(self, as_json: bool) -> None:
        """Print it; whoever reads stdout may have gone by then."""
        utf8 = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
        text = json.dumps(_without_nan(self.data), ensure_ascii=not utf8) if as_json else _printed(self.text)
        if isinstance(sys.stdout, TextIOWrapper):  # there may be letters and lines that it has no bytes for
            sys.stdout.reconfigure(errors="backslashreplace")
        try:
            print(text, flush=True)
        except BrokenPipeError:
            # Else Python would complain once more when it flushes stdout at its end.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def check_device(device: str) -> None:
    """Check that one can compute there, before anything is loaded; a ValueError if not."""
    try:
        torch.zeros(1, device=device).item()
    except Exception as error:  # torch answers with errors of many kinds
        why = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"device={device!r} cannot be used here ({why}); cpu always can") from error


def _printed(text: RenderableType) -> str:
    if isinstance(text, str):
        return text
    from rich.console import Console

    console = Console()
    with console.capture() as captured:
        console.print(text)
    return captured.get().removesuffix("\n")


def _without_nan(data: Any) -> Any:
    if isinstance(data, float):
        return data if data - data == 0 else None  # JSON has no word for NaN and infinity
    if isinstance(data, dict):
        return {name: _without_nan(value) for name, value in data.items()}
    return [_without_nan(value) for value in data] if isinstance(data, (list, tuple)) else data
