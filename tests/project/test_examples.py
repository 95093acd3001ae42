"""The examples' configs are complete and valid; they share the demo's path."""

import importlib.util
from pathlib import Path

import pytest
from host_helpers import restored_signal_handlers
from page_blocks import blocks_of
from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory
from sae_lens.saes.sae import TrainingSAE

from sae_lens_hsae import HierarchicalTrainingSAE
from sae_lens_hsae.cli.showcase import train_and_show

FOLDER = Path(__file__).parents[2] / "examples"
EXAMPLES = sorted(
    path
    for path in FOLDER.glob("*.py")
    if path.stem not in ("gemma_layers", "gemma_scope", "own_activations", "steer", "tiny")
)


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_config_makes_an_sae(path):
    module = load(path)
    assert module.train_and_show is train_and_show
    cfg = module.config()
    fields = cfg.get_training_sae_cfg_dict() | {"device": "meta"}  # weights without memory
    assert isinstance(TrainingSAE.from_dict(fields), HierarchicalTrainingSAE)
    assert cfg.lr_warm_up_steps == cfg.total_training_steps // 10
    assert cfg.sae.hierarchy_first_update < cfg.total_training_steps


def test_gemma_has_the_papers_settings():
    cfg = load(next(path for path in EXAMPLES if path.stem == "gemma_2_2b")).config()
    sae = cfg.sae
    assert (sae.d_in, sae.level_widths, sae.target_l0) == (2304, [2048, 4096, 8192, 16384], 50)
    assert (sae.structural_loss_coefficient, sae.perturbation_rate) == (0.01, 0.05)
    assert (sae.hierarchy_update_every, sae.unassigned_fraction, sae.hierarchy_similarity) == (5000, 0.2, "encoder")
    assert (cfg.train_batch_size_tokens, cfg.context_size) == (1024, 1024)
    assert (cfg.adam_beta1, cfg.lr_scheduler_name, cfg.lr_end) == (0.0, "cosineannealing", 0.0)
    assert cfg.training_tokens == pytest.approx(100_000_000, rel=1e-4)


def test_gemmas_blocks_are_trained_as_one_block_is():
    several, one = (load(FOLDER / f"{name}.py").config(steps=1000) for name in ("gemma_layers", "gemma_3_270m"))
    assert several.hook_names_per_sae == {f"block{n}": f"blocks.{n}.hook_resid_post" for n in (5, 9, 12)}
    for sae in several.saes.values():
        assert sae.to_dict() == one.sae.to_dict()
        assert isinstance(TrainingSAE.from_dict(sae.to_dict() | {"device": "meta"}), HierarchicalTrainingSAE)
    same = ("training_tokens", "train_batch_size_tokens", "lr", "lr_warm_up_steps", "adam_beta1", "adam_beta2")
    assert all(getattr(several, name) == getattr(one, name) for name in same)


def test_a_forest_of_activations_of_ones_own(monkeypatch, tmp_path, capsys):
    example = load(FOLDER / "own_activations.py")
    x, names = example.made_up()
    monkeypatch.setattr(example, "STEPS", 200)
    with restored_signal_handlers():
        example.main(x, names, tmp_path / "mine")
    assert "Open file://" in capsys.readouterr().out
    forest = blocks_of(tmp_path / "mine" / "explorer.html")["forest"][0]["plain"]
    words = {word for members in example.KINDS.values() for word in members}
    named = set(" · ".join(forest["labels"].values()).split(" · ")) - {""}
    assert named <= words
    assert len(named) > len(example.KINDS)
    assert forest["nTokens"] == len(x)


def test_gemma_scopes_saes_are_those_that_saelens_knows():
    example = load(FOLDER / "gemma_scope.py")
    release = get_pretrained_saes_directory()[example.RELEASE]
    assert set(example.LEVELS) <= set(release.saes_map)
    assert len({level.split("/")[0] for level in example.LEVELS}) == 1, "all read one hook point"
