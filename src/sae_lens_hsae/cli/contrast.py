"""``hsae contrast``: which features of a saved SAE differ between two files of texts."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sae_lens_hsae.cli.collected import open_labelled
from sae_lens_hsae.cli.outcome import Outcome
from sae_lens_hsae.interpret.contrast import Contrast, Finding, contrast, text_activations
from sae_lens_hsae.interpret.contrast.compare import MIN_TEXTS
from sae_lens_hsae.interpret.feature_cache.text import load_language_model
from sae_lens_hsae.interpret.snippet import snippet
from sae_lens_hsae.storage.json_files import printable
from sae_lens_hsae.storage.text_files import read_text
from sae_lens_hsae.storage.whole_files import write_whole
from sae_lens_hsae.text.as_trained import positions
from sae_lens_hsae.text.hook_point import ids_of_text
from sae_lens_hsae.text.token_text import TokenTexts


def run_contrast(chosen: argparse.Namespace) -> Outcome:
    texts = read_sets(chosen, ("a", "b"), MIN_TEXTS)
    sae, labels_of = open_labelled(chosen.folder, chosen.device, chosen.labels)
    model = load_language_model(sae)
    found = contrast(
        sae,
        sae.forest,
        *(text_activations(sae, model, each, chosen.max_tokens) for each in texts),
        alpha=chosen.alpha,
        localising_share=chosen.localising_share,
    )
    labels = labels_of(model.tokenizer)
    if chosen.output:
        write_whole(chosen.output, found.to_frame(labels).to_csv())
    examples = [_example(each, texts, sae, model) if each.example else "" for each in found.findings]
    names = (Path(chosen.a).name, Path(chosen.b).name)
    return Outcome(_text(found, labels, examples, names, chosen.top), _data(found, labels, examples))


def read_sets(chosen: argparse.Namespace, names: Sequence[str], fewest: int) -> list[list[str]]:
    """The texts of several files, by the names of their flags; a text is a line that is not empty."""
    if chosen.max_tokens < 2:
        raise ValueError(f"max_tokens={chosen.max_tokens} must be at least 2")
    sets = []
    for name in names:
        path = getattr(chosen, name)
        texts = [line.strip() for line in read_text(path).split("\n") if line.strip()]
        if len(texts) < fewest:
            raise ValueError(f"{name}={path!r} holds {len(texts)} texts, one a line; give at least {fewest}")
        sets.append(texts)
    return sets


def _data(found: Contrast, labels: Mapping[int, str], examples: Sequence[str]) -> dict[str, Any]:
    numbers = ("effect", "auc", "q_value")
    findings = [
        asdict(each)
        | {"labels": [labels.get(feature, "") for feature in each.path], "text": example}
        | {name: getattr(found, name)[each.coarsest].item() for name in numbers}
        for each, example in zip(found.findings, examples, strict=True)
    ]
    n_significant = int(found.significant.sum())
    return {"n_a": found.n_a, "n_b": found.n_b, "n_significant": n_significant, "findings": findings}


def _text(found: Contrast, labels: Mapping[int, str], examples: Sequence[str], names: tuple[str, str], top: int) -> str:
    n_significant = int(found.significant.sum())
    lines = [
        f"{found.n_a} texts in a, {found.n_b} in b: {n_significant} of {len(found.forest):,} features differ, of "
        f"{len(found.findings)} causes"
    ]
    if not found.findings:
        lines += ["", "No difference is clear enough: give more texts, or raise --alpha."]
    for more_in_a, name in zip((True, False), names, strict=True):
        own = [pair for pair in zip(found.findings, examples, strict=True) if pair[0].more_in_a == more_in_a]
        if not own:
            continue
        lines += ["", f"More in {'a' if more_in_a else 'b'}, {name}: {len(own)}"]
        lines.append("effect    AUC  features  from the coarsest feature to the finest")
        for each, example in own[:top]:
            steps = [f"{found.forest.levels.name(f)} {' '.join(labels.get(f, '').split())}".rstrip() for f in each.path]
            path = printable(" → ".join(steps))
            lines.append(
                f"{found.effect[each.coarsest]:>6.2f}  {found.auc[each.coarsest]:>5.3f}  {each.n_features:>8}  {path}"
            )
            lines += [f"{'':25}{example}"] if example else []
        if len(own) > top:
            lines.append(f"… {len(own) - top} more: --top {len(own)}")
    return "\n".join(lines)


def _example(finding: Finding, texts: Sequence[Sequence[str]], sae: Any, model: Any) -> str:
    """The text that shows a finding, around the word on which its finest feature is strongest, which is marked."""
    assert finding.example is not None
    number, token = finding.example
    text = texts[0 if finding.more_in_a else 1][number]
    start, ids = ids_of_text(model, sae, text)
    at = [position - len(start) for position in range(len(start) + len(ids))[positions(sae.cfg.metadata)]]
    place = [position for position in at if position >= 0][token]
    written = TokenTexts(model.tokenizer)
    return printable(snippet([written[id_] for id_ in ids], place))
