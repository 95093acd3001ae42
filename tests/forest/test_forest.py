"""`FeatureForest` against plain loops over random forests, its errors, and its cost at a million features."""

import json
import sys
from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from sae_lens_hsae.forest import FeatureForest, validate_parents
from sae_lens_hsae.forest.levels import Levels

# No deadline: the first example of a run pays for torch's start-up.
EXAMPLES = settings(max_examples=50, deadline=None)

#   0    1      level 0
#  2 3   4  5   level 1 (5 unassigned)
#  6     7  8   level 2 (9, 10 unassigned)
WIDTHS = (2, 4, 5)
PARENTS = (-1, -1, 0, 0, 1, -1, 2, 4, 5, -1, -1)


@pytest.fixture
def forest() -> FeatureForest:
    return FeatureForest(PARENTS, WIDTHS)


@st.composite
def forests(draw: st.DrawFn) -> FeatureForest:
    widths = sorted(draw(st.lists(st.integers(1, 12), min_size=1, max_size=4, unique=True)))
    levels = Levels(tuple(widths))
    parents = [-1] * widths[0]
    for above, here in levels.boundaries:
        candidates = st.one_of(st.just(-1), st.integers(above.start, above.stop - 1))
        parents += draw(st.lists(candidates, min_size=here.stop - here.start, max_size=here.stop - here.start))
    return FeatureForest(parents, levels)


def ancestors(parents: list[int], feature: int) -> list[int]:
    path = [feature]
    while parents[path[0]] != -1:
        path.insert(0, parents[path[0]])
    return path


class TestKnownForest:
    def test_subtree_is_breadth_first(self):
        # 4 and 6 are children of 1, 3 and 5 of 2: a parent's children stay together, whatever their numbers.
        forest = FeatureForest([-1, 0, 0, 2, 1, 2, 1], (1, 2, 4))
        assert forest.subtree(0) == [0, 1, 2, 4, 6, 3, 5]

    def test_networkx(self, forest: FeatureForest, monkeypatch: pytest.MonkeyPatch):
        networkx = pytest.importorskip("networkx")
        graph = forest.to_networkx()
        assert isinstance(graph, networkx.DiGraph)
        assert sorted(graph.edges) == [tuple(edge) for edge in forest.edges().tolist()]
        assert dict(graph.nodes(data="level")) == dict(enumerate([0] * 2 + [1] * 4 + [2] * 5))
        monkeypatch.setitem(sys.modules, "networkx", None)
        with pytest.raises(ImportError, match="pip install networkx"):
            forest.to_networkx()


class TestAnyForest:
    @EXAMPLES
    @given(forests())
    def test_every_query_equals_a_plain_loop(self, forest: FeatureForest):
        parents, everyone = forest.parents.tolist(), range(len(forest))
        paths = [ancestors(parents, f) for f in everyone]
        for feature, parent in enumerate(parents):
            children = [f for f in everyone if parents[f] == feature]
            assert forest.parent(feature) == (None if parent < 0 else parent)
            assert forest.children(feature) == children
            assert forest.n_children[feature] == len(children)
            assert forest.siblings(feature) == [f for f in everyone if parents[f] == parent >= 0 and f != feature]
            assert forest.path(feature) == paths[feature]
            subtree = forest.subtree(feature)
            assert sorted(subtree) == [f for f, path in enumerate(paths) if feature in path]
            assert [len(paths[f]) for f in subtree] == sorted(len(paths[f]) for f in subtree)
        assert forest.edges().tolist() == [[parent, f] for f, parent in enumerate(parents) if parent >= 0]
        width = forest.level_widths[0]
        assert forest.roots().tolist() == list(range(width))
        assert forest.unassigned().tolist() == [f for f in everyone if f >= width and parents[f] < 0]
        assert forest.depth == max(map(len, paths))
        depths = Counter(max(len(path) for path in paths if path[0] == top) for top in everyone if parents[top] < 0)
        assert forest.trees_by_depth == tuple(depths[depth + 1] for depth in range(max(depths)))

    @EXAMPLES
    @given(forests())
    def test_dict_and_json_round_trip(self, forest: FeatureForest):
        again = FeatureForest.from_dict(json.loads(json.dumps(forest.to_dict())))
        assert again == forest
        assert hash(again) == hash(forest)

    @EXAMPLES
    @given(forests(), st.data())
    def test_any_single_wrong_entry_is_found(self, forest: FeatureForest, data: st.DataObject):
        """Whatever is neither -1 nor in the level above is refused, and named with what would do."""
        n, parents = len(forest), forest.parents.tolist()
        feature = data.draw(st.integers(0, n - 1))
        level = int(forest.levels.level_of(torch.tensor(feature)))
        allowed = range(0) if level == 0 else range(forest.levels[level - 1].start, forest.levels[level - 1].stop)
        parents[feature] = data.draw(st.integers(-5, n + 5).filter(lambda p: p != -1 and p not in allowed))
        remedy = rf"take a parent from level {level - 1} .*, or -1" if level else rf"set parents\[{feature}\] = -1"
        found = rf"^parents\[{feature}\] = {parents[feature]}, .* is in level {level}; .*{remedy}"
        with pytest.raises(ValueError, match=found):
            FeatureForest(parents, forest.levels)


