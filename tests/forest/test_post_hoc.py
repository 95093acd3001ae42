"""Forests for SAEs that were trained without one."""

import re
from itertools import pairwise
from typing import Any

import pytest
import reference
import torch
from sae_lens import (
    GatedSAE,
    GatedSAEConfig,
    JumpReLUSAE,
    JumpReLUSAEConfig,
    StandardSAE,
    StandardSAEConfig,
    TopKSAE,
    TopKSAEConfig,
)
from sae_lens.saes.sae import SAEMetadata
from small_saes import LargestTensor, make_config, make_sae

from sae_lens_hsae import FeatureForest, HierarchicalTrainingSAEConfig, ParentRule, evaluate_forest
from sae_lens_hsae.forest import PAPER_RULE
from sae_lens_hsae.presets import PAPER


def sae_of(sae_class, config_class, width, seed, hook_name="hook", d_in=8, **fields):
    torch.manual_seed(seed)
    sae = sae_class(config_class(d_in=d_in, d_sae=width, metadata=SAEMetadata(hook_name=hook_name), **fields))
    for parameter in (sae.W_enc, sae.W_dec):
        parameter.data = torch.randn_like(parameter)
    return sae


def stack():
    return [
        sae_of(StandardSAE, StandardSAEConfig, 4, 0),
        sae_of(TopKSAE, TopKSAEConfig, 9, 1, k=3),
        sae_of(GatedSAE, GatedSAEConfig, 15, 2),
        sae_of(JumpReLUSAE, JumpReLUSAEConfig, 20, 3),
    ]


def similarities(kind, coarse, fine, x):
    """Of each parent to each child, read off the definition; −∞ where they make no pair."""
    if kind in ("encoder", "decoder"):
        rows = [sae.W_enc.T if kind == "encoder" else sae.W_dec for sae in (coarse, fine)]
        parents, children = (torch.nn.functional.normalize(each, dim=1) for each in rows)
        return parents @ children.T
    parents, children = ((sae.encode(x) > 0).double() for sae in (coarse, fine))
    together, fires = parents.T @ children / len(x), parents.mean(0)[:, None]
    sure = reference.lower_end(together / children.mean(0), children.sum(0))
    found = together if kind == "coactivation" else sure - 2 * fires
    rarer = (kind == "conditional") & (fires < children.mean(0))
    return torch.where((together > 0) & ~rarer, found, -torch.inf)


@pytest.mark.parametrize("kind", ["encoder", "decoder", "coactivation", "conditional"])
def test_architectures_mix_and_every_child_has_its_most_similar_parent(kind):
    saes = stack()
    activations = [torch.randn(40, 8, generator=torch.Generator().manual_seed(i)) for i in range(2)]
    forest = FeatureForest.from_saes(saes, ParentRule(kind, None), iter(activations))
    assert forest.level_widths == (4, 9, 15, 20)
    for (above, below), coarse, fine in zip(forest.levels.boundaries, saes, saes[1:], strict=False):
        matrix = similarities(kind, coarse, fine, torch.cat(activations))
        best, chosen = matrix.max(0).values, forest.parents[below]
        has = best > -torch.inf
        assert has.any()
        assert torch.equal(chosen >= 0, has)
        of_chosen = matrix[chosen - above.start, torch.arange(len(chosen))]
        torch.testing.assert_close(of_chosen[has], best[has])
    assert len(evaluate_forest(saes, forest, [torch.randn(50, 8)]).boundaries) == 3


def test_the_bar_of_coactivation_is_a_share_of_the_tokens():
    saes, x = stack(), torch.randn(80, 8, generator=torch.Generator().manual_seed(0))
    x[8:] = 0  # on most tokens few fire
    fired = [(sae.encode(x) > 0).float() for sae in saes]
    best = torch.cat([(above.T @ below / len(x)).amax(0) for above, below in pairwise(fired)])
    bar = best.median().item()
    forest = FeatureForest.from_saes(saes, ParentRule("coactivation", bar), [x])
    assert 0 < len(forest.edges()) == int((best > bar).sum()) < int((best > 0).sum())


