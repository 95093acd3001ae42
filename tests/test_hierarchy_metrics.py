"""The hierarchy metrics against values worked out by hand and against a plain loop over tokens and features."""

import json
import math
import re
from collections.abc import Iterator
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sae_lens import JumpReLUSAE, JumpReLUSAEConfig

from sae_lens_hsae.config import HierarchicalSAEConfig
from sae_lens_hsae.evaluation import ForestEvaluation, evaluate_forest, hierarchy_metrics, level_saes
from sae_lens_hsae.forest import FeatureForest
from sae_lens_hsae.hierarchical_sae import HierarchicalSAE


def jumprelu(d_in: int, width: int, dtype: str = "float64") -> JumpReLUSAE:
    return JumpReLUSAE(JumpReLUSAEConfig(d_in=d_in, d_sae=width, dtype=dtype))


def readout_levels(widths: tuple[int, ...]) -> list[JumpReLUSAE]:
    """Levels whose features read one coordinate of x each, so that x itself says which features are active."""
    directions = torch.eye(sum(widths), dtype=torch.float64).split(widths)
    levels = []
    for width, rows in zip(widths, directions, strict=True):
        sae = jumprelu(sum(widths), width)
        sae.W_enc.data, sae.W_dec.data = rows.T.clone(), rows.clone()
        levels.append(sae)
    return levels


def tokens(n_features: int, *active: list[int]) -> torch.Tensor:
    x = torch.zeros(len(active), n_features, dtype=torch.float64)
    for token, features in enumerate(active):
        x[token, features] = 1.0
    return x


def random_levels(widths: tuple[int, ...], d_in: int, seed: int) -> list[JumpReLUSAE]:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    levels = []
    for width in widths:
        sae = jumprelu(d_in, width)
        sae.W_enc.data, sae.W_dec.data = normal(d_in, width) / d_in**0.5, normal(width, d_in) / width**0.5
        sae.b_enc.data, sae.b_dec.data = 0.1 * normal(width), 0.1 * normal(d_in)
        sae.threshold.data = normal(width).abs()
        sae.b_enc.data[::5] = -100.0  # dead
        levels.append(sae)
    return levels


def random_forest(widths: tuple[int, ...], seed: int) -> FeatureForest:
    generator = torch.Generator().manual_seed(seed)
    parents, start = [-1] * widths[0], 0
    for above, here in pairwise(widths):
        drawn = torch.randint(-1, above, (here,), generator=generator)
        parents += [p if p == -1 else p + start for p in drawn.tolist()]
        start += above
    return FeatureForest(parents, widths)


def slow_evaluation(levels: list[JumpReLUSAE], forest: FeatureForest, x: torch.Tensor) -> dict[str, Any]:
    """The definitions, read off literally: sets of active features per token, one pair at a time."""
    n = len(x)
    fired = [[set((acts > 0).nonzero().flatten().tolist()) for acts in sae.encode(x)] for sae in levels]
    frequency = [[sum(f in token for token in fired[i]) for f in range(w)] for i, w in enumerate(forest.level_widths)]
    spread = sum(float((row - x.mean(0)).square().sum()) for row in x)
    result: dict[str, Any] = {"n_tokens": n, "levels": [], "boundaries": []}
    for i, sae in enumerate(levels):
        error = sum(float((sae.decode(sae.encode(row)) - row).square().sum()) for row in x)
        result["levels"].append(
            {
                "level": i,
                "width": forest.level_widths[i],
                "l0": sum(map(len, fired[i])) / n,
                "variance_explained": 1 - error / spread,
                "n_dead": frequency[i].count(0),
            }
        )
    for i in range(len(levels) - 1):
        pairs = []
        for child in range(forest.level_widths[i + 1]):
            parent = forest.parent(forest.levels.flat(i + 1, child))
            if parent is not None:
                pairs.append((parent - forest.levels[i].start, child))
        living = [(p, c) for p, c in pairs if frequency[i][p] and frequency[i + 1][c]]
        together = [
            sum(p in up and c in down for up, down in zip(fired[i], fired[i + 1], strict=True)) for p, c in living
        ]
        disagreements = {
            p: sum(
                (p in up) != any((p, c) in living and c in down for c in down)
                for up, down in zip(*fired[i : i + 2], strict=True)
            )
            for p in range(forest.level_widths[i])
            if frequency[i][p]
        }
        with_children = {p for p, _ in living}
        n_unassigned = forest.level_widths[i + 1] - len(pairs)
        result["boundaries"].append(
            {
                "parent_level": i,
                "hamming": sum(d for p, d in disagreements.items() if p in with_children) / n,
                "hamming_all_parents": sum(disagreements.values()) / n,
                "p_parent_given_child": sum(t / frequency[i + 1][c] for t, (_, c) in zip(together, living, strict=True))
                / len(living),
                "p_child_given_parent": sum(t / frequency[i][p] for t, (p, _) in zip(together, living, strict=True))
                / len(living),
                "n_pairs": len(pairs),
                "n_pairs_left_out": len(pairs) - len(living),
                "n_parents_with_children": len(with_children),
                "n_unassigned": n_unassigned,
                "unassigned_share": n_unassigned / forest.level_widths[i + 1],
            }
        )
    return result


