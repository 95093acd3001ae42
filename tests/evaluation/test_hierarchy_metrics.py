"""The hierarchy metrics against values worked out by hand and against a plain loop over tokens and features."""

import json
import math
import re
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hierarchy_reference import jumprelu, random_forest, random_levels, readout_levels, slow_evaluation, tokens
from sae_lens import JumpReLUSAE, JumpReLUSAEConfig
from small_saes import D_IN, make_sae

from sae_lens_hsae.evaluation import ForestEvaluation, evaluate_forest, level_saes
from sae_lens_hsae.forest import FeatureForest, activations


def assert_close(actual: dict[str, Any], expected: dict[str, Any]) -> None:
    """All that ``expected`` holds is found; ``actual`` may hold more."""
    for name in ("n_tokens", "in_trees_share"):
        assert actual[name] == expected[name]
    for part in ("levels", "boundaries"):
        assert len(actual[part]) == len(expected[part])
        for a, e in zip(actual[part], expected[part], strict=True):
            a, e = flat(a), flat(e)
            assert {name: a[name] for name in e} == pytest.approx(e, rel=1e-9, abs=1e-12, nan_ok=True)


def flat(record: dict[str, Any]) -> dict[str, Any]:
    """Without reasons, with the ends of the intervals; NaN for None."""
    values = {name: value for name, value in record.items() if name not in ("intervals", "undefined")}
    for name, ends in record.get("intervals", {}).items():
        values[f"{name}, low"], values[f"{name}, high"] = ends or (None, None)
    return {name: math.nan if value is None else value for name, value in values.items()}


#   0       1    2     level 0; 2 has no children
#  3 4     5 6         level 1; 6 never fires, 7 is unassigned
WIDTHS = (3, 5)
FOREST = FeatureForest([-1, -1, -1, 0, 0, 1, 1, -1], WIDTHS)
X = tokens(8, [0, 3], [0, 4, 7], [3], [1, 2], [1, 5], [0, 3, 4])


@pytest.fixture
def evaluation() -> ForestEvaluation:
    return evaluate_forest(readout_levels(WIDTHS), FOREST, [X])


