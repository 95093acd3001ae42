"""A Matryoshka SAE read as levels."""

import pytest
import torch
from sae_lens import MatryoshkaBatchTopKTrainingSAE, MatryoshkaBatchTopKTrainingSAEConfig

from experiments.matryoshka import evaluate_groups, groups_and_prefixes, inference_sae
from sae_lens_hsae.evaluation import evaluate_forest
from sae_lens_hsae.forest import FeatureForest

PREFIXES = [4, 13, 33]


@pytest.fixture
def trained():
    torch.manual_seed(0)
    cfg = MatryoshkaBatchTopKTrainingSAEConfig(d_in=8, d_sae=33, k=6, matryoshka_widths=PREFIXES)
    sae = MatryoshkaBatchTopKTrainingSAE(cfg)
    sae.topk_threshold.fill_(0.05)
    sae.b_dec.data.normal_()
    return sae


def test_groups_partition_the_features_and_prefixes_nest(trained, batch):
    sae = inference_sae(trained)
    groups, prefixes = groups_and_prefixes(sae, PREFIXES)
    acts = sae.encode(batch)
    assert (acts > 0).any()
    torch.testing.assert_close(torch.cat([group.encode(batch) for group in groups], dim=1), acts)
    for stop, prefix in zip(PREFIXES, prefixes, strict=True):
        torch.testing.assert_close(prefix.encode(batch), acts[:, :stop])
        torch.testing.assert_close(prefix(batch), acts[:, :stop] @ sae.W_dec[:stop] + sae.b_dec)
    torch.testing.assert_close(prefixes[-1](batch), sae(batch))


def test_groups_explain_variance_together_with_the_coarser_ones(trained, batch):
    groups, prefixes = groups_and_prefixes(inference_sae(trained), PREFIXES)
    forest = FeatureForest([-1] * 4 + [0] * 9 + [4] * 20, [4, 9, 20])
    batches = list(batch.split(len(batch) // 2))
    result, alone = evaluate_groups(groups, prefixes, forest, batches), evaluate_forest(groups, forest, batches)
    assert result.boundaries == alone.boundaries
    for level, group, prefix in zip(result.levels, alone.levels, prefixes, strict=True):
        nested = evaluate_forest([prefix], FeatureForest([-1] * prefix.cfg.d_sae, [prefix.cfg.d_sae]), batches).levels[
            0
        ]
        assert (level.l0, level.n_dead) == (group.l0, group.n_dead)
        assert level.variance_explained == pytest.approx(nested.variance_explained)
        assert level.variance_explained_ordinary == pytest.approx(nested.variance_explained_ordinary)
    assert result.levels[-1].variance_explained != alone.levels[-1].variance_explained
