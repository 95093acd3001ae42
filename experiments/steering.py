"""Steering Gemma 3 270M by features of a forest: success by an offline judge against perplexity of what is written."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

import pandas
import torch

from experiments.gemma_forests import gemma_forest
from experiments.gemma_stream import GemmaActivations, gemma_model, typical_distance
from experiments.kept_names import named_by
from experiments.models import HSAE
from experiments.paper_tables import Size, Stream, kept_name
from experiments.steering_tasks import TASKS, Judge, split
from sae_lens_hsae.cli.kept_cells import Cell, finish_cells
from sae_lens_hsae.interpret.contrast import text_activations
from sae_lens_hsae.interpret.steering import METHODS, Examples, Selection, descend, examples_of, steer_by
from sae_lens_hsae.interpret.steering.writing import perplexity

LAYER = 9
N_WRITTEN = 16
"""Tokens after each prompt."""
EXAMPLE_TOKENS = 48
STRENGTHS = (0.25, 0.5)
"""Length of the push, in median distances of the activations from their centre."""
WAYS = {"coarse": 0, "coarse to fine": -1, "flat finest": -1, "random finest": -1}
"""How features are chosen, and at which level it ends; random ones get the weights of the flat finest."""
BASELINE = "means"
"""Needs no level."""
NONE = "not steered"


@dataclass(frozen=True)
class Written:
    """What came of one way of steering.

    Attributes:
        way: how features were chosen.
        n_features: how many were.
        n_visited: how many were looked at.
        strength: length of the push; 0 without steering.
        success: share of the texts that the judge takes for positive.
        perplexity: of what was written under the model as it is.
    """

    way: str
    n_features: int
    n_visited: int
    strength: float
    success: float
    perplexity: float


@dataclass(frozen=True)
class Subject:
    """The model and the trained forest, loaded when the first cell needs them."""

    activations: GemmaActivations
    folder: Path
    size: Size

    @cached_property
    def model(self) -> Any:
        return gemma_model()

    @cached_property
    def forest(self) -> tuple[Any, float]:
        """The forest, reading activations as the model has them, and their median distance from their centre."""
        sae, x = gemma_forest(self.activations, self.folder, self.size, LAYER)
        return sae, typical_distance(x)

    @cached_property
    def _prepared(self) -> dict[tuple[str, int], tuple[Judge, Examples]]:
        return {}

    def task(self, name: str, seed: int) -> tuple[Judge, Examples]:
        """A task's judge and examples, by the seed's division of the texts."""
        if (name, seed) not in self._prepared:
            positive, negative = (split(documents, seed) for documents in TASKS[name].texts(self.activations.text))
            with_it, without = (
                text_activations(self.forest[0], self.model, side.examples, EXAMPLE_TOKENS)
                for side in (positive, negative)
            )
            self._prepared[name, seed] = Judge(positive, negative), examples_of(self.forest[0], with_it, without)
        return self._prepared[name, seed]


def reproduce_steering(activations: GemmaActivations, folder: Path, size: Size) -> list[dict[str, Any]]:
    """Rows of the table: for each task, method and way, means over the seeds; then means over the tasks.

    Args:
        activations: what the forest is trained on.
        folder: where trained models and finished cells are kept.
        size: of the training, and how many seeds.
    """
    subject = Subject(activations, folder, size)
    forest = kept_name(HSAE, Stream(LAYER, 16.0, 0), size)
    settings = (forest, N_WRITTEN, EXAMPLE_TOKENS, STRENGTHS, tuple(WAYS))
    cells = [
        Cell(
            named_by(f"steering-{task}-seed{seed}-{method}-{size.name}", settings),
            steer_task,
            (task, seed, method, subject),
        )
        for seed in range(size.seeds)
        for task in TASKS
        for method in (NONE, *METHODS)
    ]
    rows = steering_rows(finish_cells(cells, folder, "Table steering"))
    return [*rows, *over_tasks(rows)]


def over_tasks(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Means over the tasks, a row for each method and way."""
    means: Any = pandas.DataFrame(rows).groupby(["method", "features chosen"], sort=False).mean(numeric_only=True)
    return [dict(row) for row in means.reset_index().to_dict("records")]


