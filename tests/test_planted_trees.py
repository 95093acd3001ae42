"""Recovery of known hierarchies, against values worked out by hand and against plain loops."""

import hashlib
import itertools
import json
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from sae_lens import JumpReLUSAE, JumpReLUSAEConfig
from sae_lens.synthetic import (
    ConstantFiringProbabilityConfig,
    Hierarchy,
    HierarchyConfig,
    HierarchyNode,
    SyntheticModelConfig,
)

from sae_lens_hsae.evaluation.planted.absorption import measure_absorption
from sae_lens_hsae.evaluation.planted.concept_matching import ConceptMatches, match_directions, match_features
from sae_lens_hsae.evaluation.planted.training import compare, new_saes, train
from sae_lens_hsae.evaluation.planted.tree_recovery import score_recovery
from sae_lens_hsae.evaluation.planted.trees import EASY, STANDARD, PlantedSetting, recover, true_parents
from sae_lens_hsae.forest import FeatureForest
from sae_lens_hsae.levels import Levels
from sae_lens_hsae.presets import INDEPENDENT

# Concepts 0 and 1 are roots, 2 and 3 under 0, 4 and 5 under 1, 6 under 2, and 7 is in no tree.
TRUTH = torch.tensor([-1, -1, 0, 0, 1, 1, 2, -1])
NOTHING = None


def matches_of(*levels: Sequence[int | None], n_concepts: int = len(TRUTH)) -> ConceptMatches:
    """Features that stand for the given concepts."""
    concepts = torch.tensor([-1 if concept is None else concept for level in levels for concept in level])
    similarity = torch.where(concepts < 0, math.nan, 1.0).double()
    return ConceptMatches(concepts, similarity, tuple(map(len, levels)), n_concepts)


def readouts(*levels: Sequence[int | None], d_in: int = len(TRUTH)) -> list[JumpReLUSAE]:
    """Levels whose features fire where one coordinate of x is positive; never for None."""
    saes = []
    for level in levels:
        sae = JumpReLUSAE(JumpReLUSAEConfig(d_in=d_in, d_sae=len(level), dtype="float64"))
        rows = torch.zeros(len(level), d_in, dtype=torch.float64)
        for feature, coordinate in enumerate(level):
            if coordinate is not None:
                rows[feature, coordinate] = 1.0
        sae.W_enc.data, sae.W_dec.data = rows.T.clone(), rows
        saes.append(sae)
    return saes


def active(*samples: list[int], n: int = len(TRUTH)) -> torch.Tensor:
    table = torch.zeros(len(samples), n, dtype=torch.float64)
    for sample, concepts in enumerate(samples):
        table[sample, concepts] = 1.0
    return table


# ---- Matching


def test_matching_finds_each_concept_in_each_level():
    x = torch.randint(2, (200, 8), generator=torch.Generator().manual_seed(0)).double()
    matches = match_features(readouts([1, 0], [5, 2, None, 0]), [(x[:70], x[:70]), (x[70:], x[70:])])
    assert matches.concept_of.tolist() == [1, 0, 5, 2, -1, 0]
    torch.testing.assert_close(matches.similarity[:4], torch.ones(4, dtype=torch.float64))
    assert matches.similarity[4].isnan()
    assert matches.features_of(1).tolist() == [3, -1, 1, -1, -1, 0, -1, -1]


@pytest.mark.parametrize("seed", range(6))
def test_matching_equals_the_best_of_all_assignments(seed):
    generator = torch.Generator().manual_seed(seed)
    concepts = torch.rand(60, 5, generator=generator) < torch.tensor([0.1, 0.3, 0.5, 0.6, 0.0])
    source = torch.tensor([0, 1, 2, 3, 1, 2])
    noise = torch.rand(60, 6, generator=generator) < torch.tensor([0.1, 0.2, 0.3, 0.05, 0.1, 0.4])
    x = (concepts[:, source] ^ noise).double()
    x[:, 5] = seed % 2  # never or always fires
    samples = [(x[i : i + 17], concepts[i : i + 17].float()) for i in range(0, 60, 17)]
    matches = match_features(readouts([0, 1], [2, 3, 4, 5], d_in=6), samples, floor=0.3)

    for own, level in zip(Levels((2, 4)), ([0, 1], [2, 3, 4, 5]), strict=True):
        phi = np.zeros((len(level), 5))
        for (i, feature), concept in itertools.product(enumerate(level), range(5)):
            fires, there = x[:, feature].numpy(), concepts[:, concept].double().numpy()
            if fires.std() > 0 and there.std() > 0:
                phi[i, concept] = np.corrcoef(fires, there)[0, 1]
        worth = np.where(phi >= 0.3, phi, 0)
        # Five further columns of nothing let any feature go without.
        padded = np.hstack([worth, np.zeros((len(level), 5))])
        best = max(
            sum(padded[i, column] for i, column in enumerate(columns))
            for columns in itertools.permutations(range(10), len(level))
        )
        found = matches.concept_of[own].tolist()
        taken = [concept for concept in found if concept >= 0]
        assert len(taken) == len(set(taken))
        similarity = [phi[i, concept] for i, concept in enumerate(found) if concept >= 0]
        assert min(similarity, default=1) >= 0.3
        assert sum(similarity) == pytest.approx(best)
        np.testing.assert_allclose(matches.similarity[own][matches.concept_of[own] >= 0], similarity)


