"""Which checkpoints there are, whether they are whole, which are kept, and which a run goes on from.

Every checkpoint has a manifest with the size and SHA-256 of each of its files, written last.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sae_lens import logger
from sae_lens.config import LanguageModelSAERunnerConfig
from sae_lens.constants import RUNNER_CFG_FILENAME, SAE_CFG_FILENAME

from sae_lens_hsae.sae.model_files import check_architecture
from sae_lens_hsae.storage.json_files import is_count, printable, read_json_object
from sae_lens_hsae.storage.whole_files import delete_unfinished, delete_whole
from sae_lens_hsae.training.store import check_resumable

MANIFEST = "manifest.json"
FORMAT = "sae_lens_hsae/checkpoint"
FORMAT_VERSION = 2
NOT_OF_THE_RUN = {
    "act_store_device",
    "checkpoint_path",
    "device",
    "llm_device",
    "logger",
    "n_checkpoints",
    "output_path",
    "resume_from_checkpoint",
    "save_final_checkpoint",
    "verbose",
    "sae.device",
    "sae.metadata",
}
"""Fields of SAELens' configuration that decide where a run runs and writes, not what it computes."""


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint says of itself."""

    n_training_samples: int  # activations trained on
    finished: bool  # whether training was over, so that there is nothing to go on with


def write_manifest(checkpoint: Path, manifest: Manifest) -> None:
    files = {
        path.name: {"bytes": path.stat().st_size, "sha256": _sha256(path)} for path in sorted(checkpoint.iterdir())
    }
    about = {"format": FORMAT, "format_version": FORMAT_VERSION, **vars(manifest), "files": files}
    (checkpoint / MANIFEST).write_text(json.dumps(about, indent=1), encoding="utf-8")


def verify(checkpoint: Path) -> Manifest:
    """Check every file of a checkpoint against its manifest: that it is there, and the one that was written."""
    manifest, files = _read_manifest(checkpoint)
    for name, expected in files.items():
        _verify_file(checkpoint, name, expected)
    return manifest


def _read_manifest(checkpoint: Path) -> tuple[Manifest, dict[str, Any]]:
    """What a checkpoint says of itself, and of each of its files."""
    path = checkpoint / MANIFEST
    if not path.is_file():
        raise FileNotFoundError(
            f"{str(path)!r} is missing, so nothing tells whether the checkpoint is whole; take another"
        )
    about = read_json_object(path)
    if about.get("format") != FORMAT:
        raise ValueError(f"{str(path)!r} describes no checkpoint (format {FORMAT!r})")
    if about.get("format_version") != FORMAT_VERSION:
        raise ValueError(
            f"{str(path)!r}: format_version={about.get('format_version')!r} cannot be read, only {FORMAT_VERSION}; "
            f"resume with the version of sae-lens-hsae that wrote it"
        )
    n: Any = about.get("n_training_samples")
    finished: Any = about.get("finished")
    files: Any = about.get("files")
    if not is_count(n) or not isinstance(finished, bool) or not isinstance(files, dict) or not files:
        raise ValueError(f"{str(path)!r} is damaged; resume from another checkpoint")
    return Manifest(n, finished), files


def newest_valid(root: Path, config: dict[str, Any]) -> Path | None:
    """The checkpoint of a run that has been trained longest, of those that are whole; None if there is none.

    By the number of activations trained on, as clocks may jump. Those passed over are named with the reason, also those
    of a run whose configuration computed something else (`NOT_OF_THE_RUN`). ``root`` is the folder of runs' folders.
    """
    found: list[tuple[int, Path]] = []
    for checkpoint in sorted(path.parent for path in root.glob(f"[!.]*/[!.]*/{MANIFEST}")):
        try:
            manifest, _ = _read_manifest(checkpoint)
            other = differences(read_json_object(checkpoint / RUNNER_CFG_FILENAME), config)
        except (OSError, ValueError) as error:
            _pass_over(checkpoint, error)
            continue
        if other:
            _pass_over(checkpoint, f"its run has another {', '.join(other)}")
        elif manifest.finished:
            _pass_over(checkpoint, "its run is finished; the model is trained")
        else:
            found.append((manifest.n_training_samples, checkpoint))
    for _, checkpoint in sorted(found, reverse=True):  # every file is read, so none in vain
        try:
            verify(checkpoint)
        except (OSError, ValueError) as error:
            _pass_over(checkpoint, error)
            continue
        return checkpoint
    return None


def way_on(folder: Path) -> str:
    """What to do after a run failed whose checkpoints are in a folder: go on from the newest, or train again."""
    found: list[tuple[int, str]] = []
    for path in folder.glob(f"[!.]*/{MANIFEST}"):
        try:
            manifest, _ = _read_manifest(path.parent)
        except (OSError, ValueError):
            continue
        if not manifest.finished:
            found.append((manifest.n_training_samples, str(path.parent)))
    return f"go on with resume_from_checkpoint={max(found)[1]!r}" if found else "train again: there is no checkpoint"


def _pass_over(checkpoint: Path, reason: object) -> None:
    logger.warning(f"checkpoint {str(checkpoint)!r} is passed over: {printable(reason)}")


def delete_older(newest: Path, keep: int) -> None:
    """Of the checkpoints of a run that stand beside its newest, delete the oldest, so that ``keep`` are left with it.

    Finished ones do not count and stay, and so do those of another run, damaged ones, and any trained longer.
    """
    own, config = _read_manifest(newest)[0], runner_config(newest)
    older: list[tuple[int, Path]] = []
    for checkpoint in (path.parent for path in newest.parent.glob(f"[!.]*/{MANIFEST}")):
        try:
            manifest, _ = _read_manifest(checkpoint)
            is_other = bool(differences(runner_config(checkpoint), config))
        except (OSError, ValueError):
            continue  # `newest_valid` names it
        n, is_longer = manifest.n_training_samples, manifest.n_training_samples > own.n_training_samples
        if not (checkpoint == newest or manifest.finished or is_other or is_longer):
            older.append((n, checkpoint))
    n_to_stay = keep if own.finished else keep - 1
    for _, checkpoint in sorted(older)[: max(0, len(older) - n_to_stay)]:
        delete_whole(checkpoint)


def runner_config(checkpoint: Path) -> dict[str, Any]:
    """SAELens' configuration of the run; empty where a trainer wrote it without a runner."""
    path = checkpoint / RUNNER_CFG_FILENAME
    return read_json_object(path) if path.exists() else {}


