"""A page for every script in examples/tutorials: its comment cells as text, its code cells as code."""

from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

CELL = "# %%"
TEXT_CELL = "# %% [markdown]"


def on_files(files: Files, config: Any) -> Files:
    """Called by mkdocs when it has listed the pages."""
    root = Path(config.config_file_path).parent
    for script in sorted((root / "examples" / "tutorials").glob("*.py")):
        page = page_of(script.read_text(encoding="utf-8"), script.relative_to(root).as_posix())
        files.append(File.generated(config, f"tutorials/{script.stem}.md", content=page))
    return files


def page_of(script: str, path: str) -> str:
    """Markdown of a script in cells; the first cell is its title and what it is about.

    Raises:
        ValueError: if the script does not begin with a text cell.
    """
    before, *cells = f"\n{script}".split(f"\n{CELL}")
    if before.strip() or not cells or not cells[0].startswith(TEXT_CELL.removeprefix(CELL)):
        raise ValueError(f"{path} must begin with {TEXT_CELL!r} and its title")
    blocks = [_block(cell) for cell in cells]
    blocks.insert(1, f"The script is `{path}`; it takes seconds, on a CPU and without a network.")
    return "\n\n".join(blocks)


def _block(cell: str) -> str:
    kind, _, content = cell.partition("\n")
    if kind.strip() == "[markdown]":
        return "\n".join(line.removeprefix("#").removeprefix(" ") for line in content.strip().splitlines())
    return f"```python\n{content.strip()}\n```"
