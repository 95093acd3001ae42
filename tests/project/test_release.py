"""One version everywhere, what wheel and sdist are checked for, and the notices of what is not ours."""

import re
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml
from packaging.version import Version

import sae_lens_hsae
from release.check_contents import sdist_faults, wheel_faults

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


def write_wheel(path: Path, files: dict[str, str], description: str) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        info = "sae_lens_hsae-1.0.0.dist-info"
        for name, text in {**files, f"{info}/METADATA": f"Name: x\nVersion: 1.0.0\n\n{description}"}.items():
            archive.writestr(name, text)
    return path


@pytest.fixture
def checkout(tmp_path) -> Path:
    """A repository with a package of two files, and a file that git does not track."""
    root = tmp_path / "checkout"
    (root / "src/sae_lens_hsae/assets").mkdir(parents=True)
    for name in ("__init__.py", "assets/app.js"):
        (root / "src/sae_lens_hsae" / name).write_text("")
    for words in (["init", "-q"], ["add", "src"]):
        subprocess.run(["git", *words], cwd=root, check=True)
    (root / "notes.txt").write_text("mine")
    return root


def test_a_wheel_holds_the_source_and_nothing_else(checkout):
    licence = {"sae_lens_hsae-1.0.0.dist-info/licenses/LICENSE": "MIT"}
    whole = {"sae_lens_hsae/__init__.py": '__version__ = "1.0.0"', "sae_lens_hsae/assets/app.js": ""}
    fine = "See [SAELens](https://example.org)."
    good = write_wheel(checkout / "good.whl", whole | licence, fine)
    assert wheel_faults(good, checkout) == []
    lacking = {"sae_lens_hsae/__init__.py": "", "tests/test_it.py": ""}
    bad = write_wheel(checkout / "bad.whl", lacking, f"{fine} And [docs](docs/results.md).")
    assert [fault.partition(" ")[2] for fault in wheel_faults(bad, checkout)] == [
        "lacks sae_lens_hsae/assets/app.js",
        "holds tests/test_it.py, which is no source",
        "lacks its licence",
        "the description links to docs/results.md, which an index cannot show",
    ]


def test_an_sdist_holds_what_git_tracks(checkout):
    with tarfile.open(checkout / "x.tar.gz", "w:gz") as archive:
        for name in ("src/sae_lens_hsae/__init__.py", "notes.txt"):
            archive.add(checkout / name, f"sae_lens_hsae-1.0.0/{name}")
    assert sdist_faults(checkout / "x.tar.gz", checkout) == [
        "x.tar.gz lacks src/sae_lens_hsae/assets/app.js",
        "x.tar.gz holds notes.txt, which git does not track",
    ]


def test_the_package_bundles_nothing_of_others():
    """What did would need its licence beside it."""
    notice = re.compile(r"@license|copyright|licensed under", re.IGNORECASE)
    package = ROOT / "src/sae_lens_hsae"
    assert [
        path for path in (package / "interpret/page/assets").iterdir() if notice.search(path.read_text("utf-8"))
    ] == []
    files = [path for path in package.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert {path.suffix for path in files} <= {".py", ".js", ".css", ".html", ".typed"}
