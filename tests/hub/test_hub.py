"""Pushing to a hub with the real client, and loading from there at every dtype."""

import copy
import json
import re
from pathlib import Path

import pytest
import torch
from loopback_hub import running_hub
from safetensors.torch import load_file
from small_saes import make_sae

from sae_lens_hsae.cli import main as cli
from sae_lens_hsae.forest.files import read_forest
from sae_lens_hsae.hub.push import repository_path, stage

REPOSITORY = "someone/forest"
DTYPES = ["float32", "float16", "bfloat16"]

LOAD = """
import sys
from safetensors.torch import save_file
from sae_lens import SAE

repository, out_path, level_path, path, *dtypes = sys.argv[1:]
sae = SAE.from_pretrained(repository, level_path)  # needs no package but SAELens
assert (sae.cfg.architecture(), sae.cfg.metadata.model_name) == ("jumprelu", "gpt2")
assert sae.cfg.metadata.hook_name == "blocks.8.hook_resid_post"
tensors = {f"level/{name}": tensor for name, tensor in sae.state_dict().items()}
try:
    SAE.from_pretrained(repository, path)
except KeyError as error:
    assert error.args == ("hsae",)
else:
    raise AssertionError("it loads without the package")
assert "sae_lens_hsae" not in sys.modules

import sae_lens_hsae

for dtype in dtypes:
    sae = SAE.from_pretrained(repository, path, dtype=dtype)
    assert type(sae) is sae_lens_hsae.HierarchicalSAE
    tensors |= {f"{dtype}/{name}": tensor for name, tensor in sae.state_dict().items()}
save_file(tensors, out_path)
"""


def push(hub, folder, *calls):
    """One process that makes several calls of ``hsae push``; what it wrote, and what ended each call."""
    code = (
        "import json, sys\nfrom sae_lens_hsae.cli import main as cli\nfor call in json.loads(sys.argv[1]):\n"
        "    try: cli.main(['push', *call])\n    except SystemExit as end: print('ended:', end)"
    )
    return hub.run(folder, "-c", code, json.dumps([[str(word) for word in call] for call in calls]))


@pytest.mark.parametrize("saved", [[1500, 1600, 1700]], indirect=True)
def test_what_is_pushed_is_what_from_pretrained_gives(tmp_path, saved):
    """With parents that neither half-precision dtype can hold."""
    for dtype in (torch.float16, torch.bfloat16):
        assert not torch.equal(saved.parents.to(dtype).long(), saved.parents)
    with running_hub(tmp_path / "hub") as hub:
        pushed = push(hub, tmp_path, [tmp_path / "model", REPOSITORY, "--path", "layer_8/small", "--levels"])
        assert pushed.startswith(f"{hub.endpoint}/{REPOSITORY}/commit/")
        out, paths = tmp_path / "got.safetensors", ("layer_8/small/level_1", "layer_8/small")
        hub.run(tmp_path, "-c", LOAD, REPOSITORY, out, *paths, *DTYPES)
        [(repository, message, paths)] = hub.commits  # everything in one
        assert ("PUT", 200) in [(method, status) for method, _, status in hub.requests], "weights go by LFS"
        # A level has none, and the client does without.
        assert any(name == "sparsity.safetensors" and status == 404 for _, name, status in hub.requests)
    assert (repository, message) == (REPOSITORY, "Upload HSAE layer_8/small")
    names = {"README.md", "cfg.json", "evaluation.json", "forest.json", "forest.svg", "runner_cfg.json"}
    names |= {"sae_weights.safetensors", "sparsity.safetensors"}
    names |= {f"level_{level}/{name}" for level in range(3) for name in ("cfg.json", "sae_weights.safetensors")}
    assert set(paths) == {f"layer_8/small/{name}" for name in names} | {"README.md"}
    expected = {f"level/{name}": tensor for name, tensor in saved.level_sae(1).state_dict().items()}
    for dtype in DTYPES:
        cast = copy.deepcopy(saved).to(dtype=getattr(torch, dtype))
        expected |= {f"{dtype}/{name}": tensor for name, tensor in cast.state_dict().items()}
    got = load_file(tmp_path / "got.safetensors")
    assert set(got) == set(expected)
    for name, tensor in expected.items():
        assert got[name].dtype == tensor.dtype, name
        assert torch.equal(got[name], tensor), name
    repository = tmp_path / "hub" / REPOSITORY
    assert read_forest(repository / "layer_8/small/forest.json") == saved.forest
    training = json.loads((repository / "layer_8/small/runner_cfg.json").read_text())
    assert "output_path" not in training
    assert training["lr"] == 3e-4
    card = (repository / "README.md").read_text()
    assert (repository / re.findall(r"!\[.*\]\((.*)\)", card)[0]).is_file()


