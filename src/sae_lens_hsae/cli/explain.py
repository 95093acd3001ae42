"""``hsae explain``: one text, token by token, as a saved SAE sees it."""

from __future__ import annotations

import argparse

from sae_lens_hsae.cli.collected import open_labelled
from sae_lens_hsae.cli.outcome import Outcome
from sae_lens_hsae.interpret.explain import explain
from sae_lens_hsae.interpret.explain.explain import check_text
from sae_lens_hsae.interpret.explain.explanation import drawn
from sae_lens_hsae.interpret.feature_cache.text import load_language_model
from sae_lens_hsae.storage.whole_files import write_whole


def run_explain(chosen: argparse.Namespace) -> Outcome:
    check_text(chosen.text)
    sae, labels_of = open_labelled(chosen.folder, chosen.device, chosen.labels)
    model = load_language_model(sae)
    explanation = explain(sae, model, chosen.text, labels=labels_of(model.tokenizer))
    if chosen.output:
        write_whole(chosen.output, explanation.to_frame().to_csv(index=False))
    data = {
        "text": explanation.text,
        "tokens": explanation.levels_to_frame().to_dict("records"),
        "features": explanation.to_frame().to_dict("records"),
    }
    return Outcome(drawn(explanation, chosen.paths), data)
