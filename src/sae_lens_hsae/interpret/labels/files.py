"""Labels in a file, a JSON object from flat feature index to label, as ``hsae label`` writes them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from sae_lens_hsae.storage.json_files import read_json_object

LABELS_FILENAME = "labels.json"


def labels_beside(folder: str | Path, path: str | Path | None = None) -> dict[int, str]:
    """The labels of a saved SAE: those of ``path``; without one, of ``labels.json`` in its folder, if that is there.

    Raises:
        FileNotFoundError: if there is no file ``path``.
        ValueError: if the file holds anything else.
    """
    if path is None:
        path = Path(folder) / LABELS_FILENAME
        if not path.is_file():
            return {}
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


def check_labels(labels: Mapping[int, str], n_features: int) -> None:
    """Check that all labels are of features that exist."""
    unknown = [feature for feature in labels if not 0 <= feature < n_features]
    if unknown:
        raise ValueError(f"labels: feature {unknown[0]} does not exist; the forest has 0 … {n_features - 1}")