class TestByHand:
    def test_shape(self):
        widths = (2, 3, 7)
        forest = FeatureForest([-1, -1, 0, 0, -1, 2, 2, 2, 3, 4, 4, -1], widths)
        result = evaluate_forest(readout_levels(widths), forest, [tokens(12, [0, 2, 5])])
        # Root 0 has three generations, root 1 stands alone, as does 11; the unassigned 4 has two children.
        assert result.trees_by_depth == (2, 1, 1)
        upper, lower = result.boundaries
        assert (upper.mean_children, upper.max_children, upper.several_children_share) == (2, 2, 1)
        assert (lower.mean_children, lower.max_children) == (2, 3)
        assert lower.several_children_share == pytest.approx(2 / 3)

    def test_kinds_of_edges(self):
        # Parent 0 fires on 4 of 16 tokens, with its child 3 always: 1 − 2 · 4 / 16. Parent 1 on two, with 4 always, and
        # with 5 on half of 5's. Parent 2 has the copy 6; 7, below it, never fires and counts nowhere.
        forest = FeatureForest([-1, -1, -1, 0, 1, 1, 2, 2], WIDTHS)
        levels: list[Any] = readout_levels(WIDTHS)
        levels[1].W_dec.data[3] = -3 * levels[0].W_dec.data[2]
        x = tokens(8, [0, 3], *[[0]] * 3, [1, 4, 5], [1], [5], [2, 6], *[[]] * 8)
        unlike = evaluate_forest(levels, forest, [x])
        levels[1].W_dec.data[3] *= -1
        result = evaluate_forest(levels, forest, [x])
        (boundary,) = result.boundaries
        assert (boundary.copy_share, unlike.boundaries[0].copy_share) == (1 / 4, 0)
        assert (boundary.weak_share, boundary.clear_share) == (1 / 3, 1 / 3)
        assert result.in_trees_share == 3 / 8
        levels[0] = SimpleNamespace(cfg=levels[0].cfg, device="cpu", encode=levels[0].encode, decode=levels[0].decode)
        result = evaluate_forest(levels, forest, [x])
        (boundary,) = result.boundaries
        assert math.isnan(boundary.copy_share + boundary.weak_share + boundary.clear_share + result.in_trees_share)
        reasons = {boundary.undefined["weak_share"], result.undefined["in_trees_share"]}
        assert reasons == {"a level has no decoder rows W_dec, (width, d_in), which tell copies"}

    def test_what_is_undefined_has_a_reason(self):
        result = evaluate_forest(readout_levels(WIDTHS), FeatureForest([-1] * 8, WIDTHS), [X])
        (boundary,) = result.boundaries
        assert result.to_dict()["boundaries"][0]["p_parent_given_child"] is None
        assert boundary.undefined["hamming"] == "no parent that fires has a child that fires"
        assert boundary.undefined["p_child_given_parent"] == "of no pair do both members fire"
        assert boundary.undefined["sibling_coactivation"] == "no parent has two children that fire"
        assert boundary.unassigned_share == 1
        assert set(boundary.undefined) == {
            name for name, value in vars(boundary).items() if isinstance(value, float) and math.isnan(value)
        } - {"mean_children", "several_children_share"}
        assert boundary.non_sibling_coactivation > 0

    def test_all_siblings(self):
        forest = FeatureForest([-1, 0, 0], (1, 2))
        (boundary,) = evaluate_forest(readout_levels((1, 2)), forest, [tokens(3, [0, 1], [0, 2], [1, 2])]).boundaries
        assert boundary.sibling_coactivation == pytest.approx((1 / 3) / (2 / 3 * 2 / 3))
        assert boundary.undefined["non_sibling_coactivation"] == "all features that fire are siblings"
        assert "no two other features" in boundary.undefined["sibling_lift"]

    @pytest.mark.parametrize("dead", [0, 1])
    def test_a_dead_level(self, dead: int):
        levels = readout_levels(WIDTHS)
        levels[dead].b_enc.data -= 100
        result = evaluate_forest(levels, FOREST, [X])
        reason = f"level {dead} is dead: none of its {WIDTHS[dead]} features fires on an ordinary token"
        (boundary,) = result.boundaries
        assert (result.levels[dead].l0, result.levels[dead].n_dead) == (0, WIDTHS[dead])
        for name in ("hamming", "p_parent_given_child", "coverage", "dominance"):
            assert math.isnan(getattr(boundary, name))
            assert boundary.undefined[name] == reason
        assert str(result).count(reason) == 2
        # What the dead level has no part in is still there.
        assert math.isnan(boundary.sibling_coactivation) == (dead == 1)

    def test_activations_that_do_not_vary(self):
        # The mean of equal numbers, which is rounded, is not always the number itself.
        x = torch.rand(8, generator=torch.Generator().manual_seed(0), dtype=torch.float64).expand(503, 8)
        for n in (1, 503):
            result = evaluate_forest(readout_levels(WIDTHS), FOREST, [x[:n]])
            assert math.isnan(result.levels[0].variance_explained)
            assert result.levels[0].undefined == {"variance_explained": "the activations do not vary"}