@pytest.mark.parametrize("rule", [ParentRule("coactivation", None), ParentRule()])
def test_activations_that_measure_nothing_are_refused(rule):
    used_up, bad = iter(()), torch.randn(4, 8)
    bad[1, 2] = torch.nan
    with pytest.raises(ValueError, match=r"activations held no token; .* no iterator that is used up"):
        FeatureForest.from_saes(stack(), rule, used_up)
    with pytest.raises(ValueError, match="activations: batch 1 holds NaN or infinity"):
        FeatureForest.from_saes(stack(), rule, [torch.randn(4, 8), bad])


@pytest.mark.parametrize("shape", [(2, 3, 8), (5, 7), (8,)])
def test_activations_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=rf"batch 1 has shape {re.escape(str(shape))}, expected \(batch, 8\)"):
        FeatureForest.from_saes(stack(), activations=[torch.randn(4, 8), torch.randn(shape)])


def test_saes_that_read_heads_are_refused_where_they_read():
    of_heads: Any = {"hook_name": "blocks.0.attn.hook_z", "reshape_activations": "hook_z"}
    saes = [sae_of(StandardSAE, StandardSAEConfig, n, n, **of_heads) for n in (4, 9)]
    assert FeatureForest.from_saes(saes, PAPER_RULE)
    with pytest.raises(ValueError, match="level 0 has reshape_activations='hook_z' and takes"):
        FeatureForest.from_saes(saes, activations=torch.randn(40, 8))


def test_activations_may_be_one_tensor_and_are_read_in_pieces():
    x = torch.randn(20_000, 8, generator=torch.Generator().manual_seed(0))
    rule = ParentRule(minimum_similarity=None)
    forest = FeatureForest.from_saes(stack(), rule, x.split(97))
    with LargestTensor() as made:
        assert FeatureForest.from_saes(stack(), rule, x) == forest
    assert len(forest.edges()) > 9
    assert made.largest < len(x) * 20 * 4, "the activations of the finest level, all tokens at once"


def test_the_levels_of_a_trained_stack_give_its_own_forest():
    sae = make_sae()
    sae.update_hierarchy()
    assert FeatureForest.from_saes([sae.level_sae(level) for level in range(3)], sae.cfg.parent_rule) == sae.forest


def test_limited_children_and_the_unassigned_share():
    forest = FeatureForest.from_saes(stack(), ParentRule("encoder", None, 0.4, 2))
    assert forest.n_children.max() <= 2
    assert len(forest.unassigned()) >= int(0.4 * 9) + int(0.4 * 15) + int(0.4 * 20)


@pytest.mark.parametrize(
    ("saes", "rule", "message"),
    [
        (stack(), ParentRule(), "activations=None: similarity='conditional' is measured on activations"),
        (stack()[::-1], PAPER_RULE, r"saes have the widths \[20, 15, 9, 4\], which do not grow"),
        ([stack()[0], sae_of(JumpReLUSAE, JumpReLUSAEConfig, 9, 0, d_in=7)], PAPER_RULE, r"different d_in \[8, 7\]"),
        ([stack()[0], sae_of(JumpReLUSAE, JumpReLUSAEConfig, 9, 0, "other")], PAPER_RULE, "different .*hook_name"),
        ([], PAPER_RULE, "level_widths=\\[\\] is empty"),
    ],
)
def test_saes_that_do_not_fit_are_refused(saes, rule, message):
    with pytest.raises(ValueError, match=message):
        FeatureForest.from_saes(saes, rule)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"similarity": "cosine"}, "similarity='cosine': choose one of 'encoder'"),
        ({"similarity": "coactivation"}, 'minimum_similarity=0.25: of "coactivation" it is a share of all tokens'),
        ({"minimum_similarity": float("nan")}, "minimum_similarity=nan: give a number"),
        ({"unassigned_fraction": 1.0}, "unassigned_fraction=1.0"),
        ({"max_children": 0}, "max_children=0"),
    ],
)
def test_a_rule_that_makes_no_sense_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        ParentRule(**fields)


def test_rules_of_training_and_of_from_saes_are_the_same():
    plain = {name: value for name, value in make_config().to_dict().items() if name not in PAPER}
    defaults = HierarchicalTrainingSAEConfig.from_dict(plain)
    assert defaults.parent_rule == ParentRule()
    assert make_config(**PAPER).parent_rule == PAPER_RULE
    assert make_config(max_children=2).parent_rule.max_children == 2
