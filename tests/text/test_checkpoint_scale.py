"""Checkpoints of a training whose activations were scaled are read in the model's own scale."""

import json
import math
import warnings
from typing import Any

import pytest
import torch
from sae_lens import SAE
from texts_of_words import explain_text, save_model, text_folder, trained

from sae_lens_hsae import HierarchicalSAE
from sae_lens_hsae.cli.evaluate import evaluate
from sae_lens_hsae.hub.push import stage
from sae_lens_hsae.hub.saved_model import load_evaluation, load_hierarchical_sae
from sae_lens_hsae.interpret.feature_cache.text import load_language_model, tokens_and_activations
from sae_lens_hsae.text.rows import TextSource, text_rows


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """The last checkpoint of a training whose activations were scaled, and the text that it read."""
    folder = tmp_path_factory.mktemp("checkpoint")
    path = folder / "checkpoints"
    trained(folder, save_model(folder / "model"), checkpoint_path=str(path), n_checkpoints=1)
    (found,) = (each.parent for each in path.rglob("activation_scaler.json"))
    return found, TextSource(dataset=text_folder(folder / "text"))


def test_a_checkpoint_is_read_in_the_models_scale(checkpoint):
    folder, text = checkpoint
    scale = json.loads((folder / "activation_scaler.json").read_text())["scaling_factor"]
    assert abs(scale - 1) > 0.1, "else the scale makes no difference"
    with pytest.warns(UserWarning, match="reads activations times a factor, as checkpoints .*_scaler.json"):
        expected: Any = SAE.load_from_disk(folder)
    expected.fold_activation_norm_scaling_factor(scale)
    for load in (HierarchicalSAE.load_from_disk, load_hierarchical_sae):
        with pytest.warns(UserWarning, match="times a factor|is folded") as told:
            found = load(folder)
        (only,) = told
        assert "is folded into the SAE" in str(only.message)
        assert found.cfg.normalize_activations == "none"
        for name, tensor in expected.state_dict().items():
            assert torch.equal(found.state_dict()[name], tensor), name
    with pytest.warns(UserWarning, match="is folded"):
        measured = evaluate(folder, 640, text)
    model = load_language_model(expected)
    rows = text_rows(text, expected.cfg.metadata, model.tokenizer, 640)
    x = torch.cat([x.flatten(0, 1) for _, x in tokens_and_activations(expected, model, rows)])[:640]
    with torch.no_grad():
        error = (x - expected(x)).square().sum() / (x - x.mean(0)).square().sum()
    assert measured.levels[-1].variance_explained == pytest.approx(1 - error.item(), abs=1e-4)
    assert load_evaluation(found, folder) is not None, "it belongs to these weights"


def test_training_that_goes_on_from_a_checkpoint_is_not_warned_of_its_scale(checkpoint, tmp_path):
    folder, _ = checkpoint
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for source in ("from_pretrained_path", "resume_from_checkpoint"):
            overrides: dict[str, Any] = {source: str(folder)}
            trained(tmp_path / source, folder.parents[2] / "model", **overrides)
    assert not [warning for warning in told if "times a factor" in str(warning.message)]


def test_a_scale_that_is_not_known_or_damaged_is_refused(checkpoint, tmp_path):
    folder, text = checkpoint
    unknown: Any = SAE.load_from_disk(folder)
    unknown.save_model(tmp_path / "unknown")
    for call in (
        lambda: evaluate(tmp_path / "unknown", 64, text),
        lambda: explain_text(tmp_path / "unknown", "w1"),
        lambda: stage(tmp_path / "unknown", tmp_path / "staged", "me/it", "model"),
    ):
        with pytest.raises(ValueError, match="reads activations times a factor, which is not known here"):
            call()
    with pytest.warns(UserWarning, match="reads activations times a factor, as checkpoints"):
        HierarchicalSAE.load_from_disk(tmp_path / "unknown")
    wrong = [(factor, False) for factor in (0, -1.0, 10**400, "1", True, math.nan)]
    for factor, whitening in [*wrong, (2.0, True)]:
        scale = {"scaling_factor": factor, "has_whitening": whitening}
        (tmp_path / "unknown" / "activation_scaler.json").write_text(json.dumps(scale))
        with pytest.raises(ValueError, match=r"activation_scaler\.json' is damaged"):
            load_hierarchical_sae(tmp_path / "unknown")
