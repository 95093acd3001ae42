"""The table "steering" on a tiny model: texts fall apart into three, ways choose as they say, rows add up."""

import json
from typing import Any

import pytest
import torch
from host_helpers import HOOK, sae_at, tiny_sae_transformer
from transformers import AutoTokenizer

from experiments import steering
from experiments.french import french_documents
from experiments.gemma_stream import GemmaActivations
from experiments.paper_tables import Size
from experiments.steering import Subject, over_tasks, reproduce_steering
from experiments.steering_tasks import N_WORDS, Judge, Task, chunks, split
from sae_lens_hsae.interpret.contrast import text_activations
from sae_lens_hsae.interpret.steering import METHODS, examples_of, steer_by
from sae_lens_hsae.interpret.steering.writing import continued

POSITIVE = [[f"w{i} w{i + j} w3 w{4 + j}" for j in range(3)] for i in range(5, 35)]
NEGATIVE = [[f"w{i} w{i + j} w90 w{91 + j}" for j in range(3)] for i in range(40, 70)]


@pytest.fixture(scope="module")
def model(gpt2) -> Any:
    model: Any = tiny_sae_transformer()
    model.set_tokenizer(AutoTokenizer.from_pretrained(gpt2), default_padding_side="right")
    return model


@pytest.fixture(scope="module")
def sae() -> Any:
    return sae_at(HOOK, prepend_bos=True)


def test_no_document_gives_texts_to_two_parts():
    parts = split(POSITIVE, 0)
    documents = [{text.split()[0] for text in own} for own in (parts.examples, parts.judged, parts.held_out)]
    assert sum(map(len, documents)) == len(set.union(*documents)) == 30
    assert split(POSITIVE, 0) == parts != split(POSITIVE, 1)
    assert [len(each.split()) for each in chunks("a " * (2 * N_WORDS + 3))] == [N_WORDS, N_WORDS]


def test_no_french_sentence_stands_in_two_documents():
    documents = french_documents()
    assert documents[0][0].startswith("Ce matin mon frère a trouvé une lettre")
    assert len({text for document in documents for text in document}) == sum(map(len, documents))


def test_success_is_that_of_what_was_written_not_of_the_prompt(model):
    class Keen(Judge):
        def __init__(self) -> None:
            self.seen: list[str] = []

        def share(self, texts: Any) -> float:
            self.seen += texts
            return 1.0

    judge = Keen()
    tokens = model.to_tokens(["w5 w9 w11"], prepend_bos=False)
    success, _ = steering._judged(model, judge, [(tokens, 2)])
    assert success == 1.0
    assert judge.seen == ["w11"]


def test_the_judge_is_measured_on_what_it_was_not_trained_on():
    judge = Judge(split(POSITIVE, 0), split(NEGATIVE, 0))
    assert judge.accuracy > 0.9
    assert judge.share(["w3 w4", "w90 w91", "w3 w5", "w90 w92"]) == 0.5
    confused = Judge(split(POSITIVE, 0), split(POSITIVE, 0))
    assert confused.accuracy == pytest.approx(0.5, abs=0.01)


def test_written_with_the_cache_as_without(model, sae):
    prompt = torch.tensor([[0, 5, 9], [0, 6, 2]])
    examples = examples_of(sae, text_activations(sae, model, POSITIVE[0]), text_activations(sae, model, NEGATIVE[0]))
    for name, select in METHODS.items():
        with steer_by(model, sae, select(examples), 20.0):
            found = model.generate(prompt, max_new_tokens=6, do_sample=False, stop_at_eos=False, verbose=False)
            assert found.equal(continued(model, prompt, 6)), name


def test_cells_become_rows(model, sae, tmp_path, monkeypatch):
    toy = Task(lambda _: (POSITIVE, NEGATIVE), ("w1 w2", "w5", "w7 w9"))
    monkeypatch.setattr(steering, "TASKS", {"toy": toy})
    monkeypatch.setattr(steering, "gemma_model", lambda: model)
    monkeypatch.setattr(Subject, "forest", (sae, 2.0))
    monkeypatch.setattr(steering, "N_WRITTEN", 5)
    source = GemmaActivations(tmp_path)
    rows = reproduce_steering(source, tmp_path, Size(seeds=2))
    assert len(list(tmp_path.glob("steering-toy-seed*.json"))) == 2 * 3
    by_way = {(row["method"], row["features chosen"]): row for row in rows}
    assert by_way["not steered", ""]["success at 0.25"] == by_way["not steered", ""]["success at 0.5"]
    assert by_way["means", "x itself"]["seeds"] == 2
    assert by_way["sta", "coarse"]["looked at"] == 4
    assert by_way["sta", "flat finest"]["looked at"] == 20
    assert 4 < by_way["sta", "coarse to fine"]["looked at"] < 33
    assert by_way["sta", "random finest"]["features"] == by_way["sta", "flat finest"]["features"]
    assert by_way["sta", "random finest"]["perplexity at 0.5"] != by_way["sta", "flat finest"]["perplexity at 0.5"]
    assert all(0.9 < row["judge's accuracy"] <= 1 for row in rows)
    cells = [json.loads(path.read_text()) for path in tmp_path.glob("steering-toy-seed*.json")]
    written = [each for cell in cells if cell["method"] == "sta" for each in cell["written"] if each["way"] == "coarse"]
    of_seeds = [each["perplexity"] for each in written if each["strength"] == 0.5]
    row = by_way["sta", "coarse"]
    assert len(of_seeds) == 2
    assert row["perplexity at 0.5"] == pytest.approx(sum(of_seeds) / 2)
    (mean,) = over_tasks([row, row | {"task": "other", "features": row["features"] + 1}])
    assert mean["features"] == row["features"] + 0.5
    monkeypatch.setattr(steering, "gemma_model", None)
    assert reproduce_steering(source, tmp_path, Size(seeds=2)) == rows
