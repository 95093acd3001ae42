"""Imports run one way: from the commands down to storage, and in no circle."""

import ast
from collections.abc import Iterator
from pathlib import Path

import networkx as nx
import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = "sae_lens_hsae"
FLOORS = (
    ("storage", "presets"),
    ("forest",),
    ("config_checks",),
    ("config",),
    ("sae",),
    ("evaluation",),
    ("text",),
    ("interpret",),
    ("training", "hub"),
    ("",),  # the package's own __init__: the public names
    ("cli",),
    ("__main__",),
)
"""Bottom to top. A module imports from its own folder and from floors below it."""
FLOOR_OF = {name: floor for floor, names in enumerate(FLOORS) for name in names}


def _imported(tree: ast.AST, modules: set[str]) -> Iterator[str]:
    """Modules of the package that the code imports, also inside functions and for type checkers alone."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == PACKAGE:
            for name in node.names:
                whole = f"{node.module}.{name.name}"
                yield whole if whole in modules else node.module
        elif isinstance(node, ast.Import):
            yield from (name.name for name in node.names if name.name.split(".")[0] == PACKAGE)


def import_graph(source: Path) -> nx.DiGraph:
    """An edge from every module to each one that it imports."""
    files = {_name(path.relative_to(source)): path for path in source.rglob("*.py")}
    graph = nx.DiGraph()
    graph.add_nodes_from(files)
    for module, path in files.items():
        graph.add_edges_from((module, other) for other in _imported(ast.parse(path.read_bytes()), set(files)))
    return graph


def _name(path: Path) -> str:
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


def _folder(module: str) -> str:
    return (*module.split("."), "")[1]


def arrows_up(graph: nx.DiGraph) -> list[str]:
    """Imports from a floor above, or from a neighbour on the same floor."""
    return [
        f"{module} imports {other}"
        for module, other in graph.edges
        if _folder(module) != _folder(other) and FLOOR_OF[_folder(other)] >= FLOOR_OF[_folder(module)]
    ]


@pytest.fixture(scope="module")
def graph() -> nx.DiGraph:
    return import_graph(ROOT / "src")


def test_every_module_stands_on_a_floor(graph):
    assert {_folder(module) for module in graph if module.split(".")[0] == PACKAGE} == set(FLOOR_OF)


def test_no_import_runs_up(graph):
    assert not arrows_up(graph.subgraph(m for m in graph if m.split(".")[0] == PACKAGE))


def test_no_imports_run_in_a_circle(graph):
    assert not [sorted(circle) for circle in nx.strongly_connected_components(graph) if len(circle) > 1]


def test_the_package_imports_nothing_that_stands_beside_it():
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_bytes())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [name.name for name in node.names] if isinstance(node, ast.Import) else []
            beside = [name for name in names if name.split(".")[0] in ("experiments", "benchmarks", "tests")]
            assert not beside, f"{path.relative_to(ROOT)} imports {beside}"
