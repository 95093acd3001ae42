"""Agreement of forests: values by hand, chance levels by simulation, matching against brute force."""

import math
from itertools import permutations
from typing import Any, ClassVar

import pytest
import torch
from hierarchy_reference import jumprelu

from sae_lens_hsae.evaluation import seed_stability, shared_edges, stability
from sae_lens_hsae.evaluation.stability import EdgeAgreement, match_decoders
from sae_lens_hsae.forest import FeatureForest

WIDTHS = (3, 6, 7)
#                                   children of level 1   children of level 2
FOREST = FeatureForest([-1, -1, -1, 0, 0, 1, 1, 2, -1, 3, 3, 4, 5, 5, -1, -1], WIDTHS)


def stack(directions: list[torch.Tensor]) -> list[Any]:
    levels = []
    for rows in directions:
        sae = jumprelu(rows.shape[1], len(rows))
        sae.W_dec.data = rows.double()
        levels.append(sae)
    return levels


def shuffled(directions: list[torch.Tensor], forest: FeatureForest, seed: int) -> tuple[list[Any], FeatureForest]:
    """The same features and edges in another order, with other norms."""
    generator = torch.Generator().manual_seed(seed)
    orders = [torch.randperm(len(rows), generator=generator) for rows in directions]
    flat = torch.cat([level.start + order for level, order in zip(forest.levels, orders, strict=True)])
    new = torch.cat([flat.argsort(), torch.tensor([-1])])
    parents = new[forest.parents[flat]]
    rows = [
        own[order] * (1 + torch.rand(len(own), 1, generator=generator))
        for own, order in zip(directions, orders, strict=True)
    ]
    return stack(rows), FeatureForest(parents, forest.level_widths)


def agreement(forest: FeatureForest, other: FeatureForest) -> tuple[EdgeAgreement, ...]:
    """Of two forests over the same features."""
    features = stack(list(torch.eye(forest.n_features).split(forest.level_widths)))
    return seed_stability(features, forest, features, other)


class TestSameFeatures:
    def test_by_hand(self):
        # At the first boundary one child moves, one is lost and one is new; at the second all are lost.
        other = FeatureForest([-1, -1, -1, 0, 1, 1, 1, -1, 2, *[-1] * 7], WIDTHS)
        upper, lower = agreement(FOREST, other)
        assert (upper.parent_level, upper.n_edges, upper.n_other_edges) == (0, 5, 5)
        assert (upper.n_common, upper.n_children_in_both) == (3, 4)
        assert upper.kept == 3 / 5
        # Parents have 2, 2, 1 children in the one forest, 1, 3, 1 in the other, of six.
        chance = (2 * 1 + 2 * 3 + 1 * 1) / 6 / 5
        assert upper.kept_adjusted == pytest.approx((3 / 5 - chance) / (1 - chance))
        assert (lower.n_edges, lower.n_other_edges, lower.kept, lower.kept_adjusted) == (5, 0, 0, 0)

    def test_one_parent_for_all_is_no_agreement(self):
        forest = FeatureForest([-1, 0, 0, 0], (1, 3))
        (boundary,) = agreement(forest, forest)
        assert boundary.kept == 1
        assert math.isnan(boundary.kept_adjusted)


class TestSeeds:
    directions: ClassVar = list(torch.eye(16).split(WIDTHS))

    def test_the_order_of_features_does_not_matter(self):
        result = seed_stability(stack(self.directions), FOREST, *shuffled(self.directions, FOREST, 0))
        assert [boundary.n_children for boundary in result] == list(WIDTHS[1:])
        assert result == agreement(FOREST, FOREST)

    def test_only_edges_with_both_ends_matched_count(self):
        other = [rows.clone() for rows in self.directions]
        other[0][1] = other[0][1] + 2 * torch.eye(16)[15]  # cosine 0.45: no match
        other[2][0] = -other[2][0]
        forest = FeatureForest([-1, -1, -1, 0, 0, 0, 1, 0, 2, 3, 4, 4, -1, 5, 5, -1], WIDTHS)
        result = seed_stability(stack(self.directions), FOREST, stack(other), forest)
        upper, lower = result
        assert (upper.n_children, lower.n_children) == (6, 6)
        # Matched: parents 0 and 2. Edges there (0; 3, 4), (2; 7), here (0; 3, 4, 5, 7), (2; 8).
        assert (upper.n_edges, upper.n_other_edges, upper.n_common, upper.n_children_in_both) == (3, 5, 2, 3)
        assert upper.kept == 2 / 3
        chance = (2 * 4 + 1 * 1) / 6 / 3
        assert upper.kept_adjusted == pytest.approx((2 / 3 - chance) / (1 - chance))
        # Child 9 is not matched. Left are (3; 10), (4; 11), (5; 12, 13) and (4; 10, 11), (5; 13, 14).
        assert (lower.n_edges, lower.n_other_edges, lower.n_common, lower.n_children_in_both) == (4, 4, 2, 3)
        chance = (1 * 2 + 2 * 2) / 6 / 4
        assert lower.kept_adjusted == pytest.approx((2 / 4 - chance) / (1 - chance))
        shared = shared_edges(stack(self.directions), FOREST, stack(other), forest)
        assert shared.nonzero().flatten().tolist() == [3, 4, 11, 13]

    def test_shared_edges_are_named_by_the_first_stack_whatever_the_order_of_the_other(self):
        other = FeatureForest([-1, -1, -1, 0, 1, -1, 1, 2, 2, 3, 4, -1, 5, 8, -1, -1], WIDTHS)
        shared = shared_edges(stack(self.directions), FOREST, *shuffled(self.directions, other, 1))
        assert torch.equal(shared, (FOREST.parents == other.parents) & (FOREST.parents >= 0))

    def test_nothing_matched(self):
        result = seed_stability(stack(self.directions), FOREST, stack([-rows for rows in self.directions]), FOREST)
        assert all(boundary.n_children == boundary.n_edges == 0 and math.isnan(boundary.kept) for boundary in result)

    def test_stacks_that_do_not_fit(self):
        levels = stack(self.directions)
        with pytest.raises(ValueError, match="the stacks have 3 and 2 levels"):
            seed_stability(levels, FOREST, levels[:2], FeatureForest([-1] * 9, (3, 6)))
        with pytest.raises(ValueError, match=r"widths \[3, 6, 7\], but the forest has level_widths=\[3, 6\]"):
            seed_stability(levels, FeatureForest([-1] * 9, (3, 6)), levels, FOREST)
        other = stack([torch.eye(20)[: len(rows)] for rows in self.directions])
        with pytest.raises(ValueError, match=r"shapes \(3, 16\) and \(3, 20\) cannot be compared"):
            seed_stability(levels, FOREST, other, FOREST)


