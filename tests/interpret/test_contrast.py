"""Contrasts: found where planted, at the right granularity; silent where there is nothing to find."""

from copy import deepcopy
from typing import Any

import pytest
import torch
from planted import planted_sae
from sae_lens.load_model import load_model
from small_saes import D_IN, make_sae

from sae_lens_hsae.cli.demo import minilm_folder
from sae_lens_hsae.interpret.contrast import compare, contrast, text_activations

# Feature 0 fires on concepts 0 and 1, its children 4 and 5 on one each; 13 repeats 4. Concept 7 has no feature.
PARENTS = {4: 0, 5: 0, 13: 4, 6: 1}
FIRES_ON = {0: (0, 1), 4: (0,), 5: (1,), 13: (0,), 1: (2,), 6: (2,)}


@pytest.fixture(scope="module")
def planted():
    return planted_sae(FIRES_ON, PARENTS)


def texts(n, rates, seed):
    """Texts of 12 tokens with one concept each, drawn at these rates (the rest has no feature)."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.tensor([rates.get(concept, 0.0) for concept in range(D_IN - 1)] + [1 - sum(rates.values())])
    for _ in range(n):
        concepts = torch.multinomial(weights, 12, replacement=True, generator=generator)
        yield torch.eye(D_IN)[concepts] * (1 + torch.rand(12, 1, generator=generator))


def found(planted, a, b, n=40):
    sae, forest = planted
    result = contrast(sae, forest, texts(n, a, 1), texts(n, b, 2))
    return [(each.coarsest, each.finest, each.n_features, each.more_in_a) for each in result.findings], result


def test_a_difference_of_one_child_is_followed_down_to_it(planted):
    findings, result = found(planted, {0: 0.4, 1: 0.2, 2: 0.2}, {0: 0.1, 1: 0.2, 2: 0.2})
    assert findings == [(0, 13, 3, True)]
    assert result.findings[0].path == (0, 4, 13)
    assert result.share_of_parent[4] > 0.8
    assert not result.significant[5]
    strengths = [x[:, 0] for x in texts(40, {0: 0.4, 1: 0.2, 2: 0.2}, 1)]
    assert result.findings[0].example is not None
    text, token = result.findings[0].example
    assert strengths[text][token] == max(each.max() for each in strengths), "where the finest feature is strongest"


def test_a_finding_of_texts_that_are_not_kept_has_no_example(planted, monkeypatch):
    monkeypatch.setattr(compare, "TEXTS_KEPT", 10)
    late = [*texts(20, {2: 0.1}, 1), *texts(20, {0: 0.9, 2: 0.1}, 1)]
    sae, forest = planted
    (finding,) = contrast(sae, forest, late, list(texts(40, {2: 0.1}, 2))).findings
    assert finding.more_in_a
    assert finding.example is None


def test_a_difference_of_all_children_stays_with_the_parent(planted):
    findings, _ = found(planted, {0: 0.1, 1: 0.1, 2: 0.2}, {0: 0.35, 1: 0.35, 2: 0.2})
    assert findings == [(0, 0, 4, False)]


def test_opposite_differences_are_two_findings_also_within_a_tree(planted):
    findings, result = found(planted, {0: 0.6, 1: 0.05, 2: 0.3}, {0: 0.1, 1: 0.3, 2: 0.02})
    by_top = {each[0]: each[1:] for each in findings}
    assert by_top == {0: (13, 3, True), 5: (5, 1, False), 1: (6, 2, True)}
    assert result.significant[0], "else 5 would be apart from its parent anyway"


def test_a_repetition_without_an_edge_is_the_same_cause(planted):
    """Feature 14 repeats 1 two levels down, without an edge; 15 differs the other way."""
    sae, forest = deepcopy(planted[0]), planted[1]
    sae.W_enc.data[2, 14] = 1
    a, b = texts(40, {2: 0.4, 3: 0.1}, 1), texts(40, {2: 0.1, 3: 0.4}, 2)
    sae.W_enc.data[3, 15] = 1
    result = contrast(sae, forest, list(a), list(b))
    assert result.significant[[1, 6, 14, 15]].all()
    found = {each.coarsest: (each.n_features, each.more_in_a) for each in result.findings}
    assert found == {1: (3, True), 15: (1, False)}


def test_measures_equal_plain_counting(planted):
    sae, forest = planted
    a, b = list(texts(9, {0: 0.4, 1: 0.2}, 1)), list(texts(11, {0: 0.2, 1: 0.2}, 2))
    result = contrast(sae, forest, a, b)
    mean = {name: torch.stack([x[:, :2].sum(1).mean() for x in each]).double() for name, each in (("a", a), ("b", b))}
    wins = [(x > y).double() + (x == y).double() / 2 for x in mean["a"] for y in mean["b"]]
    assert result.auc[0].item() == pytest.approx(torch.stack(wins).mean().item())
    assert result.mean_a[0].item() == pytest.approx(mean["a"].mean().item())
    spread = ((8 * mean["a"].var() + 10 * mean["b"].var()) / 18).sqrt()
    assert result.effect[0].item() == pytest.approx(((mean["a"].mean() - mean["b"].mean()) / spread).item())
    frame = result.to_frame({"1/0": "biology"})
    assert frame.loc[4, ["level", "parent", "label"]].tolist() == [1, 0, "biology"]
    assert frame.loc[0, "auc"] == result.auc[0]
    assert result.auc[3] == 0.5  # never fires
    assert result.p_value[3] == 1
    assert result.effect[3] == 0


def test_it_is_silent_at_the_stated_rate_when_there_is_nothing():
    sae = make_sae(seed=2)
    generator = torch.Generator().manual_seed(0)
    n_loud = 0
    for _ in range(100):
        draws = [torch.randn(15, D_IN, generator=generator) * 2 for _ in range(2)]
        n_loud += bool(contrast(sae, sae.forest, *draws, alpha=0.2).findings)
    # 100 draws at a rate of 20 %: 33 is more than three standard deviations above.
    assert n_loud <= 32
    assert n_loud > 0, "at this rate a test that is never wrong tests nothing"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"a": []}, "a holds 0 texts; give at least 8"),
        ({"b": ["some", "text"]}, "b holds text; pass its activations"),
        ({"b": "some text"}, "b holds text; pass its activations"),
        ({"b": iter(["some"])}, "b holds text; pass its activations"),
        ({"a": [torch.zeros(3, 5)]}, r"a: text 0 has activations of shape \(3, 5\); expected \(tokens, 8\)"),
        ({"a": [torch.zeros(0, D_IN)]}, "a: text 0 has activations of shape"),
        ({"b": [torch.full((2, D_IN), torch.nan)]}, "b: text 0 holds NaN"),
        ({"a": torch.ones(9, D_IN), "b": torch.ones(9, D_IN)}, "the same texts"),
        ({"alpha": 0}, "alpha=0 must lie between"),
    ],
)
def test_bad_input_is_refused(planted, changes, message):
    sae, forest = planted
    arguments: dict[str, Any] = {"forest": forest, "a": torch.ones(9, D_IN), "b": torch.zeros(9, D_IN)} | changes
    with pytest.raises(ValueError, match=message):
        contrast(sae, **arguments)


def test_text_activations_are_those_of_the_model():
    model: Any = load_model("AutoModelForCausalLM", str(minilm_folder()), hook_names=["bert.encoder.layer.3"])
    sae = make_sae(d_in=384, normalize_activations="none")
    sae.cfg.metadata.hook_name = "bert.encoder.layer.3"
    sae.cfg.metadata.prepend_bos = False
    long, short = text_activations(sae, model, ["The cat sat on the mat.", "The cat"], max_tokens=5)
    assert (len(long), len(short)) == (4, 2)
    ids = torch.tensor([[102, *model.tokenizer("The cat", add_special_tokens=False)["input_ids"]]])
    _, cache = model.run_with_cache(ids, names_filter=["bert.encoder.layer.3"])
    torch.testing.assert_close(short, cache["bert.encoder.layer.3"][0, 1:])
    with pytest.raises(ValueError, match=r"number 1 .* has no token"):
        list(text_activations(sae, model, ["cat", ""]))
    with pytest.raises(ValueError, match="texts='The cat' is a single text; give a list of texts"):
        text_activations(sae, model, "The cat")
