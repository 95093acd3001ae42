"""From a saved model to a repository on the Hugging Face hub, in one commit."""

from __future__ import annotations

import json
import re
import shutil
import warnings
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HFValidationError, HTTPError  # pyright: ignore[reportPrivateImportUsage]
from huggingface_hub.utils import validate_repo_id
from sae_lens.constants import RUNNER_CFG_FILENAME, SAE_CFG_FILENAME, SAE_WEIGHTS_FILENAME, SPARSITY_FILENAME
from sae_lens.saes.sae import SAEMetadata

from sae_lens_hsae.evaluation.stacks import check_scale
from sae_lens_hsae.forest.files import write_forest
from sae_lens_hsae.hub.model_card import is_local, model_card, public_name
from sae_lens_hsae.hub.picture import forest_svg
from sae_lens_hsae.hub.saved_model import EVALUATION_FILENAME, load_evaluation, load_hierarchical_sae
from sae_lens_hsae.interpret.feature_cache.text import MODEL_OPTIONS, refused_options
from sae_lens_hsae.sae.inference import HierarchicalSAE
from sae_lens_hsae.storage.json_files import read_json_object
from sae_lens_hsae.text.load_model import TRANSFORMER_LENS

CARD = "README.md"
PICTURE = "forest.svg"
FOREST = "forest.json"
OF_A_LEVEL = (SAE_CFG_FILENAME, SAE_WEIGHTS_FILENAME)
OF_A_MODEL = (*OF_A_LEVEL, SPARSITY_FILENAME, RUNNER_CFG_FILENAME, EVALUATION_FILENAME, FOREST, PICTURE, CARD)
"""Files that are pushed; of a level, and in the model's folder."""
LEVEL = re.compile(r"level_([0-9]+)")
OF_THE_MACHINE = (
    "output_path",
    "checkpoint_path",
    "resume_from_checkpoint",
    "from_pretrained_path",
    "cached_activations_path",
    "logger",
)
"""Fields of SAELens' runner config that say where things lay and who logged them; they are not pushed."""
OF_FOLDERS = ("model_name", "model_class_name", "dataset_path")
"""Fields of the config and of the SAE's metadata that are names, or folders on this machine."""
OPTIONS = "model_from_pretrained_kwargs"
"""The field with what the language model was loaded with; it may hold an access token."""


def push(
    folder: str | Path, repo_id: str, path: str | None = None, *, levels: bool = False, private: bool = False
) -> str:
    """Upload a saved `HierarchicalSAE`; afterwards ``SAE.from_pretrained(repo_id, path)`` loads it.

    With it go the forest as JSON, its picture, the model card, the training config, and SAELens' sparsity and our
    evaluation where they stand in the folder. The card also becomes the repository's own, unless that has another.
    Of an earlier push to the path nothing is left.

    Args:
        repo_id: ``owner/name``; made if it does not exist.
        path: the model's folder in the repository; None takes the name of ``folder``.
        levels: also push every level as an ordinary SAELens SAE, to ``path/level_0`` and so on.
        private: make the repository private; one that is there must be so already.

    Returns:
        Address of the commit.

    Raises:
        ValueError: as `load_hierarchical_sae`, which has a FileNotFoundError, too, and `load_evaluation`; if a name
            cannot be one, or the repository is there and public, but ``private`` was asked for.
        OSError: if the hub cannot be reached or refuses.

    Warns:
        UserWarning: if options of loading the language model are left out, since others may not be meant to see them.
    """
    api = HfApi()
    with TemporaryDirectory() as temporary:
        staged = Path(temporary)
        path = _checked_and_staged(folder, staged, repo_id, path, levels)
        try:
            return _upload(api, staged, repo_id, path, private)
        except HTTPError as error:
            if isinstance(error, OSError):  # the hub has answered, and says what is wrong
                raise
            raise ConnectionError(
                f"{api.endpoint} cannot be reached ({error}); check the network, then HF_ENDPOINT"
            ) from error


def _upload(api: HfApi, staged: Path, repo_id: str, path: str, private: bool) -> str:
    """Upload what was staged; the commit's address."""
    api.create_repo(repo_id, private=private, exist_ok=True)
    if private and not api.model_info(repo_id).private:
        raise ValueError(
            f"private=True, but {repo_id} is there already and public; make it private in its settings on the hub, "
            "give another repository, or leave this out to push for everybody to see"
        )
    if not _has_another_card(api, repo_id, path):
        # Links from the root lead through the model's folder.
        card = (staged / path / CARD).read_text(encoding="utf-8").replace(f"]({PICTURE})", f"]({path}/{PICTURE})")
        (staged / CARD).write_text(card, encoding="utf-8")
    files = _files(staged)
    left = [name for name in api.list_repo_files(repo_id) if name not in files and _is_of_model(name, path)]
    operations = [CommitOperationAdd(name, str(file)) for name, file in files.items()]
    operations += [CommitOperationDelete(name, is_folder=False) for name in left]
    # One commit: a repository is never half updated.
    return api.create_commit(repo_id, operations, commit_message=f"Upload HSAE {path}").commit_url


def _is_of_model(name: str, path: str) -> bool:
    """Whether a file of the repository is one that a push to ``path`` may have written."""
    if not name.startswith(f"{path}/"):
        return False
    folder, _, file = name.removeprefix(f"{path}/").rpartition("/")
    return file in OF_A_LEVEL if LEVEL.fullmatch(folder) else not folder and file in OF_A_MODEL


