"""Labels in a file, a JSON object from flat feature index to label, as ``hsae label`` writes them."""

from __future__ import annotations

import re
from pathlib import Path

from sae_lens_hsae.storage.json_files import read_json_object

LABELS_FILENAME = "labels.json"


def labels_beside(folder: str | Path, path: str | Path | None = None) -> dict[int, str]:
    """The labels of a saved SAE: those of ``path``; without one, of ``labels.json`` in its folder, if that is there.

    Raises:
        FileNotFoundError: if there is no file ``path``.
        ValueError: if the file holds anything else.
    """
    own = Path(folder) / LABELS_FILENAME
    if path is None and not own.is_file():
        return {}
    return read_labels(own if path is None else path)


def read_labels(path: str | Path) -> dict[int, str]:
    """The labels, by flat feature index.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it holds anything else.
    """
    wrong = f'labels={str(path)!r} is not a JSON object from flat feature index to label, such as {{"12": "dates"}}'
    try:
        labels = read_json_object(Path(path))
    except ValueError as error:
        raise ValueError(f"{wrong} ({error})") from error
    for feature in labels:
        if not re.fullmatch(r"[0-9]{1,18}", feature):
            raise ValueError(f"{wrong} ({feature!r} is no such index)")
    for label in labels.values():
        if not isinstance(label, str):
            raise ValueError(f"{wrong} ({label!r} is no text)")
    return {int(feature): label for feature, label in labels.items()}
