"""What wheel and sdist must and must not hold: python release/check_contents.py dist."""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path

PACKAGES = ("sae_lens_hsae", "hsae_command")
ROOT = Path(__file__).parent.parent


def wheel_faults(wheel: Path, root: Path = ROOT) -> list[str]:
    """What is wrong with a wheel, compared with the source it should hold; nothing else belongs into it."""
    source = root / "src"
    wanted = {
        str(path.relative_to(source))
        for package in PACKAGES
        for path in (source / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        [info] = [name for name in names if name.endswith(".dist-info/METADATA")]
        metadata = Parser().parsestr(archive.read(info).decode())
    held = {name for name in names if not name.startswith(info.partition("/")[0])}
    faults = [f"{wheel.name} lacks {name}" for name in sorted(wanted - held)]
    faults += [f"{wheel.name} holds {name}, which is no source" for name in sorted(held - wanted)]
    if not any(name.endswith("licenses/LICENSE") for name in names):
        faults.append(f"{wheel.name} lacks its licence")
    description = metadata.get_payload()
    assert isinstance(description, str)
    for link in re.findall(r"\]\((?!https?:)([^)]*)\)", description):
        faults.append(f"{wheel.name}: the description links to {link}, which an index cannot show")
    if "](" not in description:
        faults.append(f"{wheel.name}: the description has no links left at all")
    return faults


def sdist_faults(sdist: Path, root: Path = ROOT) -> list[str]:
    """What is wrong with an sdist: it must hold what git tracks, and that alone."""
    listed = subprocess.run(["git", "ls-files"], cwd=root, capture_output=True, text=True, check=True).stdout
    wanted = set(listed.splitlines())
    with tarfile.open(sdist) as archive:
        held = {member.name.partition("/")[2] for member in archive.getmembers() if member.isfile()} - {"PKG-INFO"}
    faults = [f"{sdist.name} lacks {name}" for name in sorted(wanted - held)]
    return faults + [f"{sdist.name} holds {name}, which git does not track" for name in sorted(held - wanted)]


def main(folder: Path) -> None:
    [wheel], [sdist] = folder.glob("*.whl"), folder.glob("*.tar.gz")
    faults = wheel_faults(wheel) + sdist_faults(sdist)
    if faults:
        sys.exit("\n".join(faults))
    print(f"{wheel.name} and {sdist.name} hold what they should")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