def push_dry_run(
    folder: str | Path, repo_id: str, path: str | None = None, *, levels: bool = False
) -> tuple[dict[str, int], str]:
    """What `push` would upload, without a network: bytes of each file by its place there, and the model card's text."""
    with TemporaryDirectory() as temporary:
        staged = Path(temporary)
        path = _checked_and_staged(folder, staged, repo_id, path, levels)
        sizes = {name: file.stat().st_size for name, file in _files(staged).items()}
        return sizes, (staged / path / CARD).read_text(encoding="utf-8")


def _checked_and_staged(folder: str | Path, staged: Path, repo_id: str, path: str | None, levels: bool) -> str:
    if "/" not in repo_id:
        raise ValueError(f"repository={repo_id!r} names no owner; give owner/name, such as 'someone/{repo_id}'")
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(f"repository={repo_id!r} cannot be a name; give owner/name ({error})") from error
    path = repository_path(Path(folder).resolve().name if path is None else path)
    stage(folder, staged, repo_id, path, levels=levels)
    return path


def _files(staged: Path) -> dict[str, Path]:
    """By their place in the repository."""
    files = sorted(file for file in staged.rglob("*") if file.is_file())
    return {file.relative_to(staged).as_posix(): file for file in files}


def repository_path(path: str) -> str:
    """``path`` if it can be a folder of a repository; a ValueError if it is empty, absolute, or leaves it."""
    parts = PurePosixPath(path).parts
    if not parts or ".." in parts or parts[0] == "/" or "\\" in path:
        raise ValueError(f"path={path!r} is no folder of a repository; give one such as 'layer_8/width_15k'")
    return "/".join(parts)


def stage(folder: str | Path, into: Path, repo_id: str, path: str, *, levels: bool = False) -> None:
    """Write everything that is to be pushed below ``into / path``; arguments as of `push`."""
    folder, target = Path(folder), into / path
    sae = load_hierarchical_sae(folder)
    check_scale([sae])
    evaluation = load_evaluation(sae, folder)
    training = _training_config(folder)
    left_out = refused_options(sae.cfg.metadata[OPTIONS])
    if left_out:
        warnings.warn(
            f"{OPTIONS}: not pushed, because they may be secret or run code: {', '.join(left_out)}; others load the "
            "language model without them",
            stacklevel=2,
        )
    sae.cfg.metadata = SAEMetadata.from_dict(_published(sae.cfg.metadata.to_dict()))
    sae.save_model(target)
    if (folder / SPARSITY_FILENAME).is_file():
        shutil.copy(folder / SPARSITY_FILENAME, target)
    if evaluation is not None:
        shutil.copy(folder / EVALUATION_FILENAME, target)
    if training is not None:
        (target / RUNNER_CFG_FILENAME).write_text(json.dumps(training), encoding="utf-8")
    write_forest(sae.forest, target / FOREST)
    (target / PICTURE).write_text(forest_svg(sae.forest), encoding="utf-8")
    names = save_levels(sae, target) if levels else []
    card = model_card(
        sae,
        repo_id,
        path,
        picture=PICTURE,
        level_paths=[f"{path}/{name}" for name in names],
        evaluation=evaluation,
        training=training,
    )
    (target / CARD).write_text(card, encoding="utf-8")


def save_levels(sae: HierarchicalSAE, folder: Path) -> list[str]:
    """Save every level as an ordinary SAELens SAE; the names of their folders below ``folder``, coarse to fine.

    Raises:
        ValueError: if there are folders of finer levels than the SAE has, which would be taken for its own.
    """
    names = [f"level_{level}" for level in range(len(sae.levels))]
    there = [each.name for each in folder.glob("level_*") if LEVEL.fullmatch(each.name)]
    left = sorted(name for name in there if name not in names)
    if left:
        raise ValueError(
            f"output={str(folder)!r} holds {', '.join(left)} of another SAE, where this one has {len(names)} levels; "
            "delete it, or give another folder"
        )
    for level, name in enumerate(names):
        sae.level_sae(level).save_model(folder / name)
    return names


def _training_config(folder: Path) -> dict[str, Any] | None:
    path = folder / RUNNER_CFG_FILENAME
    if not path.is_file():
        return None
    try:
        training = read_json_object(path)
    except ValueError as error:
        raise ValueError(f"{error}; delete it to push without the training config") from error
    return _published(training)


def _published(config: dict[str, Any]) -> dict[str, Any]:
    """The same without what is this machine's or secret, in the configs inside it too.

    A folder on this machine becomes what tells others what it is; `load_model` reads one by the model's name.
    """
    public: dict[str, Any] = {}
    for name, value in config.items():
        if name == OPTIONS:
            given = value if isinstance(value, dict) else {}
            public[name] = {option: given[option] for option in given if option in MODEL_OPTIONS}
        elif name in OF_FOLDERS:
            public[name] = public_name(value)
        elif name not in OF_THE_MACHINE:
            public[name] = _published(value) if isinstance(value, dict) else value
    name = config.get("model_name")
    if isinstance(name, str) and config.get("model_class_name") in (None, TRANSFORMER_LENS) and is_local(name):
        public["model_name"] = Path(name).expanduser().resolve().name
    return public


def _has_another_card(api: HfApi, repo_id: str, path: str) -> bool:
    """Whether the repository's card is of another model than the one at ``path``."""
    if not api.file_exists(repo_id, CARD):
        return False
    text = Path(api.hf_hub_download(repo_id, CARD)).read_text(encoding="utf-8")
    return f"\n# HSAE {path}\n" not in text
