"""Selectors of features to steer by: each against a slow loop over features written from its formula."""

import math
from typing import Any

import pytest
import torch
from host_helpers import D_MODEL, HOOK, activations_at, tiny_sae_transformer
from sklearn.metrics import mutual_info_score
from small_saes import make_sae

from experiments.steering import direction
from sae_lens_hsae.forest.descent import candidates_below
from sae_lens_hsae.interpret.steering import (
    METHODS,
    Examples,
    Selection,
    at_least,
    descend,
    difference_of_means,
    examples_of,
    sae_rsv,
    spare,
    srps,
    sta,
    steer,
    steer_by,
    take,
)
from sae_lens_hsae.interpret.steering.edits import add, scale, steps_of
from sae_lens_hsae.interpret.steering.examples import Texts
from sae_lens_hsae.interpret.steering.spare import mutual_information

LEVEL = 2


@pytest.fixture(scope="module")
def sae() -> Any:
    sae = make_sae(d_in=D_MODEL, level_widths=[4, 9, 20], normalize_activations="none")
    sae.cfg.metadata.hook_name = HOOK
    return sae


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


def flat(sae: Any) -> range:
    return range(sae.levels[LEVEL].start, sae.levels[LEVEL].stop)


def mean(values: Any) -> float:
    values = list(values)
    return sum(values) / len(values)


def test_a_text_counts_once(sae, examples):
    with torch.no_grad():
        for own, given in ((examples.positive, texts(0, 0.7)), (examples.negative, texts(1, -0.7))):
            for i, x in enumerate(given):
                acts = torch.cat([sae.level_sae(level).encode(x) for level in range(3)], dim=1)
                torch.testing.assert_close(own.acts[i], acts.mean(0))
                torch.testing.assert_close(own.firing[i], (acts > 0).float().mean(0))
                torch.testing.assert_close(own.x[i], x.mean(0))
    assert torch.equal(examples.decoder, sae.W_dec)


def by_feature(selection: Selection) -> dict[int, float]:
    assert selection.level == LEVEL
    sizes = [abs(weight) for weight in selection.weights]
    assert sizes == sorted(sizes, reverse=True)
    return dict(zip(selection.features, selection.weights, strict=True))


def test_sta(sae, drawn):
    positive, negative = (each.acts.double() for each in (drawn.positive, drawn.negative))
    on, off = (each.firing.double() for each in (drawn.positive, drawn.negative))
    strength = {f: mean(positive[:, f].tolist()) - mean(negative[:, f].tolist()) for f in flat(sae)}
    frequency = {f: mean(on[:, f].tolist()) - mean(off[:, f].tolist()) for f in flat(sae)}
    strongest, most_frequent = (
        set(sorted(each, key=lambda f: -abs(each[f]))[: round(0.6 * sum(v != 0 for v in each.values()))])
        for each in (strength, frequency)
    )
    expected = {f: strength[f] for f in strongest & most_frequent if strength[f] * frequency[f] > 0}
    assert 1 < len(expected) < len(strongest & most_frequent)
    assert by_feature(sta(drawn, share=0.6)) == pytest.approx(expected, rel=1e-4)


def test_spare(sae, examples):
    features = torch.tensor([*flat(sae)])
    positive, negative = (each.acts[:, features] for each in (examples.positive, examples.negative))
    information = mutual_information(positive, negative).tolist()
    ranked = sorted(range(20), key=lambda k: -information[k])
    chosen, total = [], 0.0
    while total < 0.3 * sum(information):
        chosen.append(ranked[len(chosen)])
        total += information[chosen[-1]]
    expected = {}
    for k in chosen:
        up, down = mean(positive[:, k].tolist()), mean(negative[:, k].tolist())
        expected[flat(sae)[k]] = up if up > down else -down
    assert min(expected.values()) < 0 < max(expected.values())
    selection = spare(examples, share=0.3)
    assert by_feature(selection) == pytest.approx(expected, rel=1e-4)
    assert selection.edits(2.0) == [
        at_least(f, 2 * weight) if weight > 0 else take(f, -2 * weight) for f, weight in by_feature(selection).items()
    ]


