"""The documentation site: complete, built strictly, and read from disk without a network."""

import ast
import importlib
import importlib.util
import inspect
import os
import pkgutil
import re
import shlex
import subprocess
import sys
import time
import zlib
from functools import cached_property
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import sae_lens_hsae
from sae_lens_hsae.cli import main as cli
from sae_lens_hsae.cli.outcome import Outcome
from sae_lens_hsae.cli.train import parse

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]


def blocks(language: str) -> list[Any]:
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for number, block in enumerate(re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)):
            found.append(pytest.param(block, id=f"{page.relative_to(ROOT)}-{number}"))
    return found


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    for package in ("mkdocs", "material", "mkdocstrings_handlers.python"):
        pytest.importorskip(package, reason="the extra 'docs' is not installed")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr
    return folder


# Every public name.


def packages() -> list[ModuleType]:
    names = [module.name for module in pkgutil.walk_packages(sae_lens_hsae.__path__, "sae_lens_hsae.")]
    return [module for module in map(importlib.import_module, ["sae_lens_hsae", *names]) if hasattr(module, "__all__")]


def documented(site: Path) -> set[str]:
    """What the API pages show; a name without a docstring is not among it."""
    inventory = (site / "objects.inv").read_bytes().split(b"\n", 4)[-1]
    return {line.split()[0] for line in zlib.decompress(inventory).decode().splitlines()}


def test_every_public_name_is_on_an_api_page(site):
    shown = documented(site)
    missing = set()
    for package in packages():
        for name in package.__all__:
            thing = getattr(package, name)
            places = {f"{package.__name__}.{name}"}
            if inspect.isclass(thing) or inspect.isfunction(thing):
                places.add(f"{thing.__module__}.{thing.__qualname__}")
            if not places & shown:
                missing.add(f"{package.__name__}.{name}")
    assert not missing, "undocumented: put them on a page in docs/api, and give each a docstring"


def test_every_method_of_a_public_class_has_a_docstring():
    classes = {thing for package in packages() for thing in vars(package).values() if inspect.isclass(thing)}
    missing = [
        f"{owner.__module__}.{owner.__qualname__}.{name}"
        for owner in classes
        if owner.__module__.startswith("sae_lens_hsae.")
        for name, value in vars(owner).items()
        if not name.startswith("_")
        and _is_method(value)
        and not inspect.getdoc(getattr(owner, name))
        # What overrides a method of SAELens is documented there, or as little as it is there.
        and not any(hasattr(base, name) for base in owner.__mro__[1:])
    ]
    assert not missing


def _is_method(value: Any) -> bool:
    return isinstance(value, (property, cached_property, classmethod, staticmethod)) or inspect.isfunction(value)


# What the pages say to type.


@pytest.mark.parametrize("block", blocks("python"))
def test_code_is_python_that_imports_what_exists(block):
    for node in ast.walk(ast.parse(block)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("sae_lens_hsae"):
            module = importlib.import_module(node.module or "")
            for imported in node.names:
                submodule = (
                    importlib.util.find_spec(f"{node.module}.{imported.name}") if hasattr(module, "__path__") else None
                )
                assert hasattr(module, imported.name) or submodule, f"{node.module} has no {imported.name}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_names_are_in_the_modules_that_the_text_says(page):
    text = page.read_text(encoding="utf-8")
    for name, module in re.findall(r"`(\w+)[^`]*`\s+(?:of|from|\()\s*`(sae_lens_hsae[\w.]*)`", text):
        assert hasattr(importlib.import_module(module), name), f"{module} has no {name}"


@pytest.mark.parametrize("block", blocks("yaml"))
def test_files_of_flags_are_ones_that_hsae_train_accepts(block, tmp_path):
    (tmp_path / "run.yaml").write_text(block, encoding="utf-8")
    _, cfg = parse(["--config", str(tmp_path / "run.yaml")])
    assert cfg.lr_warm_up_steps == cfg.total_training_steps // 10


@pytest.mark.parametrize("block", blocks("bash"))
def test_commands_are_ones_that_hsae_accepts(block, monkeypatch):
    accepted = []
    for name in cli.COMMANDS:
        monkeypatch.setitem(cli.COMMANDS, name, lambda chosen: accepted.append(chosen) or Outcome("", None))
    monkeypatch.setattr(cli, "demo", lambda *_: accepted.append("demo"))
    monkeypatch.setattr(cli, "check_device", lambda _: None)  # some are for a GPU
    for line in block.replace("\\\n", "").splitlines():
        if not line.startswith("hsae "):
            continue
        words = shlex.split(line.split(" > ")[0].replace("…", ""), comments=True)[1:]
        if words[0] == "train":
            if "--preset" in words or "--config" in words:
                parse([word for word in words[1:] if word != "--dry-run"])
        else:
            before = len(accepted)
            cli.main(words)
            assert len(accepted) == before + 1


# Where the pages lead.


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_of_the_repository(page):
    """So they can be followed there, not only on the site."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    linked = re.findall(r"\]\((?![a-z]+:|#)([^)#\s]+)", text)
    assert [link for link in linked if not (page.parent / link).exists()] == []


def test_links_to_tutorials_lead_to_their_pages(site):
    for name in ("index", "start", "train", "faq"):
        linked = re.findall(r'href="([^"]*tutorials/[^"]*)"', (site / f"{name}.html").read_text(encoding="utf-8"))
        assert linked
        assert all(link.endswith(".html") and (site / link).exists() for link in linked)


# The built pages.


class Fetched(HTMLParser):
    """What a browser loads by itself to show a page."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        of = dict(attrs)
        if tag in ("script", "img", "iframe", "source"):
            self.addresses += [of["src"] or ""] if "src" in of else []
        elif tag == "link":
            self.addresses.append(of.get("href") or "")


def test_pages_load_nothing_from_elsewhere(site):
    pages = sorted(site.glob("**/*.html"))
    assert len(pages) > len(PAGES)
    for page in pages:
        reader = Fetched()
        reader.feed(page.read_text(encoding="utf-8"))
        assert reader.addresses
        for address in reader.addresses:
            assert not re.match(r"(?:https?:)?//", address), f"{page.name} loads {address}"
    for sheet in site.glob("**/*.css"):
        assert not re.search(r"(?:url\(|@import)\s*[\"']?(?:https?:)?//", sheet.read_text(encoding="utf-8")), sheet


@pytest.mark.browser
def test_pages_and_search_work_from_disk(site, browser):
    browser.errors()
    browser.requests()
    for page in ("index.html", "reading.html", "api/core.html", "tutorials/train_and_read.html"):
        browser.driver.get((site / page).as_uri())
        assert browser.run("return document.querySelector('h1').innerText.length") > 3
    browser.driver.get((site / "index.html").as_uri() + "?q=absorption")
    found = """return [...document.querySelectorAll('.md-search-result__link')].map(link => link.href).join(' ')"""
    end = time.monotonic() + 30
    while "reading.html" not in (links := browser.run(found)):
        assert time.monotonic() < end, f"the search found {links!r}"
        time.sleep(0.1)
    assert {url.partition(":")[0] for url in browser.requests()} <= {"file", "data"}
    assert [entry for entry in browser.errors() if entry["level"] == "SEVERE"] == []