def test_pairs_under_the_floor_do_not_crowd_out_good_ones():
    saes = readouts([0, 1], d_in=3)
    # Cosines .60 and .45 of feature 0, .45 and 0 of feature 1: the sum is greatest over the two under the floor.
    saes[0].W_dec.data = torch.tensor([[0.60, 0.45, 0.4375**0.5], [0.45, 0.0, 0.7975**0.5]], dtype=torch.float64)
    directions = torch.eye(3)[:2]
    assert match_directions(saes, directions, floor=0.5).concept_of.tolist() == [0, -1]
    assert match_directions(saes, directions, floor=0.4).concept_of.tolist() == [1, 0]
    assert match_directions(saes, directions, floor=0.7).concept_of.tolist() == [-1, -1]


def test_the_floor_itself_is_enough():
    concepts = active([0, 1], [0, 1], [0], [1], [], [], [], [], n=2)
    phi = np.corrcoef(concepts.numpy().T)[0, 1]
    for floor, expected in ((phi - 1e-9, 0), (phi + 1e-9, -1)):
        matches = match_features(readouts([1], d_in=2), [(concepts, concepts[:, :1])], floor)
        assert matches.concept_of.tolist() == [expected]


# ---- Scores


def test_perfect_recovery():
    matches = matches_of([0, 1], [2, 3, 4, 5], [6, 2, 3, 4, 5])
    result = score_recovery(FeatureForest([-1, -1, 0, 0, 1, 1, 2, 2, 3, 4, 5], (2, 4, 5)), matches, TRUTH)
    for score, n in ((result.direct, 5), (result.ancestors, 6)):
        assert (score.precision, score.recall, score.f1) == (1, 1, 1)
        assert (score.n_true, score.n_claimed, score.n_correct) == (n, n, n)
    assert result.n_within_reach == 5
    assert (result.concepts_found, result.tree_concepts_found) == (7 / 8, 1)
    assert (result.n_concepts, result.n_tree_concepts) == (8, 7)
    assert (result.n_features, result.n_matched) == (11, 11)
    assert (result.n_edges, result.n_matched_edges, result.n_identity_edges, result.identity_share) == (9, 9, 4, 4 / 9)
    assert not result.undefined


def test_a_chain_of_copies_is_one_concept():
    # 0 at three levels, 2 under the last of them; a copy of 1 claims nothing.
    matches = matches_of([0], [0, 1], [0, 1, NOTHING], [2, 0, NOTHING, NOTHING])
    forest = FeatureForest([-1, 0, -1, 1, 2, -1, 3, 3, -1, -1], (1, 2, 3, 4))
    result = score_recovery(forest, matches, TRUTH)
    assert (result.direct.n_claimed, result.direct.n_correct) == (1, 1)
    assert (result.direct.precision, result.direct.recall) == (1, 1 / 5)
    assert result.direct.f1 == pytest.approx(2 * 0.2 / 1.2)
    assert result.n_identity_edges == 4


def test_an_unmatched_feature_in_between_is_skipped():
    matches = matches_of([0], [NOTHING, NOTHING], [2, NOTHING, 4])
    result = score_recovery(FeatureForest([-1, 0, 0, 1, 1, 2], (1, 2, 3)), matches, TRUTH)
    assert (result.direct.n_claimed, result.direct.n_correct) == (2, 1)  # 2 under 0, and 4 under 0, which is wrong
    assert (result.n_edges, result.n_matched_edges, result.n_identity_edges) == (5, 0, 0)


