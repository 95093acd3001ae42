"""Checkpoints that may come from anybody: whole, or a clear error and nothing changed."""

import copy
import json
import pickle
import shutil
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from conftest import D_IN
from hostile_files import (
    CLEAR,
    check_message,
    fuzzed,
    memory_limited,
    whole_checkpoint,
    with_one_broken,
)
from hypothesis import given
from hypothesis import strategies as st
from test_resume import new_trainer

from sae_lens_hsae.forest import validate_parents
from sae_lens_hsae.training.checkpoints import MANIFEST, Manifest, verify, write_manifest
from sae_lens_hsae.training.store import COUNTS, STATE_FILENAME, MixingBuffer, ResumableActivationsStore
from sae_lens_hsae.training.trainer import HierarchicalSAETrainer


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return whole_checkpoint(tmp_path_factory.mktemp("checkpoint"))


def test_manifests(checkpoint, scratch):
    @fuzzed
    @given(st.data())
    def check(data):
        path = with_one_broken(data, checkpoint, scratch / "manifest", [MANIFEST])
        with memory_limited():
            try:
                verify(path.parent)
            except CLEAR as error:
                check_message(error)
                return
        told = json.loads(path.read_text())["files"]
        assert all(Path(name).name == name and (checkpoint / name).is_file() for name in told)

    check()


def test_checkpoints_whose_manifest_was_made_to_fit(checkpoint, scratch):
    names = ["cfg.json", "sae_weights.safetensors", "trainer_state.pt", "activation_scaler.json"]

    @fuzzed
    @given(st.data())
    def check(data):
        path = with_one_broken(data, checkpoint, scratch / "checkpoint", names)
        (path.parent / MANIFEST).unlink()
        write_manifest(path.parent, Manifest(96, finished=False))
        with memory_limited():
            verify(path.parent)
            trainer = new_trainer(HierarchicalSAETrainer)
            before = copy.deepcopy(trainer.sae.state_dict())
            try:
                trainer.load_trainer_state(path.parent)
                trainer.sae.load_weights_from_checkpoint(path.parent)
            except CLEAR as error:
                check_message(error)
                after = trainer.sae.state_dict()
                assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
                return
            validate_parents(trainer.sae.parents, trainer.sae.levels)
            assert len(trainer.optimizer.state) <= 5

    check()


def test_states_of_the_store(scratch):
    store = ResumableActivationsStore.__new__(ResumableActivationsStore)
    vars(store).update(dataset=None, d_in=D_IN, cached_activation_dataset=None, device=torch.device("cpu"))
    store._dataloader = buffer = MixingBuffer(8, 4, iter(()), 0.5)
    buffer.kept = buffer.serving = torch.ones(3, D_IN)
    from safetensors.torch import save_file

    whole = scratch / "store-whole"
    whole.mkdir()
    state = {"kept": torch.ones(3, D_IN), "serving": torch.ones(2, D_IN), "rng_state": torch.get_rng_state()}
    save_file({**state, **{name: torch.tensor(1) for name in COUNTS}}, whole / STATE_FILENAME)
    store.load_from_checkpoint(whole)
    random_state = torch.get_rng_state()

    @fuzzed
    @given(st.data())
    def check(data):
        path = with_one_broken(data, whole, scratch / "store", [STATE_FILENAME])
        with memory_limited(), suppress(*CLEAR):
            store.load_from_checkpoint(path.parent)
        for held in (buffer.kept, buffer.serving):
            assert held is None or held.shape[1] == D_IN

    check()
    torch.set_rng_state(random_state)


class Exploit:
    """Unpickled, it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_hostile_trainer_state_does_nothing(checkpoint, tmp_path, legacy):
    shutil.copytree(checkpoint, tmp_path / "0")
    path, made = tmp_path / "0" / "trainer_state.pt", tmp_path / "made"
    if legacy:
        path.write_bytes(pickle.dumps(Exploit(made)))
    else:
        torch.save({"n_training_samples": Exploit(made)}, path)
    trainer = new_trainer(HierarchicalSAETrainer)
    with pytest.raises(ValueError, match=r"trainer_state\.pt' is damaged"):
        trainer.load_trainer_state(tmp_path / "0")
    assert not made.exists()


@pytest.mark.parametrize("factor", [0, -1.0, pytest.param(10**400, id="too large"), "1", True, float("nan")])
def test_a_scale_that_is_no_positive_number_is_refused(checkpoint, tmp_path, factor):
    shutil.copytree(checkpoint, tmp_path / "0")
    (tmp_path / "0" / "activation_scaler.json").write_text(
        json.dumps({"scaling_factor": factor, "has_whitening": False})
    )
    with pytest.raises(ValueError, match="must be a positive number or null"):
        new_trainer(HierarchicalSAETrainer).load_trainer_state(tmp_path / "0")