class TestMatching:
    def rows(self, n: int, seed: int) -> torch.Tensor:
        return torch.randn(n, 3, generator=torch.Generator().manual_seed(seed))

    @pytest.mark.parametrize("seed", range(5))
    def test_hungarian_is_the_best_of_all_pairings(self, seed: int):
        a, b, floor = self.rows(4, seed), self.rows(6, 100 + seed), 0.3
        cosine = torch.nn.functional.cosine_similarity(a[:, None], b[None], dim=2)
        worth = torch.where(cosine >= floor, cosine, 0)
        best = max(sum(worth[i, j].item() for i, j in enumerate(chosen)) for chosen in permutations(range(6), 4))
        match = match_decoders(torch.nn.Parameter(a), b, floor)
        assert cosine[match >= 0, match[match >= 0]].sum().item() == pytest.approx(best, abs=1e-5)
        assert len(set(match[match >= 0].tolist())) == int((match >= 0).sum()) > 0
        back = match_decoders(b, a, floor)
        assert [(i, j) for i, j in enumerate(match.tolist()) if j >= 0] == sorted(
            (j, i) for i, j in enumerate(back.tolist()) if j >= 0
        )

    def test_mutual_takes_each_others_nearest(self, monkeypatch: pytest.MonkeyPatch):
        a, b = self.rows(30, 0), self.rows(50, 1)
        cosine = torch.nn.functional.cosine_similarity(a[:, None], b[None], dim=2)
        expected = [
            int(row.argmax()) if row.max() >= 0.97 and cosine[:, row.argmax()].argmax() == i else -1
            for i, row in enumerate(cosine)
        ]
        mutual = [cosine[:, row.argmax()].argmax() == i for i, row in enumerate(cosine)]
        assert 0 < 30 - expected.count(-1) < sum(mutual) < 30
        monkeypatch.setattr(stability, "HUNGARIAN_MAX_WIDTH", 1)
        for block in (2**24, 70):
            monkeypatch.setattr(stability, "BLOCK_ELEMENTS", block)
            assert match_decoders(a, b, 0.97).tolist() == expected

    def test_wide_levels_are_matched_mutually(self, monkeypatch: pytest.MonkeyPatch):
        # b0 is nearest to both a0 and a1; only the Hungarian algorithm finds that a0 could do with b1.
        a, b = torch.tensor([[1.0, 0.1], [1, 0.0]]), torch.tensor([[1.0, 0.01], [1, 0.6]])
        assert match_decoders(a, b).tolist() == [1, 0]
        monkeypatch.setattr(stability, "HUNGARIAN_MAX_WIDTH", 1)
        assert match_decoders(a, b).tolist() == [-1, 0]

    @pytest.mark.parametrize("widest", [8, 1])
    def test_zero_rows_match_nothing_and_opposite_ones_only_where_features_have_either_sign(
        self, monkeypatch: pytest.MonkeyPatch, widest: int
    ):
        monkeypatch.setattr(stability, "HUNGARIAN_MAX_WIDTH", widest)
        rows = torch.tensor([[0.0, 0], [1, 0], [0, -1]])
        assert match_decoders(rows, torch.eye(2)).tolist() == [-1, 0, -1]
        assert match_decoders(rows, torch.eye(2), either_sign=True).tolist() == [-1, 0, 1]
        with pytest.raises(ValueError, match="floor=0 must be above 0"):
            match_decoders(rows, rows, floor=0)