def test_a_wrong_edge_and_a_concept_outside_the_trees():
    # 4 is under 0 instead of 1, and 7 has no parent in truth.
    matches = matches_of([0, 1], [2, 4, 7])
    result = score_recovery(FeatureForest([-1, -1, 0, 0, 1], (2, 3)), matches, TRUTH)
    assert (result.direct.n_claimed, result.direct.n_correct) == (3, 1)
    assert (result.direct.precision, result.direct.recall) == (1 / 3, 1 / 5)
    assert result.n_within_reach == 2
    assert (result.concepts_found, result.tree_concepts_found) == (5 / 8, 4 / 7)


def test_a_grandparent_is_a_wrong_parent_and_a_right_ancestor():
    result = score_recovery(FeatureForest([-1, 0, -1], (1, 2)), matches_of([0], [6, 3]), TRUTH)
    assert (result.direct.precision, result.direct.recall) == (0, 0)
    assert (result.ancestors.precision, result.ancestors.recall) == (1, 1 / 6)


def test_claims_that_form_a_cycle_put_no_concept_above_itself():
    # 2 under 0 at one place, 0 under 2 at another.
    matches = matches_of([0, 2], [2, 0, 1])
    result = score_recovery(FeatureForest([-1, -1, 0, 1, -1], (2, 3)), matches, TRUTH)
    assert result.direct.n_claimed == result.ancestors.n_claimed == 2
    assert result.ancestors.n_correct == 1


def slow_scores(forest: FeatureForest, matches: ConceptMatches, truth: torch.Tensor) -> dict[str, int]:
    concept, parent = matches.concept_of.tolist(), truth.tolist()

    def closure(pairs):
        pairs = set(pairs)
        while more := {(a, d) for a, b in pairs for c, d in pairs if b == c} - pairs:
            pairs |= more
        return {(a, b) for a, b in pairs if a != b}

    true = {(c, p) for c, p in enumerate(parent) if p >= 0}
    claimed, edges, joined, identities = set(), 0, 0, 0
    for feature in range(forest.n_features):
        if (above := forest.parent(feature)) is not None:
            edges += 1
            joined += concept[feature] >= 0 and concept[above] >= 0
            identities += concept[feature] >= 0 and concept[feature] == concept[above]
        if concept[feature] < 0:
            continue
        for ancestor in forest.path(feature)[-2::-1] if len(forest.path(feature)) > 1 else []:
            if concept[ancestor] >= 0 and concept[ancestor] != concept[feature]:
                claimed.add((concept[feature], concept[ancestor]))
                break
    levels = {c: [i for i, own in enumerate(forest.levels) if c in concept[own]] for c in range(len(parent))}
    reach = sum(bool(levels[c] and levels[p]) and min(levels[p]) < max(levels[c]) for c, p in true)
    return {
        "true": len(true), "claimed": len(claimed), "correct": len(true & claimed),
        "all_true": len(closure(true)), "all_claimed": len(closure(claimed)),
        "all_correct": len(closure(true) & closure(claimed)),
        "edges": edges, "joined": joined, "identities": identities, "reach": reach,
        "found": len(set(concept) - {-1}),
    }  # fmt: skip


def random_case(seed: int) -> tuple[FeatureForest, ConceptMatches, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high, (), generator=generator))

    n_concepts, widths = 9, (3, 5, 7, 9)
    truth = torch.tensor([draw(-1, concept) if concept else -1 for concept in range(n_concepts)])
    order = torch.randperm(n_concepts, generator=generator)
    shuffled = torch.full((n_concepts,), -1)
    shuffled[order] = torch.where(truth < 0, -1, order[truth])
    concepts, parents = [], []
    for level, width in enumerate(widths):
        own = torch.randperm(n_concepts, generator=generator)[:width]
        concepts.append([None if draw(0, 3) == 0 else int(concept) for concept in own])
        start = sum(widths[: level - 1])
        parents += [start + draw(0, widths[level - 1]) if level and draw(0, 5) else -1 for _ in range(width)]
    return FeatureForest(parents, widths), matches_of(*concepts, n_concepts=n_concepts), shuffled


