"""``hsae circuit`` on a tiny GPT-2 and SAEs saved for two of its blocks."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from chromium import Browser
from host_helpers import sae_at
from page_blocks import blocks_of

from sae_lens_hsae.cli import main as cli
from sae_lens_hsae.hub.saved_model import load_hierarchical_sae
from sae_lens_hsae.interpret.circuits import Circuit, Node, find_circuit, read_circuit, read_pairs, with_edges
from sae_lens_hsae.interpret.feature_cache.text import load_language_model

HOOKS = ("transformer.h.0", "transformer.h.1")
WRITTEN = [
    {"clean": "w1 w2 w3", "patch": "w1 w9 w3", "answer": "w50", "foil": "w51"},
    {"clean": "w4 w2", "patch": "w4 w9", "answer": "w52", "foil": "w53"},
]


def save(folder: Path, hook: str, seed: int, model: Path) -> None:
    sae_at(hook, seed, model, prepend_bos=True, context_size=12).save_inference_model(folder)


@pytest.fixture(scope="module")
def saved(gpt2, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("circuit")
    for seed, hook in enumerate(HOOKS):
        save(folder / f"run{seed}", hook, seed, gpt2)
    save(folder / "other", HOOKS[1], 1, Path("another model"))
    save(folder / "twin", HOOKS[0], 1, gpt2)
    save(folder / "nowhere", "transformer.h.9", 1, gpt2)
    (folder / "run0" / "labels.json").write_text('{"1": "low words"}')
    for name, pairs in {
        "pairs": WRITTEN,
        "unequal": [WRITTEN[0] | {"patch": "w1"}],
    }.items():
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    return folder


def call(saved: Path, output: Path) -> list[str]:
    folders = [str(saved / f"run{seed}") for seed in range(2)]
    return ["circuit", *folders, "--pairs", str(saved / "pairs.jsonl"), "--threshold", "0.01", "--output", str(output)]


def by_function(saved: Path) -> tuple[Any, Any, Any, Circuit]:
    """Model, forests, pairs, and the circuit that the function finds."""
    forests = {hook: load_hierarchical_sae(saved / f"run{seed}") for seed, hook in enumerate(HOOKS)}
    model, pairs = load_language_model(forests[HOOKS[0]], HOOKS[1]), read_pairs(saved / "pairs.jsonl")
    return model, forests, pairs, find_circuit(model, forests, pairs, threshold=0.01)


def test_it_prints_and_writes_what_the_function_finds(saved, tmp_path, capsys):
    output = tmp_path / "c.json"
    cli.main([*call(saved, output), "--json"])
    said = json.loads(capsys.readouterr().out)
    assert said == json.loads(output.read_text())
    _, forests, _, expected = by_function(saved)
    found = Circuit.from_dict(said)
    assert replace(found, folders={}) == expected.labelled({HOOKS[0]: {1: "low words"}})
    beside = [(output.parent / found.folders[hook]).resolve() for hook in HOOKS]
    assert beside == [saved / "run0", saved / "run1"]
    assert {node.hook for node in expected.nodes if node.feature is not None} == set(HOOKS)

    cli.main(call(saved, output))
    text = capsys.readouterr().out
    own = {(node.hook, node.name): node for node in expected.nodes if node.feature is not None}
    assert f"{own[HOOKS[0], '0/1'].effect:+.2f}  0/1  low words" in text
    first, second = text[: text.index(HOOKS[1])], text[text.index(HOOKS[1]) :]
    for hook, name in own:
        assert f"  {name}" in (first if hook == HOOKS[0] else second)
    deepest = max(own.values(), key=lambda node: node.hook == HOOKS[0] and len(path_of(forests, node)))
    indent = "  " * len(path_of(forests, deepest))
    assert f"\n{indent}{deepest.effect:+.2f}  {deepest.name}" in text
    assert text.endswith(f"Written to {output}; hsae explore {saved / 'run0'} --circuit {output} puts it on the page\n")
    assert "#feature=" not in text, "there is no page"


@pytest.fixture(scope="module")
def explored(saved, tmp_path_factory) -> Path:
    """A circuit with edges in a file, and the pages of both SAEs with it."""
    folder = tmp_path_factory.mktemp("explored")
    output, text = folder / "agreement.json", folder / "text.txt"
    cli.main([*call(saved, output), "--edges", "0.001"])
    text.write_text(" ".join(f"w{i % 60}" for i in range(600)))
    for seed in range(2):
        cli.main(["explore", str(saved / f"run{seed}"), "--text", str(text), "--circuit", str(output)])
    return output


def test_its_features_link_to_the_page_and_the_page_lists_them(saved, explored, tmp_path, capsys):
    circuit = read_circuit(explored)
    for seed, hook in enumerate(HOOKS):
        section, *others = blocks_of(saved / f"run{seed}" / "explorer.html")["forest"][0]["plain"]["sections"]
        assert not others
        assert section["title"] == f"Circuit agreement: the answer leads its foil by {circuit.clean:.2f} logits"
        nodes = [node for node in circuit.nodes if node.hook == hook and node.feature is not None]
        assert [features for _, features in section["lines"]] == [[node.feature] for node in nodes]
        for node, (line, _) in zip(nodes, section["lines"], strict=True):
            assert line.startswith(f"{node.effect:+.2f} logits")
            own = [each for each in circuit.edges if (each.above, each.source) == (hook, node.name)]
            assert (f"; through {HOOKS[1]} " in line) == bool(own)
            for edge in own[:3]:
                assert f"{edge.target} ({edge.effect:+.2f})" in line
    cli.main(call(saved, tmp_path / "c.json"))
    lines = capsys.readouterr().out.splitlines()
    for seed, hook in enumerate(HOOKS):
        name = next(node.name for node in circuit.nodes if node.hook == hook and node.feature is not None)
        assert f"  Open one: {(saved / f'run{seed}' / 'explorer.html').as_uri()}#feature={name}" in lines


SEEN = """return {
    columns: [...document.querySelectorAll(".circuit > div")].map((column) => [column.querySelector("h3").textContent,
        [...column.querySelectorAll(".node")].filter((row) => row.checkVisibility()).map((row) => row.textContent)]),
    edges: document.querySelectorAll(".edges path").length,
    closed: document.querySelectorAll(".circuit details:not([open])").length,
}"""


@pytest.mark.browser
def test_the_page_draws_a_graph_whose_coarse_nodes_open_and_whose_nodes_lead_to_their_features(
    saved, explored, tmp_path
):
    circuit = read_circuit(explored)
    features = [node for node in circuit.nodes if node.feature is not None]
    keys = {(node.hook, node.feature) for node in features}
    tops = {(node.hook, node.name) for node in features if (node.hook, node.parent) not in keys}
    between = [edge for edge in circuit.edges if "error" not in edge.source + edge.target]
    among_tops = [e for e in between if {(e.above, e.source), (e.below, e.target)} <= tops]
    assert 0 < len(among_tops) < len(between)
    browser = Browser(tmp_path / "profile", height=3000)
    try:
        browser.open(saved / "run0" / "explorer.html")
        browser.run('document.querySelectorAll(".circuit .more").forEach((button) => button.click())')
        browser.until(lambda: browser.run(SEEN)["edges"] == len(among_tops), "edges between what stands at the top")
        seen = browser.run(SEEN)
        assert [hook for hook, _ in seen["columns"]] == list(HOOKS)
        names = {(hook, row.split()[1]) for hook, rows in seen["columns"] for row in rows}
        assert names == tops
        assert seen["closed"] == len({(node.hook, node.parent) for node in features} & keys)
        first = next(node for node in features if node.hook == HOOKS[0])
        assert seen["columns"][0][1][0].startswith(f"{first.effect:+.2f} {first.name}".replace("-", "−"))
        browser.run('document.querySelectorAll(".circuit details").forEach((each) => each.open = true)')
        browser.until(lambda: browser.run(SEEN)["edges"] == len(between), "edges between all")
        links = browser.run('return [...document.querySelectorAll(".circuit .node a")].map((link) => link.href)')
        pages = [(saved / f"run{seed}" / "explorer.html").as_uri() for seed in range(2)]
        assert sorted(links) == sorted(
            f"{pages[0]}#/f/{node.name}" if node.hook == HOOKS[0] else f"{pages[1]}#feature={node.name}"
            for node in features
        )
        own, other = features[0], features[-1]
        browser.open(saved / "run0" / "explorer.html", f"#/f/{own.name}")
        assert browser.run('return document.querySelector("h1").textContent').startswith(own.name)
        browser.run("location.href = arguments[0]", f"{pages[1]}#feature={other.name}")
        heading = 'return document.querySelector("h1")?.textContent ?? ""'
        browser.until(lambda: browser.run(heading).startswith(other.name), "the other page's feature")
        assert browser.run("return location.pathname").endswith("run1/explorer.html")
    finally:
        browser.driver.quit()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data | {"schema_version": 9}, "c.json' holds no circuit: schema="),
        (lambda data: data | {"nodes": [{"hook": "x"}]}, "c.json' holds no circuit"),
        (lambda data: data | {"nodes": [data["nodes"][0] | {"hook": "x"}]}, f"'c' has no node at {HOOKS[0]}.*: x"),
        (lambda data: data | {"nodes": [data["nodes"][0] | {"feature": 99}]}, "'c' is of another forest"),
        (lambda data: data | {"nodes": [data["nodes"][0] | {"name": "0/3"}]}, "'c' is of another forest"),
        (lambda data: data | {"nodes": [data["nodes"][0] | {"parent": 1}]}, "its node 0/2, .* or has another parent"),
    ],
)
def test_a_page_refuses_a_circuit_of_something_else(saved, tmp_path, change, message):
    node = {"hook": HOOKS[0], "level": 0, "feature": 2, "name": "0/2", "effect": 1.5, "label": ""}
    data = Circuit("patch", 0.1, 1, 2.0, None, 1.0, (Node(**node),), (4,), (4,)).to_dict()
    (tmp_path / "c.json").write_text(json.dumps(change(json.loads(json.dumps(data)))))
    with pytest.raises(SystemExit) as end:
        cli.main(["explore", str(saved / "run0"), "--circuit", str(tmp_path / "c.json")])
    assert re.search(message, str(end.value.code))


def test_edges_are_printed_where_asked_for(saved, tmp_path, capsys):
    output = tmp_path / "c.json"
    arguments = [*call(saved, output), "--edges"]
    cli.main([*arguments, "0.001"])
    text = capsys.readouterr().out
    expected = with_edges(*by_function(saved), 0.001).edges
    assert Circuit.from_dict(json.loads(output.read_text())).edges == expected
    between = [edge for edge in expected if "error" not in edge.source + edge.target]
    assert between
    for edge in between:
        assert f"  {edge.effect:+.2f}  {HOOKS[0]} {edge.source} → {HOOKS[1]} {edge.target}\n" in text
    with pytest.raises(SystemExit, match=r"edges=-1.0 must be 0 or more"):
        cli.main([*arguments, "-1"])
    with pytest.raises(SystemExit, match=r"edges=0.01 asks for edges between hook points; give several folders"):
        cli.main(["circuit", arguments[1], *arguments[3:], "0.01"])


def path_of(forests: Any, node: Any) -> list[int]:
    return forests[node.hook].forest.path(node.feature)


@pytest.mark.parametrize(
    ("folders", "pairs", "message"),
    [
        (["run0", "other"], "pairs", "read different models: .*run0 reads .*, .*other reads 'another model'"),
        (["run0", "twin"], "pairs", "run0 and .*twin both read transformer.h.0"),
        (["run0", "nowhere"], "pairs", "hook_name='transformer.h.9' is no hook point of the model"),
        (["run0"], "unequal", "pair 1: clean='w1 w2 w3' has 3 tokens and patch='w1' has 1"),
        (["run0"], "missing", "missing.jsonl"),
    ],
)
def test_it_says_what_is_wrong(saved, tmp_path, folders, pairs, message):
    arguments = [*(str(saved / folder) for folder in folders), "--pairs", str(saved / f"{pairs}.jsonl")]
    with pytest.raises(SystemExit, match=message):
        cli.main(["circuit", *arguments, "--output", str(tmp_path / "c.json")])
    assert not (tmp_path / "c.json").exists()
