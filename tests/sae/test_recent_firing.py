"""What fires on the last tokens of a training: counted alone and in pairs, kept, shared and saved."""

from typing import Any

import numpy as np
import pytest
import torch

from sae_lens_hsae.forest import counts
from sae_lens_hsae.forest.counts import Counts, Firing
from sae_lens_hsae.forest.levels import Levels
from sae_lens_hsae.sae import recent_firing
from sae_lens_hsae.sae.recent_firing import FIRINGS, PackedFiring, RecentFiring

LEVELS = Levels((6, 9))
ABOVE, BELOW = next(LEVELS.boundaries)


def fired_on(n_tokens, density, seed=0):
    """Whether each feature fires on each token, (15, n_tokens)."""
    return torch.rand(15, n_tokens, generator=torch.Generator().manual_seed(seed)) < density


def listed(fired, step=0):
    return Firing.of(fired, step)


def packed(fired, step=0):
    return PackedFiring.of(fired, step)


def recent(tokens_kept=10**6, levels=LEVELS):
    kept = RecentFiring(levels, [1.0] * len(levels))
    kept.tokens_kept = tokens_kept
    return kept


@pytest.mark.parametrize("density", [0.0, 0.05, 0.9])
@pytest.mark.parametrize("cost", [(0, 2**24), (0, 0), (10**9, 0)], ids=["by pairs", "column by column", "by a product"])
@pytest.mark.parametrize("of", [listed, packed])
def test_shares_are_those_of_their_definition(density, cost, of, monkeypatch):
    monkeypatch.setattr(counts, "PRODUCT_OF_PAIRS", cost[0])
    monkeypatch.setattr(counts, "MOST_IN_FULL", cost[1])
    monkeypatch.setattr(counts, "TOKENS_AT_A_TIME", 30)
    batches = [fired_on(n, density, seed) for seed, n in enumerate((50, 8, 13))]
    kept = recent()
    for fired in batches:
        kept.count(of(fired))
    found = kept.counts()
    together = found.together(ABOVE, BELOW)
    fired = torch.cat(batches, dim=1)
    assert found.n_tokens == 71
    for feature in range(15):
        assert found.frequency[feature].item() == pytest.approx(sum(map(bool, fired[feature])) / 71)
    for above, below in ((slice(0, 4), [0, 1, 2, 3, 4]), (slice(4, 6), [0, 1, 2, 3, 4]), (slice(0, 6), [8, 2])):
        block = together[above, torch.tensor(below)]
        assert block.dtype == torch.float32
        for row, parent in enumerate(range(6)[above]):
            for column, child in enumerate(below):
                both = sum(bool(p and c) for p, c in zip(fired[parent], fired[6 + child], strict=True))
                assert block[row, column].item() == pytest.approx(both / 71)


def test_nothing_counted_is_nothing_fired():
    found = recent().counts()
    assert found.n_tokens == 0
    assert not found.frequency.any()
    assert not found.together(ABOVE, BELOW)[slice(0, 6), torch.arange(9)].any()


def test_of_a_sparse_batch_only_the_bytes_that_hold_something_are_unpacked(monkeypatch):
    unpack, sizes = np.unpackbits, []

    def counted(array: Any, **options: Any) -> Any:
        sizes.append(array.size)
        return unpack(array, **options)

    monkeypatch.setattr(np, "unpackbits", counted)
    fired = fired_on(1003, 0.01)
    batch = packed(fired).unpacked()
    assert sum(sizes) <= fired.sum()
    assert batch.times.tolist() == fired.sum(1).tolist()
    assert batch.tokens.tolist() == fired.nonzero()[:, 1].tolist()


@pytest.mark.parametrize("n_tokens", [300, 70_000])
def test_tokens_of_any_number_are_kept_in_few_bytes(n_tokens):
    fired = torch.zeros(15, n_tokens, dtype=torch.bool)
    fired[3, -1] = fired[3, 0] = True
    for batch in (listed(fired), packed(fired).unpacked()):
        assert batch.tokens.tolist() == [0, n_tokens - 1]
        assert batch.tokens.dtype == (np.uint16 if n_tokens == 300 else np.uint32)


def test_the_newest_third_is_kept_up_to_a_number_of_tokens():
    kept = recent(tokens_kept=60)
    for step in range(0, 400, 4):
        kept.count(listed(fired_on(10, 0.1, step), step))
        steps = [batch.step for batch in kept.unpacked()]
        assert steps[-1] == step
        assert steps == list(range(steps[0], step + 1, 4))
        if step < 60:
            assert steps[0] - 4 < 2 / 3 * step <= max(steps[0], 1)
        if step > 80:
            assert len(steps) == 6
    assert kept.counts().n_tokens == 60