def assert_close(actual: dict[str, Any], expected: dict[str, Any]) -> None:
    assert actual["n_tokens"] == expected["n_tokens"]
    for part in ("levels", "boundaries"):
        assert len(actual[part]) == len(expected[part])
        for a, e in zip(actual[part], expected[part], strict=True):
            assert a == pytest.approx(e, rel=1e-9, abs=1e-12)


#   0       1    2     level 0; 2 has no children
#  3 4     5 6         level 1; 6 never fires, 7 is unassigned
WIDTHS = (3, 5)
FOREST = FeatureForest([-1, -1, -1, 0, 0, 1, 1, -1], WIDTHS)
X = tokens(8, [0, 3], [0, 4, 7], [3], [1, 2], [1, 5], [0, 3, 4])


@pytest.fixture
def evaluation() -> ForestEvaluation:
    return evaluate_forest(readout_levels(WIDTHS), FOREST, [X])


class TestByHand:
    def test_boundary(self, evaluation: ForestEvaluation):
        (boundary,) = evaluation.boundaries
        # Parent 0 is wrongly predicted on token 2, parent 1 missed on token 3, and so is the childless parent 2.
        assert boundary.hamming == pytest.approx(2 / 6)
        assert boundary.hamming_all_parents == pytest.approx(3 / 6)
        # Pairs (0, 3), (0, 4) and (1, 5); (1, 6) is left out.
        assert boundary.p_parent_given_child == pytest.approx((2 / 3 + 2 / 2 + 1 / 1) / 3)
        assert boundary.p_child_given_parent == pytest.approx((2 / 3 + 2 / 3 + 1 / 2) / 3)
        assert (boundary.parent_level, boundary.n_pairs, boundary.n_pairs_left_out) == (0, 4, 1)
        assert (boundary.n_unassigned, boundary.unassigned_share, boundary.n_parents_with_children) == (1, 0.2, 2)

    def test_levels(self, evaluation: ForestEvaluation):
        coarse, fine = evaluation.levels
        assert evaluation.n_tokens == 6
        assert (coarse.l0, fine.l0) == (pytest.approx(6 / 6), pytest.approx(7 / 6))
        assert (coarse.n_dead, fine.n_dead) == (0, 1)
        assert fine.firing_frequency.tolist() == pytest.approx([3 / 6, 2 / 6, 1 / 6, 0, 1 / 6])
        # Each level reconstructs its own coordinates and misses the other's, 7 and 6 ones; the spread is 13 - 29/6.
        assert coarse.variance_explained == pytest.approx(1 - 7 / (49 / 6))
        assert fine.variance_explained == pytest.approx(1 - 6 / (49 / 6))

    def test_a_parent_that_never_fires_is_no_parent(self):
        forest = FeatureForest([-1, -1, -1, 0, 2, 2, -1, -1], WIDTHS)
        x = tokens(8, [0, 3], [0, 4], [4, 5], [1])
        boundary = evaluate_forest(readout_levels(WIDTHS), forest, [x]).boundaries[0]
        assert (boundary.n_pairs, boundary.n_pairs_left_out) == (3, 2)
        assert (boundary.p_parent_given_child, boundary.p_child_given_parent) == (1.0, 0.5)
        assert boundary.hamming == 1 / 4  # parent 0 on token 1; parent 2, predicted on two tokens, does not count
        assert boundary.hamming_all_parents == 2 / 4  # and parent 1 on token 3

    def test_a_parent_whose_children_never_fire_has_none(self):
        forest = FeatureForest([-1, -1, -1, 0, 1, 1, -1, -1], WIDTHS)
        boundary = evaluate_forest(readout_levels(WIDTHS), forest, [tokens(8, [0, 3], [1], [1, 7])]).boundaries[0]
        assert (boundary.n_parents_with_children, boundary.hamming, boundary.hamming_all_parents) == (1, 0.0, 2 / 3)

    def test_a_perfect_hierarchy(self):
        boundary = evaluate_forest(
            readout_levels((1, 2)), FeatureForest([-1, 0, 0], (1, 2)), tokens(3, [0, 1], [0, 2], [])
        ).boundaries[0]
        assert (boundary.hamming, boundary.hamming_all_parents) == (0, 0)
        assert (boundary.p_parent_given_child, boundary.p_child_given_parent) == (1, 0.5)

    def test_nothing_to_average_is_nan(self):
        result = evaluate_forest(readout_levels(WIDTHS), FeatureForest([-1] * 8, WIDTHS), [X])
        (boundary,) = result.boundaries
        assert math.isnan(boundary.p_parent_given_child)
        assert math.isnan(boundary.p_child_given_parent)
        assert (boundary.hamming, boundary.hamming_all_parents, boundary.unassigned_share) == (0, 1, 1)
        assert result.to_dict()["boundaries"][0]["p_parent_given_child"] is None

    def test_one_level_has_no_boundary(self):
        result = evaluate_forest(readout_levels((4,)), FeatureForest([-1] * 4, (4,)), [tokens(4, [0], [1, 2])])
        assert result.boundaries == ()
        assert result.levels[0].variance_explained == pytest.approx(1.0)
        assert len(result.to_dataframe()) == 1


