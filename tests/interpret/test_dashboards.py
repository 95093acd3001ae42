"""Dashboards against a slow plain reference, and what stands on disk."""

import copy
import json
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_saes import D_IN, WIDTHS, make_sae

from sae_lens_hsae import FeatureForest
from sae_lens_hsae.interpret.feature_cache import (
    Dashboards,
    DashboardSettings,
    collect_dashboards,
    fingerprint,
)
from sae_lens_hsae.interpret.feature_cache import collect as module
from sae_lens_hsae.interpret.feature_cache.statistics import bin_edges, bin_of, quantiles

N_CONTEXTS, LENGTH, VOCABULARY, PADDING = 37, 11, 12, 11
SETTINGS = DashboardSettings(n_top=3, n_sampled=2, n_counterexamples=2, window=5, min_token_count=3, n_nearest=4)
KINDS = {"top": 0, "sampled": 1, "parent_alone": 2, "child_alone": 3}


def stream(batch_size: int = 5):
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randint(VOCABULARY, (N_CONTEXTS, LENGTH), generator=generator)
    x = torch.randn(N_CONTEXTS, LENGTH, D_IN, generator=generator) * 2
    return list(zip(tokens.split(batch_size), x.split(batch_size), strict=True))


@pytest.fixture(scope="module")
def sae():
    sae = make_sae(seed=5)
    sae.threshold.data[-1] = 1e9  # the last feature never fires
    return sae


@pytest.fixture(scope="module")
def dashboards(sae):
    return collect_dashboards(sae, sae.forest, stream(), settings=SETTINGS, exclude_tokens=[PADDING], progress=False)


@pytest.fixture(scope="module")
def everything(sae):
    """Tokens (contexts, length), activations (contexts, length, features), 0 on padding, and which tokens count."""
    tokens = torch.cat([tokens for tokens, _ in stream()])
    x = torch.cat([x for _, x in stream()])
    acts = torch.cat([sae.level_sae(level).encode(x) for level in range(len(WIDTHS))], dim=-1).detach()
    acts[tokens == PADDING] = 0
    return tokens, acts, tokens != PADDING


def parent_acts(acts, forest, feature):
    parent = forest.parent(feature)
    return torch.zeros_like(acts[..., 0]) if parent is None else acts[..., parent]


def test_counts_equal_plain_counting(sae, dashboards, everything):
    _, acts, kept = everything
    forest = sae.forest
    assert dashboards.n_tokens == int(kept.sum())
    assert dashboards.n_contexts == N_CONTEXTS
    for feature in range(forest.n_features):
        own, above = acts[..., feature], parent_acts(acts, forest, feature)
        fires = own > 0
        n_fires = int(fires.sum())
        assert dashboards.n_firing[feature] == n_fires
        assert dashboards.max_activation[feature].item() == pytest.approx(own.max().item(), rel=1e-5)
        assert dashboards.mean_activation[feature].item() == pytest.approx(own.sum().item() / max(n_fires, 1), rel=1e-5)
        below = [acts[..., child] > 0 for child in forest.children(feature)]
        any_child = torch.stack(below).any(0) if below else torch.zeros_like(fires)
        assert dashboards.n_with_any_child[feature] == (any_child & fires).sum()
        assert dashboards.n_any_child[feature] == any_child.sum()
        if below and (fires | any_child).any():
            expected = (fires & any_child).sum() / (fires | any_child).sum()
            assert dashboards.agreement[feature].item() == pytest.approx(expected.item())
        if forest.parent(feature) is None:
            assert dashboards.parent_given_child[feature].isnan()
            assert dashboards.child_given_parent[feature].isnan()
        elif n_fires and (above > 0).any():
            both = (fires & (above > 0)).sum().item()
            assert dashboards.parent_given_child[feature].item() == pytest.approx(both / n_fires)
            assert dashboards.child_given_parent[feature].item() == pytest.approx(both / (above > 0).sum().item())