class TestImmutability:
    def test_neither_input_nor_output_is_shared(self):
        table = torch.tensor(PARENTS)
        forest = FeatureForest(table, WIDTHS)
        before = hash(forest)
        table[2] = 1
        forest.parents[2] = 1
        forest.n_children[0] = 9
        forest.edges()[0] = 9
        forest.roots()[0] = 9
        assert forest.parents.tolist() == list(PARENTS)
        assert forest == FeatureForest(PARENTS, WIDTHS)
        assert forest != FeatureForest([-1] * 11, WIDTHS)
        assert hash(forest) == before
        assert forest.children(0) == [2, 3]


@pytest.mark.parametrize("query", ["parent", "children", "siblings", "path", "subtree"])
def test_a_feature_is_a_number_or_a_name_that_exists(forest: FeatureForest, query: str):
    ask = getattr(forest, query)
    for feature in range(len(forest)):
        assert ask(forest.levels.name(feature)) == ask(torch.tensor(feature)) == ask(feature)
    for feature in (-1, 11):
        with pytest.raises(IndexError, match=rf"feature {feature} does not exist; the forest has features 0 … 10"):
            ask(feature)
    with pytest.raises(TypeError):
        ask(0.5)


class TestValidation:
    def test_wrong_shape_or_type(self):
        message = r"parents has shape \(11, 1\), but level_widths=\[2, 4, 5\] has 11 features.*\(11,\)"
        with pytest.raises(ValueError, match=message):
            validate_parents(torch.full((11, 1), -1), Levels(WIDTHS))
        with pytest.raises(ValueError, match=r"parents has dtype torch\.float32, which .* torch\.int64"):
            FeatureForest(torch.tensor(PARENTS).float(), WIDTHS)


class TestFromDict:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"schema": "tree"}, "schema='tree' is not 'sae_lens_hsae/feature_forest'"),
            ({"schema_version": 2}, "schema_version=2 cannot be read, only 1; .* or a newer one"),
            ({"parents": [0] * 11}, r"parents\[0\] = 0"),
            ({"parents": 1}, "lists"),
            ({"parents": [10**400, [], *[-1] * 9]}, "parents is not a list of integers"),
            ({"parents": [-1] * 10 + [2**63]}, "parents is not a list of integers"),
            ({"level_widths": [2, 4]}, "has 6 features"),
        ],
    )
    def test_what_cannot_be_read_is_named(self, forest: FeatureForest, change: dict[str, Any], message: str):
        with pytest.raises(ValueError, match=message):
            FeatureForest.from_dict(forest.to_dict() | change)

    def test_missing_keys(self, forest: FeatureForest):
        data = {name: value for name, value in forest.to_dict().items() if name not in ("parents", "level_widths")}
        with pytest.raises(ValueError, match="level_widths and parents must be lists"):
            FeatureForest.from_dict(data)


class CountOps(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.ops: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.ops[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


def ops_of_a_session(scale: int) -> Counter[str]:
    """Tensor operations for building a forest of 1000 · scale features and asking it everything once."""
    levels = Levels((100 * scale, 300 * scale, 600 * scale))
    parents = torch.full((levels.n_features,), -1)
    for above, here in levels.boundaries:
        parents[here] = torch.arange(here.stop - here.start) % (above.stop - above.start) + above.start
    with CountOps() as count:
        forest = FeatureForest(parents, levels)
        first_leaf = levels[2].start
        for query in (forest.path, forest.siblings, forest.children, forest.subtree):
            assert query(first_leaf) is not None
        assert len(forest.subtree(0)) == 10
        assert forest.depth == 3
        for query in (forest.roots, forest.unassigned, forest.edges, lambda: forest.n_children):
            assert query().ndim
        assert str(levels.n_features) in repr(forest)
        assert forest == FeatureForest(forest.parents, levels)
        assert hash(forest)
    return count.ops


def test_a_million_features_take_no_more_tensor_operations_than_a_thousand():
    small, large = ops_of_a_session(1), ops_of_a_session(1000)
    assert small == large
    assert large["sort"] == 1
