"""Files that may come from anybody: each loader gives a clear error, and runs and writes nothing."""

import json
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import SAE
from safetensors.torch import save_file
from short_trainings import new_trainer
from small_saes import D_IN, make_config, make_sae

from sae_lens_hsae import HierarchicalSAE, HierarchicalTrainingSAEConfig
from sae_lens_hsae.forest.files import read_forest, write_forest
from sae_lens_hsae.hub.push import stage
from sae_lens_hsae.hub.saved_model import load_evaluation
from sae_lens_hsae.interpret.circuits import read_circuit
from sae_lens_hsae.interpret.feature_cache.text import load_language_model
from sae_lens_hsae.interpret.labels.files import labels_beside
from sae_lens_hsae.training.checkpoints import MANIFEST, verify
from sae_lens_hsae.training.store import COUNTS, STATE_FILENAME, ResumableActivationsStore
from sae_lens_hsae.training.trainer import HierarchicalSAETrainer
from sae_lens_hsae.training.trainer_state import read_trainer_state


def check_message(error: BaseException) -> None:
    """It says something, and nothing that would steer a terminal."""
    assert str(error)
    assert all(character.isprintable() or character == "\n" for character in str(error))


STORE = {"kept": torch.ones(3, D_IN), "rng_state": torch.get_rng_state(), **{name: torch.tensor(1) for name in COUNTS}}


def read_store(path: Path) -> object:
    store = ResumableActivationsStore.__new__(ResumableActivationsStore)
    vars(store).update(dataset=None, d_in=D_IN)
    return store._read_state(path.parent, 0)