def test_the_histogram_counts_every_firing_and_its_quantiles_are_close(dashboards, everything):
    _, acts, _ = everything
    edges = bin_edges()
    at = torch.tensor([0.1, 0.5, 0.9])
    estimated = quantiles(dashboards.histogram, at)
    for feature in range(dashboards.n_features):
        values = acts[..., feature][acts[..., feature] > 0].double()
        expected = torch.histogram(values, edges).hist if len(values) else torch.zeros(len(edges) - 1)
        assert torch.equal(dashboards.histogram[feature].double(), expected.double())
        assert estimated[feature].isnan().all() == (len(values) == 0)
        if len(values) > 100:
            exact = values.quantile(at.double())
            assert torch.allclose(estimated[feature].log2(), exact.log2(), atol=0.2)
    assert edges[8 * 16].item() == pytest.approx(1)
    assert bin_of(torch.tensor([1e-30, 1e30])).tolist() == [0, len(edges) - 2]


@pytest.mark.parametrize("kind", ["top", "parent_alone", "child_alone"])
def test_the_strongest_contexts_are_those_of_a_full_sort(sae, dashboards, everything, kind):
    tokens, acts, _ = everything
    slots = SETTINGS.kinds[KINDS[kind]]
    for feature in range(dashboards.n_features):
        own, above = acts[..., feature], parent_acts(acts, sae.forest, feature)
        value = {
            "top": own,
            "parent_alone": above * (own == 0),
            "child_alone": own * (above == 0) * (sae.forest.parent(feature) is not None),
        }[kind]
        peaks, positions = value.max(1)
        best = [int(i) for i in peaks.argsort(descending=True) if peaks[i] > 0][: slots.stop - slots.start]
        found = [int(i) for i in dashboards.context_numbers[feature, slots] if i >= 0]
        assert found == best
        for slot, context in enumerate(best, start=slots.start):
            check_window(sae, dashboards, tokens, acts, feature, slot, context, int(positions[context]))


def test_attention_sinks_are_no_contexts(sae):
    tokens, x = (torch.cat(parts) for parts in zip(*stream(), strict=True))
    sinks = torch.rand(tokens.shape, generator=torch.Generator().manual_seed(1)) < 0.01
    with_sinks = torch.where(sinks[..., None], 100 * x, x)
    named = torch.where(sinks, VOCABULARY, tokens)
    read, left_out = (
        collect_dashboards(sae, sae.forest, [(named, seen)], settings=SETTINGS, exclude_tokens=excluded, progress=False)
        for seen, excluded in ((with_sinks, ()), (x, (VOCABULARY,)))
    )
    assert read.n_tokens == left_out.n_tokens == int((~sinks).sum())
    assert torch.equal(read.activations, left_out.activations)
    assert torch.equal(read.peak_positions, left_out.peak_positions)