def test_mutual_information_of_bins():
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(200, generator=generator)
    certain = torch.cat([torch.ones(100), torch.zeros(100)])
    half = torch.where(torch.rand(200, generator=generator) < 0.5, 0.0, certain + noise)
    columns = torch.stack([certain, noise, half, torch.zeros(200)], dim=1)
    found = mutual_information(columns[:100], columns[100:]).tolist()
    labels = [1] * 100 + [0] * 100
    quantiles = half[half > 0].double().quantile(torch.tensor([1 / 3, 2 / 3]).double())
    binned = [0 if value == 0 else 1 + int((value > quantiles).sum()) for value in half.tolist()]
    assert found[0] == pytest.approx(math.log(2) - 1 / 400, abs=1e-6)
    assert found[1] < 0.02
    assert found[2] == pytest.approx(mutual_info_score(labels, binned) - 3 / 400, abs=1e-6)
    assert found[3] == 0


def test_srps(sae, drawn):
    positive, negative = drawn.positive.acts, drawn.negative.acts
    difference, score = {}, {}
    for f in flat(sae):
        difference[f] = mean(positive[:, f].tolist()) - mean(negative[:, f].tolist())
    largest = max(map(abs, difference.values()))
    for f in flat(sae):
        limit = 0.1 * max(positive[:, f].max().item(), negative[:, f].max().item())
        occurs = [mean(float(value > limit) for value in each[:, f].tolist()) for each in (positive, negative)]
        score[f] = difference[f] / largest + 2 * (occurs[0] - occurs[1])
    rising = [f for f in sorted(score, key=lambda f: -score[f]) if difference[f] > 0 and score[f] > 0]
    selection = srps(drawn, n_features=4, beta=2)
    assert by_feature(selection) == pytest.approx({f: difference[f] for f in rising[:4]}, rel=1e-4)
    assert selection.keep_norm


def test_sae_rsv_takes_noise_out_and_siblings_in(sae, examples):
    forest = examples.forest
    difference, clear = {}, {}
    for f in range(33):
        up, down = (each.acts[:, f].double().tolist() for each in (examples.positive, examples.negative))
        difference[f] = mean(up) - mean(down)
        error = sum(sum((v - mean(own)) ** 2 for v in own) / 9 / 10 for own in (up, down)) ** 0.5
        clear[f] = abs(difference[f]) > 2 * error
    n = 4  # with more the siblings are there already
    top = sorted(flat(sae), key=lambda f: -abs(difference[f]))[:n]
    noise = [top[0]]
    kept = {f for f in top if clear[f] and f not in noise}
    near = {
        s for f in kept for s in forest.siblings(f) if clear[s] and s not in noise and difference[s] * difference[f] > 0
    }
    assert near - kept, "a sibling comes in"
    found = by_feature(sae_rsv(examples, n_features=n, noise=noise))
    assert found == pytest.approx({f: difference[f] for f in kept | near}, rel=1e-4)


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
        expected = selector(examples, level, among)
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
    expected = sta(examples, 2, roots)
    assert (found.features, found.level) == (expected.features, 2)
    assert found.features