class TestAgainstPlainLoops:
    @pytest.mark.parametrize("seed", range(4))
    @torch.no_grad()
    def test_random_stack(self, seed: int):
        widths, d_in = (6, 11, 23), 7
        levels, forest = random_levels(widths, d_in, seed), random_forest(widths, seed)
        x = 2 * torch.randn(90, d_in, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        weights = [(sae.W_dec, sae.W_enc.T, sae.b_enc.sub_(1.5), sae.threshold) for sae in levels]
        features = [feature for of_level in weights for feature in zip(*of_level, strict=True)]
        for number, (parent, child) in enumerate(forest.edges().tolist()):
            if number % 3 == 0:  # a copy
                features[child][0].copy_(2 * features[parent][0])
            elif number % 3 == 1:  # fires as its parent does
                for own, above in zip(features[child][1:], features[parent][1:], strict=True):
                    own.copy_(above)
        expected = slow_evaluation(levels, forest, x)
        assert_close(evaluate_forest(levels, forest, x.split(32)).to_dict(), expected)
        # The case is worth its name only if something is dead, unassigned and imperfect.
        assert all(level["n_dead"] for level in expected["levels"])
        assert all(b["n_pairs_left_out"] and b["n_unassigned"] for b in expected["boundaries"])
        assert all(0 < b["copy_share"] < 1 for b in expected["boundaries"])
        assert all(0 < expected["boundaries"][1][f"{kind}_share"] < 1 for kind in ("weak", "clear"))
        assert 0 < expected["in_trees_share"] < 1

    @pytest.mark.parametrize("sizes", [[90], [1] * 90, [50, 0, 3, 37], [64, 26]])
    def test_batch_sizes_do_not_matter(self, sizes: list[int], monkeypatch: pytest.MonkeyPatch):
        widths, d_in = (4, 9), 5
        levels, forest = random_levels(widths, d_in, 0), random_forest(widths, 0)
        x = 3 + torch.randn(90, d_in, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        expected = evaluate_forest(levels, forest, [x]).to_dict()
        monkeypatch.setattr(activations, "MAX_TOKENS_AT_ONCE", 17)
        assert_close(evaluate_forest(levels, forest, iter(x.split(sizes))).to_dict(), expected)

    def test_variance_explained_survives_a_large_mean(self):
        # In float32, or as Σx² - n·mean², nothing would be left of a spread of 1 around 1e8.
        levels = readout_levels((3,))
        x = 1e8 + torch.randn(50, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        levels[0].W_dec.data *= 1 - 1e-9
        result = evaluate_forest(levels, FeatureForest([-1] * 3, (3,)), x.split(7))
        expected = 1 - float((1e-9 * x).square().sum() / (x - x.mean(0)).square().sum())
        assert result.levels[0].variance_explained == pytest.approx(expected, abs=1e-6)


class TestMemory:
    def test_nothing_of_the_size_of_both_levels_at_once(self):
        widths = (20_000, 60_000)  # a table of pairs would take 4.8 GB and more
        levels = [jumprelu(4, width, "float32") for width in widths]
        forest = random_forest(widths, 0)
        for sae in levels:
            sae.threshold.data += 5 * sae.W_enc.abs().max()
        (boundary,) = evaluate_forest(levels, forest, [10 * torch.randn(8, 4)]).boundaries
        assert boundary.n_pairs_left_out < boundary.n_pairs

    @pytest.mark.parametrize(("elements", "largest"), [(2**25, 30), (40, 8), (1, 1)])
    def test_wide_levels_get_fewer_tokens_at_once(self, elements: int, largest: int, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(activations, "MAX_ELEMENTS_AT_ONCE", elements)
        monkeypatch.setattr(activations, "MAX_TOKENS_AT_ONCE", 30)
        seen: list[int] = []
        levels = readout_levels(WIDTHS)
        levels[0].hook_sae_input.add_hook(lambda tensor, *, hook: seen.append(len(tensor)))  # noqa: ARG005
        evaluate_forest(levels, FOREST, [X.repeat(12, 1)])
        assert max(seen) == largest
        assert sum(seen) == 72


class TestSources:
    def test_endless_source_is_read_no_further_than_asked(self):
        read = 0

        def endless() -> Iterator[torch.Tensor]:
            nonlocal read
            while True:
                read += 1
                yield X

        levels = readout_levels(WIDTHS)
        result = evaluate_forest(levels, FOREST, endless(), n_tokens=15)
        assert (result.n_tokens, read) == (15, 3)
        assert result == evaluate_forest(levels, FOREST, [torch.cat([X, X, X])[:15]])

    def test_a_stack_object_gives_its_levels(self, evaluation: ForestEvaluation):
        levels = readout_levels(WIDTHS)
        stack: Any = SimpleNamespace(
            cfg=SimpleNamespace(level_widths=list(WIDTHS)), level_sae=levels.__getitem__, encode=None
        )
        assert level_saes(stack) == levels
        assert evaluate_forest(stack, FOREST, X) == evaluation, "and one tensor is one batch"
        assert evaluate_forest(torch.nn.ModuleList(levels), FOREST, [X]) == evaluation  # type: ignore[arg-type]

    def test_a_hierarchical_sae_is_evaluated_by_its_own_activations(self):
        hsae = make_sae(dtype="float64")
        x = 2 * torch.randn(60, D_IN, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        result = evaluate_forest(hsae, hsae.forest, x.split(25))
        levels = [hsae.level_sae(level) for level in range(3)]
        assert_close(result.to_dict(), evaluate_forest(levels, hsae.forest, x).to_dict())
        assert sum(level.l0 for level in result.levels) == pytest.approx(
            (hsae.encode(x) > 0).double().sum(1).mean().item()
        )

    @pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
    def test_lower_precision(self, dtype: str, evaluation: ForestEvaluation):
        levels = [sae.to(dtype=getattr(torch, dtype)) for sae in readout_levels(WIDTHS)]
        assert_close(evaluate_forest(levels, FOREST, [X.float()]).to_dict(), evaluation.to_dict())

    @pytest.mark.parametrize("normalize", ["layer_norm", "constant_norm_rescale"])
    def test_levels_that_normalise_their_input(self, normalize: Any):
        sae = JumpReLUSAE(JumpReLUSAEConfig(d_in=4, d_sae=4, dtype="float64", normalize_activations=normalize))
        sae.W_enc.data = sae.W_dec.data = torch.eye(4, dtype=torch.float64)
        sae.b_enc.data += 10
        sae.b_dec.data -= 10
        sae.cfg.apply_b_dec_to_input = False
        x = torch.randn(20, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        (level,) = evaluate_forest([sae], FeatureForest([-1] * 4, [4]), x.split(6)).levels
        assert level.variance_explained == pytest.approx(1.0, abs=1e-4)


class TestOutput:
    def test_dict_is_json_of_plain_numbers(self, evaluation: ForestEvaluation):
        data = json.loads(json.dumps(evaluation.to_dict(), allow_nan=False))
        assert data == evaluation.to_dict()
        assert data["boundaries"][0]["intervals"]["hamming"] is None

    def test_dataframe_has_a_row_per_level(self, evaluation: ForestEvaluation):
        frame = evaluation.to_dataframe()
        assert frame["level"].tolist() == [0, 1]
        assert frame["hamming"].isna().tolist() == [True, False]
        assert frame["hamming"][1] == evaluation.boundaries[0].hamming
        assert frame["l0"].tolist() == [level.l0 for level in evaluation.levels]

    def test_tables(self, evaluation: ForestEvaluation):
        title, levels, boundaries, rest = (part.splitlines() for part in str(evaluation).split("\n\n"))
        assert title == ["6 tokens"]
        for table in (levels, boundaries):
            assert len({len(line) for line in table}) == 1
        assert [re.split(" {2,}", line.strip()) for line in levels] == [
            ["level", "width", "L0", "var. explained", "dead", "unassigned"],
            ["0", "3", "1.000", "0.143", "0", "–"],
            ["1", "5", "1.167", "0.265", "1", "1 (20.0%)"],
        ]
        shown = dict(re.split(" {2,}", line.strip()) for line in boundaries)
        assert len(shown) == 16
        expected = {"levels": "0 → 1", "Hamming": "0.333", "P(parent | child)": "0.889"}
        expected |= {"pairs (left out)": "4 (1)", "children per parent (most)": "2.000 (2)", "copies": "0.0%"}
        expected |= {"weak edges (similarity below 0.5)": "100.0%", "clear edges (0.65 and more)": "0.0%"}
        assert expected.items() <= shown.items()
        assert rest == [
            "trees: 2 of depth 1, 2 of depth 2",
            "38% of the features stand in trees of at least three concepts",
            "no intervals: 6 tokens are fewer than the 20 blocks that they need",
        ]

    def test_intervals_are_shown(self):
        x = torch.cat([X, X.flip(0), X[:3]] * 4)
        result = evaluate_forest(readout_levels(WIDTHS), FOREST, [x])
        assert (result.n_blocks, result.tokens_per_block) == (30, 2)
        title, *_ = str(result).splitlines()
        assert title == "60 tokens; ± is half a 95% confidence interval, from 30 blocks of 2 tokens"
        interval = result.boundaries[0].intervals["hamming"]
        assert interval.low < result.boundaries[0].hamming < interval.high
        shown = f"{result.boundaries[0].hamming:.3f} ± {interval.half_width:.2g}"
        assert re.search(rf"^Hamming +{re.escape(shown)}$", str(result), re.MULTILINE)
        data = json.loads(json.dumps(result.to_dict(), allow_nan=False))
        assert data["boundaries"][0]["intervals"]["hamming"] == list(interval)
        frame = result.to_dataframe()
        assert (frame["hamming_low"][1], frame["hamming_high"][1]) == interval
        assert frame["l0_low"][0] == result.levels[0].intervals["l0"].low

    def test_what_is_undefined_in_both_is_equal(self):
        no_edges = FeatureForest([-1] * 8, WIDTHS)
        evaluation = evaluate_forest(readout_levels(WIDTHS), no_edges, [X])
        assert math.isnan(evaluation.boundaries[0].coverage)
        assert evaluation == evaluate_forest(readout_levels(WIDTHS), no_edges, [X])
        assert evaluation != evaluate_forest(readout_levels(WIDTHS), no_edges, [X[:5]])


def with_not_a_number() -> list[Any]:
    levels = readout_levels(WIDTHS)
    levels[1].W_dec.data[0, 0] = math.nan
    return levels


def that_reshape() -> list[Any]:
    levels = readout_levels(WIDTHS)
    levels[0].turn_on_forward_pass_hook_z_reshaping()
    return levels


def at_places(name: str, *places: Any) -> list[Any]:
    levels = readout_levels(WIDTHS)
    for sae, place in zip(levels, places, strict=True):
        sae.cfg.metadata[name] = place
    return levels


HOLED = X.clone()
HOLED[3, 3] = math.inf


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"activations": []}, "activations held no token"),
        ({"activations": [X[:, :7]]}, r"batch 0 has shape \(6, 7\), expected \(batch, 8\), d_in of the levels"),
        ({"activations": [X[None]]}, r"shape \(1, 6, 8\).*flatten sequences to tokens"),
        ({"activations": [X, HOLED]}, "activations: batch 1 holds NaN or infinity; leave out those tokens"),
        ({"levels": with_not_a_number()}, "level 1 reconstructs NaN or infinity"),
        ({"levels": readout_levels(WIDTHS)[:1]}, r"widths \[3\], but the forest has level_widths=\[3, 5\]; give"),
        ({"levels": [jumprelu(8, 3), jumprelu(9, 5)]}, r"different d_in \[8, 9\]"),
        ({"levels": at_places("hook_name", "a", "b")}, "different cfg.metadata.hook_name: level 0 'a', level 1 'b'"),
        ({"levels": that_reshape()}, "level 0 has reshape_activations='hook_z'.*turn_off_forward_pass_hook_z"),
        ({"n_tokens": 0}, "n_tokens=0 must be at least 1"),
        ({"n_blocks": 1}, "n_blocks=1 must be at least 2"),
        ({"confidence": 95}, "confidence=95 must be between 0 and 1, for example 0.95"),
    ],
)
def test_bad_input_is_refused(change: dict[str, Any], message: str):
    arguments: dict[str, Any] = {"levels": readout_levels(WIDTHS), "forest": FOREST, "activations": [X]}
    with pytest.raises(ValueError, match=message):
        evaluate_forest(**arguments | change)


def test_what_is_no_forest_and_no_stack_is_refused():
    with pytest.raises(TypeError, match=r"forest is a Tensor, not a FeatureForest; take .*\.forest"):
        evaluate_forest(readout_levels(WIDTHS), FOREST.parents, [X])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"levels is a JumpReLUSAE, which has no level_sae\(\); pass a list"):
        level_saes(jumprelu(8, 3))  # type: ignore[arg-type]
    evaluate_forest(at_places("hook_name", "a", None), FOREST, [X])  # the other level does not say where it reads


def test_a_few_outlying_tokens_do_not_decide_what_ordinary_ones_are_explained():
    levels, forest = random_levels((4, 9), 6, seed=3), random_forest((4, 9), seed=3)
    x = torch.randn(3000, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64) + 5
    clean = evaluate_forest(levels, forest, [x])
    x[[5, 1500, 2999]] += 1e4
    spoilt = evaluate_forest(levels, forest, [x])
    assert spoilt.n_outlying == clean.n_outlying + 3
    assert "without 3 outlying tokens (0.10%)" in str(spoilt)
    for before, after in zip(clean.levels, spoilt.levels, strict=True):
        assert after.variance_explained_ordinary == pytest.approx(before.variance_explained_ordinary, rel=1e-3)
        assert abs(after.variance_explained - before.variance_explained) > 0.1
    ordinary = evaluate_forest(levels, forest, [x[[i for i in range(3000) if i not in (5, 1500, 2999)]]])
    for of_ordinary, of_all in zip(ordinary.boundaries, spoilt.boundaries, strict=True):
        assert of_all.to_dict() | {"intervals": None} == of_ordinary.to_dict() | {"intervals": None}
    assert [level.n_dead for level in spoilt.levels] == [level.n_dead for level in ordinary.levels]
