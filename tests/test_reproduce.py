"""The experiments' machinery on random activations: every model trains, cells are kept, tables add up."""

import pytest
import torch

from sae_lens_hsae import cli
from sae_lens_hsae import reproduce as experiments
from sae_lens_hsae.reproduce import MODELS, TABLES, TRADE_OFF, Stream, reproduce
from sae_lens_hsae.reproduce_tables import markdown, table_of


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(experiments, "WIDTHS", (20, 30, 45))
    monkeypatch.setattr(experiments, "HELD_OUT", 500)
    monkeypatch.setattr(experiments, "BATCH_SIZE", 64)


def activations(layer, n_tokens):
    """Sparse sums of fixed directions, so that there is something to find."""
    generator = torch.Generator().manual_seed(layer)
    directions = torch.randn(20, 16, generator=generator)
    strengths = torch.rand(n_tokens, 20, generator=generator) * (torch.rand(n_tokens, 20, generator=generator) < 0.2)
    x = strengths @ directions
    return x * (4 / x.norm(dim=1).mean())


@pytest.mark.parametrize("model", [*MODELS, *TRADE_OFF])
def test_every_model_trains_and_is_measured(model):
    result = experiments.measure(model, Stream(3, 3, 0), activations(3, 500 + 110 * 64), steps=110)
    assert [level["width"] for level in result["levels"]] == [20, 30, 45]
    assert result["levels"][-1]["variance_explained"] > 0.2
    assert len(result["boundaries"]) == 2
    assert result["boundaries"][0]["n_pairs"] > 0


def test_finished_cells_are_kept_and_only_missing_ones_trained(tmp_path, monkeypatch):
    first = reproduce("similarity", activations, tmp_path, steps=3, seeds=2)
    assert [(cell["seed"], cell["model"]) for cell in first] == [
        (seed, model) for seed in range(2) for model in TABLES["similarity"].models
    ]
    gone = next(tmp_path.glob("*seed1*decoder*.json"))
    gone.unlink()
    trained = []

    def mark(model, stream, x, steps):
        assert (len(x), steps) == (500 + 3 * 64, 3)
        trained.append((model, stream.seed))
        return {"marked": True}

    monkeypatch.setattr(experiments, "measure", mark)
    second = reproduce("similarity", activations, tmp_path, steps=3, seeds=2)
    assert trained == [("decoder cosine", 1)]
    assert [cell for cell in second if "marked" not in cell] == [*first[:4], first[5]]


def test_the_seed_decides_all():
    x = activations(3, 500 + 10 * 64)
    results = [experiments.measure("HSAE", Stream(3, 3, seed), x, steps=10) for seed in (0, 0, 1)]
    assert results[0] == results[1] != results[2]


def test_an_unknown_table_is_refused(tmp_path):
    with pytest.raises(ValueError, match="table='mane': choose one of main, mechanisms, trees, similarity, tradeoff"):
        reproduce("mane", activations, tmp_path)


def cell(model, seed, hamming):
    levels = [{"level": i, "variance_explained": 0.5 + 0.1 * i, "l0": 4.0, "n_dead": i} for i in range(2)]
    boundary = {"parent_level": 0, "hamming": hamming, "p_parent_given_child": 0.7, "p_child_given_parent": 0.3}
    return {"layer": 3, "target_l0": 4, "model": model, "seed": seed, "levels": levels, "boundaries": [boundary]}


def test_tables_hold_means_and_spreads_over_seeds():
    table = table_of([cell("HSAE", 0, 10.0), cell("HSAE", 1, 12.0), cell("post hoc", 0, 20.0)])
    hamming = table[(table["measure"] == "hamming") & (table["model"] == "HSAE")].iloc[0]
    assert (hamming["mean"], hamming["spread"], hamming["seeds"]) == (11.0, 1.0, 2)
    text = markdown(table).splitlines()
    values = "0.500 0.600 ±0.000 | 4.00 4.00 ±0.00 | 0 1 ±0 | 11.00 ±1.00 | 0.700 ±0.000 | 0.300 ±0.000 |"
    assert text[2] == f"| 3 | 4 | HSAE | 2 | {values}"
    assert text[3].startswith("| 3 | 4 | post hoc | 1 | 0.500 0.600 | 4.00 4.00 | 0 1 | 20.00 |")


def test_the_command_writes_the_table(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cli, "minilm_activations", lambda folder: activations)  # noqa: ARG005
    cli.main(["reproduce", "similarity", "--seeds", "1", "--steps", "2", "--output", str(tmp_path)])
    out = capsys.readouterr().out
    assert out.strip() == (tmp_path / "similarity.md").read_text(encoding="utf-8").strip()
    assert "| 3 | 16 | decoder cosine | 1 |" in out
    assert (tmp_path / "similarity.csv").read_text().startswith("layer,target_l0,model,measure,place,mean,spread,seeds")
    assert len(list((tmp_path / "models").glob("*.json"))) == 3
