"""A section of one's own on the page, such as a circuit or what steering did: lines of text that link features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sae_lens_hsae.forest import FeatureForest


@dataclass(frozen=True)
class PageSection:
    """A list under a heading on the first view. Each feature that a line names links back to the section.

    Attributes:
        title: the heading.
        lines: text, and the features it speaks of, by flat index or by name, such as ``"2/313"``.
        graph: shown on the first view instead of the lines, see `circuit_section`.
    """

    title: str
    lines: Sequence[tuple[str, Sequence[int | str]]]
    graph: Mapping[str, object] | None = None


def section_rows(section: PageSection, forest: FeatureForest) -> dict[str, object]:
    """A section in plain values for the page.

    Raises:
        IndexError: if it names a feature that does not exist.
    """
    return {
        "title": section.title,
        "lines": [[text, [forest.index(feature) for feature in features]] for text, features in section.lines],
        "graph": section.graph,
    }
