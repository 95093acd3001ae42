"""Copies and concepts, against a plain reference that joins nodes of a graph."""

import networkx
import pytest
import torch
from hierarchy_reference import random_forest

from sae_lens_hsae import HierarchicalSAE, HierarchicalSAEConfig
from sae_lens_hsae.forest import FeatureForest
from sae_lens_hsae.forest.concepts import Concepts, copies_of_parents


@pytest.mark.parametrize("seed", range(5))
def test_concepts_are_the_components_that_copies_join(seed):
    forest = random_forest((4, 9, 20), seed)
    drawn = torch.rand(33, generator=torch.Generator().manual_seed(seed)) < 0.4
    is_copy = drawn & (forest.parents >= 0)
    concepts = Concepts(forest, is_copy)
    joined = networkx.Graph()
    joined.add_nodes_from(range(forest.n_features))
    joined.add_edges_from((parent, child) for parent, child in forest.edges().tolist() if is_copy[child])
    trees = networkx.Graph(joined)
    trees.add_edges_from(forest.edges().tolist())
    component = {feature: members for members in networkx.connected_components(joined) for feature in members}
    for feature in range(forest.n_features):
        members = component[feature]
        assert concepts.members(feature) == sorted(members)
        below = {child for member in members for child in forest.children(member)} - members
        assert concepts.children(feature) == sorted(below)
        above = forest.parent(min(members))
        assert concepts.parents[feature] == (-1 if above is None else min(component[above]))
        tree = networkx.node_connected_component(trees, feature)
        assert concepts.tree_sizes[feature] == len({min(component[member]) for member in tree})
    sizes = concepts.tree_sizes.tolist()
    assert concepts.in_trees_share(3) == pytest.approx(sum(size >= 3 for size in sizes) / len(sizes))


def test_a_copy_is_known_by_its_direction_whatever_its_length():
    forest = FeatureForest([-1, 0, 0, -1], [1, 3])
    decoder = torch.tensor([[2.0, 0.0], [5.0, 1.0], [1.0, 1.0], [1.0, 0.0]])
    assert copies_of_parents(forest, decoder).tolist() == [False, True, False, False]


def test_what_does_not_fit_the_forest_is_refused():
    forest = FeatureForest([-1, 0, -1], [1, 2])
    with pytest.raises(ValueError, match=r"decoder has shape \(2, 4\).*3 features"):
        copies_of_parents(forest, torch.zeros(2, 4))
    with pytest.raises(ValueError, match=r"is_copy has shape \(2,\)"):
        Concepts(forest, torch.zeros(2, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"is_copy\[2\] is true, but feature 2 has no parent"):
        Concepts(forest, torch.tensor([False, True, True]))


def test_a_saved_model_tells_its_concepts():
    torch.manual_seed(0)
    sae = HierarchicalSAE(HierarchicalSAEConfig(d_in=4, d_sae=6, level_widths=[2, 4]))
    sae.W_dec.data[3] = 3 * sae.W_dec.data[1]
    sae.parents[3] = 1
    assert sae.concepts().members("0/1") == [1, 3]
