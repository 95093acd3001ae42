"""Explaining one text: shares and paths against plain loops, on the models that SAELens hooks."""

import io
import math
from itertools import chain, permutations
from typing import Any

import pandas as pd
import pytest
import torch
from host_helpers import BRIDGE_HOOK, CONTEXT, D_MODEL, HOOK, HOOKED, hooked, sae_at, tiny_sae_transformer
from rich.console import Console
from sae_lens import SAE, StandardSAE, StandardSAEConfig
from sae_lens.analysis.sae_transformer_bridge import SAETransformerBridge
from sae_lens.load_model import load_model

from sae_lens_hsae import FeatureForest, ParentRule
from sae_lens_hsae.cli import main as cli
from sae_lens_hsae.cli.demo import minilm_folder
from sae_lens_hsae.interpret.explain import Explanation, explain
from sae_lens_hsae.interpret.explain.explanation import drawn
from sae_lens_hsae.interpret.feature_cache import collect_dashboards, dashboards_folder

TEXT = "w1 w2 w3 w5 w8 w13 w21 w34"


@pytest.fixture(params=HOOKED)
def model_and_sae(request, gpt2) -> tuple[Any, Any]:
    model, hook = hooked(request.param, gpt2)
    return model, sae_at(hook)


@pytest.fixture
def proxy(gpt2) -> tuple[Any, Any]:
    model, hook = hooked("proxy", gpt2)
    return model, sae_at(hook)


def activations(model: Any, hook: str, ids: list[int]) -> torch.Tensor:
    hook = BRIDGE_HOOK if isinstance(model, SAETransformerBridge) else hook
    with torch.no_grad():
        _, cache = model.run_with_cache(torch.tensor([ids]), names_filter=[hook])
    return cache[hook][0]


@torch.no_grad()
def share(sae: Any, x: torch.Tensor, acts: torch.Tensor) -> float:
    """1 − ‖x − decode(acts)‖² / ‖x − decode(0)‖² on one token."""

    def missed(by: torch.Tensor) -> torch.Tensor:
        sae.encode(x[None])  # where an SAE scales x, decode() undoes what encode() did last
        return x - sae.decode(by[None])[0]

    left, at_first = missed(acts), missed(torch.zeros_like(acts))
    return 1 - (left.double() @ left.double() / (at_first.double() @ at_first.double())).item()


def shapley(sae: Any, x: torch.Tensor, acts: torch.Tensor) -> dict[int, float]:
    """What each active feature adds to the share, over all orders of adding them."""
    active = acts.nonzero().flatten().tolist()
    gains = dict.fromkeys(active, 0.0)
    orders = list(permutations(active))
    for order in orders:
        so_far = torch.zeros_like(acts)
        for feature in order:
            before = share(sae, x, so_far)
            so_far[feature] = acts[feature]
            gains[feature] += (share(sae, x, so_far) - before) / len(orders)
    return gains


def by_token(explanation: Explanation) -> list[dict[int, tuple[float, float, bool]]]:
    rows: list[dict[int, tuple[float, float, bool]]] = [{} for _ in explanation.tokens]
    for position, feature, *values in zip(
        explanation.positions.tolist(),
        explanation.features.tolist(),
        explanation.activations.tolist(),
        explanation.shares.tolist(),
        explanation.without_parent.tolist(),
        strict=True,
    ):
        rows[position][feature] = tuple(values)  # type: ignore[assignment]
    return rows


