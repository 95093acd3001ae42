"""What the planted settings generate."""

import hashlib
import json

import numpy as np
import pytest
import torch
from sae_lens.synthetic import Hierarchy, HierarchyNode

from experiments.planted.trees import EASY, STANDARD, true_parents


@pytest.mark.parametrize(
    ("setting", "version", "digest"),
    [(EASY, 1, "99a5d25e87d4"), (STANDARD, 1, "690570d1fd91")],
    ids=["easy", "standard"],
)
def test_a_changed_setting_needs_a_new_version(setting, version, digest):
    """Raise the setting's version, and then change the values here."""
    model, hierarchy = setting.model, setting.model.hierarchy
    told = {
        name: value for name, value in vars(setting).items() if name not in ("model", "version", "source", "n_stored")
    }
    # By name, so that a field which a later SAELens adds changes nothing.
    told |= {
        name: getattr(model, name) for name in ("num_features", "hidden_dim", "bias", "orthogonalization", "dtype")
    }
    told |= {name: getattr(model, f"{name}_firing_magnitudes") for name in ("mean", "std")}
    told["firing"] = model.firing_probability.to_dict()
    told["correlation"] = model.correlation and (model.correlation.rank, model.correlation.correlation_scale)
    told |= {name: getattr(hierarchy, name) for name in ("mutually_exclusive_portion", "compensate_probabilities")}
    told |= {"scaled": hierarchy.scale_children_by_parent, "parents": setting.plant(0).true_parents.tolist()}
    assert hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:12] == digest
    assert setting.version == version


@pytest.mark.parametrize("setting", [EASY, STANDARD], ids=["easy", "standard"])
def test_what_a_setting_generates(setting):
    trees = setting.plant(1)
    x, concepts = (torch.cat(parts) for parts in zip(*trees.samples(12_000), strict=True))
    assert x.shape == (12_000, setting.model.hidden_dim)
    there, children = concepts > 0, trees.true_parents >= 0
    assert not (there[:, children] & ~there[:, trees.true_parents[children]]).any()
    torch.testing.assert_close(
        x, concepts @ trees.model.feature_dict.feature_vectors + trees.model.feature_dict.bias, rtol=1e-4, atol=1e-4
    )
    frequency = there.double().mean(0).sort(descending=True).values
    if setting is EASY:
        n_children = torch.zeros(len(x), 336).index_add_(1, trees.true_parents[children], there[:, children].float())
        inner = torch.isin(torch.arange(336), trees.true_parents)
        assert torch.equal(n_children[:, inner], there[:, inner].float())
        expected = [1.6, 1.6, 1.6]
    else:
        expected = [float(frequency[:width].sum()) for width in setting.level_widths]
    np.testing.assert_allclose(setting.target_l0, expected, rtol=0.02)


def test_streams_are_the_same_on_every_call_and_differ_between_seeds():
    first, again, other = STANDARD.plant(0), STANDARD.plant(0), STANDARD.plant(1)
    assert torch.equal(first.true_parents, other.true_parents)
    sample = list(first.samples(1500))
    assert [len(x) for x, _ in sample] == [1024, 476]
    batches = first.training_batches()
    train_x = [next(batches), next(batches)]
    torch.rand(3)
    assert torch.equal(sample[0][0], next(iter(again.samples(1500)))[0])
    assert torch.equal(train_x[0], next(again.training_batches()))
    assert not torch.equal(train_x[0], train_x[1])
    assert not torch.equal(train_x[0], sample[0][0])
    assert not torch.equal(first.model.feature_dict.feature_vectors, other.model.feature_dict.feature_vectors)
    assert not torch.equal(sample[0][1], next(iter(other.samples(1500)))[1])


def test_nodes_without_a_feature_only_group():
    group = HierarchyNode(None, [HierarchyNode(2), HierarchyNode(3)])
    hierarchy = Hierarchy([HierarchyNode(0, [group, HierarchyNode(4)]), HierarchyNode(None, [HierarchyNode(1)])], None)
    assert true_parents(hierarchy, 6).tolist() == [-1, -1, 0, 0, 0, -1]
