"""BatchTopK levels: the same as SAELens' own, on all activations and on entries alone; exact L0; running thresholds."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_lens.saes.batchtopk_sae import BatchTopK

from sae_lens_hsae.batch_topk import BatchTopKLevels, follow_threshold
from sae_lens_hsae.level_activation import PreActivations
from sae_lens_hsae.levels import Levels


@settings(max_examples=60, deadline=None)
@given(
    widths=st.sampled_from([(1, 2), (3, 7), (2, 5, 11)]),
    batch=st.integers(1, 9),
    target=st.sampled_from([0.05, 0.5, 1.0, 1.7]),
    guess=st.sampled_from([0.0, 0.5, 3.0, 1e6]),
    seed=st.integers(0, 10_000),
)
def test_both_forms_choose_what_saelens_chooses_wherever_they_look_first(widths, batch, target, guess, seed):
    generator = torch.Generator().manual_seed(seed)
    levels = Levels(widths)
    bias = torch.randn(levels.n_features, generator=generator, dtype=torch.float64)
    product = torch.randn(levels.n_features, batch, generator=generator, dtype=torch.float64)
    pre = PreActivations(product, bias)
    rule = BatchTopKLevels(levels, [target] * len(levels), torch.full((levels.n_features,), guess))
    theirs = torch.cat([BatchTopK(target)(pre.dense()[:, own]) for own in levels], dim=1)
    values, fired = rule.of_all(pre.dense())
    assert torch.equal(values, theirs)
    assert torch.equal(fired != 0, theirs != 0)
    assert torch.equal(rule.found(pre).T, theirs != 0)
