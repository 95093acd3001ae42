"""`write_page`: forest and dashboards → one HTML file."""

from __future__ import annotations

import base64
import gzip
import hashlib
import html
import json
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from sae_lens_hsae.forest import FeatureForest
from sae_lens_hsae.interpret.explain import Explanation
from sae_lens_hsae.interpret.feature_cache import Dashboards
from sae_lens_hsae.interpret.labels.files import Labels, by_feature
from sae_lens_hsae.interpret.page.content import MANY_FEATURES, PageContent, PageLimits, explained_block
from sae_lens_hsae.storage.whole_files import file_written_whole

ASSETS = files("sae_lens_hsae.interpret.page").joinpath("assets")
ALIGNMENT = 8


@dataclass(frozen=True)
class PageSection:
    """A list of one's own on the first view, such as a circuit; each feature that a line names links back to it.

    Attributes:
        title: the heading.
        lines: text, and the features it speaks of, by flat index or by name, such as ``"2/313"``.
        graph: shown on the first view instead of the lines, see `circuit_section`.
    """

    title: str
    lines: Sequence[tuple[str, Sequence[int | str]]]
    graph: Mapping[str, object] | None = None

    def plain(self, forest: FeatureForest) -> dict[str, object]:
        """In plain values for the page; an IndexError if it names a feature that does not exist."""
        lines = [[text, [forest.index(feature) for feature in features]] for text, features in self.lines]
        return {"title": self.title, "lines": lines, "graph": self.graph}


def write_page(
    dashboards: Dashboards,
    forest: FeatureForest,
    path: str | Path,
    text_of: Callable[[int], str],
    labels: Labels | None = None,
    title: str = "Feature forest",
    limits: PageLimits | None = None,
    explanations: Sequence[Explanation] = (),
    start: Sequence[int | str] = (),
    sections: Sequence[PageSection] = (),
    separators: Collection[str] = (),
    found_again: Mapping[str, torch.Tensor] | None = None,
    about: Mapping[str, str] | None = None,
) -> Path:
    """Write the explorer page: one file that opens from disk and fetches nothing.

    Args:
        path: the file to write; replaced if it exists.
        text_of: text of a token id, with its leading space; see ``TokenTexts``.
        labels: text for some of the features, by flat index or name.
        limits: how much the page takes; None chooses by the number of features.
        explanations: texts to show token by token, from ``explain``.
        start: features whose trees the page opens on, by flat index or by name, such as ``"2/313"``; below them stand
            the trees that the page itself finds worth a look.
        sections: of one's own, such as a circuit, on the first view.
        separators: texts of tokens that part texts, see ``parting_tokens``. Contexts are cut there, or show a
            mark, unless the feature fires on the token.
        found_again: by the name of another training, the children whose edge it has, too, (n_features,) bool, from
            ``shared_edges``; the page marks them and ranks its trees by them.
        about: what the page is of, by name, such as the model and the text; plain text, at the foot of every view.

    Returns:
        The file's path.

    Raises:
        ValueError: if the dashboards or an explanation are of another forest, or a label of a feature not there.
        IndexError: if ``start`` or a section names a feature that does not exist.
    """
    if dashboards.level_widths != forest.level_widths or not dashboards.parents.equal(forest.parents):
        raise ValueError(
            f"dashboards are of a forest with level_widths={list(dashboards.level_widths)} and other parents than the "
            f"given one with {list(forest.level_widths)}; collect them for this forest"
        )
    own_labels = by_feature(labels, forest.index)
    for i, explanation in enumerate(explanations):
        if explanation.forest != forest:
            raise ValueError(
                f"explanations: number {i} is of another forest than the given one; explain the text by it"
            )
    limits = limits or PageLimits.for_features(len(forest))
    for name, shared in (found_again or {}).items():
        if shared.shape != (len(forest),) or shared.dtype != torch.bool:
            raise ValueError(
                f"found_again: {name!r} has {tuple(shared.shape)} {shared.dtype}, expected ({len(forest)},) bool, from "
                "shared_edges() of this forest"
            )
    content = PageContent(dashboards, forest, text_of, own_labels, limits, found_again)
    plain, arrays = content.forest_block(title, [each.text for each in explanations], separators)
    plain["start"] = [forest.index(feature) for feature in start]
    plain["sections"] = [section.plain(forest) for section in sections]
    # The vocabulary grows while the others are made, and so comes last.
    blocks = {"forest": pack(plain, arrays)}
    n_blocks = math.ceil(len(forest) / limits.features_per_block)
    is_quick = len(forest) <= MANY_FEATURES
    of_features = tqdm(content.feature_blocks(), total=n_blocks, desc="Page", unit="block", disable=is_quick)
    blocks |= {f"features-{i}": pack(*block) for i, block in enumerate(of_features)}
    blocks |= {f"text-{i}": pack(*explained_block(each)) for i, each in enumerate(explanations)}
    blocks["vocabulary"] = pack(*content.vocabulary_block())

    path = Path(path)
    with file_written_whole(path) as aside:
        aside.write_text(_html(title, blocks, about), encoding="utf-8")
    return path


def pack(plain: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> str:
    """A block of the page: arrays and plain values for JSON, compressed, as base64 text; ``assets/data.js`` reads it.

    It is gzip over: length of the header (4 bytes, little endian), the header (JSON, padded so that both fill a
    multiple of 8), then the arrays, each from a multiple of 8, of dtypes that JavaScript has as typed arrays.
    """
    directory, body = {}, bytearray()
    for name, array in arrays.items():
        # JavaScript's typed arrays are little endian on every machine that runs a browser.
        data = np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
        directory[name] = [array.dtype.name, len(body), array.size]
        body += data + bytes(-len(data) % ALIGNMENT)
    # ASCII throughout: lone surrogates in a token have no UTF-8.
    header = json.dumps({"plain": plain, "arrays": directory}, ensure_ascii=True, allow_nan=False).encode("ascii")
    header += b" " * (-(len(header) + 4) % ALIGNMENT)
    raw = len(header).to_bytes(4, "little") + header + bytes(body)
    return base64.b64encode(gzip.compress(raw, compresslevel=9, mtime=0)).decode("ascii")


def _html(title: str, blocks: Mapping[str, str], about: Mapping[str, str] | None = None) -> str:
    scripts = (file.name for file in ASSETS.iterdir() if file.name.endswith(".js"))
    # Only this one does anything, or uses another's names, while it is read.
    last = "app.js"
    in_order = sorted(scripts, key=lambda name: (name == last, name))
    script = '"use strict";\n' + "\n".join(map(_asset, in_order))
    style = _asset("page.css")
    policy = (
        f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    data = "\n".join(f'<script type="text/plain" id="block-{name}">{block}</script>' for name, block in blocks.items())
    parts = {"TITLE": html.escape(title), "POLICY": policy, "STYLE": style, "SCRIPT": script}
    parts["DATA"] = (_footer(about) if about else "") + data
    page = _asset("page.html")
    pieces = page.split("%%")
    return "".join(parts[piece] if i % 2 else piece for i, piece in enumerate(pieces))


def _footer(about: Mapping[str, str]) -> str:
    """What the page is of, as HTML; a � stands for each character that is not printed, such as a direction mark."""

    def shown(text: str) -> str:
        return html.escape("".join(each if each.isprintable() else "\ufffd" for each in text))

    rows = "".join(f"<dt>{shown(name)}</dt><dd>{shown(text)}</dd>" for name, text in about.items())
    return f'<footer id="about"><details><summary>About this page</summary><dl>{rows}</dl></details></footer>\n'


def _asset(name: str) -> str:
    return ASSETS.joinpath(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")
