"""Every SAE that SAELens trains: those that fire with either sign, read contexts or write elsewhere."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from host_helpers import D_MODEL, HOOK, VOCABULARY
from sae_lens import JumpReLUTranscoder, JumpReLUTranscoderConfig
from sae_lens.load_model import load_model
from sae_lens.saes.abstopk_sae import AbsTopKSAE, AbsTopKSAEConfig, AbsTopKTrainingSAE, AbsTopKTrainingSAEConfig
from sae_lens.saes.sae import SAEMetadata
from sae_lens.saes.temporal_sae import TemporalSAE, TemporalSAEConfig

from experiments.circuits import flat_effects
from experiments.planted.absorption import measure_absorption
from experiments.planted.concept_matching import match_features
from sae_lens_hsae import FeatureForest, ParentRule, evaluate_forest
from sae_lens_hsae.evaluation import cross_entropy_recovered, shared_edges
from sae_lens_hsae.interpret.circuits import Pair
from sae_lens_hsae.interpret.contrast import contrast
from sae_lens_hsae.interpret.explain import explain
from sae_lens_hsae.interpret.feature_cache import collect_dashboards
from sae_lens_hsae.interpret.steering import ablate, add, effect_of, examples_of, steer

WIDTHS = [6, 12]
METADATA = {"hook_name": "transformer.h.0", "prepend_bos": False, "context_size": 8}


def signed(width: int, flipped: list[int] | None = None) -> Any:
    """The same SAE with some features' signs turned: their activations change sign, reconstructions do not."""
    sae = AbsTopKSAE(
        AbsTopKSAEConfig(
            d_in=D_MODEL, d_sae=width, k=3, dtype="float32", device="cpu", metadata=SAEMetadata(**METADATA)
        )
    )
    generator = torch.Generator().manual_seed(width)
    rows = torch.nn.functional.normalize(torch.randn(width, D_MODEL, generator=generator), dim=1)
    rows[: WIDTHS[0]] = torch.eye(D_MODEL)[: WIDTHS[0]]
    rows[flipped or []] *= -1
    sae.W_dec.data.copy_(rows)
    sae.W_enc.data.copy_(rows.T)
    sae.b_enc.data.zero_()
    sae.b_dec.data.zero_()
    return sae


PLAIN = [signed(width) for width in WIDTHS]
FLIPPED = [signed(WIDTHS[0], [0, 2]), signed(WIDTHS[1], [1, 7, 8])]
X = torch.randn(512, D_MODEL, generator=torch.Generator().manual_seed(0)) * torch.linspace(3, 1, D_MODEL)
EVERYONE = ParentRule(minimum_similarity=None)
FOREST = FeatureForest.from_saes(PLAIN, EVERYONE, [X])


def training_sae(sae: Any, **fields: Any) -> Any:
    """The training SAE of the same weights."""
    config = AbsTopKTrainingSAEConfig(d_in=D_MODEL, d_sae=sae.cfg.d_sae, k=3, device="cpu", **fields)
    training = AbsTopKTrainingSAE(config)
    training.load_state_dict(sae.state_dict())
    return training


def test_the_class_that_trains_them_has_the_same_forest():
    rule = ParentRule("decoder", minimum_similarity=0.1)
    expected, found = (
        FeatureForest.from_saes(saes, rule) for saes in (FLIPPED, [training_sae(sae) for sae in FLIPPED])
    )  # fmt: skip
    assert found == expected
    assert (expected.parents >= 0).any()


def test_activations_that_hold_the_decoder_norm_are_not_multiplied_by_it_again():
    """TopK SAEs as SAELens trains them: longer decoder rows and encoder columns as much shorter change nothing."""
    saes = [training_sae(sae, rescale_acts_by_decoder_norm=True) for sae in PLAIN]
    saes[1].W_enc.data *= 1.1  # else copies would fire exactly as strongly as their parents
    before = evaluate_forest(saes, FOREST, [X]).boundaries[0]
    factors = torch.linspace(1, 5, WIDTHS[1])
    saes[1].W_dec.data *= factors[:, None]
    saes[1].W_enc.data /= factors
    after = evaluate_forest(saes, FOREST, [X]).boundaries[0]
    for name in ("dominance", "hamming"):
        assert getattr(after, name) == pytest.approx(getattr(before, name), rel=1e-4), name


def dashboards_of(saes: Any) -> Any:
    tokens = torch.arange(512).view(64, 8) % VOCABULARY
    return collect_dashboards(saes, FOREST, [(tokens, X.view(64, 8, D_MODEL))], progress=False)


def test_what_is_not_zero_counts():
    acts = [sae.encode(X) for sae in PLAIN]
    for sae, own, level in zip(PLAIN, acts, evaluate_forest(PLAIN, FOREST, [X]).levels, strict=True):
        assert level.l0 == pytest.approx((own != 0).sum(1).double().mean().item())
        error = (X - sae.decode(own)).square().sum() / (X - X.mean(0)).square().sum()
        assert level.variance_explained == pytest.approx(1 - error.item(), abs=1e-5)
    assert torch.equal(dashboards_of(PLAIN).n_firing, (torch.cat(acts, 1) != 0).sum(0))
    assert FOREST.parents[WIDTHS[0] : 2 * WIDTHS[0]].tolist() == list(range(WIDTHS[0])), "the same concepts"
    assert torch.allclose(dashboards_of(PLAIN).max_activation, torch.cat(acts, 1).abs().amax(0))


