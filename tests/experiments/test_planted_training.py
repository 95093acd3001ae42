"""Training on planted trees, and calls that are refused."""

from collections.abc import Sequence
from typing import Any

import pytest
from sae_lens.synthetic import ConstantFiringProbabilityConfig, HierarchyConfig, SyntheticModelConfig

from experiments.matryoshka import inference_sae
from experiments.planted.copies import copies_found
from experiments.planted.training import Rival, compare, new_saes
from experiments.planted.trees import EASY, PlantedSetting, PlantedTrees
from experiments.planted_tables import _matryoshka
from experiments.snmf import factor_levels
from sae_lens_hsae.evaluation import evaluate_forest
from sae_lens_hsae.forest import FeatureForest
from sae_lens_hsae.presets import INDEPENDENT

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
    n_steps=400,
    sae_fields={"unassigned_fraction": 0.0, "sparsity_rate": 0.02},
)


def one_level_of_each(saes: Sequence[Any]) -> Any:
    return [sae.level_sae(level) for level, sae in enumerate(saes)], saes[0].forest


def factors(trees: PlantedTrees) -> Any:
    return factor_levels(next(trees.training_batches()), TINY.level_widths, (0.8, 0.8), seed=0)


@pytest.fixture(scope="module")
def tiny_results() -> dict[str, Any]:
    trees = TINY.plant(0)
    twins = [new_saes(trees, {"twin": INDEPENDENT})["twin"] for _ in range(2)]
    return compare(
        TINY,
        0,
        others={"twins": Rival(twins, one_level_of_each), "factors": Rival([], lambda _: factors(trees))},
        n_samples=20_000,
        true_parents_of=["HSAE"],
        same_rule_of=["HSAE", "twins"],
    )


def test_training_recovers_much_of_a_tiny_forest(tiny_results):
    assert list(tiny_results) == [
        *("HSAE", "HSAE, true parents", "HSAE, HSAE's rule"),
        *("post hoc", "twins", "twins, HSAE's rule", "factors"),
    ]
    with_true_parents = tiny_results["HSAE, true parents"]
    assert with_true_parents.recovery.direct.precision == 1
    assert with_true_parents.recovery.direct.f1 >= tiny_results["HSAE"].recovery.direct.f1
    assert with_true_parents.evaluation.levels == tiny_results["HSAE"].evaluation.levels
    counted_anew = tiny_results["HSAE, HSAE's rule"].recovery.direct.f1
    assert counted_anew == pytest.approx(tiny_results["HSAE"].recovery.direct.f1, abs=0.1)
    by_both_rules = tiny_results["twins"], tiny_results["twins, HSAE's rule"]
    assert by_both_rules[0].evaluation.levels == by_both_rules[1].evaluation.levels
    assert by_both_rules[0].recovery.n_edges != by_both_rules[1].recovery.n_edges
    assert tiny_results["factors"].recovery.n_edges == 24
    for name in ("HSAE", "HSAE, true parents", "post hoc", "twins"):
        result = tiny_results[name]
        assert result.recovery.direct.precision > 0.4  # by chance it would be 1/8
        assert result.recovery.direct.recall > 0.2
        assert result.recovery.concepts_found > 0.5
        assert result.evaluation.n_tokens == 20_000
        assert [level.l0 for level in result.evaluation.levels] == pytest.approx([0.8, 0.8], rel=0.2)
        assert result.evaluation.levels[1].variance_explained > 0.8


def test_models_start_alike_and_see_the_same_stream(tiny_results):
    assert tiny_results["twins"].recovery.to_dict() == tiny_results["post hoc"].recovery.to_dict()
    assert tiny_results["twins"].evaluation.to_dict() == tiny_results["post hoc"].evaluation.to_dict()
    assert tiny_results["HSAE"].evaluation.to_dict() != tiny_results["post hoc"].evaluation.to_dict()
    alone = compare(TINY, 0, {"post hoc": INDEPENDENT}, n_samples=20_000)["post hoc"]
    assert alone.evaluation.to_dict() == tiny_results["post hoc"].evaluation.to_dict()


def test_a_short_training_is_scored():
    assert copies_found(EASY, seed=0, steps=30, n_samples=2_000)["rows"]


def test_a_matryoshka_saes_levels_explain_what_they_do_together():
    rival = _matryoshka(TINY, "cpu")
    result = compare(TINY, 0, {}, {"nested": rival}, n_steps=50, n_samples=2_000)["nested"]
    trained: Any = rival.saes[0]  # in place
    whole = inference_sae(trained)
    x = [x for x, _ in TINY.plant(0).samples(2_000)]
    together = evaluate_forest([whole], FeatureForest([-1] * 32, [32]), x).levels[0]
    assert result.evaluation.levels[1].variance_explained == pytest.approx(together.variance_explained)
