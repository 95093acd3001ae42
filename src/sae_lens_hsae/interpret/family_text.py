"""A tree of concepts as text: each with its copies, its label, and the words it is strongest on in their context."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from sae_lens_hsae.forest.concepts import Concepts
from sae_lens_hsae.interpret.feature_cache import Dashboards
from sae_lens_hsae.interpret.snippet import snippet
from sae_lens_hsae.storage.json_files import printable

MAX_CHILDREN = 5


def draw_family(
    concepts: Concepts,
    root: int,
    dashboards: Dashboards,
    labels: Mapping[int, str],
    text_of: Callable[[int], str],
    separators: frozenset[str] = frozenset(),
    max_children: int = MAX_CHILDREN,
) -> str:
    """One line per concept, children indented, those that narrow it most first.

    A line has the level and number of the concept's topmost feature, ``root`` at the top, and of its copies; its label;
    and of its strongest context the part around the strongest word, no further than one of the ``separators``. Of more
    than ``max_children`` of a concept the others are counted.
    """
    lines: list[tuple[str, str, str]] = []

    def add(feature: int, lead: str, branch: str, next_lead: str) -> None:
        names = " = ".join(map(concepts.forest.levels.name, concepts.members(feature)))
        context = context_of(dashboards, feature, text_of, separators)
        lines.append((f"{lead}{branch}{names}", labels.get(feature, "–"), context))
        children = children_by_narrowing(concepts, feature, dashboards)
        shown = children[:max_children]
        for child in shown:
            last = child == children[-1]
            add(child, lead + next_lead, "└─ " if last else "├─ ", "   " if last else "│  ")
        if len(children) > len(shown):
            lines.append((f"{lead}{next_lead}… {len(children) - len(shown)} more", "", ""))

    add(root, "", "", "")
    widths = [max(len(line[i]) for line in lines) for i in range(2)]
    return "\n".join(
        printable(f"{name:<{widths[0]}}  {label:<{widths[1]}}  {context}".rstrip()) for name, label, context in lines
    )


def children_by_narrowing(concepts: Concepts, feature: int, dashboards: Dashboards) -> list[int]:
    """Topmost features of the concepts directly below a feature's, those first that narrow it most.

    See `Dashboards.narrowing`. The most frequent children of a broad feature are often as vague as it is.
    """
    narrowing = dashboards.narrowing.nan_to_num(-1)
    return sorted(concepts.children(feature), key=lambda child: (-float(narrowing[child]), child))


def context_of(
    dashboards: Dashboards,
    feature: int,
    text_of: Callable[[int], str],
    separators: frozenset[str] = frozenset(["[SEP]", "[CLS]", "<eos>", "<bos>"]),
    slot: int = 0,
) -> str:
    """Of a context, the strongest by default, the part around the strongest word, up to tokens that part texts."""
    if dashboards.context_numbers[feature, slot] < 0:
        return "never fires"
    ids = [id_ for id_ in dashboards.token_ids[feature, slot].tolist() if id_ >= 0]
    place = int(dashboards.peak_positions[feature, slot])
    texts = [text_of(id_) for id_ in ids]
    first = max((i + 1 for i in range(place) if texts[i] in separators), default=0)
    last = min((i for i in range(place + 1, len(texts)) if texts[i] in separators), default=len(texts))
    return snippet(texts[first:last], place - first)