@pytest.mark.parametrize("seed", range(30))
def test_scores_equal_plain_loops(seed):
    forest, matches, truth = random_case(seed)
    result, slow = score_recovery(forest, matches, truth), slow_scores(forest, matches, truth)
    fast = {
        "true": result.direct.n_true, "claimed": result.direct.n_claimed, "correct": result.direct.n_correct,
        "all_true": result.ancestors.n_true, "all_claimed": result.ancestors.n_claimed,
        "all_correct": result.ancestors.n_correct, "edges": result.n_edges, "joined": result.n_matched_edges,
        "identities": result.n_identity_edges, "reach": result.n_within_reach,
        "found": round(result.concepts_found * result.n_concepts),
    }  # fmt: skip
    assert fast == slow
    assert result.direct.n_correct <= result.n_within_reach


def test_what_cannot_be_measured_is_nan_with_a_reason():
    forest = FeatureForest([-1, 0, 0], (1, 2))
    nothing = score_recovery(forest, matches_of([NOTHING], [NOTHING, NOTHING]), TRUTH)
    assert math.isnan(nothing.direct.precision)
    assert math.isnan(nothing.ancestors.recall)
    assert math.isnan(nothing.direct.f1)
    assert nothing.concepts_found == 0
    assert "no feature stands for a concept" in nothing.undefined["recall"]
    assert "lower the floor" in str(nothing)
    assert json.loads(json.dumps(nothing.to_dict()))["direct"]["recall"] is None

    apart = score_recovery(FeatureForest([-1, -1, -1], (1, 2)), matches_of([0], [2, 3]), TRUTH)
    assert (apart.direct.recall, apart.direct.f1) == (0, 0)
    assert math.isnan(apart.direct.precision)
    assert math.isnan(apart.identity_share)
    assert set(apart.undefined) == {"precision", "identity_share"}

    flat = score_recovery(forest, matches_of([0], [2, 3]), torch.full((8,), -1))
    assert math.isnan(flat.direct.recall)
    assert flat.direct.precision == 0
    assert math.isnan(flat.tree_concepts_found)
    assert flat.undefined["f1"] == "no concept has a parent"


# ---- Absorption


def test_a_setting_may_take_its_generator_from_elsewhere(tmp_path):
    original = EASY.plant(3)
    original.model.save(tmp_path)
    loaded = replace(EASY, source=str(tmp_path)).plant(seed=3)
    assert torch.equal(loaded.true_parents, original.true_parents)
    for (ours, concepts), (theirs, others) in zip(loaded.samples(100), original.samples(100), strict=True):
        assert torch.equal(ours, theirs)
        assert torch.equal(concepts, others)


def test_absorption_counts_silent_parents():
    # Coordinate 8 is what the feature of concept 0 fires on; it is silent on the last two samples.
    saes = readouts([8, 3], [8, 2, 3], d_in=9)
    matches = matches_of([0, 3], [0, 2, 3])
    concepts = active([0, 2], [0, 3], [0], [1], [0, 2], [0, 2, 3])
    x = torch.cat([concepts, torch.tensor([[1, 1, 1, 1, 0, 0]]).T.double()], dim=1)
    result = measure_absorption(saes, matches, TRUTH, [(x[:4], concepts[:4]), (x[4:], concepts[4:])])
    # Level 0: pair (3, 0) on samples 1 and 5. Level 1 and across: (2, 0) on 0, 4, 5 and (3, 0) on 1, 5.
    assert result.by_level == (1 / 2, 3 / 5)
    assert result.by_boundary == (3 / 5,)
    assert (result.within_level, result.across_levels) == (4 / 7, 3 / 5)
    assert (result.n_within, result.n_across) == (7, 5)


def test_absorption_asks_for_the_true_parent_and_is_nan_without_an_occasion():
    concepts = active([2], [3])  # the features of 2 and 3 fire though 0 is not there
    result = measure_absorption(readouts([0], [2, 3]), matches_of([0], [2, 3]), TRUTH, [(concepts, concepts)])
    assert math.isnan(result.across_levels)
    assert math.isnan(result.within_level)
    assert (result.n_within, result.n_across) == (0, 0)


