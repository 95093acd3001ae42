"""Circuits read off activations alone: sparse regression between hook points, and modules that fire together."""

from typing import Any

import pytest
import torch
from circuit_helpers import FIRST, HOOKS, PAIRS, SECOND, ZERO, read, stacks, tiny
from sklearn.linear_model import Lasso

from experiments.circuits_by_activation import coactivation_modules, lasso_circuit, sparse_regression
from sae_lens_hsae.interpret.circuits import Circuit


@pytest.mark.parametrize("penalty", [0.05, 0.3])
def test_the_regression_is_scikit_learns(penalty):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, 8, generator=generator, dtype=torch.float64) * torch.arange(1, 9)
    x[:, 3] = 5.0  # does not vary
    y = x[:, [0, 6]] @ torch.tensor([[2.0, 0.0], [0.0, -1.0]], dtype=torch.float64) + torch.randn(
        60, 2, generator=generator, dtype=torch.float64
    )
    y = torch.cat([y, torch.full((60, 1), 7.0, dtype=torch.float64)], 1)
    found = sparse_regression(x, y, penalty)
    size = x.std(0, correction=0)
    size[3] = torch.inf
    scaled = (x - x.mean(0)) / size
    for target in range(2):
        own = (y[:, target] - y[:, target].mean()) / y[:, target].std(correction=0)
        alpha = penalty * (scaled.T @ own / 60).abs().max().item()
        expected = Lasso(alpha=alpha, fit_intercept=False, tol=1e-10).fit(scaled, own).coef_
        torch.testing.assert_close(
            found[:, target], torch.tensor(expected) * y[:, target].std(correction=0) / size, rtol=1e-5, atol=1e-8
        )
    assert (found[:, 2] == 0).all()
    assert found.isfinite().all()


@torch.no_grad()
@pytest.mark.parametrize("pairs", [PAIRS, ZERO])
def test_effects_are_the_weights_on_the_ways_times_what_clean_prompts_have_more(tokenizer, pairs):
    """By hand, from plain runs of the model: one level, two hook points."""
    model, forests = tiny(tokenizer), stacks()
    found = lasso_circuit(model, forests, pairs, penalty=0.2, threshold=0.0)
    by_length = [pairs[0], pairs[2], pairs[1]]  # prompts of one length go through the model together
    prompts = [(text, pair) for pair in by_length for text in (pair.clean, pair.patch) if text is not None]
    sums = {
        hook: torch.stack([sae.level_sae(0).encode(read(model, text, hook))[0, 1:].sum(0) for text, _ in prompts])
        for hook, sae in forests.items()
    }
    logits = torch.stack(
        [
            (out := model(torch.tensor([[0, *model.tokenizer(text)["input_ids"]]]))[0, -1])[int(pair.answer[1:])]
            - out[int(pair.foil[1:])]
            for text, pair in prompts
        ]
    )
    is_clean = torch.tensor([text is pair.clean for text, pair in prompts])
    last = sparse_regression(sums[SECOND], logits[:, None], 0.2)[:, 0]
    first = sparse_regression(sums[FIRST], sums[SECOND][:, last != 0], 0.2) @ last[last != 0]
    for hook, weights in ((FIRST, first), (SECOND, last)):
        other = sums[hook][~is_clean].mean(0) if pairs is PAIRS else 0.0
        effects = weights * (sums[hook][is_clean].mean(0) - other)
        own = {node.feature: node.effect for node in found.nodes if node.hook == hook and node.level == 0}
        assert own
        assert own == pytest.approx({i: effects[i].item() for i in range(4) if weights[i] != 0}, rel=1e-6)
    assert found.clean == pytest.approx(logits[is_clean].mean().item())
    assert (found.patched is None) == (pairs is ZERO)
    assert Circuit.from_dict(found.to_dict()) == found


