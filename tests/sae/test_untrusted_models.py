"""Forests, configurations and models that may come from anybody: a whole object or a clear error."""

import json
import re
import shutil

import pytest
import torch
from conftest import D_IN, make_config, make_sae
from hostile_files import (
    CLEAR,
    altered,
    check_message,
    fuzzed,
    memory_limited,
    values,
    whole_model,
    with_one_broken,
)
from hypothesis import given
from hypothesis import strategies as st
from sae_lens import SAE

from sae_lens_hsae import FeatureForest, HierarchicalSAE, HierarchicalSAEConfig, HierarchicalTrainingSAEConfig
from sae_lens_hsae.forest import validate_parents
from sae_lens_hsae.forest.files import read_forest
from sae_lens_hsae.hub.push import stage
from sae_lens_hsae.hub.saved_model import load_evaluation
from sae_lens_hsae.interpret.feature_cache.text import load_language_model
from sae_lens_hsae.interpret.labels.files import read_labels
from sae_lens_hsae.training.checkpoints import verify


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


def forest_dict():
    return make_sae().forest.to_dict()


@fuzzed
@given(altered(forest_dict()) | values)
def test_forests(data):
    with memory_limited():
        try:
            forest = FeatureForest.from_dict(data)
        except CLEAR as error:
            check_message(error)
            return
    validate_parents(forest.parents, forest.levels)
    assert FeatureForest.from_dict(json.loads(json.dumps(forest.to_dict()))) == forest
    for feature in range(len(forest)):
        assert forest.path(feature)[-1] == feature


@pytest.mark.parametrize("of", ["inference", "training"])
def test_configurations(of):
    whole = make_config().to_dict() if of == "training" else make_sae().cfg.get_inference_sae_cfg_dict()
    whole = json.loads(json.dumps(whole))
    read = (HierarchicalTrainingSAEConfig if of == "training" else HierarchicalSAEConfig).from_dict
    assert read(whole).d_in == D_IN

    @fuzzed
    @given(altered(whole) | values)
    def check(data):
        with memory_limited():
            try:
                cfg = read(data)
            except CLEAR as error:
                check_message(error)
                return
            assert sum(cfg.level_widths) == cfg.d_sae
            if cfg.d_in * cfg.d_sae < 1e6:
                made = HierarchicalSAE(cfg) if isinstance(cfg, HierarchicalSAEConfig) else type(make_sae())(cfg)
                assert made.W_enc.shape == (cfg.d_in, cfg.d_sae)

    check()


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return whole_model(tmp_path_factory.mktemp("model"))


def assert_whole(sae):
    forest = sae.forest
    validate_parents(forest.parents, forest.levels)
    x = torch.zeros(2, sae.cfg.d_in, dtype=sae.dtype)
    assert sae(x).shape == x.shape
    assert sae.encode(x).shape == (2, forest.n_features)


def test_models(model_folder, scratch):
    @fuzzed
    @given(st.data())
    def check(data):
        with_one_broken(data, model_folder, scratch / "model", ["cfg.json", "sae_weights.safetensors"])
        with memory_limited():
            try:
                sae = HierarchicalSAE.load_from_disk(scratch / "model")
            except CLEAR as error:
                check_message(error)
                return
        assert_whole(sae)

    assert_whole(HierarchicalSAE.load_from_disk(model_folder))
    check()


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"a":' * 100_000, "[1]", '"\\ud800', "9" * 5000], ids=lambda text: text[:5]
)
def test_json_of_any_kind_is_an_object_or_a_clear_error(model_folder, tmp_path, text):
    whole = HierarchicalSAE.load_from_disk(model_folder)
    readers = {
        "forest.json": read_forest,
        "labels.json": read_labels,
        "evaluation.json": lambda path: load_evaluation(whole, path.parent),
        "cfg.json": lambda path: HierarchicalSAE.load_from_disk(path.parent),
        "manifest.json": lambda path: verify(path.parent),
    }
    for name, read in readers.items():
        path = tmp_path / name
        path.write_text(text)
        with pytest.raises(ValueError, match=re.escape(name)) as caught:
            read(path)
        check_message(caught.value)


@pytest.mark.parametrize(
    ("field", "value", "loaders"),
    [
        ("dtype", "\x1f", [HierarchicalSAE]),  # SAELens repeats it as it is
        ("architecture", "\x1b[2J", [HierarchicalSAE]),
        ("output_level", True, [HierarchicalSAE, SAE]),
        pytest.param("d_in", 10**400, [HierarchicalSAE, SAE], id="too large"),
    ],
)
def test_a_field_of_no_sense_is_named_with_nothing_that_steers_a_terminal(
    model_folder, tmp_path, field, value, loaders
):
    shutil.copytree(model_folder, tmp_path / "model")
    path = tmp_path / "model" / "cfg.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    for loader in loaders:
        with pytest.raises(ValueError, match=f"{field}=") as caught:
            loader.load_from_disk(path.parent)
        check_message(caught.value)


def test_metadata_cannot_have_code_run():
    sae = make_sae(normalize_activations="none")
    sae.cfg.metadata.model_name, sae.cfg.metadata.hook_name = "someone/model", "blocks.0.hook_resid_post"
    sae.cfg.metadata.model_from_pretrained_kwargs = {"trust_remote_code": True}
    with pytest.raises(ValueError, match=r"model_from_pretrained_kwargs=\{'trust_remote_code': True\}"):
        load_language_model(sae)


@pytest.mark.parametrize("outside", ["../../outside", "{folder}/outside"])
def test_no_path_in_a_configuration_decides_where_anything_is_written(tmp_path, outside):
    sae = make_sae()
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
