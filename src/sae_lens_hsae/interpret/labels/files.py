"""Labels in a file, a JSON object from flat feature index to label.

``hsae label`` also writes the `fingerprint` of the weights that they are for, under `WEIGHTS`; other files may lack it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from sae_lens_hsae.storage.json_files import read_json_object
from sae_lens_hsae.storage.whole_files import write_whole

LABELS_FILENAME = "labels.json"
WEIGHTS = "weights"


def labels_beside(
    folder: str | Path, path: str | Path | None = None, weights: Callable[[], str] | None = None
) -> dict[int, str]:
    """The labels of a saved SAE: those of ``path``; without one, of ``labels.json`` in its folder, if that is there.

    Args:
        weights: gives the SAE's `fingerprint`, which labels that name one must be for; None takes any labels.

    Raises:
        FileNotFoundError: if there is no file ``path``.
        ValueError: if the file holds anything else, or labels for other weights.
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
    made_for = labels.pop(WEIGHTS, None)
    if made_for is not None and weights is not None and made_for != weights():
        raise ValueError(
            f"labels={str(path)!r} are for other weights or another forest, as of an earlier training; delete the "
            "file, and hsae label names the features again"
        )
    for feature in labels:
        if not re.fullmatch(r"[0-9]{1,18}", feature):
            raise ValueError(f"{wrong} ({feature!r} is no such index)")
    for label in labels.values():
        if not isinstance(label, str):
            raise ValueError(f"{wrong} ({label!r} is no text)")
    return {int(feature): label for feature, label in labels.items()}


def write_labels(path: str | Path, labels: Mapping[int, str], weights: str) -> None:
    """Write labels, and the `fingerprint` of the weights that they are for, as `labels_beside` reads them."""
    record = {WEIGHTS: weights} | {str(feature): label for feature, label in labels.items()}
    write_whole(path, json.dumps(record, indent=1, ensure_ascii=False))


def check_labels(labels: Mapping[int, str], n_features: int) -> None:
    """Check that all labels are of features that exist."""
    unknown = [feature for feature in labels if not 0 <= feature < n_features]
    if unknown:
        raise ValueError(f"labels: feature {unknown[0]} does not exist; the forest has 0 … {n_features - 1}")