READERS: dict[str, Callable[[Path], object]] = {
    "forest.json": read_forest,
    "labels.json": lambda path: labels_beside(path.parent, make_sae().forest, path),
    "circuit.json": read_circuit,
    "evaluation.json": lambda path: load_evaluation(make_sae(), path.parent),  # type: ignore[arg-type]
    "cfg.json": lambda path: HierarchicalSAE.load_from_disk(path.parent),
    "sae_weights.safetensors": lambda path: HierarchicalSAE.load_from_disk(path.parent),
    MANIFEST: lambda path: verify(path.parent),
    "trainer_state.pt": read_trainer_state,
    STATE_FILENAME: read_store,
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("hostile")
    new_trainer(HierarchicalSAETrainer).save_checkpoint("0", base_path=folder)
    write_forest(make_sae().forest, folder / "0" / "forest.json")
    save_file(STORE, folder / "0" / STATE_FILENAME)
    return folder / "0"


@pytest.mark.parametrize("name", READERS)
def test_a_torn_file_and_one_of_another_kind_are_named(checkpoint, tmp_path, name):
    path = Path(shutil.copytree(checkpoint, tmp_path / "0")) / name
    whole = path.read_bytes() if path.exists() else b'{"schema": 1}'
    for content in (b"", whole[: len(whole) // 2], b"[1]", b"[" * 100_000, b"9" * 5000, b"\xff"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=re.escape(name)) as caught:
            READERS[name](path)
        check_message(caught.value)
    if name != "evaluation.json":  # which need not be there
        path.unlink()
        with pytest.raises((FileNotFoundError, ValueError), match=re.escape(name)):
            READERS[name](path)


def test_activations_of_another_width_are_refused(tmp_path):
    save_file(STORE | {"kept": torch.ones(3, D_IN + 1)}, tmp_path / STATE_FILENAME)
    with pytest.raises(ValueError, match=r"kept is torch\.float32 of shape \(3, 9\), but d_in=8"):
        read_store(tmp_path / STATE_FILENAME)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (make_config().to_dict() | {"architecture": "topk"}, "architecture='topk' is not 'hsae'"),
        (make_config().to_dict() | {"level_widths": 33}, "level_widths=33: give a list"),
        ({"architecture": "hsae"}, "d_sae missing"),
    ],
)
def test_a_configuration_of_another_kind_is_refused(config, message):
    with pytest.raises(ValueError, match=message):
        HierarchicalTrainingSAEConfig.from_dict(config)


def test_weights_of_another_width_than_the_configurations_are_refused(checkpoint, tmp_path):
    folder = Path(shutil.copytree(checkpoint, tmp_path / "0"))
    cfg = json.loads((folder / "cfg.json").read_text())
    (folder / "activation_scaler.json").unlink()
    (folder / "cfg.json").write_text(json.dumps(cfg | {"d_in": 9}))
    with pytest.raises(ValueError, match=r"in the file, but .* d_in=9 need "):
        HierarchicalSAE.load_from_disk(folder)


def test_a_field_of_no_sense_is_named_with_nothing_that_steers_a_terminal(tmp_path):
    make_sae().save_inference_model(tmp_path)
    path = tmp_path / "cfg.json"
    whole = json.loads(path.read_text())
    # SAELens' own loader repeats the first two as they are.
    wrong = {"dtype": "\x1f", "architecture": "\x1b[2J", "output_level": True, "d_in": 10**400}
    for field, value in wrong.items():
        path.write_text(json.dumps(whole | {field: value}))
        for loader in (HierarchicalSAE, *([] if isinstance(value, str) else [SAE])):
            with pytest.raises(ValueError, match=f"{field}=") as caught:
                loader.load_from_disk(path.parent)
            check_message(caught.value)


class Exploit:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_no_code_in_a_file_is_run(tmp_path):
    made, path = tmp_path / "made", tmp_path / "trainer_state.pt"
    trainer = new_trainer(HierarchicalSAETrainer)
    path.write_bytes(pickle.dumps(Exploit(made)))
    with pytest.raises(ValueError, match=r"trainer_state\.pt' is damaged"):
        trainer.load_trainer_state(path.parent)
    torch.save({"n_training_samples": Exploit(made)}, path)
    with pytest.raises(ValueError, match=r"trainer_state\.pt' is damaged"):
        trainer.load_trainer_state(path.parent)
    assert not made.exists()
    sae = make_sae(normalize_activations="none")
    sae.cfg.metadata.model_name, sae.cfg.metadata.hook_name = "someone/model", "blocks.0.hook_resid_post"
    for options, named in (
        ({"trust_remote_code": True, "token": "hf_secret\33[2J"}, "with 'token', 'trust_remote_code', but only"),
        (["hf_secret"], "with a list in place of names and values"),
        ({"hf_\33[2J": 1}, r"with 'hf_\\x1b\[2J', but only"),
    ):
        sae.cfg.metadata.model_from_pretrained_kwargs = options
        with pytest.raises(ValueError, match=f"model_from_pretrained_kwargs {named}") as refused:
            load_language_model(sae)
        check_message(refused.value)
        assert "hf_secret" not in str(refused.value)


@pytest.mark.parametrize("outside", ["../../outside", "{folder}/outside"])
def test_no_path_in_a_configuration_decides_where_anything_is_written(tmp_path, outside):
    sae = make_sae(normalize_activations="none")
    for name in ("model_name", "model_class_name", "hook_name", "dataset_path", "neuronpedia_id", "wandb_run"):
        setattr(sae.cfg.metadata, name, outside.format(folder=tmp_path))
    chosen = tmp_path / "a" / "b"
    sae.save_model(chosen / "checkpoint")
    sae.save_inference_model(chosen / "model")
    loaded = HierarchicalSAE.load_from_disk(chosen / "model")
    loaded.save_model(chosen / "again")
    loaded.level_sae(1).save_model(chosen / "level")
    stage(chosen / "model", chosen / "staged", "someone/forest", "layer_3", levels=True)
    written = {path.relative_to(tmp_path).parts[:2] for path in tmp_path.rglob("*") if path.is_file()}
    assert written == {("a", "b")}