@pytest.mark.parametrize("seed", range(5))
def test_absorption_equals_plain_loops(seed):
    _, matches, truth = random_case(seed)
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(2, (50, 24), generator=generator).double()
    concepts = torch.randint(2, (50, 9), generator=generator)
    coordinates = [list(range(own.start, own.stop)) for own in Levels((3, 5, 7, 9))]
    result = measure_absorption(readouts(*coordinates, d_in=24), matches, truth, [(x, concepts)])
    for above, below, share in [
        *((level, level, result.by_level[level]) for level in range(4)),
        *((level, level + 1, result.by_boundary[level]) for level in range(3)),
    ]:
        absorbed = occasions = 0
        for child, parent in enumerate(truth.tolist()):
            parent_feature, child_feature = matches.features_of(above)[parent], matches.features_of(below)[child]
            if parent < 0 or parent_feature < 0 or child_feature < 0:
                continue
            for sample in range(50):
                if concepts[sample, parent] and x[sample, coordinates[below][child_feature]]:
                    occasions += 1
                    absorbed += int(x[sample, coordinates[above][parent_feature]] == 0)
        assert (share == absorbed / occasions) if occasions else math.isnan(share)


# ---- Settings


def test_the_settings_have_the_shape_they_are_named_for():
    easy, standard = EASY.plant(0).true_parents, STANDARD.plant(0).true_parents
    assert (len(easy), int((easy < 0).sum())) == (336, 16)
    assert torch.bincount(easy[easy >= 0]).unique().tolist() == [4]
    assert len(standard) == 700
    in_tree = (standard >= 0) | torch.isin(torch.arange(700), standard)
    assert (int(in_tree.sum()), int((in_tree & (standard < 0)).sum())) == (507, 24)
    branching = torch.bincount(standard[standard >= 0])
    assert branching[branching > 0].unique().tolist() == [2, 3, 4, 5, 6, 7]
    assert (EASY.level_widths, EASY.model.hidden_dim) == ((16, 64, 256), 128)
    assert (STANDARD.level_widths, STANDARD.model.hidden_dim) == ((32, 128, 512), 96)


@pytest.mark.parametrize(
    ("setting", "version", "digest"),
    [(EASY, 1, "99a5d25e87d4"), (STANDARD, 1, "690570d1fd91")],
    ids=["easy", "standard"],
)
def test_a_changed_setting_needs_a_new_version(setting, version, digest):
    """Raise the setting's version, and then change the values here."""
    model, hierarchy = setting.model, setting.model.hierarchy
    told = {name: value for name, value in vars(setting).items() if name not in ("model", "version", "source")}
    # By name, so that a field which a later SAELens adds changes nothing.
    told |= {
        name: getattr(model, name) for name in ("num_features", "hidden_dim", "bias", "orthogonalization", "dtype")
    }
    told |= {name: getattr(model, f"{name}_firing_magnitudes") for name in ("mean", "std")}
    told["firing"] = model.firing_probability.to_dict()
    told["correlation"] = model.correlation and (model.correlation.rank, model.correlation.correlation_scale)
    told |= {name: getattr(hierarchy, name) for name in ("mutually_exclusive_portion", "compensate_probabilities")}
    told |= {"scaled": hierarchy.scale_children_by_parent, "parents": setting.plant(0).true_parents.tolist()}
    assert hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:12] == digest
    assert setting.version == version


@pytest.mark.parametrize("setting", [EASY, STANDARD], ids=["easy", "standard"])
def test_what_a_setting_generates(setting):
    trees = setting.plant(1)
    x, concepts = (torch.cat(parts) for parts in zip(*trees.samples(12_000), strict=True))
    assert x.shape == (12_000, setting.model.hidden_dim)
    there, children = concepts > 0, trees.true_parents >= 0
    assert not (there[:, children] & ~there[:, trees.true_parents[children]]).any()
    torch.testing.assert_close(
        x, concepts @ trees.model.feature_dict.feature_vectors + trees.model.feature_dict.bias, rtol=1e-4, atol=1e-4
    )
    frequency = there.double().mean(0).sort(descending=True).values
    if setting is EASY:
        n_children = torch.zeros(len(x), 336).index_add_(1, trees.true_parents[children], there[:, children].float())
        inner = torch.isin(torch.arange(336), trees.true_parents)
        assert torch.equal(n_children[:, inner], there[:, inner].float())
        expected = [1.6, 1.6, 1.6]
    else:
        expected = [float(frequency[:width].sum()) for width in setting.level_widths]
    np.testing.assert_allclose(setting.target_l0, expected, rtol=0.02)