@pytest.mark.usefixtures("saved")
def test_another_models_card_stays_and_ones_own_is_renewed(tmp_path):
    calls = [(tmp_path / "model", REPOSITORY, "--path", path) for path in ("first", "second")]
    with running_hub(tmp_path / "hub") as hub:
        card = tmp_path / "hub" / REPOSITORY / "README.md"
        card.parent.mkdir(parents=True)
        card.write_text("---\n---\n\n# HSAE first\n\nof old\n")
        push(hub, tmp_path, *calls)
    assert "\n# HSAE first\n" in card.read_text()
    assert "of old" not in card.read_text()
    assert "\n# HSAE second\n" in (card.parent / "second/README.md").read_text()


@pytest.mark.usefixtures("saved")
def test_a_second_push_leaves_nothing_of_the_first_and_all_else(tmp_path):
    make_sae(level_widths=[4, 8], normalize_activations="none").save_inference_model(str(tmp_path / "second"))
    own = tmp_path / "hub" / REPOSITORY / "small"
    others = ["notes.txt", "level_2/notes.txt", "levels/cfg.json", "layer_1/cfg.json", "../smaller/evaluation.json"]
    for name in others:
        (own / name).parent.mkdir(parents=True, exist_ok=True)
        (own / name).write_text("mine")
    calls = [(tmp_path / name, REPOSITORY, "--path", "small", "--levels") for name in ("model", "second")]
    with running_hub(tmp_path / "hub") as hub:
        push(hub, tmp_path, *calls)
        assert len(hub.commits) == 2
    stage(tmp_path / "second", tmp_path / "staged", REPOSITORY, "small", levels=True)
    staged = {file.relative_to(tmp_path / "staged/small") for file in (tmp_path / "staged").rglob("*.*")}
    found = {file.relative_to(own) for file in own.rglob("*") if file.is_file()}
    assert found == staged | {Path(name) for name in others[:-1]}
    assert (own.parent / "smaller/evaluation.json").is_file()


def test_private_is_refused_where_everybody_would_see_it(tmp_path):
    make_sae(normalize_activations="none").save_inference_model(str(tmp_path / "model"))
    call = (tmp_path / "model", REPOSITORY, "--private")
    with running_hub(tmp_path / "hub") as hub:
        (tmp_path / "hub" / REPOSITORY).mkdir(parents=True)
        said = push(hub, tmp_path, call)
        assert said.startswith(f"ended: hsae push: private=True, but {REPOSITORY} is there already and public; make ")
        assert hub.commits == []
        assert "PUT" not in [method for method, *_ in hub.requests]
        (tmp_path / "hub" / REPOSITORY).rmdir()
        assert "ended" not in push(hub, tmp_path, call, call), "it is made private, and remains so"
        assert len(hub.commits) == 2


def test_a_refused_push_leaves_the_repository_as_it_was(tmp_path):
    make_sae(normalize_activations="none").save_inference_model(str(tmp_path / "model"))
    with running_hub(tmp_path / "hub") as hub:
        hub.refuses_commits = True
        said = push(hub, tmp_path, [tmp_path / "model", REPOSITORY])
    assert said.startswith("ended: hsae push: ")
    assert "403" in said
    assert list((tmp_path / "hub" / REPOSITORY).iterdir()) == []
    gone = push(hub, tmp_path, [tmp_path / "model", REPOSITORY])
    assert gone.startswith(f"ended: hsae push: {hub.endpoint} cannot be reached (")


