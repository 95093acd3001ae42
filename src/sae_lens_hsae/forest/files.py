"""A forest as a file for other tools: JSON, GraphML, a table."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas
import torch

from sae_lens_hsae.forest import FeatureForest
from sae_lens_hsae.forest.levels import NO_PARENT
from sae_lens_hsae.storage.json_files import read_json_object
from sae_lens_hsae.storage.whole_files import file_written_whole


def forest_table(forest: FeatureForest) -> pandas.DataFrame:
    """One row per feature, in the flat numbering, which is the index ``feature``.

    Columns: ``level``, ``number`` (within the level), ``parent`` (flat; missing where there is none), ``n_children``.
    """
    features = torch.arange(forest.n_features)
    level = forest.levels.level_of(features)
    parents = forest.parents.numpy()
    return pandas.DataFrame(
        {
            "level": level.numpy(),
            "number": (features - torch.tensor(forest.levels.offsets)[level]).numpy(),
            "parent": pandas.Series(parents, dtype="Int64").mask(parents == NO_PARENT),
            "n_children": forest.n_children.numpy(),
        }
    ).rename_axis("feature")


def _write_graphml(forest: FeatureForest, path: Path) -> None:
    import networkx

    networkx.write_graphml(forest.to_networkx(), path)


FORMATS: dict[str, Callable[[FeatureForest, Path], Any]] = {
    ".json": lambda forest, path: path.write_text(json.dumps(forest.to_dict()), encoding="utf-8"),
    ".graphml": _write_graphml,
    ".csv": lambda forest, path: forest_table(forest).to_csv(path),
}
"""By the file's ending."""


def write_forest(forest: FeatureForest, path: str | Path) -> Path:
    """Write a forest in the format that the file's ending names; the file appears whole or not at all.

    Args:
        forest: who is whose parent.
        path: ends in ``.json`` (the schema in docs/sharing.md; `read_forest` reads it), ``.graphml`` or ``.csv``
            (`forest_table`).

    Raises:
        ValueError: if there is no format of that ending.
        ImportError: if it is GraphML and networkx is not installed.
    """
    path = Path(path)
    if path.suffix not in FORMATS:
        raise ValueError(f"output={str(path)!r} ends in {path.suffix!r}; choose one of {', '.join(FORMATS)}")
    with file_written_whole(path) as aside:
        FORMATS[path.suffix](forest, aside)
    return path


def read_forest(path: str | Path) -> FeatureForest:
    """Read the JSON of `write_forest`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file holds no JSON, or no forest.
    """
    try:
        data = read_json_object(Path(path))
    except ValueError as error:
        raise ValueError(f"{error}; give what write_forest wrote") from error
    return FeatureForest.from_dict(data)