def test_shares_and_missing_parents_equal_plain_loops(model_and_sae):
    model, sae = model_and_sae
    found = explain(sae, model, TEXT)
    assert [text.strip() for text in found.tokens] == TEXT.split()
    x = activations(model, sae.cfg.metadata.hook_name, model.tokenizer(TEXT, add_special_tokens=False)["input_ids"])
    n_without = n_orders = 0
    for position, row in enumerate(by_token(found)):
        acts = {}
        for level, own in enumerate(sae.levels):
            level_sae = sae.level_sae(level)
            of_level = level_sae.encode(x[position][None])[0].detach()
            acts |= {own.start + f: of_level[f].item() for f in of_level.nonzero().flatten().tolist()}
            expected = share(level_sae, x[position], of_level)
            assert found.level_shares[position, level].item() == pytest.approx(expected, abs=1e-4)
            parts = {f: values[1] for f, values in row.items() if own.start <= f < own.stop}
            assert sum(parts.values()) == pytest.approx(expected, abs=1e-4)
            if level == 0:
                exact = shapley(level_sae, x[position], of_level)
                assert parts == pytest.approx(exact, abs=1e-4)
                n_orders += len(exact) > 1
        assert {f: values[0] for f, values in row.items()} == pytest.approx(acts, rel=1e-4)
        for feature, (_, _, without) in row.items():
            parent = sae.forest.parent(feature)
            assert without == (parent is not None and parent not in acts)
            n_without += without
    assert n_orders > 0, "else the parts are the share itself"
    assert 0 < n_without < len(found.features)


def test_paths_hold_every_feature_that_fires_and_end_on_one(proxy):
    model, sae = proxy
    found = explain(sae, model, TEXT)
    n_silent = 0
    for position in range(len(found.tokens)):
        firing, paths = found.entries[position], found.paths(position)
        assert {feature for path in paths for feature in path if feature in firing} == set(firing)
        strengths = []
        for path in paths:
            assert list(path) == sae.forest.path(path[-1])
            assert path[-1] in firing
            assert not set(sae.forest.subtree(path[-1])[1:]) & set(firing), "something below it fires"
            n_silent += any(feature not in firing for feature in path)
            strengths.append(sum(found.shares[firing[f]].item() for f in path if f in firing))
        assert strengths == sorted(strengths, reverse=True)
    assert n_silent > 0


def test_tables_say_the_same(proxy):
    model, sae = proxy
    feature = next(f for f in explain(sae, model, TEXT).features.tolist() if len(sae.forest.path(f)) == 3)
    found = explain(sae, model, TEXT, labels={feature: "dates"})
    assert explain(sae, model, TEXT, labels={sae.levels.name(feature): "dates"}).labels == found.labels
    frame = found.to_frame()
    assert len(frame) == len(found.features)
    row = frame[frame["feature"] == feature].iloc[0]
    assert (row["label"], row["level"], row["name"]) == ("dates", 2, f"2/{feature - 13}")
    assert row["path"].split(" › ") == [sae.levels.name(f) for f in sae.forest.path(feature)]
    assert row["parent"] == sae.forest.parent(feature)
    levels = found.levels_to_frame()
    assert levels.shape == (len(found.tokens), 5)
    sums = frame.groupby(["position", "level"])["share"].sum()
    for (position, level), total in sums.items():  # type: ignore[misc]
        assert levels.loc[position, f"level_{level}"] == pytest.approx(total, abs=1e-4)


@pytest.mark.parametrize("normalize", ["none", "layer_norm"])
def test_any_stack_with_a_forest_will_do(gpt2, normalize):
    model, hook = hooked("proxy", gpt2)
    saes = []
    for seed, width in enumerate((5, 11)):
        torch.manual_seed(seed)
        sae = StandardSAE(StandardSAEConfig(d_in=D_MODEL, d_sae=width, normalize_activations=normalize))
        sae.b_dec.data.normal_()
        sae.W_dec.data.mul_(3 + torch.rand(width, 1))
        sae.cfg.metadata.hook_name = hook
        saes.append(sae)
    forest = FeatureForest.from_saes(saes, ParentRule("encoder", None))
    found = explain(saes, model, TEXT, forest=forest)
    x = activations(model, hook, model.tokenizer(TEXT, add_special_tokens=False)["input_ids"])
    rows = by_token(found)
    for position in range(len(x)):
        for level, sae in enumerate(saes):
            with torch.no_grad():
                acts = sae.encode(x[position][None])[0]
            expected = share(sae, x[position], acts)
            assert found.level_shares[position, level].item() == pytest.approx(expected, abs=1e-4)
            start = forest.levels.offsets[level]
            parts = [values[1] for f, values in rows[position].items() if start <= f < start + len(acts)]
            assert sum(parts) == pytest.approx(expected, abs=1e-4)


