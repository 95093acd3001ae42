"""The examples' configs are complete and valid; they share the demo's path."""

import importlib.util
from pathlib import Path

import pytest
from host_helpers import restored_signal_handlers, sae_at
from page_blocks import blocks_of
from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory
from sae_lens.saes.sae import TrainingSAE

from sae_lens_hsae import FeatureForest, HierarchicalSAE, HierarchicalTrainingSAE
from sae_lens_hsae.cli import main as cli
from sae_lens_hsae.cli.collected import activations_of_text
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


def test_pretrained_saes_become_a_folder_that_the_commands_read(gpt2, tmp_path, capsys):
    """As `gemma_scope` makes it, of small SAEs."""
    stack = sae_at("transformer.h.0", model=gpt2, context_size=16, prepend_bos=False)
    roots, children = slice(0, 4), slice(4, 8)
    for tensor in (stack.W_enc.data.T, stack.b_enc.data, stack.threshold.data):
        tensor[children] = tensor[roots]
    stack.threshold.data.mul_(30)  # so that they fire seldom
    stack.b_dec.data[1] = stack.b_dec[0]
    saes, text, folder = [stack.level_sae(level) for level in range(3)], tmp_path / "words.txt", tmp_path / "stack"
    text.write_text(" ".join(f"w{1 + i * 37 % 98}" for i in range(400)))
    load(FOLDER / "gemma_scope.py").main(saes, text, folder)
    line = capsys.readouterr().out.splitlines()[-1].removeprefix("Now run: hsae ")
    cli.main(line.split())
    cli.main(["evaluate", str(folder), "--text", str(text)])
    cli.main(["push", str(folder), "someone/forest", "--levels", "--dry-run"])
    first = blocks_of(folder / "explorer.html")["forest"][0]["plain"]
    forest = HierarchicalSAE.load_from_disk(folder).forest
    assert forest == FeatureForest.from_saes(saes, activations=activations_of_text(saes[0], text, 400))
    assert forest.edges()[0].tolist() in [[feature, feature + 4] for feature in range(4)]
    assert first["nTokens"] == 400
