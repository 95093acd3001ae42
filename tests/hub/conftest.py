"""A saved model as training leaves it, and what of it would be pushed."""

import json

import pytest
import torch
from safetensors.torch import save_file
from small_saes import make_sae

from sae_lens_hsae import HierarchicalSAE, evaluate_forest
from sae_lens_hsae.hub.push import stage
from sae_lens_hsae.hub.saved_model import save_evaluation


@pytest.fixture
def saved(tmp_path, request):
    """In ``tmp_path / "model"``, with SAELens' config of its training, an evaluation and a sparsity beside it."""
    folder, widths = tmp_path / "model", getattr(request, "param", [4, 8, 16])
    training = make_sae(level_widths=widths, normalize_activations="none")
    training.cfg.metadata.model_name, training.cfg.metadata.hook_name = "gpt2", "blocks.8.hook_resid_post"
    training.save_inference_model(str(folder))
    runner = {"model_name": "gpt2", "lr": 3e-4, "output_path": "/home/me/runs", "sae": training.cfg.to_dict()}
    (folder / "runner_cfg.json").write_text(json.dumps(runner))
    save_file({"sparsity": torch.zeros(sum(widths))}, folder / "sparsity.safetensors")
    sae = HierarchicalSAE.load_from_disk(folder)
    save_evaluation(evaluate_forest(sae, sae.forest, torch.randn(400, 8)), sae, folder)
    return sae


@pytest.fixture
def staged(tmp_path):
    """Stages ``tmp_path / "model"`` with its levels as ``small``, and gives the folder."""

    def run():
        stage(tmp_path / "model", tmp_path / "staged", "someone/forest", "small", levels=True)
        return tmp_path / "staged"

    return run