def test_a_first_token_is_read_but_not_explained(proxy):
    model, sae = proxy
    sae.cfg.metadata.prepend_bos = True
    found = explain(sae, model, "w1 w2")
    assert len(found.tokens) == 2
    x = activations(model, sae.cfg.metadata.hook_name, [0, 1, 2])[1:]
    expected = share(sae.level_sae(2), x[0], sae.level_sae(2).encode(x[:1])[0].detach())
    assert found.level_shares[0, 2].item() == pytest.approx(expected, abs=1e-4)


def test_where_nothing_fires_nothing_is_explained(proxy):
    model, sae = proxy
    sae.threshold.data.fill_(1e6)
    found = explain(sae, model, TEXT)
    assert found.level_shares.abs().max() < 1e-6
    assert found.paths(0) == []
    assert len(found.to_frame()) == 0
    assert "no feature fires" in shown(found)


def shown(explanation: Explanation, **options: Any) -> str:
    console = Console(file=io.StringIO(), width=200)
    console.print(drawn(explanation, **options) if options else explanation)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_the_terminal_shows_paths_coarse_to_fine_and_hostile_labels_as_text(proxy):
    model, sae = proxy
    labels = dict.fromkeys(range(33), "[bold]x[/nonsense] \x1b[31mred \u202e")
    found = explain(sae, model, TEXT, labels=labels)
    text = shown(found, n_paths=100)
    assert not {"\x1b", "\u202e"} & set(text)
    assert "[bold]x[/nonsense] \\x1b[31mred \\u202e" in text
    assert [line.split()[0] for line in text.splitlines() if "  level 0 " in line] == TEXT.split()
    second = text[text.index("w2  level 0") : text.index("w3  level 0")]
    names = [sae.levels.name(feature) for feature in next(path for path in found.paths(1) if len(path) == 3)]
    places = [second.index(f"─ {name} ") for name in names]
    columns = [place - second.rindex("\n", 0, place) for place in places]
    assert places == sorted(places)
    assert columns == sorted(set(columns))
    n_silent = sum(len({*chain(*found.paths(p))} - set(found.entries[p])) for p in range(len(found.tokens)))
    assert sum(line.endswith("silent") for line in text.splitlines()) == n_silent > 0
    assert text.count("  without its parent") == int(found.without_parent.sum()) > 0
    assert f"… {len(found.paths(0)) - 1} more paths" in shown(found, n_paths=1)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"text": ""}, ValueError, "text='' has no token"),
        ({"text": " \n"}, ValueError, "has no token; give a text"),
        ({"text": "w1 \udcff"}, ValueError, "is no proper Unicode"),
        ({"text": ["w1"]}, TypeError, "text is a list; give one text"),
        ({"text": "w1 " * (CONTEXT + 1)}, ValueError, f"text: {CONTEXT + 1} tokens, but the model takes at most"),
        ({"levels": sae_at("transformer.h.9")}, ValueError, r"'transformer\.h\.9' is no hook point .*it has transf"),
        ({"levels": sae_at("transformer.h.0", d_in=8)}, ValueError, "are 16 wide, but d_in=8"),
    ],
)
def test_bad_input_is_refused_and_no_hook_stays(gpt2, change, error, message):
    model, hook = hooked("proxy", gpt2)
    arguments: dict[str, Any] = {"levels": sae_at(hook), "model": model, "text": TEXT} | change
    with pytest.raises(error, match=message):
        explain(**arguments)
    assert not any(point.fwd_hooks for point in model.hook_dict.values())


def test_a_model_without_tokenizer_or_with_nan_is_refused(gpt2):
    with pytest.raises(ValueError, match="the model has no tokenizer"):
        explain(sae_at(HOOK), tiny_sae_transformer(), TEXT)
    model, hook = hooked("proxy", gpt2)
    next(model.model.parameters()).data.fill_(math.nan)
    with pytest.raises(ValueError, match="hold NaN or infinity"):
        explain(sae_at(hook), model, TEXT)


