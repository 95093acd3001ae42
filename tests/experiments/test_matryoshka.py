"""A Matryoshka SAE read as levels."""

import pytest
import torch
from sae_lens import MatryoshkaBatchTopKTrainingSAE, MatryoshkaBatchTopKTrainingSAEConfig

from experiments.matryoshka import groups_and_prefixes, inference_sae

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
