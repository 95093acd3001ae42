"""SAELens' uploads to W&B, made after the files that they upload have come to their place."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sae_lens import logger
from sae_lens.config import LoggingConfig


@contextmanager
def uploads_follow(logging: LoggingConfig, folder: Path | None) -> Iterator[None]:
    """Within, SAELens saves files and uploads them; what it uploads, and whether that fails, decides nothing here.

    SAELens uploads in the middle of saving, and a full disk at W&B's own folder or a server that refuses would end the
    run and take with it the files that are just being written. So it is done at the end of the block, if that ends
    well, from ``folder``, where the files then are; of temporary ones, without a folder, at once.
    """
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def wait(*args: Any, **kwargs: Any) -> None:
        calls.append((args, kwargs))

    def upload(*args: Any, **kwargs: Any) -> None:
        try:
            type(logging).log(logging, *args, **kwargs)
        except Exception:  # W&B has many, and so have the disk and the network
            logger.exception("W&B has not taken the files that were saved; the run goes on")

    logging.log = upload if folder is None else wait
    try:
        yield
    finally:
        del logging.log
    for args, kwargs in calls:
        upload(
            *(_moved(each, folder) for each in args), **{name: _moved(each, folder) for name, each in kwargs.items()}
        )


def _moved(value: Any, folder: Path | None) -> Any:
    """A file's path in ``folder``; anything else as it is."""
    if folder is None or not isinstance(value, (str, Path)):
        return value
    return folder / Path(value).name
