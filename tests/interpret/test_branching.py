"""Branching against clarity: plain means, an interval that covers the truth, and silence where there is nothing."""

import math

import pandas as pd
import pytest
import torch
from planted import save_with_dashboards
from transformers import AutoTokenizer

from sae_lens_hsae import FeatureForest
from sae_lens_hsae.cli import main as cli
from sae_lens_hsae.cli.demo import minilm_folder
from sae_lens_hsae.interpret.branching import branching
from sae_lens_hsae.interpret.feature_cache import Dashboards, dashboards_folder
from sae_lens_hsae.interpret.labels import label_detection, token_labels
from sae_lens_hsae.interpret.language_model.judging import COLUMNS, parent_verdicts, read_judgements
from sae_lens_hsae.text.token_text import TokenTexts


def forest_of(n_children: list[int]) -> FeatureForest:
    """Roots with this many children each, and one unassigned feature."""
    parents = [root for root, n in enumerate(n_children) for _ in range(n)]
    return FeatureForest([-1] * len(n_children) + [*parents, -1], [len(n_children), len(parents) + 1])


def scores_of(forest: FeatureForest, roots: list[float]) -> torch.Tensor:
    scores = torch.full((len(forest),), 9.0)  # what is no root does not count
    scores[: len(roots)] = torch.tensor(roots)
    return scores


def test_means_and_differences_are_plain_ones():
    forest = forest_of([2, 3, 1, 1, 1, 0, 2, 1])
    nan = math.nan
    found = branching(forest, scores_of(forest, [0.6, 0.8, 0.5, 0.4, nan, 0.1, nan, 0.6]))
    assert (found.n_several, found.n_one, found.n_none) == (2, 3, 1)
    assert found.several.value == pytest.approx(0.7)
    assert found.one.value == pytest.approx(0.5)
    assert found.difference.value == pytest.approx(0.2)
    assert found.relative.value == pytest.approx(0.4)
    assert found.several.low == pytest.approx(0.6)
    assert found.difference.low < 0.2 < found.difference.high
    assert "several children: 0.700 [0.600, 0.800] (2 roots)\n" in str(found)
    assert math.isnan(found.none.low), "one root has no spread"
    agreed = branching(forest, scores_of(forest, [1.0, 1.0, 0.5, 0.4, nan, 0.1, nan, 0.6])).several
    assert (agreed.low, agreed.high) == (pytest.approx(0.342, abs=1e-3), 1.0), "Wilson, 2 of 2"
    of_table = pd.Series(scores_of(forest, [0.6, 0.8, 0.5, 0.4, nan, 0.1, nan, 0.6]).numpy())
    assert str(branching(forest, of_table)) == str(found), "nor does the interval change with the run"


def test_without_roots_of_a_kind_there_is_no_difference():
    forest = forest_of([2, 2, 3])
    found = branching(forest, scores_of(forest, [0.1, 0.5, 0.3]))
    assert found.n_one == 0
    assert math.isnan(found.difference.value)
    assert math.isnan(found.relative.value)
    forest = forest_of([2, 1, 1])
    assert math.isnan(branching(forest, scores_of(forest, [0.1, -0.5, 0.3])).relative.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scores": torch.zeros(3)}, r"scores has shape \(3,\); give one per feature, \(6,\)"),
        ({"scores": torch.full((6,), torch.inf)}, "scores holds infinity"),
    ],
)
def test_bad_input_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        branching(forest_of([2, 1]), **({"scores": torch.zeros(6)} | arguments))


ROWS = [
    ("edge", 0, 4, 0, "refines", 0.9),
    ("edge", 0, 5, 0, "none", 0.9),
    ("edge", 0, 4, 1, "same", 0.5),
    ("edge", 0, 4, 2, "refines", 0.5),
    ("edge", 0, 5, 1, None, None),
    ("swapped", 4, 0, 0, "refines", 0.9),
    ("edge", 1, 6, 0, None, None),
]


