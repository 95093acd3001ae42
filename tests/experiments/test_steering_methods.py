"""Methods that choose features to steer by: each against a slow loop over features written from its formula."""

import math
from typing import Any

import pytest
import torch
from sklearn.metrics import mutual_info_score
from text_sets import by_feature, drawn_examples, flat, mean, read_examples, steered_sae

from experiments.steering_methods import sae_rsv, spare, srps
from experiments.steering_methods.spare import mutual_information
from sae_lens_hsae.interpret.steering import Examples, at_least, take


@pytest.fixture(scope="module")
def sae() -> Any:
    return steered_sae()


@pytest.fixture(scope="module")
def examples(sae) -> Examples:
    return read_examples(sae)


@pytest.fixture(scope="module")
def drawn(sae) -> Examples:
    return drawn_examples(sae)


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


def test_noise_may_be_given_by_name(examples):
    without = [sae_rsv(examples, noise=noise).features for noise in ([14, 15], ["2/1", "2/2"])]
    assert without[0] == without[1]
