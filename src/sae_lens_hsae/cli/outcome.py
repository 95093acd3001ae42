"""What a command has to say: its result on stdout, as text or JSON, and everything else on stderr."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import RenderableType


class CallError(ValueError):
    """The command line itself is wrong: exit code 2, as argparse has it."""


@dataclass(frozen=True)
class Outcome:
    """The result of a command.

    Attributes:
        text: for people; what is not a string, rich prints.
        data: the same for programs, ready for JSON; NaN becomes null.
    """

    text: RenderableType
    data: Any

    def show(self, as_json: bool) -> None:
        """Print it; whoever reads stdout may have gone by then."""
        try:
            print(
                json.dumps(_without_nan(self.data), ensure_ascii=False) if as_json else _printed(self.text), flush=True
            )
        except BrokenPipeError:
            # Else Python would complain once more when it flushes stdout at its end.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


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