@pytest.mark.parametrize("unassigned", [True, False])
def test_a_finer_level_is_asked_about_children_of_what_was_chosen(tokenizer, unassigned):
    """Feature 0 among the chosen ones must not bring in features without a parent, whose parent is −1."""
    forests = stacks()
    found = lasso_circuit(tiny(tokenizer), forests, PAIRS, threshold=0.0, unassigned=unassigned)
    below = [node for node in found.nodes if node.level > 0 and node.feature is not None]
    for node in below:
        parents = forests[node.hook].forest.parents
        parent = int(parents[node.feature])
        assert unassigned if parent < 0 else (parent in found.at(node.level - 1).get(node.hook, []))
    expected = 4 * len(HOOKS)
    assert found.n_visited[0] == expected
    for level in (1, 2):
        n = 0
        for hook, sae in forests.items():
            parents = sae.forest.parents[sae.forest.levels[level]]
            chosen = torch.tensor(found.at(level - 1).get(hook, []))
            n += int((torch.isin(parents, chosen) | (unassigned & (parents < 0))).sum())
        assert found.n_visited[level] == n


@pytest.mark.parametrize("most_frequent", [0.97, 1.0])
def test_modules_are_what_correlates_from_token_to_token(tokenizer, most_frequent):
    """Against a graph made by hand, pair by pair."""
    model, forests = tiny(tokenizer), stacks()
    texts = ["w1 w2 w3 w4", "w9 w8 w7 w5 w30", "w21 w22 w6", "w40 w41 w42 w43 w44 w45"]
    options = {"strongest": 6, "correlation": 0.45, "most_frequent": most_frequent}
    found = coactivation_modules(model, forests, texts, level=-1, **options)
    acts = {
        hook: torch.cat([sae.level_sae(2).encode(read(model, text, hook))[0, 1:] for text in texts]).double()
        for hook, sae in forests.items()
    }
    candidates = {}
    for hook, own in acts.items():
        strong = {i for row in own for i in row.topk(6).indices.tolist() if row[i] > 0}
        candidates[hook] = [i for i in sorted(strong) if (own[:, i] > 0).double().mean() <= most_frequent]
    joined: list[set[Any]] = []
    for i in candidates[FIRST]:
        for k in candidates[SECOND]:
            if torch.corrcoef(torch.stack([acts[FIRST][:, i], acts[SECOND][:, k]]))[0, 1] > 0.45:
                new = {(FIRST, i), (SECOND, k)}
                touched = [each for each in joined if each & new]
                joined = [each for each in joined if not each & new] + [new.union(*touched)]
    assert joined
    start = 4 + 9
    as_sets = [{(hook, i - start) for hook, own in module.items() for i in own} for module in found]
    assert sorted(map(sorted, as_sets)) == sorted(map(sorted, joined))
    assert [len(each) for each in as_sets] == sorted((len(each) for each in joined), reverse=True)
    assert all(set(module) == set(HOOKS) for module in found)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"texts": []}, "texts is empty"),
        ({"texts": ["w1", ""]}, "texts: number 1 has no token"),
        ({"texts": ["w1", "w1 " * 16]}, "texts: number 1: 17 tokens, but the model takes at most 16"),
        ({"strongest": 0}, "strongest=0"),
        ({"correlation": 0}, "correlation=0 must be above 0"),
        ({"most_frequent": 2}, "most_frequent=2"),
        ({"forests": FIRST}, "forests has one hook point"),
    ],
)
def test_wrong_arguments_of_modules_are_named(tokenizer, options, message):
    forests = stacks()
    arguments: dict[str, Any] = {"forests": forests, "texts": ["w1 w2"]} | options
    if arguments["forests"] == FIRST:
        arguments["forests"] = {FIRST: forests[FIRST]}
    model = tiny(tokenizer)
    model.forward = lambda *_: pytest.fail("the model ran")
    with pytest.raises(ValueError, match=message):
        coactivation_modules(model, **arguments)
    with pytest.raises(IndexError, match=r"resid_post: level 3 does not exist; choose one from 0 to 2"):
        coactivation_modules(tiny(tokenizer), forests, ["w1 w2"], level=3)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"penalty": 0}, "penalty=0 must be above 0"), ({"penalty": 2}, "penalty=2"), ({"threshold": -1}, "threshold=-1")],
)
def test_wrong_arguments_of_the_lasso_are_named(tokenizer, options, message):
    with pytest.raises(ValueError, match=message):
        lasso_circuit(tiny(tokenizer), stacks(), PAIRS, **options)
