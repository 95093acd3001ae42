"""Labels in a file, a JSON object from features, by flat index or name, to labels.

``hsae label`` also writes the `fingerprint` of the weights that they are for, under `WEIGHTS`; other files may lack it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeAlias

from sae_lens_hsae.forest import FeatureForest
from sae_lens_hsae.storage.json_files import read_json_object
from sae_lens_hsae.storage.whole_files import write_whole

LABELS_FILENAME = "labels.json"
WEIGHTS = "weights"

Labels: TypeAlias = Mapping[int, str] | Mapping[str, str] | Mapping[int | str, str]
"""Text for some features, by flat index, as a number or in words, or by name."""


def read_labels(path: str | Path, forest: FeatureForest, weights: Callable[[], str] | None = None) -> dict[int, str]:
    """The labels in a file, by flat index: a JSON object such as ``{"12": "dates", "2/17": "rivers"}``.

    Args:
        path: as ``hsae label`` writes it, or your own.
        forest: of the features.
        weights: gives the SAE's `fingerprint`, which labels that name one must be for; None takes any labels.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it holds anything else, or labels of features that do not exist, or for other weights.
    """
    wrong = (
        f"labels={str(path)!r} is not a JSON object from flat feature index or name to label, such as "
        '{"12": "dates", "2/17": "rivers"}'
    )
    try:
        labels = read_json_object(Path(path))
    except ValueError as error:
        raise ValueError(f"{wrong} ({error})") from error
    if labels.get(WEIGHTS) is not None and weights is not None and labels[WEIGHTS] != weights():
        raise ValueError(
            f"labels={str(path)!r} are for other weights or another forest, as of an earlier training; delete the "
            "file, and hsae label names the features again"
        )
    try:
        return by_feature(labels, forest.index)
    except ValueError as error:
        raise ValueError(f"{wrong} ({error})") from error


def labels_beside(
    folder: str | Path, forest: FeatureForest, path: str | Path | None = None, weights: Callable[[], str] | None = None
) -> dict[int, str]:
    """`read_labels` of ``path``; without one, of ``labels.json`` in the folder of a saved SAE, if that is there."""
    if path is None:
        path = Path(folder) / LABELS_FILENAME
        if not path.is_file():
            return {}
    return read_labels(path, forest, weights)


def by_feature(labels: Labels | None, index: Callable[[int | str], int]) -> dict[int, str]:
    """Labels by flat index, as every function that takes labels reads them; a ValueError names the key that is wrong.

    Keys are flat indices, in JSON in words, or names, such as ``"2/17"``, whose flat index ``index`` gives; what stands
    under `WEIGHTS` is no label.
    """
    found = {}
    for key, label in (labels or {}).items():
        if key == WEIGHTS:
            continue
        try:
            feature = index(int(key) if isinstance(key, str) and key.isdecimal() else key)
        except (IndexError, ValueError) as error:
            raise ValueError(f"labels: {error}") from error
        except TypeError as error:
            raise ValueError(f"labels: {key!r} is no feature; give its flat index or its name") from error
        if not isinstance(label, str):
            raise ValueError(f"labels: {label!r} of feature {key!r} is no text")
        found[feature] = label
    return found


def write_labels(path: str | Path, labels: Mapping[int, str], weights: str) -> None:
    """Write labels, and the `fingerprint` of the weights that they are for, as `labels_beside` reads them."""
    record = {WEIGHTS: weights} | {str(feature): label for feature, label in labels.items()}
    write_whole(path, json.dumps(record, indent=1, ensure_ascii=False))