@pytest.mark.parametrize(
    ("name", "model_class", "published"),
    [
        ("../models/gemma-3-270m", None, "gemma-3-270m"),
        ("models/gemma-3-270m", None, "gemma-3-270m"),
        ("~/gemma-3-270m", None, "gemma-3-270m"),
        ("/home/me/hub/gemma-3-270m", "HookedTransformer", "gemma-3-270m"),
        ("/home/me/hub/gemma-3-270m", "AutoModelForCausalLM", "hub/gemma-3-270m"),
    ],
)
def test_nothing_that_is_pushed_names_a_folder_of_the_machine(
    tmp_path, monkeypatch, saved, staged, name, model_class, published
):
    (tmp_path / "models/gemma-3-270m").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    where = {"model_name": name, "model_class_name": model_class, "dataset_path": "/home/me/my secret/notes.txt"}
    for field, value in where.items():
        setattr(saved.cfg.metadata, field, value)
    saved.save_model(tmp_path / "model")
    more = {"output_path": "/home/me/runs", "sae": saved.cfg.to_dict()}
    (tmp_path / "model/runner_cfg.json").write_text(json.dumps(where | more))
    folder = staged()
    for file in folder.rglob("*"):
        assert file.is_dir() or b"/home/me" not in file.read_bytes(), file
    for path in ("small", "small/level_1"):
        metadata = json.loads((folder / path / "cfg.json").read_text())["metadata"]
        assert (metadata["model_name"], metadata["dataset_path"]) == (published, "my secret/notes.txt")


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (
            {"token": "hf_SECRET", "quantization_config": {"key": "hf_SECRET"}, "device_map": "auto", "revision": "v2"},
            "_kwargs: not pushed, .*: 'quantization_config', 'token'; others",
        ),
        ("hf_SECRET", "_kwargs: not pushed, .*: a str in place of names and values"),
    ],
)
def test_no_secret_is_pushed_and_what_the_commands_pass_on_is(tmp_path, saved, staged, given, told):
    saved.cfg.metadata.model_from_pretrained_kwargs = given
    saved.save_model(tmp_path / "model")
    runner = {"model_from_pretrained_kwargs": given, "sae": saved.cfg.to_dict()}
    (tmp_path / "model/runner_cfg.json").write_text(json.dumps(runner))
    with pytest.warns(UserWarning, match=told) as said:
        folder = staged()
    assert not any("hf_SECRET" in str(each.message) for each in said)
    for file in folder.rglob("*"):
        assert file.is_dir() or b"hf_SECRET" not in file.read_bytes(), file
    if isinstance(given, dict):
        configs = [json.loads(file.read_text()) for file in folder.rglob("cfg.json")]
        runner = json.loads((folder / "small/runner_cfg.json").read_text())
        for each in (runner, runner["sae"]["metadata"], *(config["metadata"] for config in configs)):
            assert each["model_from_pretrained_kwargs"] == {"revision": "v2"}


@pytest.mark.usefixtures("saved")
def test_a_dry_run_says_what_would_be_pushed_and_needs_no_hub(tmp_path, staged, capsys, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    cli.main(["push", str(tmp_path / "model"), REPOSITORY, "--path", "small", "--levels", "--dry-run", "--json"])
    said = json.loads(capsys.readouterr().out)
    folder = staged()
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert said["files"] == {str(path.relative_to(folder)): path.stat().st_size for path in files}
    assert said["card"] == (folder / "small/README.md").read_text()
    cli.main(["push", str(tmp_path / "model"), REPOSITORY, "--dry-run"])
    assert "nothing was uploaded" in capsys.readouterr().out


@pytest.mark.usefixtures("saved")
def test_an_evaluation_of_other_weights_is_refused(tmp_path, staged):
    make_sae(seed=1, level_widths=[4, 8, 16], normalize_activations="none").save_inference_model(
        str(tmp_path / "model")
    )
    with pytest.raises(ValueError, match=r"other weights.*hsae evaluate"):
        staged()
    (tmp_path / "model/evaluation.json").write_text("{}")
    with pytest.raises(ValueError, match="not what hsae evaluate writes"):
        staged()


@pytest.mark.parametrize("path", ["", "/abs", "../up", "a/../b", "a\\b"])
def test_paths_that_are_none(path):
    with pytest.raises(ValueError, match="no folder of a repository"):
        repository_path(path)


@pytest.mark.parametrize(
    ("folder", "repository", "message"),
    [
        ("nothing", REPOSITORY, "no saved SAE"),
        ("level", REPOSITORY, "architecture='jumprelu', which has no forest"),
        ("level", "a/b/c", "repository='a/b/c' cannot be a name; give owner/name"),
        ("level", "forest", "repository='forest' names no owner; give owner/name"),
    ],
)
def test_bad_input_is_one_line(tmp_path, folder, repository, message):
    make_sae().level_sae(0).save_model(tmp_path / "level")
    with pytest.raises(SystemExit, match=f"^hsae push: .*{message}"):
        cli.main(["push", str(tmp_path / folder), repository])