def test_so_many_tokens_are_kept_that_a_mean_feature_fires_often():
    assert RecentFiring(Levels((10, 1000)), [5.0, 20.0]).tokens_kept == FIRINGS * 50


def test_where_much_fires_fewer_tokens_are_kept_of_packed_batches_too():
    """However often they are looked at in between."""
    known, kept, looked_at = (recent(tokens_kept=1000) for _ in range(3))
    for each in (known, kept, looked_at):
        each._most_entries = 400
    for step in range(0, 400, 4):
        fired = fired_on(10, 0.9, step)
        known.count(listed(fired, step))
        kept.count(packed(fired, step))
        looked_at.count(packed(fired, step))
        if step % 20 == 0:
            looked_at.state_dict()
    for each in (known, kept, looked_at):
        assert [batch.step for batch in each.unpacked()] == [388, 392, 396]


def test_where_levels_are_very_wide_packed_batches_do_not_stay_on_the_device(monkeypatch):
    monkeypatch.setattr(recent_firing, "MOST_PACKED", 100)
    kept = recent()
    for step in range(200, 220, 4):
        kept.count(packed(fired_on(16, 0.1, step), step))  # 30 bytes each
        assert sum(isinstance(batch, PackedFiring) for batch in kept.batches) < 4
    assert [batch.step for batch in kept.unpacked()] == list(range(200, 220, 4))


def test_a_batch_that_turned_out_bad_is_left_out():
    kept = recent()
    for step, good in ((8, 1.0), (12, 0.0)):
        kept.count(packed(fired_on(10, 0.2), step)._replace(good=torch.tensor(good)))
    assert [batch.step for batch in kept.unpacked()] == [8]
    assert kept.counts().n_tokens == 10


def test_processes_count_what_one_would():
    """Two that share at times, each with half of a batch, against one that has all of it."""
    halves, whole = [recent(80), recent(80)], recent(80)
    for step in range(0, 200, 4):
        fired = fired_on(20, 0.2, step)
        whole.count(listed(fired, step))
        for kept, own in zip(halves, fired.split(10, dim=1), strict=True):
            kept.count(listed(own, step))
        if step in (4, 40, 120, 196):
            new = [kept.unpacked()[kept._shared :] for kept in halves]
            for kept in halves:
                kept.share(lambda _, new=new: new, 2)
            one, *others = (Counts(kept.unpacked(), LEVELS) for kept in (whole, *halves))
            for other in others:
                assert other.n_tokens == one.n_tokens
                assert torch.equal(other.frequency, one.frequency)
                block = slice(0, 6), torch.arange(9)
                assert torch.equal(other.together(ABOVE, BELOW)[block], one.together(ABOVE, BELOW)[block])


def test_a_process_on_whose_tokens_much_fired_may_have_kept_fewer():
    kept, fired = recent(), fired_on(10, 0.2)
    for step in (8, 12):
        kept.count(listed(fired, step))
    kept.share(lambda own: [own[1:], own], 2)
    assert [batch.step for batch in kept.unpacked()] == [8, 12, 12]


def test_a_process_tells_no_more_than_its_share_of_what_is_kept():
    kept, told = recent(tokens_kept=60), []
    for step in range(400, 440, 4):
        kept.count(listed(fired_on(10, 0.2), step))
    kept.share(lambda own: [told.extend(own) or own] * 3, 3)
    assert [batch.step for batch in told] == [432, 436]
    assert kept.counts().n_tokens == 60


@pytest.mark.parametrize("of", [listed, packed])
def test_what_is_kept_is_saved_and_loaded(of):
    kept, again = recent(), recent()
    for step, n_tokens in enumerate((50, 300, 8)):
        kept.count(of(fired_on(n_tokens, 0.1, step), step))
    again.count(listed(fired_on(10, 0.9)))
    again.load_state_dict(kept.state_dict())
    for ours, theirs in zip(again.unpacked(), kept.unpacked(), strict=True):
        assert ours.step == theirs.step
        assert ours.n_tokens == theirs.n_tokens
        for name in ("times", "tokens"):
            assert getattr(ours, name).dtype == getattr(theirs, name).dtype
            assert np.array_equal(getattr(ours, name), getattr(theirs, name))
    whole = kept.state_dict()
    del whole["firing_times"]
    with pytest.raises(RuntimeError, match="firing_times"):
        again.load_state_dict(whole)
    kept.load_state_dict(recent().state_dict())
    assert kept.counts().n_tokens == 0
