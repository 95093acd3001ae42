"""``hsae steer``: what a saved SAE's language model writes before and after it is steered towards a set of texts."""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping
from typing import Any

import torch

from sae_lens_hsae.cli.collected import open_labelled, page_link
from sae_lens_hsae.cli.contrast import read_sets
from sae_lens_hsae.cli.outcome import Outcome
from sae_lens_hsae.interpret.contrast import text_activations
from sae_lens_hsae.interpret.feature_cache.text import load_language_model
from sae_lens_hsae.interpret.steering import METHODS, Selection, descend, examples_of, steer_by
from sae_lens_hsae.interpret.steering.examples import FEWEST
from sae_lens_hsae.interpret.steering.writing import continued, perplexity
from sae_lens_hsae.storage.json_files import printable
from sae_lens_hsae.text.hook_point import check_causal, check_length, ids_of_text

SHOWN = 8
"""Features printed, the strongest."""


def run_steer(chosen: argparse.Namespace) -> Outcome:
    _check(chosen)
    sets = read_sets(chosen, ("positive", "negative"), FEWEST)
    if set(sets[0]) == set(sets[1]):
        raise ValueError(
            f"positive={chosen.positive!r} and negative={chosen.negative!r} hold the same texts, so there is no "
            "contrast; give two different files"
        )
    sae, labels_of = open_labelled(chosen.folder, chosen.device, chosen.labels)
    try:
        sae.levels.number(chosen.level)
    except IndexError as error:
        raise ValueError(f"level={chosen.level}: {error}") from error
    model = load_language_model(sae)
    start, ids = ids_of_text(model, sae, chosen.prompt)
    if not ids:
        raise ValueError(f"prompt={chosen.prompt!r} has no token; give a text to go on from")
    prompt = torch.tensor([[*start, *ids]], device=sae.device)

    check_length(model, prompt.shape[1] + chosen.n_tokens, f"n_tokens={chosen.n_tokens} after the prompt")
    check_causal(model, prompt)
    before = continued(model, prompt, chosen.n_tokens, chosen.temperature, chosen.seed)
    with_it, without = (text_activations(sae, model, texts, chosen.max_tokens) for texts in sets)
    examples = examples_of(sae, with_it, without)
    method = METHODS[chosen.method]
    selection = descend(method, examples, chosen.level) if chosen.descend else method(examples, chosen.level)
    with steer_by(model, sae, selection, chosen.strength):
        after = continued(model, prompt, chosen.n_tokens, chosen.temperature, chosen.seed)
    written = {
        name: {
            "text": model.tokenizer.decode(tokens[0, len(start) :].tolist()),
            "perplexity": perplexity(model, tokens, prompt.shape[1]).item(),
        }
        for name, tokens in (("before", before), ("after", after))
    }
    labels = labels_of(model.tokenizer)
    features = [
        {"feature": feature, "name": sae.levels.name(feature), "weight": weight, "label": labels.get(feature, "")}
        for feature, weight in zip(selection.features, selection.weights, strict=True)
    ]
    data = {
        "method": chosen.method,
        "level": selection.level,
        "strength": chosen.strength,
        "features": features,
        **written,
    }
    return Outcome(_text(data, selection, chosen.folder), data)


def _check(chosen: argparse.Namespace) -> None:
    if not math.isfinite(chosen.strength) or chosen.strength == 0:
        raise ValueError(f"strength={chosen.strength} must be a finite number other than 0")
    if not 0 <= chosen.temperature < math.inf:
        raise ValueError(f"temperature={chosen.temperature} must be 0 or more")
    if not chosen.prompt.strip():
        raise ValueError(f"prompt={chosen.prompt!r} is empty; give a text to go on from")


def _text(data: Mapping[str, Any], selection: Selection, folder: str) -> str:
    lines = [f"{len(selection.features)} features of level {selection.level} by {data['method']}:"]
    for each in data["features"][:SHOWN]:
        lines.append(f"  {each['weight']:+8.3f}  {each['name']}  {printable(each['label'])}".rstrip())
    if len(selection.features) > SHOWN:
        lines.append(f"  … {len(selection.features) - SHOWN} more")
    link = page_link(folder, data["features"][0]["name"]) if data["features"] else None
    lines += [] if link is None else [f"  Open one: {link}"]
    for name in ("before", "after"):
        lines += ["", f"{name} (perplexity {data[name]['perplexity']:.1f}): {printable(data[name]['text'])}"]
    return "\n".join(lines)
