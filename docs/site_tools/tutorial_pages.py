"""A page and a notebook for every script in examples/tutorials: comment cells as text, code cells as code.

The site offers the notebooks; without building it, ``jupytext --to ipynb examples/tutorials/*.py`` makes the same.
"""

import re
from pathlib import Path
from typing import Any

import jupytext
from mkdocs.structure.files import File, Files

CELL = "# %%"
TEXT_CELL = "# %% [markdown]"
LINK = re.compile(r"\.\./examples/tutorials/(\w+)\.py\b")
"""From a page in docs/ to a script, as a repository's own view follows it; the site has a page in its place."""


def on_files(files: Files, config: Any) -> Files:
    """Called by mkdocs when it has listed the pages."""
    root = Path(config.config_file_path).parent
    for script in sorted((root / "examples" / "tutorials").glob("*.py")):
        text = script.read_text(encoding="utf-8")
        page = page_of(text, script.relative_to(root).as_posix())
        files.append(File.generated(config, f"tutorials/{script.stem}.md", content=page))
        files.append(File.generated(config, f"tutorials/{script.stem}.ipynb", content=notebook_of(text)))
    return files


def on_page_markdown(markdown: str, **_others: Any) -> str:
    """Called by mkdocs with the text of each page."""
    return LINK.sub(r"tutorials/\1.md", markdown)


def notebook_of(script: str) -> str:
    """A script in cells as a Jupyter notebook, without outputs."""
    notebook = jupytext.reads(script, fmt="py:percent")
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return jupytext.writes(notebook, fmt="ipynb")


def page_of(script: str, path: str) -> str:
    """Markdown of a script in cells; the first cell is its title and what it is about.

    Raises:
        ValueError: if the script does not begin with a text cell.
    """
    before, *cells = f"\n{script}".split(f"\n{CELL}")
    if before.strip() or not cells or not cells[0].startswith(TEXT_CELL.removeprefix(CELL)):
        raise ValueError(f"{path} must begin with {TEXT_CELL!r} and its title")
    blocks = [_block(cell) for cell in cells]
    blocks.insert(
        1,
        f"The script is `{path}`, here also [as a notebook]({Path(path).stem}.ipynb). It takes seconds, on a CPU and "
        "without a network.",
    )
    return "\n\n".join(blocks)


def _block(cell: str) -> str:
    kind, _, content = cell.partition("\n")
    if kind.strip() == "[markdown]":
        return "\n".join(line.removeprefix("#").removeprefix(" ") for line in content.strip().splitlines())
    return f"```python\n{content.strip()}\n```"