def test_streams_are_the_same_on_every_call_and_differ_between_seeds():
    first, again, other = STANDARD.plant(0), STANDARD.plant(0), STANDARD.plant(1)
    assert torch.equal(first.true_parents, other.true_parents)
    sample = list(first.samples(1500))
    assert [len(x) for x, _ in sample] == [1024, 476]
    batches = first.training_batches()
    train_x = [next(batches), next(batches)]
    torch.rand(3)
    assert torch.equal(sample[0][0], next(iter(again.samples(1500)))[0])
    assert torch.equal(train_x[0], next(again.training_batches()))
    assert not torch.equal(train_x[0], train_x[1])
    assert not torch.equal(train_x[0], sample[0][0])
    assert not torch.equal(first.model.feature_dict.feature_vectors, other.model.feature_dict.feature_vectors)
    assert not torch.equal(sample[0][1], next(iter(other.samples(1500)))[1])


def test_nodes_without_a_feature_only_group():
    group = HierarchyNode(None, [HierarchyNode(2), HierarchyNode(3)])
    hierarchy = Hierarchy([HierarchyNode(0, [group, HierarchyNode(4)]), HierarchyNode(None, [HierarchyNode(1)])], None)
    assert true_parents(hierarchy, 6).tolist() == [-1, -1, 0, 0, 0, -1]


# ---- Training

TINY = PlantedSetting(
    name="tiny",
    version=1,
    model=SyntheticModelConfig(
        num_features=32,
        hidden_dim=32,
        firing_probability=ConstantFiringProbabilityConfig(0.1),
        hierarchy=HierarchyConfig(8, 3, 1, mutually_exclusive_portion=1.0, compensate_probabilities=True),
        bias=False,
    ),
    tree_seed=0,
    level_widths=(8, 24),
    target_l0=(0.8, 0.8),
    learning_rate=3e-2,
    n_steps=300,
    sae_fields={"unassigned_fraction": 0.0, "sparsity_rate": 0.02},
)


@pytest.fixture(scope="module")
def tiny_results() -> dict[str, Any]:
    other = new_saes(TINY.plant(0), {"twin": INDEPENDENT})
    return compare(
        TINY,
        0,
        others=other,
        as_stack=lambda sae: ([sae.level_sae(0), sae.level_sae(1)], sae.forest),  # type: ignore[attr-defined]
        n_samples=20_000,
        true_parents_of=["HSAE"],
    )


def test_training_recovers_much_of_a_tiny_forest(tiny_results):
    assert list(tiny_results) == ["HSAE", "HSAE, true parents", "post hoc", "twin"]
    with_true_parents = tiny_results["HSAE, true parents"]
    assert with_true_parents.recovery.direct.precision == 1
    assert with_true_parents.recovery.direct.f1 > tiny_results["HSAE"].recovery.direct.f1
    assert with_true_parents.evaluation.levels == tiny_results["HSAE"].evaluation.levels
    for result in tiny_results.values():
        assert result.recovery.direct.precision > 0.4  # by chance it would be 1/8
        assert result.recovery.direct.recall > 0.2
        assert result.recovery.concepts_found > 0.5
        assert result.evaluation.n_tokens == 20_000
        assert [level.l0 for level in result.evaluation.levels] == pytest.approx([0.8, 0.8], rel=0.2)
        assert result.evaluation.levels[1].variance_explained > 0.8
    assert str(tiny_results["HSAE"]).startswith("HSAE: tiny v1, seed 0, 300 steps\ndirect parents  precision 0.")
    told = json.loads(json.dumps(tiny_results["HSAE"].to_dict()))
    assert told["recovery"]["direct"]["n_true"] == 24
    assert told["setting"] == "tiny"


def test_models_start_alike_and_see_the_same_stream(tiny_results):
    assert tiny_results["twin"].recovery.to_dict() == tiny_results["post hoc"].recovery.to_dict()
    assert tiny_results["twin"].evaluation.to_dict() == tiny_results["post hoc"].evaluation.to_dict()
    assert tiny_results["HSAE"].evaluation.to_dict() != tiny_results["post hoc"].evaluation.to_dict()
    alone = compare(TINY, 0, {"post hoc": INDEPENDENT}, n_samples=20_000)["post hoc"]
    assert alone.evaluation.to_dict() == tiny_results["post hoc"].evaluation.to_dict()


def test_a_trained_sae_reads_activations_as_they_are():
    trees = TINY.plant(0)
    sae = train(trees, new_saes(trees, {"post hoc": INDEPENDENT}), n_steps=20)["post hoc"]
    assert sae.cfg.normalize_activations == "none"
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(32))
    before = sae.parents.clone()  # type: ignore[attr-defined]
    sae.finish_training()  # type: ignore[attr-defined]
    assert torch.equal(before, sae.parents)  # type: ignore[attr-defined]
    assert (before[8:] >= 0).all()


