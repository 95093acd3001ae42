"""Labels in a file, a JSON object from flat feature index to label, as ``hsae label`` writes them."""

from __future__ import annotations

import json
from pathlib import Path

LABELS_FILENAME = "labels.json"


def read_labels(path: str | Path) -> dict[int, str]:
    """The labels, by flat feature index.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it holds anything else.
    """
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
        return {int(feature): str(label) for feature, label in data.items()}
    except (ValueError, AttributeError) as error:
        raise ValueError(
            f'labels={str(path)!r} is not a JSON object from flat feature index to label, such as {{"12": "dates"}} '
            f"({error})"
        ) from error
