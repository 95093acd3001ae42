"""``hsae explain``: one text, token by token, as a saved SAE sees it."""

from __future__ import annotations

import argparse
from pathlib import Path

from sae_lens_hsae.cli.collected import dashboards_beside, labels_by_tokens
from sae_lens_hsae.cli.outcome import Outcome
from sae_lens_hsae.cli.text_flags import check_device
from sae_lens_hsae.hub.saved_model import load_hierarchical_sae
from sae_lens_hsae.interpret.explain import Explanation, explain
from sae_lens_hsae.interpret.explain.explain import check_text
from sae_lens_hsae.interpret.explain.terminal import drawn
from sae_lens_hsae.interpret.feature_cache.text import load_language_model
from sae_lens_hsae.interpret.labels.files import labels_beside
from sae_lens_hsae.storage.whole_files import file_written_whole


def run_explain(chosen: argparse.Namespace) -> Outcome:
    """Explain; write it, too, write it where that is asked for."""
    if chosen.paths < 1:
        raise ValueError(f"paths={chosen.paths} must be at least 1")
    explanation = explain_text(chosen.folder, chosen.text, chosen.labels, chosen.device)
    if chosen.output:
        with file_written_whole(Path(chosen.output)) as aside:
            explanation.to_frame().to_csv(aside, index=False)
    data = {
        "text": explanation.text,
        "tokens": explanation.levels_to_frame().to_dict("records"),
        "features": explanation.to_frame().to_dict("records"),
    }
    return Outcome(drawn(explanation, chosen.paths), data)


def explain_text(folder: str | Path, text: str, labels: str | Path | None = None, device: str = "cpu") -> Explanation:
    """Explain one text by a saved ``HierarchicalSAE``, with the language model that it names.

    Args:
        folder: where the SAE was saved.
        text: the text.
        labels: a JSON object from flat feature index to label; None takes ``labels.json`` in the folder, if there.
        device: where the SAE and its language model run.

    Raises:
        FileNotFoundError: if the folder holds no SAE, or there are no such labels.
        ValueError: if it holds another architecture, dashboards of other weights stand there, the labels are no such
            object, or the text is empty or longer than the model takes.
    """
    check_text(text)
    check_device(device)
    folder = Path(folder)
    names = labels_beside(folder, labels)
    sae = load_hierarchical_sae(folder, device)
    dashboards = dashboards_beside(folder, sae)
    model = load_language_model(sae)
    return explain(sae, model, text, labels=labels_by_tokens(dashboards, model.tokenizer) | names)
