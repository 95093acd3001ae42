"""The documentation's pictures of the explorer: ``python -m experiments.pictures runs/gemma-3-270m``.

The run is that of ``examples/gemma_3_270m.py``. Beside the pictures it writes ``run.json``: the run's configuration and
the pictures' hashes. A test compares it with the example's present configuration, so that no picture outlives the
defaults that it shows. Needs Debian's ``chromium``.

Given a figure that ``python -m experiments`` wrote as HTML instead of a run, it takes a picture of that.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from sae_lens_hsae.forest import FeatureForest
from sae_lens_hsae.sae.inference import HierarchicalSAE
from sae_lens_hsae.storage.json_files import read_json_object

RECORD = "run.json"
RUN_FIELDS = (
    "hook_name", "context_size", "training_tokens", "train_batch_size_tokens", "lr", "lr_scheduler_name", "seed",
)  # fmt: skip
"""Of SAELens' runner config, what makes another forest; paths and devices are the machine's."""
NOT_OF_THE_FOREST = {"metadata", "device"}
FIGURE_SIZE = "900,500"
FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--virtual-time-budget=8000")


def configuration(runner_config: Mapping[str, Any]) -> dict[str, Any]:
    """What of a run's configuration the forest depends on, from SAELens' ``runner_cfg.json`` or ``to_dict()``."""
    sae = {key: value for key, value in runner_config["sae"].items() if key not in NOT_OF_THE_FOREST}
    return {"sae": sae, "model": Path(runner_config["model_name"]).name} | {
        key: runner_config[key] for key in RUN_FIELDS
    }


def views(trees: Sequence[Sequence[str]], forest: FeatureForest) -> dict[str, tuple[str, tuple[int, int], bool]]:
    """Which view each picture shows: its link, its width and height, and whether it is dark.

    Args:
        trees: the names of the features in each card of the first view, such as ``"1/87"``, the root first.
        forest: of the run.

    Raises:
        ValueError: if no tree of the first view branches.
    """

    def first(least_children: int, with_parent: bool) -> Iterator[str]:
        for tree in trees:
            for name in tree:
                has_parent = forest.parent(name) is not None
                if len(forest.children(name)) >= least_children and has_parent >= with_parent:
                    yield name

    feature = next(first(2, True), None) or next(first(1, True), None)
    parent = next(first(2, False), None)
    if feature is None or parent is None:
        raise ValueError("no tree on the first view has a parent with children of its own; train for longer")
    return {
        "tree": ("#/", (720, 850), False),
        "overview": ("#/", (1280, 900), False),
        "feature": (f"#/f/{feature}", (1280, 900), False),
        "compare": (f"#/compare/{parent}", (1280, 700), True),
        "map": ("#/map", (1280, 480), False),
    }


def take(page: Path, forest: FeatureForest, folder: Path) -> list[Path]:
    """Photograph the page's views into a folder."""
    with TemporaryDirectory() as profile:
        dom = chromium(profile, "--dump-dom", page.resolve().as_uri())
        cards = dom.split('class="card tree"')[1:]
        names = [re.findall(r'class="leaf"><a href="#/f/(\d+/\d+)"', card) for card in cards]
        found = re.search(r"<bdi>([^<]*)</bdi>", cards[0] if cards else "")
        shown = views(names, forest)
        if found:
            word = next(iter(re.findall(r"\w+", found[1])), "the")
            shown["search"] = (f"#/search/{word}", (1280, 700), False)
        for name, (link, (width, height), dark) in shown.items():
            scheme = ["--force-dark-mode"] if dark else []
            size = f"--window-size={width},{height}"
            chromium(profile, *scheme, size, f"--screenshot={folder / name}.png", page.resolve().as_uri() + link)
    return [folder / f"{name}.png" for name in shown]


def chromium(profile: str, *arguments: str) -> str:
    """What headless Chromium prints.

    Raises:
        FileNotFoundError: if it is not installed.
    """
    program = shutil.which("chromium")
    if program is None:
        raise FileNotFoundError("chromium is not installed; apt-get install chromium")
    command = [program, *FLAGS, f"--user-data-dir={profile}", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout


def main(arguments: Sequence[str] | None = None) -> None:
    """Take the pictures and record the run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "run",
        type=Path,
        help="folder of the example's run, with its explorer.html; or a figure of python -m experiments",
    )
    parser.add_argument("--output", type=Path, default=Path("docs/images"), help="default %(default)s")
    parser.add_argument("--size", default=FIGURE_SIZE, help="of a figure's picture, default %(default)s")
    chosen = parser.parse_args(arguments)
    if chosen.run.suffix == ".html":
        with TemporaryDirectory() as profile:
            to = chosen.output.resolve() / f"{chosen.run.stem}.png"
            size = f"--window-size={chosen.size}"
            chromium(profile, size, f"--screenshot={to}", chosen.run.resolve().as_uri())
        print(to)
        return
    page = chosen.run / "explorer.html"
    if not page.is_file():
        parser.error(f"{page} is missing; hsae explore {chosen.run} writes it")
    recorded = configuration(read_json_object(chosen.run / "runner_cfg.json"))
    pictures = take(page, HierarchicalSAE.load_from_disk(chosen.run).forest, chosen.output.resolve())
    hashes = {picture.name: hashlib.sha256(picture.read_bytes()).hexdigest() for picture in pictures}
    record = {
        "command": "python -m experiments.pictures runs/gemma-3-270m",
        "pictures": hashes,
        "configuration": recorded,
    }
    (chosen.output / RECORD).write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    print("\n".join(map(str, pictures)))


if __name__ == "__main__":
    main()
