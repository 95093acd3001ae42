"""Labels in a file, a JSON object from flat feature index to label, as ``hsae label`` writes them."""

from __future__ import annotations

from pathlib import Path

from sae_lens_hsae.storage.json_files import read_json_object

LABELS_FILENAME = "labels.json"


def read_labels(path: str | Path) -> dict[int, str]:
    """The labels, by flat feature index.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it holds anything else.
    """
    try:
        return {int(feature): str(label) for feature, label in read_json_object(Path(path)).items()}
    except ValueError as error:
        raise ValueError(
            f'labels={str(path)!r} is not a JSON object from flat feature index to label, such as {{"12": "dates"}} '
            f"({error})"
        ) from error
