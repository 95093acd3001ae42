"""The model card: how to load an HSAE, its forest in numbers, what was measured, and how it was trained."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from sae_lens_hsae.forest import FeatureForest
from sae_lens_hsae.forest.html import level_rows
from sae_lens_hsae.sae.inference import HierarchicalSAE

TRAINING_FIELDS = (
    "model_name",
    "hook_name",
    "dataset_path",
    "context_size",
    "training_tokens",
    "train_batch_size_tokens",
    "lr",
    "lr_scheduler_name",
    "lr_warm_up_steps",
    "adam_beta1",
    "adam_beta2",
    "seed",
)
"""Of SAELens' config; of the SAE's own config the card gives every field."""


def model_card(
    sae: HierarchicalSAE,
    repo_id: str,
    path: str,
    *,
    picture: str | None = None,
    level_paths: Sequence[str] = (),
    evaluation: Mapping[str, Any] | None = None,
    training: Mapping[str, Any] | None = None,
) -> str:
    """The text of ``README.md``, for the model at ``path`` in the repository ``owner/name``.

    ``picture`` is the forest's, relative to the card; ``level_paths`` say where each level is an SAE of its own. With
    the numbers of `ForestEvaluation.to_dict`, and SAELens' runner config as a dictionary, where they are known.
    """
    data = ModelCardData(library_name="saelens", tags=["sparse-autoencoder", "hsae", "interpretability"])
    metadata = sae.cfg.metadata
    sections = [
        f"---\n{data.to_yaml()}\n---",
        f"# HSAE {path}",
        "A hierarchical sparse autoencoder ([arXiv 2602.11881](https://arxiv.org/abs/2602.11881)) of "
        f"`{metadata.hook_name}` in `{public_name(metadata.model_name)}`: {len(sae.levels)} levels with "
        f"{sae.cfg.d_sae:,} features, and the forest of who is whose parent among them.",
    ]
    if picture:
        sections += [
            f"![The largest trees of the forest]({picture})",
            "The largest trees; every feature stands above its children, and is as wide as it has leaves.",
        ]
    sections += ["## Load", _loading_lines(repo_id, path, level_paths), "## Forest", _forest_table(sae.forest)]
    if evaluation is not None:
        sections += ["## Measured", _measures(evaluation)]
    if training is not None:
        sections += ["## Training", _training_table(training)]
    return "\n\n".join(sections) + "\n"


def public_name(name: Any) -> Any:
    """A value of the card; of a folder on this machine the last two parts, no more than a name on the hub has."""
    if not isinstance(name, str) or not name:
        return name
    scheme, found, address = name.rpartition("://")
    if found and scheme != "file":
        return f"{scheme}://{re.split('[?#]', address.rpartition('@')[2])[0]}"  # without password and query
    folder = Path(address)
    parts = [part for part in folder.parts if part not in (folder.anchor, "..") and not part.startswith("~")]
    return "/".join(parts[-2:]) or folder.expanduser().resolve().name


def is_local(name: str) -> bool:
    """Whether a model's or a data set's name is a path on this machine, and no name on the hub."""
    folder = Path(name)
    return folder.is_absolute() or name.startswith((".", "~")) or len(folder.parts) > 2 or folder.exists()


def _loading_lines(repo_id: str, path: str, level_paths: Sequence[str]) -> str:
    lines = [
        "```python",
        "import sae_lens",
        "import sae_lens_hsae  # pip install sae-lens-hsae; registers the architecture with SAELens",
        "",
        f'sae = sae_lens.SAE.from_pretrained("{repo_id}", "{path}")',
        "sae.forest  # who is whose parent",
        "sae.level_sae(-1)  # the finest level as a plain SAELens SAE",
        "```",
    ]
    if level_paths:
        lines += [
            "",
            "Each level is also here as an ordinary SAE, which needs SAELens alone:",
            "",
            "```python",
            "import sae_lens",
            "",
            *(f'sae_lens.SAE.from_pretrained("{repo_id}", "{level_path}")' for level_path in level_paths),
            "```",
        ]
    return "\n".join(lines)


def _forest_table(forest: FeatureForest) -> str:
    of_depth = ", ".join(f"{n:,} of depth {depth}" for depth, n in enumerate(forest.trees_by_depth, 1) if n)
    header, *rows = level_rows(forest.levels, forest.parents)
    return f"{_table(header, rows)}\n\nTrees: {of_depth}."


def _measures(evaluation: Mapping[str, Any]) -> str:
    levels = [
        [level["level"], *map(_number, (level["variance_explained"], level["l0"])), level["n_dead"]]
        for level in evaluation["levels"]
    ]
    names = ("hamming", "p_parent_given_child", "p_child_given_parent", "coverage", "sibling_lift")
    boundaries = [
        [f"{b['parent_level']} → {b['parent_level'] + 1}", *(_number(b[name]) for name in names)]
        for b in evaluation["boundaries"]
    ]
    header = ["boundary", "Hamming", "P(parent∣child)", "P(child∣parent)", "coverage", "sibling lift"]
    return "\n\n".join(
        [
            f"By `sae_lens_hsae.evaluate_forest`, on {evaluation['n_tokens']:,} tokens.",
            _table(["level", "variance explained", "L0", "dead features"], levels),
            _table(header, boundaries),
        ]
    )


def _training_table(training: Mapping[str, Any]) -> str:
    own = {name: value for name, value in training.get("sae", {}).items() if name != "metadata"}
    rows = {name: public_name(training[name]) for name in TRAINING_FIELDS if training.get(name) not in (None, "")} | own
    return _table(["field", "value"], [[f"`{name}`", f"`{value}`"] for name, value in rows.items()])


def _table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
