"""One version everywhere, and nothing of others in the package."""

import re
from pathlib import Path

import yaml
from packaging.version import Version

import sae_lens_hsae

ROOT = Path(__file__).parents[2]
VERSION = Version(sae_lens_hsae.__version__)
DATED = re.compile(r"## (\d+\.\d+\.\d+) \((\d{4}-\d\d-\d\d)\)")


def test_the_version_has_one_source():
    assert re.fullmatch(r"\d+\.\d+\.\d+", str(VERSION))
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == str(VERSION)
    project = (ROOT / "pyproject.toml").read_text()
    assert not re.search(r"^version *=", project, flags=re.MULTILINE)
    assert '[tool.hatch.version]\npath = "src/sae_lens_hsae/__init__.py"' in project


def changelog_faults(text: str, version: Version) -> list[str]:
    """The rule of docs/releasing.md: changes are collected under Unreleased, and headings fall from there."""
    headings = re.findall(r"^## .*$", text, flags=re.MULTILINE)
    unreleased = headings[:1] == ["## Unreleased"]
    dated = [DATED.fullmatch(heading) for heading in headings[unreleased:]]
    if not all(dated):
        return [f"a heading is neither Unreleased nor a version with its date: {headings}"]
    versions = [Version(match[1]) for match in dated if match]
    faults = []
    if versions != sorted(set(versions), reverse=True):
        faults.append("versions do not fall")
    newest = versions[0] if versions else Version("0.0.0")
    if not (newest < version if unreleased else newest == version):
        faults.append(f"version {version}, but the changelog's newest is {newest}, unreleased changes: {unreleased}")
    return faults


def test_the_changelog_follows_the_rule():
    assert changelog_faults((ROOT / "CHANGELOG.md").read_text(), VERSION) == []


def test_the_package_bundles_nothing_of_others():
    """What did would need its licence beside it."""
    notice = re.compile(r"@license|copyright|licensed under", re.IGNORECASE)
    package = ROOT / "src/sae_lens_hsae"
    assert [
        path for path in (package / "interpret/page/assets").iterdir() if notice.search(path.read_text("utf-8"))
    ] == []
    files = [path for path in package.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert {path.suffix for path in files} <= {".py", ".js", ".css", ".html", ".typed"}
