"""Loading: from the Hugging Face hub's client against a local server, and from disk, at every dtype."""

import copy
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from host_helpers import recorded_steps, residual_activations, runner_config, tiny_config, train
from loopback_hub import Hub, running_hub
from sae_lens import SAE, LanguageModelSAETrainingRunner
from safetensors.torch import load_file, save_file

from sae_lens_hsae import HierarchicalSAE, HierarchicalSAEConfig, HierarchicalTrainingSAE

REPOSITORY = "someone/forest"
FOLDER = "layer_0/width_4800"
DTYPES = ["float32", "float16", "bfloat16"]
every_dtype = pytest.mark.parametrize("dtype", DTYPES)

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


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[HierarchicalTrainingSAE, Path]:
    """A trained SAE and the folder it was saved to, with parents that neither half-precision dtype can hold."""
    path = tmp_path_factory.mktemp("trained") / REPOSITORY
    cfg = runner_config(
        path,
        sae=tiny_config(level_widths=[1500, 1600, 1700]),
        training_tokens=6 * 64,
        output_path=str(path / FOLDER),
    )
    with recorded_steps():
        sae = train(LanguageModelSAETrainingRunner, cfg)
    for dtype in (torch.float16, torch.bfloat16):
        assert not torch.equal(sae.parents.to(dtype).long(), sae.parents)
    # Most repositories have this file, but not all: the client must ask for it and do without.
    (path / FOLDER / "sparsity.safetensors").unlink()
    return sae, path


@dataclass
class ClientRun:
    hub: Hub
    report: dict[str, list[str]]
    results: dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def client_run(trained: tuple[HierarchicalTrainingSAE, Path], tmp_path_factory: pytest.TempPathFactory) -> ClientRun:
    """One process that loads with SAELens alone, then with this package, at each dtype."""
    root = trained[1]
    folder = tmp_path_factory.mktemp("client")
    save_file({"x": residual_activations()}, folder / "x.safetensors")
    # The endpoint is read when the client is imported, so the client needs a process of its own.
    arguments = [REPOSITORY, FOLDER, root / FOLDER, folder / "x.safetensors", folder / "out.safetensors", *DTYPES]
    with running_hub(root.parent.parent) as hub:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", CLIENT, *map(str, arguments)],
            env=hub.client_environment(folder / "hf"),
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    return ClientRun(hub, json.loads(done.stdout.splitlines()[-1]), load_file(folder / "out.safetensors"))


def test_the_architecture_is_unknown_until_the_package_is_imported(client_run):
    assert client_run.report["errors"] == ["KeyError('hsae')"] * 2


def test_the_client_asked_this_server(client_run):
    requests = client_run.hub.requests
    for name in ("cfg.json", "sae_weights.safetensors"):
        assert ("HEAD", name, 200) in requests
        # Once for all loads: the client keeps what it has.
        assert requests.count(("GET", name, 200)) == 1
    assert any(name == "sparsity.safetensors" and status == 404 for _, name, status in requests)


@every_dtype
def test_from_pretrained_gives_the_trained_sae(trained, client_run, dtype):
    sae = copy.deepcopy(trained[0]).to(dtype=getattr(torch, dtype))
    assert client_run.report["classes"] == ["sae_lens_hsae.sae.inference.HierarchicalSAE"] * len(DTYPES)
    results = client_run.results
    parents = results[f"{dtype}/parents"]
    assert parents.dtype == torch.int64
    assert torch.equal(parents, trained[0].parents)
    x = residual_activations()
    with torch.no_grad():
        acts, out = sae.encode(x), sae(x)
    assert str(out.dtype) == f"torch.{dtype}"
    assert (acts > 0).any()
    torch.testing.assert_close(results[f"{dtype}/acts"], acts)
    torch.testing.assert_close(results[f"{dtype}/out"], out)


@every_dtype
def test_load_from_disk_gives_the_trained_sae(trained, dtype):
    sae, path = trained
    loaded = SAE.load_from_disk(path / FOLDER, dtype=dtype)
    assert type(loaded) is HierarchicalSAE
    assert torch.equal(loaded.parents, sae.parents)
    assert loaded.forest == sae.forest
    x = residual_activations()
    cast = copy.deepcopy(sae).to(dtype=getattr(torch, dtype))
    with torch.no_grad():
        assert str(loaded(x).dtype) == f"torch.{dtype}"
        assert torch.equal(loaded.encode(x), cast.encode(x))
        assert torch.equal(loaded(x), cast(x))


@every_dtype
@pytest.mark.parametrize("saved_as", ["float32", "bfloat16"])
def test_parents_of_a_wide_sae(tmp_path, saved_as, dtype):
    widths = [70_000, 70_001]
    sae = HierarchicalSAE(HierarchicalSAEConfig(d_in=2, d_sae=sum(widths), level_widths=widths, dtype=saved_as))
    generator = torch.Generator().manual_seed(0)
    sae.parents[widths[0] :] = torch.randint(-1, widths[0], (widths[1],), generator=generator)
    sae.parents[-1] = widths[0] - 1
    assert int(sae.parents.max()) > 2**16
    sae.save_model(tmp_path)
    loaded = SAE.load_from_disk(tmp_path, dtype=dtype)
    assert isinstance(loaded, HierarchicalSAE)
    assert str(loaded.W_enc.dtype) == f"torch.{dtype}"
    assert loaded.parents.dtype == torch.int64
    assert torch.equal(loaded.parents, sae.parents)
