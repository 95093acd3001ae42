"""Loading with the Hugging Face hub's client from a local server, at every dtype."""

import copy
import json

import torch
from host_helpers import residual_activations, runner_config, tiny_config, train
from loopback_hub import running_hub
from sae_lens import LanguageModelSAETrainingRunner
from safetensors.torch import load_file, save_file

REPOSITORY = "someone/forest"
FOLDER = "layer_0/width_4800"
DTYPES = ["float32", "float16", "bfloat16"]

CLIENT = """
import json, sys
import torch
from safetensors.torch import load_file, save_file
from sae_lens import SAE

repository, folder, on_disk, x_path, out_path, *dtypes = sys.argv[1:]
report = {"errors": [], "classes": []}
for load in (lambda: SAE.load_from_disk(on_disk), lambda: SAE.from_pretrained(repository, folder)):
    try:
        load()
    except Exception as error:
        report["errors"].append(repr(error))

import sae_lens_hsae

x, results = load_file(x_path)["x"], {}
for dtype in dtypes:
    sae = SAE.from_pretrained(repository, folder, dtype=dtype)
    report["classes"].append(type(sae).__module__ + "." + type(sae).__name__)
    with torch.no_grad():
        results[dtype + "/acts"], results[dtype + "/out"] = sae.encode(x), sae(x)
    results[dtype + "/parents"] = sae.parents
save_file(results, out_path)
print(json.dumps(report))
"""


def test_from_pretrained_gives_the_trained_sae_once_the_package_is_imported(tmp_path):
    """With parents that neither half-precision dtype can hold."""
    folder = tmp_path / "hub" / REPOSITORY / FOLDER
    cfg = runner_config(
        tmp_path, sae=tiny_config(level_widths=[1500, 1600, 1700]), training_tokens=6 * 64, output_path=str(folder)
    )
    sae = train(LanguageModelSAETrainingRunner, cfg)
    for dtype in (torch.float16, torch.bfloat16):
        assert not torch.equal(sae.parents.to(dtype).long(), sae.parents)
    # Most repositories have this file, but not all: the client must ask for it and do without.
    (folder / "sparsity.safetensors").unlink()
    x = residual_activations()
    save_file({"x": x}, tmp_path / "x.safetensors")
    with running_hub(tmp_path / "hub") as hub:
        files = (tmp_path / "x.safetensors", tmp_path / "out.safetensors")
        report = json.loads(
            hub.run(tmp_path, "-c", CLIENT, REPOSITORY, FOLDER, folder, *files, *DTYPES).splitlines()[-1]
        )
    assert report["errors"] == ["KeyError('hsae')"] * 2
    assert report["classes"] == ["sae_lens_hsae.sae.inference.HierarchicalSAE"] * len(DTYPES)
    for name in ("cfg.json", "sae_weights.safetensors"):
        assert ("HEAD", name, 200) in hub.requests
        # Once for all loads: the client keeps what it has.
        assert hub.requests.count(("GET", name, 200)) == 1
    assert any(name == "sparsity.safetensors" and status == 404 for _, name, status in hub.requests)
    results = load_file(tmp_path / "out.safetensors")
    for dtype in DTYPES:
        cast = copy.deepcopy(sae).to(dtype=getattr(torch, dtype))
        assert results[f"{dtype}/parents"].dtype == torch.int64
        assert torch.equal(results[f"{dtype}/parents"], sae.parents)
        with torch.no_grad():
            acts, out = cast.encode(x), cast(x)
        assert str(out.dtype) == f"torch.{dtype}"
        assert (acts > 0).any()
        torch.testing.assert_close(results[f"{dtype}/acts"], acts)
        torch.testing.assert_close(results[f"{dtype}/out"], out)
