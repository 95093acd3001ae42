"""The sample behind the rank correlation, and Spearman's ρ of it against scipy."""

import math

import pytest
import torch
from hierarchy_reference import spearman

from sae_lens_hsae.evaluation.rank_correlation import MIN_TOKENS, SAMPLE_PER_PARENT, RankSample


def filled(rows: list[list[tuple[int, float, float]]], dtype: torch.dtype = torch.float64) -> RankSample:
    """A sample that was offered (token, parent, child) of each row at once."""
    sample = RankSample(len(rows), dtype)
    events = [(row, *event) for row, own in enumerate(rows) for event in own]
    row, token, parent, child = zip(*events, strict=True)
    sample.add(
        torch.tensor(row), torch.tensor(token), torch.tensor(parent, dtype=dtype), torch.tensor(child, dtype=dtype)
    )
    return sample


def random_events(n: int, seed: int, levels: int) -> list[tuple[int, float, float]]:
    """Tokens in order, with activations of few different values, so that many are tied; the parent is often silent."""
    generator = torch.Generator().manual_seed(seed)
    parent, child = torch.randint(levels, (2, n), generator=generator).tolist()
    return [(3 * i, float(p), float(p + c + 1)) for i, (p, c) in enumerate(zip(parent, child, strict=True))]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_correlations_equal_scipys_with_ties_and_without_each_block(dtype: torch.dtype):
    rows = [random_events(n, n, levels) for n, levels in ((40, 4), (128, 1000), (MIN_TOKENS, 3), (MIN_TOKENS - 1, 9))]
    length, n_blocks = 50, 8
    found = filled(rows, dtype).correlations(length, n_blocks)
    assert found.shape == (4, n_blocks + 1)
    for row, events in enumerate(rows):
        for block in range(n_blocks + 1):
            left = [(p, c) for token, p, c in events if token // length != block]
            rho = spearman(left) if len(left) >= MIN_TOKENS else math.nan
            assert found[row, block].item() == pytest.approx(rho, rel=1e-12, nan_ok=True), (row, block)


@pytest.mark.parametrize("constant", ["parent", "child"])
def test_what_never_varies_has_no_correlation(constant: str):
    # A third has no exact half, so that rounding would show.
    events = [(i, 1 / 3, i + 1.0) if constant == "parent" else (i, i + 1.0, 1 / 3) for i in range(77)]
    assert filled([events]).correlations(10, 8).isnan().all()


def test_the_sample_does_not_depend_on_batches():
    events = random_events(1000, 0, 1000)
    whole = filled([events, events])
    parts = RankSample(2, torch.float64)
    for chunk in (events[:1], events[1:130], events[130:137], events[137:]):
        token, parent, child = (torch.tensor(column) for column in zip(*chunk, strict=True))
        row = torch.tensor([0, 1]).repeat_interleave(len(chunk))
        parts.add(row, token.repeat(2), parent.double().repeat(2), child.double().repeat(2))
    assert torch.equal(parts.seen, whole.seen)
    assert torch.equal(parts.tokens, whole.tokens)
    assert torch.equal(parts.parent, whole.parent)
    # Each parent has tokens of its own.
    assert len(set(whole.tokens[0].tolist()) & set(whole.tokens[1].tolist())) < 40


def test_the_sample_is_uniform_and_keeps_what_belongs_together():
    n_rows, n = 300, 5 * SAMPLE_PER_PARENT
    sample = RankSample(n_rows, torch.float64)
    for token in torch.arange(n).split(100):
        row = torch.arange(n_rows).repeat_interleave(len(token))
        tokens = token.repeat(n_rows)
        sample.add(row, tokens, 2.0 * tokens, tokens + 0.5)
    assert torch.equal(sample.parent, 2.0 * sample.tokens)
    assert torch.equal(sample.strongest_child, sample.tokens + 0.5)
    assert all(len(set(own)) == SAMPLE_PER_PARENT for own in sample.tokens.tolist())
    kept = torch.bincount(sample.tokens.flatten(), minlength=n).double()
    # Each token is kept by a fifth of the rows: 60, with variance 300 · 0.2 · 0.8 = 48.
    assert kept.mean() == 60
    assert 40 < kept.var() < 56
    early, late = kept[: n // 2].mean(), kept[n // 2 :].mean()
    assert abs(early - late) < 2.5  # of a standard deviation of 0.8