def differences(saved: dict[str, Any], current: dict[str, Any]) -> list[str]:
    """Names of the fields by which two of SAELens' configurations describe different computations."""
    ours, theirs = (dict(_flat(json.loads(json.dumps(config)))) for config in (current, saved))
    names = {name for name in ours.keys() | theirs.keys() if "version" not in name} - NOT_OF_THE_RUN
    return sorted(name for name in names if ours.get(name) != theirs.get(name))


def _flat(config: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in config.items():
        if name == "sae" and isinstance(value, dict):
            yield from ((f"sae.{field}", entry) for field, entry in value.items())
        else:
            yield name, value


def _verify_file(checkpoint: Path, name: str, expected: Any) -> None:
    path = checkpoint / name
    if not path.is_file():
        raise FileNotFoundError(f"{str(path)!r} is missing; resume from another checkpoint")
    size = path.stat().st_size
    if size != expected.get("bytes") or _sha256(path) != expected.get("sha256"):
        raise ValueError(
            f"{str(path)!r} is not the file that was written ({size} bytes, of {expected.get('bytes')!r}); "
            f"resume from another checkpoint"
        )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


AUTO = "auto"


def resume_newest(cfg: LanguageModelSAERunnerConfig[Any]) -> None:
    """Have a run go on from the newest whole checkpoint, in the folder where that stands."""
    if cfg.checkpoint_path is None:
        raise ValueError(f"resume_from_checkpoint={AUTO!r} needs a checkpoint_path, where to look")
    root = Path(cfg.checkpoint_path).parent  # SAELens appends the run's own folder to what was given
    newest = newest_valid(root, cfg.to_dict())
    cfg.resume_from_checkpoint = None
    if newest is None:
        logger.warning(f"no checkpoint of this configuration to go on from in {str(root)!r}; training begins")
        return
    delete_unfinished(newest.parent)
    cfg.resume_from_checkpoint, cfg.checkpoint_path = str(newest), str(newest.parent)


def check_checkpoint(checkpoint: Path, config: dict[str, Any]) -> None:
    """Refuse what is no checkpoint, or one of another architecture, or not whole, before anything is loaded.

    A run with another configuration than ``config`` goes on with this one; the fields that differ are named.
    """
    cfg_path = checkpoint / SAE_CFG_FILENAME
    if not cfg_path.exists():
        raise FileNotFoundError(
            f"resume_from_checkpoint={str(checkpoint)!r} holds no {SAE_CFG_FILENAME}; "
            f"give the folder of one checkpoint, which is named after its number of samples, or {AUTO!r}"
        )
    check_architecture(cfg_path)
    check_resumable(checkpoint)
    if verify(checkpoint).finished:
        raise ValueError(
            f"resume_from_checkpoint={str(checkpoint)!r} is of a finished run, whose activation scale is folded into "
            f"the weights; take an earlier checkpoint"
        )
    if other := differences(runner_config(checkpoint) or config, config):
        logger.warning(
            f"resume_from_checkpoint={str(checkpoint)!r} is of a run with another {printable(', '.join(other))}; from "
            "here on the values of this configuration hold"
        )