def test_both_ways_of_matching_and_the_floor():
    trees = TINY.plant(0)
    levels = readouts([0] * 8, [0] * 24, d_in=32)
    vectors = trees.model.feature_dict.feature_vectors.double()
    for sae, concepts in zip(levels, (slice(0, 8), slice(8, 32)), strict=True):
        sae.W_dec.data = vectors[concepts].clone()
    forest = FeatureForest(trees.true_parents, (8, 24))
    assert recover(levels, forest, trees, 2000, matching="decoder").direct.f1 == 1
    # All features of a level fire on the same coordinate.
    assert recover(levels, forest, trees, 2000, floor=0.01).n_matched > recover(levels, forest, trees, 2000).n_matched


# ---- Wrong calls


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: score_recovery(FeatureForest([-1, 0, 0, 0], (1, 3)), matches_of([0], [2, 3]), TRUTH), "[1, 3]"),
        (lambda: score_recovery(FeatureForest([-1, 0, 0], (1, 2)), matches_of([0], [2, 3]), TRUTH[:5]), "(5,)"),
        (lambda: score_recovery(FeatureForest([-1, 0, 0], (1, 2)), matches_of([0], [2, 3]), TRUTH * 1.0), "float32"),
        (
            lambda: score_recovery(FeatureForest([-1, 0, 0], (1, 2)), matches_of([0], [2, 3]), TRUTH + 9),
            "outside 0 … 7",
        ),
        (
            lambda: score_recovery(
                FeatureForest([-1, 0, 0], (1, 2)), matches_of([0], [2, 3]), torch.tensor([1, 2, 0, -1, 1, -1, -1, -1])
            ),
            "concept 0 into a cycle",
        ),
        (lambda: match_features(readouts([0], [1, 2]), []), "samples held nothing"),
        (lambda: match_features(readouts([0], [1, 2]), [(torch.ones(3, 7), torch.ones(3, 8))]), "(batch, 8)"),
        (lambda: match_features(readouts([0], [1, 2]), [(torch.ones(3, 8), torch.ones(2, 8))]), "(2, 8)"),
        (lambda: match_features(readouts([0]), [(torch.full((3, 8), math.nan), torch.ones(3, 8))]), "NaN"),
        (lambda: match_features(readouts([0]), [(active([0]), active([0]))], floor=0), "floor=0"),
        (lambda: match_features([*readouts([0]), *readouts([1, 2], d_in=9)], []), "different d_in [8, 9]"),
        (lambda: match_directions(readouts([0]), torch.ones(4, 3)), "expected (n_concepts, 8)"),
        (
            lambda: measure_absorption(readouts([0]), matches_of([0], [2, 3]), TRUTH, [(active([0]), active([0]))]),
            "levels have the widths [1]",
        ),
        (lambda: measure_absorption(readouts([0]), matches_of([0]), TRUTH, []), "samples held nothing"),
        (lambda: next(iter(TINY.plant(0).samples(0))), "n_samples=0"),
        (lambda: TINY.plant(-1), "seed=-1"),
        (lambda: replace(TINY, model=replace(TINY.model, hierarchy=None)).plant(0), "'tiny' plants no tree"),
        (lambda: recover(readouts([0], [1, 2]), FeatureForest([-1, -1], (2,)), TINY.plant(0)), "widths [1, 2]"),
        (
            lambda: recover(readouts([0]), FeatureForest([-1], (1,)), TINY.plant(0), matching="cosine"),  # type: ignore[arg-type]
            "matching='cosine'",
        ),
        (lambda: recover(readouts([0]), FeatureForest([-1], (1,)), TINY.plant(0)), "expected (batch, 8)"),
        (lambda: compare(TINY, 0, {}), "no model to train"),
        (lambda: compare(TINY, 0, others=new_saes(TINY.plant(0), {"HSAE": {}})), "share the names ['HSAE']"),
        (lambda: compare(TINY, 0, others=new_saes(TINY.plant(0), {"twin": {}})), "without as_stack"),
        (lambda: compare(TINY, 0, n_steps=0), "n_steps=0"),
    ],
)
def test_errors_name_the_fault(call, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        call()