def circuit_effects(saes: Any, model: Any) -> Any:
    pairs = [Pair("w1 w2 w3", "w50", "w51", "w1 w7 w3"), Pair("w4 w5 w6", "w52", "w50", "w4 w5 w8")]
    cfg = SimpleNamespace(level_widths=WIDTHS)
    stacks: Any = {METADATA["hook_name"]: SimpleNamespace(level_sae=list(saes).__getitem__, forest=FOREST, cfg=cfg)}
    return [flat_effects(model, stacks, pairs, method) for method in ("attribution", "patch")]


def fields(found: Any, names: str) -> list[Any]:
    return [getattr(found, name) for name in names.split()]


def effect(saes: Any, model: Any) -> Any:
    return effect_of(model, saes, [ablate(0)], torch.arange(1, 31)[None], target=0, forest=FOREST)


SAMPLES = [(X, torch.cat([PLAIN[0].encode(X) != 0, PLAIN[1].encode(X)[:, 6:8] != 0], dim=1))]
READERS: dict[str, Any] = (
    {
        name: lambda saes, _, name=name: FeatureForest.from_saes(saes, ParentRule(name, None), [X]).parents  # type: ignore[arg-type]
        for name in ("encoder", "decoder", "coactivation", "conditional")
    }
    | {
        "measures": lambda saes, _: fields(evaluate_forest(saes, FOREST, [X]).boundaries[0], "hamming dominance"),
        "dashboards": lambda saes, _: fields(
            dashboards_of(saes), "n_firing n_with_parent histogram strongest_tokens is_copy nearest_cosines"
        ),
        "another seed": lambda saes, _: shared_edges(PLAIN, FOREST, saes, FOREST),
        "concepts": lambda saes, _: match_features(saes, SAMPLES).concept_of,
        "absorption": lambda saes, _: fields(
            measure_absorption(saes, match_features(PLAIN, SAMPLES), torch.tensor([-1] * 6 + [0, 1]), SAMPLES),
            "n_within within_level across_levels",
        ),
        "explanation": lambda saes, model: fields(explain(saes, model, "w1 w2 w3 w4 w5", FOREST), "features shares"),
        "effect": lambda saes, model: fields(effect(saes, model), "n_on kl_on"),
        "circuit": circuit_effects,
        "contrast": lambda saes, _: fields(contrast(saes, FOREST, X[:40] + 1, X[40:80]), "p_value share_of_parent"),
    }
)


@pytest.fixture(scope="module")
def model(gpt2):
    return load_model("AutoModelForCausalLM", str(gpt2))


@pytest.mark.parametrize("reader", READERS)
def test_the_sign_of_a_feature_decides_nothing(model, reader):
    plain, flipped = (READERS[reader](saes, model) for saes in (PLAIN, FLIPPED))
    torch.testing.assert_close(plain, flipped, rtol=1e-3, atol=1e-5, equal_nan=True)


def test_what_asks_where_a_feature_is_stronger_is_refused(model):
    texts = [list(each.split(8)) for each in (X[:40], X[40:80])]
    with pytest.raises(ValueError, match=r"fire with either sign.*push them with add\(\)"):
        examples_of(PLAIN, *texts, forest=FOREST)
    children = [add(int(FOREST.parents[WIDTHS[0]]), 1.0, on="children")]
    with pytest.raises(ValueError, match=r"fire with either sign.*push each by itself"):
        steer(model, PLAIN, children, FOREST, typical=torch.ones(len(FOREST))).__enter__()


def test_an_sae_that_reads_whole_contexts_is_refused():
    temporal = TemporalSAE(TemporalSAEConfig(d_in=D_MODEL, d_sae=12, n_heads=1, n_attn_layers=1, bottleneck_factor=1))
    saes: list[Any] = [PLAIN[0], temporal]
    forest = FeatureForest([-1] * 18, WIDTHS)
    calls = [
        lambda: FeatureForest.from_saes(saes, EVERYONE, [X]),
        lambda: evaluate_forest(saes, forest, [X]),
        lambda: collect_dashboards(saes, forest, [], progress=False),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="level 1 is a TemporalSAE, which needs all tokens of a context"):
            call()


def test_a_transcoder_has_a_forest_but_reconstructs_nothing_that_it_reads(model):
    saes: list[Any] = []
    for width in WIDTHS:
        config = JumpReLUTranscoderConfig(
            d_in=D_MODEL,
            d_out=D_MODEL,
            d_sae=width,
            apply_b_dec_to_input=False,
            metadata=SAEMetadata(hook_name_out=HOOK, **METADATA),
        )
        saes.append(JumpReLUTranscoder(config))
    no_store: Any = None
    forest = FeatureForest.from_saes(saes, EVERYONE, [X])
    assert collect_dashboards(saes, forest, [(torch.zeros(64, 8).long(), X.view(64, 8, -1))], progress=False).n_tokens
    for call in (
        lambda: evaluate_forest(saes, forest, [X]),
        lambda: cross_entropy_recovered(saes, model, no_store),
        lambda: explain(saes, model, "w1 w2", forest),
        lambda: steer(model, saes, [ablate(0)], forest).__enter__(),
    ):
        with pytest.raises(ValueError, match="is a JumpReLUTranscoder, which gives another hook point's activations"):
            call()
