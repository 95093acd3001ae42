"""A saved model with its evaluation beside it, as other people will get it."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

from sae_lens.constants import SAE_CFG_FILENAME

from sae_lens_hsae.config import ARCHITECTURE
from sae_lens_hsae.evaluation import ForestEvaluation
from sae_lens_hsae.interpret.feature_cache import fingerprint
from sae_lens_hsae.sae.inference import UNFOLDED, HierarchicalSAE, LevelStack
from sae_lens_hsae.storage.json_files import read_json_object
from sae_lens_hsae.storage.whole_files import check_file_writable, write_whole

EVALUATION_FILENAME = "evaluation.json"


def load_hierarchical_sae(folder: str | Path, device: str = "cpu") -> HierarchicalSAE:
    """The `HierarchicalSAE` that was saved to ``folder``, its files checked; of a checkpoint with its scale."""
    folder = Path(folder)
    if not (folder / SAE_CFG_FILENAME).is_file():
        raise FileNotFoundError(f"{folder} holds no {SAE_CFG_FILENAME}, so no saved SAE; give the folder it is in")
    architecture = read_json_object(folder / SAE_CFG_FILENAME).get("architecture")
    if architecture != ARCHITECTURE:
        raise ValueError(
            f"{folder} holds an SAE of architecture={architecture!r}, which has no forest; give an HSAE's, or make one "
            "of several such SAEs with FeatureForest.from_saes() and HierarchicalSAE.from_saes()"
        )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", UNFOLDED)  # who reads activations with it checks the scale
        return HierarchicalSAE.load_from_disk(folder, device=device)


def save_evaluation(
    evaluation: ForestEvaluation, sae: LevelStack, folder: str | Path, output: str | Path | None = None
) -> Path:
    """Write an evaluation, and ``weights``, which ties it to the model, to ``output``, or ``evaluation.json`` there."""
    path = Path(output or Path(folder) / EVALUATION_FILENAME)
    record = {"weights": fingerprint(sae, sae.forest), "evaluation": evaluation.to_dict()}
    write_whole(path, json.dumps(record, indent=1))
    return path


def check_evaluation_can_stand(sae: HierarchicalSAE, folder: str | Path, n_tokens: int) -> None:
    """Check, before anything is measured, that ``evaluation.json`` can be written and none of more tokens is lost."""
    check_file_writable("output", Path(folder) / EVALUATION_FILENAME)
    before = tokens_measured(sae, folder)
    if before > n_tokens:
        raise ValueError(
            f"n_tokens={n_tokens}, but {Path(folder) / EVALUATION_FILENAME} was measured on {before:,}, and hsae push "
            "uploads it; give --output FILE to keep both, measure on more, or delete it"
        )


def tokens_measured(sae: HierarchicalSAE, folder: str | Path) -> int:
    """How many tokens the ``evaluation.json`` of these weights was measured on; 0 without one that can be read."""
    try:
        standing = load_evaluation(sae, folder)
    except ValueError:
        return 0  # of other weights, or damaged: to be replaced
    return 0 if standing is None else standing.get("n_tokens", 0)


def load_evaluation(sae: HierarchicalSAE, folder: str | Path) -> dict[str, Any] | None:
    """`ForestEvaluation.to_dict` as `save_evaluation` wrote it, for these weights; None if there is none."""
    path = Path(folder) / EVALUATION_FILENAME
    if not path.exists():
        return None
    remedy = "delete it, or measure again with hsae evaluate"
    try:
        record = read_json_object(path)
        weights, evaluation = record["weights"], record["evaluation"]
    except ValueError as error:
        raise ValueError(f"{error}; {remedy}") from error
    except KeyError as error:
        raise ValueError(f"{path} is not what hsae evaluate writes: it has no {error}; {remedy}") from error
    if not isinstance(evaluation, dict):
        raise ValueError(f"{path} is not what hsae evaluate writes: its evaluation is no object; {remedy}")
    if weights != fingerprint(sae, sae.forest):
        raise ValueError(f"{path} belongs to other weights than those beside it; {remedy}")
    return evaluation
