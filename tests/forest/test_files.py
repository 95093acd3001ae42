"""Forests as files for other tools."""

import networkx
import pandas
import pytest
import torch
from sae_lens import SAE
from small_saes import make_sae

from sae_lens_hsae import FeatureForest, HierarchicalSAE
from sae_lens_hsae.cli import main as cli
from sae_lens_hsae.forest.files import forest_table, read_forest, write_forest


def test_convert_writes_every_format(tmp_path, capsys):
    make_sae(level_widths=[4, 8, 16], normalize_activations="none").save_inference_model(tmp_path / "model")
    saved = HierarchicalSAE.load_from_disk(tmp_path / "model")
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
    for name, widths in (("model", [4, 8, 16]), ("smaller", [4, 8])):
        make_sae(level_widths=widths, normalize_activations="none").save_inference_model(tmp_path / name)
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
        assert forest.index(f"{row.level}/{row.number}") == feature
    with pytest.raises(ValueError, match=r"'.xml'; choose one of .json"):
        write_forest(forest, "x.xml")


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        ("list.json", "x.csv", "no JSON object"),
        ("level", "x.xml", "which has no forest"),
    ],
)
def test_what_cannot_be_converted_is_told(tmp_path, source, target, message):
    make_sae().level_sae(0).save_model(tmp_path / "level")
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(SystemExit, match=f"^hsae convert: .*{message}"):
        cli.main(["convert", str(tmp_path / source), str(tmp_path / target)])
