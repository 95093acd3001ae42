"""Files that appear whole or not at all: written aside, flushed to the disk, then renamed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp

UNFINISHED = ".unfinished-"
"""Folders whose name begins so were being written, or deleted, when a process was killed; they mean nothing."""
ANOTHER_PATH = "give another path"


@contextmanager
def file_written_whole(path: Path) -> Iterator[Path]:
    """Where to write a file, which takes the place of ``path`` if the block ends well; its folder is made if missing.

    Whatever ends the block otherwise, be it a kill, ``path`` is what it was before. If ``path`` is a link, the file
    it points to is replaced.
    """
    path = path.resolve()
    with _aside(path.parent) as aside:
        yield aside / path.name
        flush(aside)
        _replace(aside / path.name, path)
        _flush_entries(path.parent)


def write_whole(path: str | Path, text: str) -> None:
    """Write a text file in UTF-8 that appears whole or not at all."""
    with file_written_whole(Path(path)) as aside:
        aside.write_text(text, encoding="utf-8")


@contextmanager
def folder_written_whole(folder: Path) -> Iterator[Path]:
    """A new folder to write to, which takes the place of ``folder`` if the block ends well.

    Whatever ends the block otherwise, be it a kill, ``folder`` is what it was before.
    """
    with _aside(folder.parent) as aside:
        new, replaced = aside / folder.name, aside / "replaced"
        new.mkdir()
        yield new
        flush(new)
        if folder.exists():
            folder.rename(replaced)
        try:
            new.rename(folder)
        except BaseException:  # an interrupt, too
            if replaced.exists():
                replaced.rename(folder)
            raise
        _flush_entries(folder.parent)


@contextmanager
def files_written_whole(folder: Path, key: str) -> Iterator[Path]:
    """A new folder to write to, whose files take their places in ``folder``, beside what else is there.

    Several files cannot be exchanged at once. So the one without which the others mean nothing, ``key``, goes first and
    comes last: at no moment is there an old one with new ones. If one cannot be put in place, the old ones come back.
    """
    with _aside(folder) as aside:
        new, replaced = aside / "new", aside / "replaced"
        new.mkdir()
        replaced.mkdir()
        yield new
        flush(new)
        names = sorted((file.name for file in new.iterdir()), key=lambda name: (name == key, name))
        try:
            for name in reversed(names):
                if (folder / name).is_file():
                    (folder / name).rename(replaced / name)
            for name in names:
                _replace(new / name, folder / name)
        except BaseException:  # an interrupt, too
            for name in names:
                if (replaced / name).exists():
                    (replaced / name).replace(folder / name)
                elif not (new / name).exists():
                    (folder / name).unlink()
            raise
        _flush_entries(folder)


def delete_whole(folder: Path) -> None:
    """Delete a folder so that at no moment a part of it stands under its name."""
    with _aside(folder.parent) as aside:
        folder.rename(aside / folder.name)


def delete_unfinished(parent: Path) -> None:
    """Delete what killed processes left in a folder; no other process may be writing there."""
    for left in parent.glob(UNFINISHED + "*"):
        shutil.rmtree(left, ignore_errors=True)


def flush(folder: Path) -> None:
    """Have the disk take what was written: without it a power cut may leave a renamed folder of empty files."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb+") as file:
                os.fsync(file.fileno())
    for path in (*filter(Path.is_dir, folder.rglob("*")), folder):
        _flush_entries(path)


def check_writable(name: str, folder: Path, remedy: str = ANOTHER_PATH) -> None:
    """Check that files can be made in a folder, or in what it would be made in; nothing is left there."""
    _check_in(name, folder, folder, remedy)


def check_file_writable(name: str, path: Path) -> None:
    """Check that a file can be written, before the work that it is for; nothing is left there."""
    if path.is_dir():
        raise IsADirectoryError(f"{name}={str(path)!r} is a folder; give a file")
    if path.exists() and not path.is_file():  # a device, which a file would take the place of
        raise ValueError(f"{name}={str(path)!r} is no ordinary file; give a path for one")
    _check_in(name, path, path.resolve().parent, ANOTHER_PATH)


def _check_in(name: str, path: Path, folder: Path, remedy: str) -> None:
    existing = folder
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir():
        raise NotADirectoryError(f"{name}={str(path)!r}: {str(existing)!r} is no folder; {remedy}")
    try:  # it is the only way to know: permissions say nothing of what a file system refuses, or a disk over a network
        Path(mkdtemp(prefix=UNFINISHED, dir=existing)).rmdir()
    except OSError as error:
        raise PermissionError(f"{name}={str(path)!r}: {str(existing)!r} cannot be written to; {remedy}") from error


def _replace(source: Path, target: Path) -> None:
    try:
        source.replace(target)
    except OSError as error:
        raise type(error)(error.errno, f"cannot be replaced ({error.strerror})", str(target)) from error


@contextmanager
def _aside(parent: Path) -> Iterator[Path]:
    try:
        parent.mkdir(parents=True, exist_ok=True)
        aside = Path(mkdtemp(prefix=UNFINISHED, dir=parent))
    except OSError as error:
        # The name that it gives is a temporary one, which means nothing to anybody.
        raise type(error)(error.errno, f"cannot be written to ({error.strerror})", str(parent)) from error
    try:
        yield aside
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _flush_entries(folder: Path) -> None:
    if not hasattr(os, "O_DIRECTORY"):  # Windows cannot open folders
        return
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
