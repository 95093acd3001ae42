"""One feature of the dashboards as a notebook, or a terminal, shows it."""

from __future__ import annotations

import html
import math
from collections.abc import Callable
from dataclasses import dataclass, field

from sae_lens_hsae.interpret.feature_cache.format import Dashboards
from sae_lens_hsae.storage.json_files import printable
from sae_lens_hsae.text.token_text import whole_characters

CONTEXTS_SHOWN = 5
SHADE = "255, 164, 61"


@dataclass(frozen=True)
class FeatureCard:
    """What one feature fires on; evaluated at the end of a notebook's cell it shows itself, printed it is text.

    Args:
        feature: flat index or name.
        text_of: text of a token id, with its leading space; see ``TokenTexts``.

    Raises:
        IndexError: if there is no such feature.
        ValueError: if a word is no name.
    """

    dashboards: Dashboards = field(repr=False)
    feature: int | str
    text_of: Callable[[int], str] = field(repr=False)

    def __post_init__(self) -> None:
        self._path()

    def __str__(self) -> str:
        numbers = "\n".join(f"{name}: {value}" for name, value in self._numbers().items())
        contexts = ["".join(f"[{text}]" if peak else text for text, _, peak in context) for context in self._contexts()]
        return "\n".join([f"feature {self._path()}", numbers, *contexts])

    def _repr_html_(self) -> str:
        numbers = "".join(
            f"<tr><th>{html.escape(name)}</th><td>{html.escape(value)}</td></tr>"
            for name, value in self._numbers().items()
        )
        contexts = "".join(
            '<p dir="ltr">'
            + "".join(
                f'<span style="background: rgba({SHADE}, {shade:.2f})">{html.escape(text)}</span>'
                for text, shade, _ in context
            )
            + "</p>"
            for context in self._contexts()
        )
        return f"<div><b>Feature {self._path()}</b><table>{numbers}</table>{contexts}</div>"

    def _path(self) -> str:
        forest = self.dashboards.forest
        return " › ".join(map(forest.levels.name, forest.path(self.feature)))

    def _numbers(self) -> dict[str, str]:
        data, feature = self.dashboards, self.dashboards.forest.index(self.feature)
        numbers = {"fires on": f"{data.frequency[feature]:.2%} of {data.n_tokens:,} tokens"}
        if not data.n_firing[feature]:
            return numbers
        numbers["mean, highest activation"] = f"{data.mean_activation[feature]:.3g}, {data.max_activation[feature]:.3g}"
        shares = {
            "P(parent | it)": data.parent_given_child,
            "P(it | parent)": data.child_given_parent,
            "agreement with children": data.agreement,
        }
        for name, values in shares.items():
            if not math.isnan(values[feature]):
                numbers[name] = f"{values[feature]:.0%}"
        tokens = [printable(self.text_of(int(id_))).strip() for id_ in data.strongest_tokens[feature] if id_ >= 0]
        return numbers | {"strongest tokens": " · ".join(tokens) or "none stands out"}

    def _contexts(self) -> list[list[tuple[str, float, bool]]]:
        """Of the strongest contexts every token's text, its shade from 0 to 1, and whether it is the strongest."""
        data, feature = self.dashboards, self.dashboards.forest.index(self.feature)
        contexts = []
        for slot in range(min(CONTEXTS_SHOWN, data.settings.n_top)):
            if data.context_numbers[feature, slot] < 0:
                break
            shades = data.activations[feature, slot].float() / data.max_activation[feature]
            peak = int(data.peak_positions[feature, slot])
            texts = whole_characters([self.text_of(id_) for id_ in data.token_ids[feature, slot].tolist() if id_ >= 0])
            contexts.append([(printable(text), float(shades[i]), i == peak) for i, text in enumerate(texts)])
        return contexts
