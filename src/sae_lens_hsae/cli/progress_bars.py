"""Progress bars, ours and those of the libraries, off where nobody watches them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tqdm.std import tqdm


@contextmanager
def bars_on_terminals_only() -> Iterator[None]:
    """No bar in this process while stderr is a file or a pipe."""
    original = tqdm.__init__
    if not sys.stderr.isatty():
        disable_bars()
    try:
        yield
    finally:
        tqdm.__init__ = original


def disable_bars() -> None:
    """No bar in this process, also for those who ask for one.

    tqdm's own setting, ``TQDM_DISABLE``, is read when it is imported, and is only a default.
    """
    original = tqdm.__init__

    def without_bar(self: Any, *args: Any, **keywords: Any) -> None:
        original(self, *args, **keywords | {"disable": True})

    tqdm.__init__ = without_bar
