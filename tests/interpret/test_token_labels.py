"""Labels from token statistics against a slow plain reference, and on planted families."""

import math
from collections import Counter

import pytest
import torch
from conftest import D_IN, make_sae

from sae_lens_hsae import FeatureForest
from sae_lens_hsae.interpret.feature_cache import Dashboards, DashboardSettings, collect_dashboards
from sae_lens_hsae.interpret.labels import distinctive_tokens, token_labels

VOCABULARY = 30


@pytest.fixture(scope="module")
def dashboards() -> Dashboards:
    sae = make_sae(seed=5)
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randint(VOCABULARY, (40, 11), generator=generator)
    x = torch.randn(VOCABULARY, D_IN, generator=generator)[tokens] * 2 + torch.randn(40, 11, D_IN, generator=generator)
    settings = DashboardSettings(n_top=3, n_sampled=3, n_counterexamples=2, window=5)
    return collect_dashboards(sae, sae.forest, [(tokens, x)], settings=settings, exclude_tokens=[0], progress=False)


def shares(dashboards: Dashboards, feature: int) -> Counter[int]:
    seen, contexts = set(), []
    for slot in range(dashboards.settings.n_family_slots):
        number = int(dashboards.context_numbers[feature, slot])
        if number >= 0 and number not in seen:
            acts = dashboards.activations[feature, slot].tolist()
            contexts.append((max(acts), acts, dashboards.token_ids[feature, slot].tolist()))
            seen.add(number)
    p: Counter[int] = Counter()
    for peak, acts, tokens in contexts:
        for act, token in zip(acts, tokens, strict=True):
            if act:
                p[token] += peak / sum(peak for peak, _, _ in contexts) * act / sum(acts)
    return p


def test_scores_equal_the_formula(dashboards):
    windows = dashboards.token_ids[:, : dashboards.settings.n_family_slots].flatten().tolist()
    counts = Counter(token for token in windows if token >= 0)
    q = {token: count / sum(counts.values()) for token, count in counts.items()}
    tokens, scores = distinctive_tokens(dashboards, 5)
    n_apart = n_fallen_back = 0
    for feature, parent in enumerate(dashboards.parents.tolist()):
        p, above = shares(dashboards, feature), shares(dashboards, parent) if parent >= 0 else Counter()
        assert not p or math.isclose(sum(p.values()), 1)
        apart = {token: share * math.log(share / max(q[token], above[token])) for token, share in p.items()}
        if not any(score > 0 for score in apart.values()):
            n_fallen_back += bool(p)
            apart = {token: share * math.log(share / q[token]) for token, share in p.items()}
        n_apart += parent >= 0 and any(above[token] > q[token] for token in p)
        best = sorted((-score, token) for token, score in apart.items() if score > 0)[:5]
        assert scores[feature].tolist() == pytest.approx([-s for s, _ in best] + [0] * (5 - len(best)))
        found = {t: s for t, s in zip(tokens[feature].tolist(), scores[feature].tolist(), strict=True) if t >= 0}
        for token, score in found.items():
            assert score == pytest.approx(apart[token])
        assert (tokens[feature] >= 0).sum() == len(best)
    assert n_apart > 5, "the parent matters for some"


def planted() -> Dashboards:
    """Feature 0 fires on tokens 1 and 2, its child 4 on token 2 alone; 5 repeats its parent 1 on token 3."""
    sae = make_sae()
    for tensor in (sae.W_enc, sae.b_enc, sae.b_dec, sae.threshold):
        tensor.data.zero_()
    for feature, tokens in {0: (1, 2), 4: (2,), 1: (3,), 5: (3,)}.items():
        for token in tokens:
            sae.W_enc.data[token, feature] = 1
    parents = torch.full((sae.cfg.d_sae,), -1)
    parents[4], parents[5] = 0, 1
    tokens = torch.arange(320).view(40, 8) % 8
    forest = FeatureForest(parents, sae.cfg.level_widths)
    return collect_dashboards(sae, forest, [(tokens, torch.eye(D_IN)[tokens])], progress=False)


def test_a_childs_label_says_what_sets_it_apart():
    texts = ["", " Science", " biology", " Iron", "", "", "", ""]
    labels = token_labels(planted(), texts.__getitem__)
    assert labels == {0: "Science · biology", 4: "biology", 1: "Iron", 5: "Iron"}
    tokens, _ = distinctive_tokens(planted(), 2)
    assert tokens[4].tolist() == [2, -1]


def test_texts_that_look_alike_count_once_and_space_not_at_all():
    assert token_labels(planted(), ["", "Cat", " cat", " \n", *[""] * 4].__getitem__) == {0: "Cat", 4: "cat"}


def test_no_token_at_all_is_refused():
    with pytest.raises(ValueError, match="n_tokens=0 must be at least 1"):
        distinctive_tokens(planted(), 0)