@pytest.fixture
def saved(tmp_path):
    """A small random SAE that names all-MiniLM-L6-v2 as its model, on disk."""
    sae = sae_at("bert.encoder.layer.3", model=minilm_folder(), d_in=384, prepend_bos=False)
    sae.save_inference_model(tmp_path / "sae")
    return tmp_path / "sae"


def test_the_command_explains_a_text_with_the_labels_there_are(saved, tmp_path, capsys):
    sae: Any = SAE.load_from_disk(saved)
    tokens = torch.tensor([[1996, 4937, 2938, 2006]] * 8)  # the cat sat on
    x = torch.randn(8, 4, 384, generator=torch.Generator().manual_seed(0)) * 3
    collect_dashboards(sae, sae.forest, [(tokens, x)], progress=False).save(dashboards_folder(saved))
    (saved / "labels.json").write_text('{"0": "a name of its own"}')
    table = tmp_path / "new" / "table.csv"
    cli.main(["explain", str(saved), "--text", "The cat sat.", "--paths", "50", "--output", str(table)])
    out = capsys.readouterr().out
    frame = pd.read_csv(table, keep_default_na=False)
    assert list(dict.fromkeys(frame["token"])) == [" the", " cat", " sat", "."]
    assert set(frame.loc[frame["feature"] == 0, "label"]) <= {"a name of its own"}
    others = set(frame.loc[frame["feature"] != 0, "label"]) - {""}
    assert others, "the others are named by their tokens"
    assert {word for label in others for word in label.split(" · ")} <= {"the", "cat", "sat", "on"}
    assert "On 4 tokens" in out
    assert "0/" in out
    assert out.count("without its parent") == frame["without_parent"].sum()


def test_no_text_costs_no_model(saved, monkeypatch):
    monkeypatch.setattr("sae_lens_hsae.cli.explain.open_labelled", lambda *_: pytest.fail("it is loaded"))
    with pytest.raises(SystemExit, match="hsae explain: text='' has no token"):
        cli.main(["explain", str(saved), "--text", ""])


def test_a_sink_is_left_out_and_said(gpt2):
    """The token w5 is a hundred times as large as the others where the SAE reads it."""
    model, hook = hooked("proxy", gpt2)
    sae, position = sae_at(hook), TEXT.split().index("w5")
    ordinary = explain(sae, model, TEXT)
    assert ordinary.outlying == ()
    (sink,) = model.tokenizer("w5", add_special_tokens=False)["input_ids"]
    model.model.transformer.wte.weight.data[sink] *= 100
    found = explain(sae, model, TEXT)
    assert found.outlying == (position,)
    assert found.level_shares[position].isnan().all()
    assert position in ordinary.positions
    assert position not in found.positions
    assert found.levels_to_frame()["outlying"].tolist() == [each == position for each in range(len(found.tokens))]
    assert "w5  left out: outlying, such as an attention sink" in shown(found)


def test_a_text_begins_as_texts_did_in_training_not_with_an_artefact(saved):
    """Trained on texts one after another: the separator stands before the first word."""
    sae: Any = SAE.load_from_disk(saved)
    model = load_model("AutoModelForCausalLM", str(minilm_folder()), hook_names=["bert.encoder.layer.3"])
    sae.cfg.metadata.prepend_bos = False
    found = explain(sae, model, "the cat sat")
    x = activations(model, "bert.encoder.layer.3", [102, 1996, 4937, 2938])[1:]
    acts = sae.encode(x).detach()
    for entry, (position, feature) in enumerate(zip(found.positions.tolist(), found.features.tolist(), strict=True)):
        assert found.activations[entry].item() == pytest.approx(acts[position, feature].item(), rel=1e-3)
    assert len(found.positions) == (acts != 0).sum() > 3
    assert found.outlying == ()
    sae.cfg.metadata.disable_concat_sequences = True
    assert explain(sae, model, "the cat sat").outlying == (0,), "nothing stood before a text"
