"""What a release must pass, one session each; see docs/releasing.md. `nox -l` lists them.

They build their own environments and leave the one of the Makefile alone.
"""

from __future__ import annotations

from pathlib import Path

import nox

nox.needs_version = ">=2025.2.9"
nox.options.default_venv_backend = "uv|venv"  # several times faster where there is uv
nox.options.sessions = ["build"]

ROOT = Path(__file__).parent
DIST = ROOT / "dist"
PINNED, OLDEST = "3.11", "3.10"
"""constraints.txt is for one Python; the lower bounds are meant for the oldest."""


def built(session: nox.Session) -> str:
    """The wheel that the session `build` left."""
    wheels = list(DIST.glob("*.whl"))
    if len(wheels) != 1:
        session.error(f"{DIST} must hold one wheel and holds {len(wheels)}; run nox -s build first")
    return str(wheels[0])


def check(session: nox.Session) -> None:
    """Use the wheel from a folder where no source can be found by mistake; then run the tests that were asked for."""
    folder = session.create_tmp()
    with session.chdir(folder):
        session.run("python", "-W", "ignore", str(ROOT / "release" / "try_wheel.py"), "tried")
    if session.posargs:
        session.install(f"{built(session)}[dev]")
        session.run("pytest", "-n", "0", *session.posargs)


@nox.session
def build(session: nox.Session) -> None:
    """Wheel and sdist into dist/, what they must and must not hold, and whether an index can show them."""
    session.install("build", "twine", "cffconvert", "packaging")
    for old in [*DIST.glob("*.whl"), *DIST.glob("*.tar.gz")]:
        old.unlink()
    session.run("python", "-m", "build", "--outdir", str(DIST))
    session.run("python", "release/check_contents.py", str(DIST))
    session.run("twine", "check", "--strict", *map(str, DIST.iterdir()))
    session.run("cffconvert", "--validate")


@nox.session(python=PINNED)
def pinned(session: nox.Session) -> None:
    """The wheel alone, beside the versions of constraints.txt."""
    session.install("-c", "constraints.txt", built(session))
    check(session)


@nox.session(python=["3.10", "3.11", "3.12", "3.13"])
def newest(session: nox.Session) -> None:
    """The wheel alone, beside the newest versions that it allows."""
    session.install(built(session))
    check(session)


@nox.session(python=OLDEST)
def oldest(session: nox.Session) -> None:
    """The wheel alone, beside the oldest versions that it allows."""
    session.install("uv")
    # Of the wheel's own name there is one version only: the lowest ones must be asked for of what it requires.
    session.run_install("uv", "pip", "install", "--resolution", "lowest-direct", "-r", "pyproject.toml")
    session.install("--no-deps", built(session))
    check(session)