@pytest.mark.parametrize("from_disk", [False, True])
def test_a_parents_score_is_the_share_of_its_edges_with_a_verdict(tmp_path, from_disk):
    pairs = pd.DataFrame(ROWS, columns=list(COLUMNS)).astype({"relation": object})
    if from_disk:
        pairs.to_csv(tmp_path / "judgements.csv", index=False)
        pairs = read_judgements(tmp_path / "judgements.csv")
    forest = FeatureForest([-1, -1, -1, -1, 0, 0, 1, -1, -1], [4, 5])
    verdicts = parent_verdicts(pairs, forest)
    assert verdicts[0].item() == pytest.approx(2 / 4)
    assert parent_verdicts(pairs, forest, "none")[0].item() == pytest.approx(1 / 4)
    assert verdicts[1:].isnan().all()
    for parents in ([0, 1, 1, -1, -1], [0, 0, -1, -1, -1]):  # the latter lacks the edge that got no answer
        with pytest.raises(ValueError, match=r"no edge of this forest, .*judge again with hsae judge"):
            parent_verdicts(pairs, FeatureForest([-1, -1, -1, -1, *parents], [4, 5]))
    with pytest.raises(ValueError, match="0 → 4 is no edge of this forest"):
        parent_verdicts(pairs, FeatureForest([-1, -1, -1], [1, 2]))


TABLE = ",".join(COLUMNS) + "\nedge,0,1,0,True,0.5\n"


@pytest.mark.parametrize(
    "text", ["", "a,b\n1,2\n", TABLE, TABLE.replace("relation", "special_case"), "kind,broad\nedge,x\n"]
)
def test_a_file_of_something_else_is_refused(tmp_path, text):
    (tmp_path / "judgements.csv").write_text(text)
    with pytest.raises(ValueError, match=r"is not what hsae judge writes.*; delete it, or judge again"):
        read_judgements(tmp_path / "judgements.csv")


@pytest.fixture
def saved(tmp_path):
    return save_with_dashboards(tmp_path / "sae")


def test_the_command_writes_every_feature_and_compares_roots(saved, capsys):
    cli.main(["clarity", str(saved)])
    out = capsys.readouterr().out
    dashboards = Dashboards.load(dashboards_folder(saved))
    forest = FeatureForest(dashboards.parents, dashboards.level_widths)
    tokenizer = AutoTokenizer.from_pretrained(minilm_folder())
    texts = TokenTexts(tokenizer)
    detection = label_detection(dashboards, texts.__getitem__)
    assert str(branching(forest, detection.score)) in out
    assert "judged" not in out
    table = pd.read_csv(saved / "clarity.csv", index_col="feature")
    assert table["detection"].tolist() == pytest.approx(detection.score.tolist(), nan_ok=True)
    assert table["n_children"].tolist() == forest.n_children.tolist()
    assert table.loc[5, "name"] == "1/1"
    assert table["label"].dropna().to_dict() == token_labels(dashboards, texts.__getitem__)

    rows = [("edge", p, c, 0, ("refines", "none", "same")[c % 3], 0.9) for p, c in forest.edges().tolist()]
    pd.DataFrame(rows, columns=list(COLUMNS)).to_csv(saved / "judgements.csv", index=False)
    cli.main(["clarity", str(saved), "--output", str(saved / "again.csv")])
    out = capsys.readouterr().out
    for relation in ("refines", "none"):
        verdicts = parent_verdicts(pd.read_csv(saved / "judgements.csv"), forest, relation)
        assert f'judged "{relation}"\n{branching(forest, verdicts)}' in out
    assert (saved / "again.csv").read_text() == (saved / "clarity.csv").read_text()
    (saved / "judgements.csv").write_text("x")
    with pytest.raises(SystemExit, match="is not what hsae judge writes"):
        cli.main(["clarity", str(saved)])
