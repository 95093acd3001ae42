"""Intervals: from token blocks by the jackknife, and from clusters by the bootstrap, each against plain loops."""

import math
from typing import Any

import pytest
import scipy.stats
import torch
from hierarchy_reference import random_forest, random_levels, readout_levels, slow_evaluation

from sae_lens_hsae.evaluation import evaluate_forest
from sae_lens_hsae.evaluation.cluster_bootstrap import resampled_means
from sae_lens_hsae.evaluation.jackknife import jackknife_interval
from sae_lens_hsae.evaluation.token_blocks import TokenBlocks
from sae_lens_hsae.forest import FeatureForest


class TestTokenBlocks:
    @pytest.mark.parametrize(
        ("n_tokens", "length", "n_blocks"),
        [(1, 1, 1), (19, 1, 19), (20, 1, 20), (40, 1, 40), (41, 2, 21), (80, 2, 40), (81, 4, 21), (1000, 32, 32)],
    )
    def test_length(self, n_tokens: int, length: int, n_blocks: int):
        blocks = TokenBlocks(20)
        blocks.extend(n_tokens)
        assert (blocks.length, len(blocks.sizes), int(blocks.sizes.sum())) == (length, n_blocks, n_tokens)
        assert set(blocks.sizes[:-1].tolist()) <= {length}

    def test_memory_does_not_grow(self):
        blocks = TokenBlocks(3)
        table = blocks.table(dtype=torch.int64)
        for _ in range(1000):
            blocks.extend(7)
            table.add_chunk(torch.ones(7, dtype=torch.int64))
            assert len(table.per_block) <= 6
        assert table.total == 7000