def steering_rows(results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Means over the seeds, a row for each task, method and way, the strengths side by side."""
    rows: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for result in results:
        for each in result["written"]:
            rows.setdefault((result["task"], result["method"], each["way"]), []).append(each | {"seed": result["seed"]})
    accuracy = {
        task: fmean(r["judge_accuracy"] for r in results if r["task"] == task) for task in {r["task"] for r in results}
    }
    table = []
    for (task, method, way), own in rows.items():
        row: dict[str, Any] = {
            "task": task,
            "judge's accuracy": accuracy[task],
            "method": method,
            "features chosen": way,
            "seeds": len({each["seed"] for each in own}),
            "features": round(fmean(each["n_features"] for each in own)),
            "looked at": round(fmean(each["n_visited"] for each in own)),
        }
        strengths = (0.0,) * len(STRENGTHS) if method == NONE else STRENGTHS
        for name, strength in zip(STRENGTHS, strengths, strict=True):
            found = [each for each in own if each["strength"] == strength]
            row[f"success at {name:g}"] = fmean(each["success"] for each in found) if found else float("nan")
            row[f"perplexity at {name:g}"] = fmean(each["perplexity"] for each in found) if found else float("nan")
        table.append(row)
    return table


def steer_task(task: str, seed: int, method: str, subject: Subject) -> dict[str, Any]:
    """One method on one task, with one seed: of the texts' division and of what the model draws."""
    judge, examples = subject.task(task, seed)
    sae, typical = subject.forest
    prompts = TASKS[task].prompts
    found = []
    for way in {NONE: [""], BASELINE: ["x itself"]}.get(method, WAYS):
        if method == NONE:
            found.append(Written(way, 0, 0, 0.0, *_judged(subject.model, judge, write(subject.model, prompts, seed))))
            continue
        selection, n_visited = choose(method, way, examples, seed)
        if not selection.features:
            continue
        length = direction(selection, examples).norm().item()
        for strength in STRENGTHS:
            with steer_by(subject.model, sae, selection, strength * typical / length):
                texts = write(subject.model, prompts, seed)
            marks = _judged(subject.model, judge, texts)
            found.append(Written(way, len(selection.features), n_visited, strength, *marks))
    return {
        "task": task,
        "seed": seed,
        "method": method,
        "judge_accuracy": judge.accuracy,
        "written": [asdict(each) for each in found],
    }


def direction(selection: Selection, examples: Examples) -> torch.Tensor:
    """(d_in,) the change of x at strength 1."""
    pushed = torch.tensor(selection.weights) @ examples.decoder[list(selection.features)]
    return pushed if selection.rest is None else pushed + selection.rest


def choose(method: str, way: str, examples: Examples, seed: int) -> tuple[Selection, int]:
    """The features by a method, and how many it looked at; the seed draws random ones."""
    seen: list[int] = []

    def selector(examples: Examples, level: int, among: Any = None) -> Selection:
        seen.append(len(examples.of_level(level, among)))
        return METHODS[method](examples, level, among)

    level = WAYS.get(way, -1)
    selection = descend(selector, examples, level) if way == "coarse to fine" else selector(examples, level)
    if way == "random finest":
        drawn = random.Random(seed).sample(examples.of_level(level).tolist(), len(selection.features))
        selection = replace(selection, features=tuple(drawn))
    return selection, sum(seen)


@torch.no_grad()
def write(model: Any, prompts: Sequence[str], seed: int) -> list[tuple[torch.Tensor, int]]:
    """What the model draws after the prompts: tokens (prompts, context) and how many were given, by their length."""
    by_length: dict[int, list[list[int]]] = {}
    for prompt in prompts:
        ids = [model.tokenizer.bos_token_id, *model.tokenizer(prompt, add_special_tokens=False)["input_ids"]]
        by_length.setdefault(len(ids), []).append(ids)
    torch.manual_seed(seed)
    options = {"do_sample": True, "temperature": 0.8, "top_k": 50, "stop_at_eos": False, "verbose": False}
    return [
        (model.generate(torch.tensor(own), max_new_tokens=N_WRITTEN, **options), length)
        for length, own in by_length.items()
    ]


def _judged(model: Any, judge: Judge, written: Sequence[tuple[torch.Tensor, int]]) -> tuple[float, float]:
    """Success of what was written after the prompts, and its perplexity under the model as it is."""
    rows = [row[n_given:].tolist() for tokens, n_given in written for row in tokens]
    success = judge.share([model.tokenizer.decode(row, skip_special_tokens=True) for row in rows])
    logs = torch.cat([perplexity(model, tokens, n_given).log() for tokens, n_given in written])
    return success, logs.mean().exp().item()