def moved(sae: Any, *arguments: Any, **options: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """x at the hook point before and after."""
    model: Any = tiny_sae_transformer()
    before = activations_at(model, HOOK)
    with arguments[0](model, sae, *arguments[1:], **options):
        return before, activations_at(model, HOOK)


def test_raising_and_taking_change_x_as_spare_writes_it(sae):
    """x − dec(min(z, z⁻)) + dec(max(z⁺ − z, 0))"""
    before, after = moved(sae, steer, [at_least(13, 0.8), take(14, 0.3), at_least(15, 0.1)])
    with torch.no_grad():
        z = sae.level_sae(2).encode(before)
        expected = before - torch.minimum(z[..., 1:2], torch.tensor(0.3)) * sae.W_dec[14]
        for k, value in ((0, 0.8), (2, 0.1)):
            expected += (value - z[..., k, None]).clamp(min=0) * sae.W_dec[13 + k]
    torch.testing.assert_close(after, expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="at_least each feature by itself"):
        type(take(1, 1.0))(1, "at_least", 1.0, "children")


@pytest.mark.parametrize("name", METHODS)
def test_steering_by_a_selection_moves_x_along_its_direction(sae, examples, name):
    selection = METHODS[name](examples)
    before, after = moved(sae, steer_by, selection, 3.0)
    if selection.bounds:
        assert not torch.allclose(before, after)
        return
    expected = before + 3 * direction(selection, examples)
    if selection.keep_norm:
        expected = expected * before.norm(dim=-1, keepdim=True) / expected.norm(dim=-1, keepdim=True)
        torch.testing.assert_close(after.norm(dim=-1), before.norm(dim=-1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(after, expected, rtol=1e-3, atol=1e-4)


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
        (lambda e: spare(e, share=2), "share=2 must be above 0 and at most 1"),
        (lambda e: srps(e, n_features=0), "n_features=0 must be at least 1"),
        (lambda e: srps(e, beta=-1), "beta=-1 must be 0 or more"),
        (lambda e: sae_rsv(e, n_features=0), "n_features=0 must be at least 1"),
        (lambda e: sta(e, among=[]), "among is empty"),
        (lambda e: sta(e, 1, among=[5, 13]), "among holds 13, which is no feature of level 1"),
        (lambda _: Selection((), (), 0).edits(1.0), "nothing was selected"),
    ],
)
def test_wrong_arguments_are_refused(examples, change, message):
    with pytest.raises(ValueError, match=message):
        change(examples)
    with pytest.raises(IndexError, match="level 3 does not exist; choose one from 0 to 2"):
        sta(examples, 3)


@pytest.mark.parametrize("name", METHODS)
def test_features_to_choose_from_may_be_given_by_name(examples, name):
    levels = examples.forest.levels
    numbers = list(range(levels[LEVEL].start, levels[LEVEL].stop, 2))
    by_number, by_name = (METHODS[name](examples, LEVEL, each) for each in (numbers, [*map(levels.name, numbers)]))
    assert (by_name.features, by_name.weights) == (by_number.features, by_number.weights)
    without = [sae_rsv(examples, noise=noise).features for noise in ([14, 15], ["2/1", "2/2"])]
    assert without[0] == without[1]
    for feature in (-1, 33):
        with pytest.raises(IndexError, match=f"feature {feature} does not exist"):
            sae_rsv(examples, noise=[feature])


@pytest.mark.parametrize(
    ("positive", "negative", "message"),
    [
        ([], texts(0, 0), "positive holds 0 texts; give at least 2"),
        (texts(0, 0), texts(0, 0)[:1], "negative holds 1 texts"),
        (texts(0, 0), texts(0, 0), "positive and negative hold the same texts, so there is no contrast"),
        (texts(0, 0), texts(0, 0)[::-1] * 2, "positive and negative hold the same texts, so there is no contrast"),
        ([torch.zeros(3, 5)] * 2, texts(0, 0), r"positive: text 0 has activations of shape \(3, 5\)"),
        ([torch.full((3, D_MODEL), math.nan)] * 2, texts(0, 0), "positive: text 0 holds NaN"),
        ("some text", texts(0, 0), "positive holds text; pass its activations: text_activations"),
        (texts(0, 0), ["some", "text"], "negative holds text; pass its activations: text_activations"),
    ],
)
def test_sets_without_a_contrast_are_refused(sae, positive, negative, message):
    with pytest.raises(ValueError, match=message):
        examples_of(sae, positive, negative)


def test_a_rest_of_another_width_is_refused(sae):
    with pytest.raises(ValueError, match=r"rest has shape \(3,\); give one number for each of d_in=16"):
        moved(sae, steer, [take(13, 1.0)], rest=torch.zeros(3))