def test_contexts_in_an_order_that_hides_most_of_them_are_told(sae):
    tokens, x = (torch.cat(parts) for parts in zip(*stream(), strict=True))
    x[len(x) // 2 :] += 100
    batches = zip(tokens.split(10), x.split(10), strict=True)
    with pytest.warns(UserWarning, match="tokens lie far from the first ones and count as silent; shuffle"):
        collect_dashboards(sae, sae.forest, batches, settings=SETTINGS, progress=False)


def check_window(sae, dashboards, tokens, acts, feature, slot, context, peak):
    start = min(max(peak - SETTINGS.window // 2, 0), LENGTH - SETTINGS.window)
    shown = slice(start, start + SETTINGS.window)
    own, above = acts[context, shown, feature], parent_acts(acts, sae.forest, feature)[context, shown]
    assert torch.equal(dashboards.token_ids[feature, slot].long(), tokens[context, shown])
    assert torch.allclose(dashboards.activations[feature, slot].float(), own, rtol=0.005)
    assert torch.allclose(dashboards.parent_activations[feature, slot].float(), above, rtol=0.005)
    assert dashboards.peak_positions[feature, slot] == peak - start
    if slot < SETTINGS.n_family_slots:
        for child in sae.forest.children(feature):
            of_child = dashboards.activations_on_parent[child, slot].float()
            assert torch.allclose(of_child, acts[context, shown, child], rtol=0.005)


def test_sampled_contexts_are_real_ones_with_their_family(sae, dashboards, everything):
    tokens, acts, _ = everything
    slots = SETTINGS.kinds[1]
    n_sampled = 0
    for feature in range(dashboards.n_features):
        numbers = dashboards.context_numbers[feature, slots].tolist()
        peaks, positions = acts[..., feature].max(1)
        assert (numbers[0] >= 0) == bool((peaks > 0).any()) == (feature != 32)
        for slot, context in enumerate(numbers, start=slots.start):
            if context >= 0:
                n_sampled += 1
                assert dashboards.peaks[feature, slot].item() == pytest.approx(peaks[context].item(), rel=1e-5)
                check_window(sae, dashboards, tokens, acts, feature, slot, context, int(positions[context]))
    assert n_sampled > dashboards.n_features


def test_samples_cover_the_range_of_activations():
    """One feature, whose peak in context i is some permutation of 1 … 2000: four bands, one sample in each."""
    n = 2000
    forest = FeatureForest(torch.full((sum(WIDTHS),), -1), WIDTHS)
    settings = DashboardSettings(n_top=1, n_sampled=4, n_counterexamples=0, window=1)
    means = torch.zeros(4)
    for seed in range(8):
        slots = module.ContextSlots(forest, DashboardSettings(**{**vars(settings), "seed": seed}), torch.device("cpu"))
        acts = torch.zeros(n, forest.n_features)
        acts[:, 0] = torch.randperm(n, generator=torch.Generator().manual_seed(seed)).float() + 1
        slots.add(module.Firing(acts, forest.parents), torch.zeros(n, 1, dtype=torch.int64), 0)
        peaks = slots.result()["peaks"]
        means += peaks[0, 1:] / n / 8
        assert (peaks[1:] == 0).all()
    assert torch.allclose(means, torch.tensor([0.875, 0.625, 0.375, 0.125]), atol=0.15)


def test_strongest_tokens_are_those_of_highest_mean_over_all_their_occurrences(dashboards, everything):
    tokens, acts, kept = everything
    for feature in range(dashboards.n_features):
        means = {}
        for token in tokens[kept].unique().tolist():
            here = kept & (tokens == token)
            if here.sum() >= SETTINGS.min_token_count and (mean := acts[here][:, feature].mean().item()) > 0:
                means[token] = mean
        expected = sorted(means, key=lambda token: -means[token])[: SETTINGS.n_strongest_tokens]
        found = [token for token in dashboards.strongest_tokens[feature].tolist() if token >= 0]
        assert found == expected


def test_few_candidates_still_find_the_strongest_token(monkeypatch):
    """500 tokens, room for 4: those on which the feature fires most stay, however the stream is cut."""
    monkeypatch.setattr("sae_lens_hsae.interpret.feature_cache.tokens.MIN_PENDING", 50)
    settings = DashboardSettings(n_strongest_tokens=2, n_candidate_tokens=4)
    means = module.TokenMeans(1, settings, torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        tokens = torch.randint(500, (100,), generator=generator)
        acts = torch.rand(100, 1, generator=generator) * 0.2
        acts[tokens == 7], acts[tokens == 400] = 3.0, 2.0
        means.add(module.Firing(acts, torch.tensor([-1])), tokens, torch.ones(100, dtype=torch.bool))
    assert means.result()["strongest_tokens"].tolist() == [[7, 400]]


def test_directions_equal_plain_loops(sae, dashboards):
    forest, W = sae.forest, sae.W_dec.detach().double()
    unit = W / W.norm(dim=1, keepdim=True)
    for feature in range(forest.n_features):
        level = int(forest.levels.level_of(torch.tensor(feature)))
        own = forest.levels[level]
        others = [f for f in range(own.start, own.stop) if f != feature]
        expected = sorted(others, key=lambda f: -(unit[f] @ unit[feature]).item())[: SETTINGS.n_nearest]
        assert [f for f in dashboards.nearest[feature].tolist() if f >= 0] == expected
        parent = forest.parent(feature)
        if parent is None:
            assert dashboards.parent_cosine[feature].isnan()
        else:
            cosine = (unit[feature] @ unit[parent]).item()
            assert dashboards.parent_cosine[feature].item() == pytest.approx(cosine, abs=1e-5)
            projection = (W[feature] @ W[parent] / W[parent].square().sum()).item()
            assert dashboards.parent_projection[feature].item() == pytest.approx(projection, abs=1e-5)


def test_promoted_and_suppressed_tokens_need_an_unembedding(sae, dashboards):
    assert dashboards.promoted_tokens is None
    unembedding = torch.randn(D_IN, 30, generator=torch.Generator().manual_seed(0))
    with_logits = collect_dashboards(
        sae, sae.forest, stream(), settings=SETTINGS, unembedding=unembedding, progress=False
    )
    logits = sae.W_dec.detach() @ unembedding
    values, tokens = logits.sort(dim=1, descending=True)
    n = SETTINGS.n_strongest_tokens
    assert with_logits.promoted_tokens is not None
    assert with_logits.promoted_logits is not None
    assert with_logits.suppressed_tokens is not None
    assert torch.equal(with_logits.promoted_tokens.long(), tokens[:, :n])
    assert torch.allclose(with_logits.promoted_logits, values[:, :n], atol=1e-5)
    assert torch.equal(with_logits.suppressed_tokens.long(), tokens.flip(1)[:, :n])


@pytest.mark.parametrize("at_once", [1, 2**30])
def test_how_the_stream_is_cut_changes_nothing(sae, dashboards, monkeypatch, at_once):
    monkeypatch.setattr(module, "MAX_ELEMENTS_AT_ONCE", at_once)
    levels = [sae.level_sae(level) for level in range(len(WIDTHS))]
    settings: dict[str, Any] = {"settings": SETTINGS, "exclude_tokens": [PADDING], "progress": False}
    assert_same(collect_dashboards(levels, sae.forest, stream(batch_size=12), **settings), dashboards)
    # Nor does it change which tokens are outlying: by the first contexts alone most would be.
    contexts = [(ids, x * (1.0 if i < 5 else 40.0)) for i, (ids, x) in enumerate(stream(batch_size=1))]
    together = [(torch.cat([ids for ids, _ in contexts]), torch.cat([x for _, x in contexts]))]
    by_context, whole = (collect_dashboards(levels, sae.forest, each, **settings) for each in (contexts, together))
    assert by_context.n_tokens == dashboards.n_tokens
    assert_same(by_context, whole)


def assert_same(first: Dashboards, second: Dashboards) -> None:
    for name, value in vars(first).items():
        other = getattr(second, name)
        if isinstance(value, torch.Tensor):
            assert torch.allclose(value.double(), other.double(), rtol=1e-5, atol=1e-6, equal_nan=True), name
        else:
            assert value == other, name


def test_short_and_uneven_contexts_are_padded_and_n_tokens_stops(sae):
    batches = [(torch.ones(2, 3, dtype=torch.int64), torch.randn(2, 3, D_IN)), *stream()]
    short = collect_dashboards(sae, sae.forest, batches, n_tokens=6, settings=SETTINGS, progress=False)
    assert (short.n_tokens, short.n_contexts) == (6, 2)
    filled = short.context_numbers >= 0
    assert (short.token_ids[filled][:, :3] == 1).all()
    assert (short.token_ids[filled][:, 3:] == -1).all()
    mixed = collect_dashboards(sae, sae.forest, batches, n_tokens=7, settings=SETTINGS, progress=False)
    assert (mixed.n_tokens, mixed.n_contexts) == (6 + LENGTH, 3)


def test_bad_input_is_refused_with_the_remedy(sae):
    forest = sae.forest
    tokens, x = stream()[0]
    with pytest.raises(ValueError, match="batches held no token"):
        collect_dashboards(sae, forest, [], progress=False)
    with pytest.raises(ValueError, match=r"number 0 has token ids of shape \(5, 11\) and .* \(55, 8\)"):
        collect_dashboards(sae, forest, [(tokens, x.flatten(0, 1))], progress=False)
    with pytest.raises(ValueError, match="number 1 holds NaN"):
        collect_dashboards(sae, forest, [(tokens, x), (tokens, x / 0)], progress=False)
    with pytest.raises(ValueError, match=r"unembedding has shape \(3, 30\)"):
        collect_dashboards(sae, forest, stream(), unembedding=torch.zeros(3, 30), progress=False)
    with pytest.raises(ValueError, match="n_tokens=0 must be at least 1"):
        collect_dashboards(sae, forest, stream(), n_tokens=0, progress=False)
    with pytest.raises(ValueError, match="n_top=0 must be a whole number, at least 1"):
        DashboardSettings(n_top=0)
    with pytest.raises(ValueError, match="n_candidate_tokens=2 is below n_strongest_tokens=8"):
        DashboardSettings(n_candidate_tokens=2)


def test_saving_and_loading_keeps_everything_and_replaces_what_was_there(dashboards, tmp_path):
    folder = tmp_path / "runs" / "dashboards"
    dashboards.save(folder)
    assert_same(Dashboards.load(folder, dashboards.fingerprint), dashboards)
    dashboards.save(folder)
    assert sorted(path.name for path in folder.parent.iterdir()) == ["dashboards"], "nothing is left beside it"
    assert sorted(path.name for path in folder.iterdir()) == ["dashboards.safetensors", "manifest.json"]
    (folder / "manifest.json").unlink()
    dashboards.save(folder)  # as --renew does where it is missing
    assert_same(Dashboards.load(folder), dashboards)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("…")
    with pytest.raises(FileExistsError, match="holds something else than dashboards"):
        dashboards.save(tmp_path / "mine")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "runs"]


def test_the_fingerprint_tells_weights_and_forests_apart(sae):
    same = fingerprint(sae, sae.forest)
    assert same == fingerprint([sae.level_sae(level) for level in range(len(WIDTHS))], sae.forest)
    assert same != fingerprint(make_sae(seed=6), sae.forest)
    assert same != fingerprint(sae, FeatureForest(torch.full((sum(WIDTHS),), -1), WIDTHS))
    assert fingerprint(copy.deepcopy(sae).to(torch.bfloat16), sae.forest) != same


def edited(**changes: Any) -> Any:
    def edit(folder):
        path = folder / "manifest.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return edit


def with_tensor(name: str, change: Any) -> Any:
    def edit(folder):
        tensors = load_file(folder / "dashboards.safetensors")
        changed = change(tensors.pop(name))
        save_file(tensors | ({} if changed is None else {name: changed}), folder / "dashboards.safetensors")

    return edit


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (lambda folder: (folder / "manifest.json").unlink(), FileNotFoundError, r"holds no manifest\.json"),
        (lambda folder: (folder / "dashboards.safetensors").unlink(), FileNotFoundError, r"no dashboards\.safetensors"),
        (edited(fingerprint="0" * 64), ValueError, "made for other weights or another forest"),
        (edited(format_version=2), ValueError, "format_version=2 cannot be read, only 1"),
        (edited(format="something"), ValueError, "does not describe dashboards"),
        (lambda folder: (folder / "manifest.json").write_text("{"), ValueError, r"manifest\.json is damaged"),
        (lambda folder: (folder / "dashboards.safetensors").write_bytes(b"x"), ValueError, r"safetensors is damaged"),
        (with_tensor("peaks", lambda _: None), ValueError, "lacks peaks; collect"),
        (with_tensor("peaks", lambda peaks: peaks[:, 1:].contiguous()), ValueError, "peaks is torch.float32 of"),
    ],
)
def test_unreadable_dashboards_say_why(dashboards, tmp_path, damage, error, message):
    dashboards.save(tmp_path / "saved")
    damage(tmp_path / "saved")
    with pytest.raises(error, match=message):
        Dashboards.load(tmp_path / "saved", dashboards.fingerprint)


def test_what_only_older_versions_kept_is_left_out(dashboards, tmp_path):
    dashboards.save(tmp_path / "saved")
    path = tmp_path / "saved" / "dashboards.safetensors"
    save_file(load_file(path) | {"strongest_token_means": torch.zeros(1)}, path)
    assert_same(Dashboards.load(tmp_path / "saved"), dashboards)
