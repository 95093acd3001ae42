"""Selectors of features to steer by: each against a slow loop over features written from its formula."""

from statistics import fmean
from typing import Any

import pytest
import torch
from host_helpers import D_MODEL, HOOK, activations_at, tiny_sae_transformer
from small_saes import make_sae

from experiments.steering import direction
from sae_lens_hsae.forest.feature_forest import candidates_below
from sae_lens_hsae.interpret.steering import (
    METHODS,
    Examples,
    Selection,
    descend,
    difference_of_means,
    examples_of,
    sta,
    steer,
    steer_by,
)
from sae_lens_hsae.interpret.steering.edits import add, scale, steps_of
from sae_lens_hsae.interpret.steering.examples import Texts


def texts(seed: int, shift: float) -> list[torch.Tensor]:
    """Ten texts of 3 to 7 tokens whose first coordinates are shifted."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for i in range(10):
        x = torch.randn(3 + i % 5, D_MODEL, generator=generator)
        x[:, :4] += shift
        found.append(x)
    return found


@pytest.fixture(scope="module")
def sae() -> Any:
    sae = make_sae(d_in=D_MODEL, level_widths=[4, 9, 20], normalize_activations="none")
    sae.cfg.metadata.hook_name = HOOK
    return sae


@pytest.fixture(scope="module")
def examples(sae) -> Examples:
    return examples_of(sae, texts(0, 0.7), texts(1, -0.7))


@pytest.fixture(scope="module")
def drawn(sae) -> Examples:
    """Activations and frequencies that do not go together, so that every part of a formula matters."""
    generator = torch.Generator().manual_seed(3)
    sets: list[Texts] = []
    for _ in range(2):
        centre = 2 * torch.rand(33, generator=generator)
        acts = (torch.randn(10, 33, generator=generator) + centre).relu() * (1 + torch.arange(33) % 4)
        sets.append(Texts(torch.randn(10, D_MODEL, generator=generator), acts, torch.rand(10, 33, generator=generator)))
    return Examples(sae.forest, sets[0], sets[1], sae.W_dec.detach())


def test_a_text_counts_once(sae, examples):
    with torch.no_grad():
        for own, given in ((examples.positive, texts(0, 0.7)), (examples.negative, texts(1, -0.7))):
            for i, x in enumerate(given):
                acts = torch.cat([sae.level_sae(level).encode(x) for level in range(3)], dim=1)
                torch.testing.assert_close(own.acts[i], acts.mean(0))
                torch.testing.assert_close(own.firing[i], (acts > 0).float().mean(0))
                torch.testing.assert_close(own.x[i], x.mean(0))
    assert torch.equal(examples.decoder, sae.W_dec)


def test_sta(drawn):
    positive, negative = (each.acts.double() for each in (drawn.positive, drawn.negative))
    on, off = (each.firing.double() for each in (drawn.positive, drawn.negative))
    finest = range(13, 33)
    strength = {f: fmean(positive[:, f].tolist()) - fmean(negative[:, f].tolist()) for f in finest}
    frequency = {f: fmean(on[:, f].tolist()) - fmean(off[:, f].tolist()) for f in finest}
    strongest, most_frequent = (
        set(sorted(each, key=lambda f: -abs(each[f]))[: round(0.6 * sum(v != 0 for v in each.values()))])
        for each in (strength, frequency)
    )
    expected = {f: strength[f] for f in strongest & most_frequent if strength[f] * frequency[f] > 0}
    assert 1 < len(expected) < len(strongest & most_frequent)
    selection = sta(drawn, share=0.6)
    assert dict(zip(selection.features, selection.weights, strict=True)) == pytest.approx(expected, rel=1e-4)
    assert list(map(abs, selection.weights)) == sorted(map(abs, selection.weights), reverse=True)
    assert selection.level == 2


@pytest.mark.parametrize("level", [0, 1, 2, -1])
def test_difference_of_means_is_that_of_x_at_every_level(examples, level):
    selection = difference_of_means(examples, level)
    expected = examples.positive.x.mean(0) - examples.negative.x.mean(0)
    torch.testing.assert_close(direction(selection, examples), expected, rtol=1e-4, atol=1e-5)
    assert selection.level == level % 3


@pytest.mark.parametrize("name", METHODS)
def test_descending_asks_only_the_children_of_what_was_selected(examples, name):
    selector, forest = METHODS[name], examples.forest
    expected = selector(examples, 0)
    for level in (1, 2):
        own = range(forest.levels[level].start, forest.levels[level].stop)
        among = [f for f in own if len(forest.path(f)) == 1 or forest.path(f)[-2] in expected.features]
        assert len(among) < len(own) or name == "means"
        expected = selector(examples, level, torch.tensor(among))
    found = descend(selector, examples)
    assert (found.features, found.weights) == (expected.features, expected.weights)
    assert found.features


def test_descending_goes_on_where_a_level_has_no_candidates(examples, monkeypatch):
    monkeypatch.setattr(
        "sae_lens_hsae.interpret.steering.selection.candidates_below",
        lambda forest, below, above: candidates_below(forest, below, above)[: None if below == 2 else 0],
    )
    found = descend(sta, examples)
    own = range(examples.forest.levels[2].start, examples.forest.levels[2].stop)
    roots = [f for f in own if len(examples.forest.path(f)) == 1]
    expected = sta(examples, 2, torch.tensor(roots))
    assert (found.features, found.level) == (expected.features, 2)
    assert found.features


@pytest.mark.parametrize("name", METHODS)
def test_steering_by_a_selection_moves_x_along_its_direction(sae, examples, name):
    selection = METHODS[name](examples)
    model: Any = tiny_sae_transformer()
    before = activations_at(model, HOOK)
    with steer_by(model, sae, selection, 3.0):
        after = activations_at(model, HOOK)
    torch.testing.assert_close(after, before + 3 * direction(selection, examples), rtol=1e-3, atol=1e-4)


def test_many_edits_of_one_kind_are_one_step_and_repeated_features_two(sae):
    def kinds(*edits: Any) -> list[tuple[str, int]]:
        saes = [sae.level_sae(level) for level in range(3)]
        return [(step.kind, len(step.features)) for step in steps_of(edits, saes, sae.forest, None)]

    assert kinds(*(add(f, 1.0) for f in range(13, 30))) == [("add", 17)]
    assert kinds(add(13, 1.0), add(14, 1.0), add(13, 1.0)) == [("add", 2), ("add", 1)]
    assert kinds(scale(13, 2.0), add(13, 1.0), add(0, 1.0)) == [("scale", 1), ("add", 1), ("add", 1)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda e: sta(e, share=0), "share=0 must be above 0"),
        (lambda _: Selection((), (), 0).edits(1.0), "nothing was selected"),
    ],
)
def test_wrong_arguments_are_refused(examples, change, message):
    with pytest.raises(ValueError, match=message):
        change(examples)


@pytest.mark.parametrize(
    ("positive", "negative", "message"),
    [
        ([], texts(0, 0), "positive holds 0 texts; give at least 2"),
        (texts(0, 0), texts(0, 0)[:1], "negative holds 1 texts"),
        (texts(0, 0), texts(0, 0), "positive and negative hold the same texts, so there is no contrast"),
        (texts(0, 0), texts(0, 0)[::-1] * 2, "positive and negative hold the same texts, so there is no contrast"),
        (texts(0, 0), ["some", "text"], "negative holds text; pass its activations: text_activations"),
    ],
)
def test_sets_without_a_contrast_are_refused(sae, positive, negative, message):
    with pytest.raises(ValueError, match=message):
        examples_of(sae, positive, negative)


def test_a_rest_of_another_width_is_refused(sae):
    with pytest.raises(ValueError, match=r"rest has shape \(3,\); give one number for each of d_in=16"):
        steer(tiny_sae_transformer(), sae, [add(13, 1.0)], rest=torch.zeros(3)).__enter__()