class TestJackknife:
    def test_of_a_mean_it_is_students_interval(self):
        values = torch.randn(12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        without = [torch.cat([values[:i], values[i + 1 :]]).mean().item() for i in range(12)]
        interval = jackknife_interval(values.mean().item(), without, torch.full((12,), 5), 0.9)
        expected = scipy.stats.t.interval(0.9, 11, loc=values.mean(), scale=values.std() / 12**0.5)
        assert interval == pytest.approx(expected)
        assert interval.half_width == pytest.approx((expected[1] - expected[0]) / 2)

    def test_unequal_blocks(self):
        # Delete-m jackknife of Busing et al. (1999), equations as printed there, for a ratio.
        sizes = [4, 4, 4, 1]
        up, down = [3.0, 1.0, 2.0, 1.0], [5.0, 6.0, 4.0, 2.0]
        value = sum(up) / sum(down)
        without = [(sum(up) - u) / (sum(down) - d) for u, d in zip(up, down, strict=True)]
        n, g = sum(sizes), len(sizes)
        center = g * value - sum((1 - m / n) * w for m, w in zip(sizes, without, strict=True))
        variance = 0.0
        for m, w in zip(sizes, without, strict=True):
            h = n / m
            variance += (h * value - (h - 1) * w - center) ** 2 / (h - 1) / g
        interval = jackknife_interval(value, without, torch.tensor(sizes), 0.95)
        assert interval.half_width == pytest.approx(scipy.stats.t.ppf(0.975, 3) * variance**0.5)
        assert (interval.low + interval.high) / 2 == pytest.approx(value)

    @pytest.mark.parametrize("without", [[1.0], [1.0, math.nan, 2.0]])
    def test_no_interval(self, without: list[float]):
        assert all(math.isnan(end) for end in jackknife_interval(1.0, without, torch.ones(len(without)), 0.95))


WITHOUT_INTERVAL = (
    "unassigned_share",
    "mean_children",
    "several_children_share",
    "copy_share",
    "weak_share",
    "clear_share",
    "variance_explained_ordinary",
    "l0_ordinary",
)


def slow_intervals(
    levels: Any, forest: FeatureForest, x: torch.Tensor, length: int, part: str
) -> dict[str, list[float]]:
    """Half-widths of the first record of ``part``, from the slow evaluation without each block in turn."""
    blocks = x.split(length)
    records = [
        slow_evaluation(levels, forest, torch.cat(blocks[:i] + blocks[i + 1 :]))[part][0] for i in range(len(blocks))
    ]
    value, sizes = slow_evaluation(levels, forest, x)[part][0], torch.tensor([len(block) for block in blocks])
    return {
        name: list(jackknife_interval(value[name], [record[name] for record in records], sizes, 0.8))
        for name in value
        if isinstance(value[name], float) and name not in WITHOUT_INTERVAL
    }


@pytest.mark.parametrize("part", ["levels", "boundaries"])
def test_the_intervals_equal_a_plain_loop(part: str):
    widths, d_in = (5, 11), 6
    levels, forest = random_levels(widths, d_in, 1), random_forest(widths, 1)
    x = 2 * torch.randn(120, d_in, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with torch.no_grad():
        expected = slow_intervals(levels, forest, x, 8, part)
    result = evaluate_forest(levels, forest, x.split(37), n_blocks=10, confidence=0.8)
    assert (result.n_blocks, result.tokens_per_block) == (15, 8)
    (record, *_) = result.to_dict()[part]
    assert set(record["intervals"]) == set(expected)
    for name, ends in expected.items():
        assert record["intervals"][name] == pytest.approx(ends, rel=1e-9), name
        assert ends[0] < record[name] < ends[1]


def test_a_metric_that_rests_on_one_block_has_no_interval():
    x = torch.zeros(60, 3, dtype=torch.float64)
    x[:, 0] = 1
    x[7, 1] = x[7, 2] = 1
    (boundary,) = evaluate_forest(readout_levels((1, 2)), FeatureForest([-1, 0, 0], (1, 2)), [x]).boundaries
    assert boundary.p_parent_given_child == 1
    assert math.isnan(boundary.intervals["p_parent_given_child"].low)
    assert boundary.undefined["interval of p_parent_given_child"] == (
        "without one of the blocks the metric is undefined"
    )


def test_too_few_tokens_for_intervals():
    x = torch.eye(3, dtype=torch.float64).repeat(7, 1)
    levels, forest = readout_levels((1, 2)), FeatureForest([-1, 0, 0], (1, 2))
    result = evaluate_forest(levels, forest, [x[:19]])
    assert result.undefined == {"intervals": "19 tokens are fewer than the 20 blocks that they need"}
    assert all(math.isnan(end) for record in result.levels for pair in record.intervals.values() for end in pair)
    assert evaluate_forest(levels, forest, [x[:20]]).undefined == {}


def test_resampled_means_equal_a_loop():
    values = torch.tensor([[1.0, math.nan], [2.0, 3.0], [4.0, 5.0], [8.0, 7.0]])
    cluster = torch.tensor([5, 5, 2, 9])
    means = resampled_means(values, cluster, 50, torch.Generator().manual_seed(1))
    drawn = torch.randint(3, (50, 3), generator=torch.Generator().manual_seed(1)).tolist()
    rows = {0: [2], 1: [0, 1], 2: [3]}
    for resample, clusters in enumerate(drawn):
        chosen = [row for each in clusters for row in rows[each]]
        for column in (0, 1):
            numbers = [value for value in values[chosen, column].tolist() if not math.isnan(value)]
            assert means.resampled[resample, column].item() == pytest.approx(sum(numbers) / len(numbers))
    assert means.means.tolist() == [3.75, 5.0]
    assert means.n_clusters.tolist() == [3, 3]
    paired = means.resampled[:, 0] - means.resampled[:, 1]
    difference = means.difference(0, 1)
    assert difference.value == -1.25
    assert difference.low == pytest.approx(paired.quantile(0.025).item())


def test_intervals_where_resampling_cannot_give_one():
    generator = torch.Generator().manual_seed(0)
    single = resampled_means(torch.ones(3, 1), torch.zeros(3, dtype=torch.int64), 10, generator).estimate(0, True)
    assert (single.value, math.isnan(single.low), math.isnan(single.high)) == (1.0, True, True)
    # No failure in ten: Wilson's lower bound, 10 / (10 + 1.96²).
    sure = resampled_means(torch.ones(10, 1), torch.arange(10), 10, generator).estimate(0, True)
    assert (sure.value, sure.low, sure.high) == pytest.approx((1.0, 0.7225, 1.0), abs=1e-4)
    never = resampled_means(torch.zeros(10, 1), torch.arange(10), 10, generator).estimate(0, True)
    assert (never.value, never.low, never.high) == pytest.approx((0.0, 0.0, 0.2775), abs=1e-4)
    nothing = resampled_means(torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64), 10, generator)
    assert math.isnan(nothing.estimate(0).value)