class TestAgainstPlainLoops:
    @pytest.mark.parametrize("seed", range(4))
    def test_random_stack(self, seed: int):
        widths, d_in = (6, 11, 23), 7
        levels, forest = random_levels(widths, d_in, seed), random_forest(widths, seed)
        x = 2 * torch.randn(90, d_in, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        with torch.no_grad():
            expected = slow_evaluation(levels, forest, x)
        assert_close(evaluate_forest(levels, forest, x.split(32)).to_dict(), expected)
        # The case is worth its name only if something is dead, unassigned and imperfect.
        assert all(level["n_dead"] for level in expected["levels"])
        assert all(b["n_pairs_left_out"] and b["n_unassigned"] for b in expected["boundaries"])

    @pytest.mark.parametrize("sizes", [[90], [1] * 90, [50, 0, 3, 37], [64, 26]])
    def test_batch_sizes_do_not_matter(self, sizes: list[int], monkeypatch: pytest.MonkeyPatch):
        widths, d_in = (4, 9), 5
        levels, forest = random_levels(widths, d_in, 0), random_forest(widths, 0)
        x = 3 + torch.randn(90, d_in, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        expected = evaluate_forest(levels, forest, [x]).to_dict()
        monkeypatch.setattr(hierarchy_metrics, "MAX_TOKENS_AT_ONCE", 17)
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
    @pytest.mark.parametrize(("elements", "largest"), [(2**25, 30), (40, 8), (1, 1)])
    def test_wide_levels_get_fewer_tokens_at_once(self, elements: int, largest: int, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(hierarchy_metrics, "MAX_ELEMENTS_AT_ONCE", elements)
        monkeypatch.setattr(hierarchy_metrics, "MAX_TOKENS_AT_ONCE", 30)
        seen: list[int] = []
        levels = readout_levels(WIDTHS)
        levels[0].hook_sae_input.add_hook(lambda tensor, *, hook: seen.append(len(tensor)))  # noqa: ARG005
        evaluate_forest(levels, FOREST, [X.repeat(12, 1)])
        assert max(seen) == largest
        assert sum(seen) == 72

    def test_no_gradient_is_recorded(self):
        levels = readout_levels(WIDTHS)
        levels[0].hook_sae_recons.add_hook(lambda tensor, *, hook: grads.append(tensor.requires_grad))  # noqa: ARG005
        grads: list[bool] = []
        evaluate_forest(levels, FOREST, [X])
        assert grads == [False]


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

    def test_one_tensor_is_one_batch(self, evaluation: ForestEvaluation):
        assert evaluate_forest(readout_levels(WIDTHS), FOREST, X) == evaluation

    def test_a_stack_object_gives_its_levels(self, evaluation: ForestEvaluation):
        levels = readout_levels(WIDTHS)
        stack: Any = SimpleNamespace(
            cfg=SimpleNamespace(level_widths=list(WIDTHS)), level_sae=levels.__getitem__, encode=None
        )
        assert level_saes(stack) == levels
        assert evaluate_forest(stack, FOREST, [X]) == evaluation

    def test_a_hierarchical_sae_is_evaluated_by_its_own_activations(self):
        widths, d_in = (6, 11, 23), 7
        levels, forest = random_levels(widths, d_in, 0), random_forest(widths, 0)
        cfg = HierarchicalSAEConfig(d_in=d_in, d_sae=sum(widths), level_widths=list(widths), dtype="float64")
        hsae = HierarchicalSAE(cfg)
        hsae.W_enc.data = torch.cat([sae.W_enc for sae in levels], dim=1)
        for name in ("b_enc", "threshold", "W_dec"):
            getattr(hsae, name).data = torch.cat([getattr(sae, name) for sae in levels])
        hsae.b_dec.data = torch.stack([sae.b_dec for sae in levels])
        hsae.parents.copy_(forest.parents)
        x = 2 * torch.randn(60, d_in, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

        result = evaluate_forest(hsae, hsae.forest, x.split(25))
        assert_close(result.to_dict(), evaluate_forest(levels, forest, x).to_dict())
        frequency = torch.cat([level.firing_frequency for level in result.levels])
        assert torch.allclose(frequency, (hsae.encode(x) > 0).double().mean(0))

    def test_module_list(self, evaluation: ForestEvaluation):
        assert evaluate_forest(torch.nn.ModuleList(readout_levels(WIDTHS)), FOREST, [X]) == evaluation  # type: ignore[arg-type]

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
        assert "firing_frequency" not in data["levels"][0]

    def test_dataframe_has_a_row_per_level(self, evaluation: ForestEvaluation):
        frame = evaluation.to_dataframe()
        assert frame["level"].tolist() == [0, 1]
        assert frame["hamming"].isna().tolist() == [True, False]
        assert frame["hamming"][1] == evaluation.boundaries[0].hamming
        assert frame["l0"].tolist() == [level.l0 for level in evaluation.levels]

    def test_table(self, evaluation: ForestEvaluation):
        title, *table = str(evaluation).splitlines()
        assert title == "6 tokens; from unassigned on: the boundary to the level above"
        assert [re.split(" {2,}", line.strip()) for line in table] == [
            [
                "level",
                "width",
                "L0",
                "var. explained",
                "dead",
                "unassigned",
                "Hamming",
                "(all parents)",
                "P(p|c)",
                "P(c|p)",
                "pairs",
                "left out",
            ],
            ["0", "3", "1.000", "0.143", "0", *"–––––––"],
            ["1", "5", "1.167", "0.265", "1", "0.200", "0.333", "0.500", "0.889", "0.611", "4", "1"],
        ]
        assert len({len(line) for line in table}) == 1

    def test_results_cannot_be_changed(self, evaluation: ForestEvaluation):
        for record in (evaluation, evaluation.levels[0], evaluation.boundaries[0]):
            with pytest.raises(AttributeError):
                record.n_tokens = 0  # type: ignore[misc, union-attr]


class TestErrors:
    def fails(self, message: str, *, levels: Any = None, x: Any = X, n_tokens: int | None = None) -> None:
        with pytest.raises(ValueError, match=message):
            evaluate_forest(levels or readout_levels(WIDTHS), FOREST, [x], n_tokens)

    def test_no_tokens(self):
        self.fails("activations held no token", x=X[:0])
        with pytest.raises(ValueError, match="activations held no token"):
            evaluate_forest(readout_levels(WIDTHS), FOREST, [])

    def test_wrong_width(self):
        self.fails(r"batch 0 has shape \(6, 7\), expected \(batch, 8\), d_in of the levels", x=X[:, :7])

    def test_sequences(self):
        self.fails(r"shape \(1, 6, 8\).*flatten sequences to tokens", x=X[None])

    @pytest.mark.parametrize("value", [math.nan, math.inf])
    def test_not_finite(self, value: float):
        x = X.clone()
        x[3, 3] = value
        with pytest.raises(ValueError, match="activations: batch 1 holds NaN or infinity; leave out those tokens"):
            evaluate_forest(readout_levels(WIDTHS), FOREST, [X, x])

    def test_damaged_level(self):
        levels = readout_levels(WIDTHS)
        levels[1].W_dec.data[0, 0] = math.nan
        self.fails("level 1 reconstructs NaN or infinity", levels=levels)

    def test_levels_and_forest_of_different_widths(self):
        message = (
            r"levels have the widths \[3\], but the forest has level_widths=\[3, 5\]; give the SAEs coarse to fine"
        )
        self.fails(message, levels=readout_levels(WIDTHS)[:1])

    def test_levels_over_different_activations(self):
        self.fails(r"different d_in \[8, 9\]", levels=[jumprelu(8, 3), jumprelu(9, 5)])

    def test_levels_that_reshape(self):
        levels = readout_levels(WIDTHS)
        levels[0].turn_on_forward_pass_hook_z_reshaping()
        self.fails(
            r"level 0 has reshape_activations='hook_z'.*turn_off_forward_pass_hook_z_reshaping\(\)", levels=levels
        )

    def test_a_single_sae(self):
        with pytest.raises(TypeError, match=r"levels is a JumpReLUSAE, which has no level_sae\(\); pass a list"):
            level_saes(jumprelu(8, 3))  # type: ignore[arg-type]

    def test_n_tokens(self):
        self.fails("n_tokens=0 must be at least 1", n_tokens=0)
