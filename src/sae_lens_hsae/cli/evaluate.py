"""``hsae evaluate``: measure a saved SAE's forest on text."""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path
from typing import Any

from datasets import Dataset

from hsae_command.parsers import EVALUATION_TOKENS
from sae_lens_hsae.cli.collected import activations_of_text, text_source
from sae_lens_hsae.cli.outcome import Outcome
from sae_lens_hsae.evaluation import ForestEvaluation, evaluate_forest
from sae_lens_hsae.hub.saved_model import (
    EVALUATION_FILENAME,
    check_evaluation_can_stand,
    load_hierarchical_sae,
    save_evaluation,
    tokens_measured,
)
from sae_lens_hsae.storage.whole_files import check_file_writable
from sae_lens_hsae.text.rows import TextSource


def run_evaluate(chosen: argparse.Namespace) -> Outcome:
    text = text_source(chosen)
    evaluation = evaluate(chosen.folder, chosen.n_tokens, text, chosen.device, output=chosen.output)
    return Outcome(str(evaluation), evaluation.to_dict())


def evaluate(
    folder: str | Path,
    n_tokens: int = EVALUATION_TOKENS,
    text: TextSource | str | Path | None = None,
    device: str = "cpu",
    model: Any = None,
    output: str | Path | None = None,
    rows: Dataset | None = None,
) -> ForestEvaluation:
    """Measure a saved `HierarchicalSAE` on text, and write the result, unless a better one stands there.

    Args:
        n_tokens: how many tokens to measure on; those left out in training are left out here too.
        text: what to read, a file or a `TextSource`; None takes what training leaves out of the installed text.
        device: where the SAE and its language model run.
        model: the language model, from SAELens' ``load_model``; None loads the one that the SAE's metadata name.
        output: the file to write; None takes ``evaluation.json`` in the folder.
        rows: tokenised rows, in a column ``tokens``, to read instead of ``text``.

    Raises:
        FileNotFoundError: if the folder holds no SAE.
        ValueError: if it holds another architecture, ``n_tokens`` is below 1, the text is too short, or the
            ``evaluation.json`` that stands there was measured on more tokens.
        OSError: if the result could not be written.

    Warns:
        UserWarning: if the text gave fewer tokens than the ``evaluation.json`` that stands there, which then remains.
    """
    if n_tokens < 1:
        raise ValueError(f"n_tokens={n_tokens} must be at least 1; {EVALUATION_TOKENS} is a good number")
    sae = load_hierarchical_sae(folder, device)
    if output is None:
        check_evaluation_can_stand(sae, folder, n_tokens)
    else:
        check_file_writable("output", Path(output))
    evaluation = evaluate_forest(sae, sae.forest, activations_of_text(sae, text, n_tokens, model, rows), n_tokens)
    before = tokens_measured(sae, folder) if output is None else 0
    if evaluation.n_tokens < before:
        warnings.warn(
            f"{Path(folder) / EVALUATION_FILENAME} stays as it is: it was measured on {before:,} tokens, and this on "
            f"{evaluation.n_tokens:,}; to keep this too give --output FILE, or a longer text, or delete that file",
            stacklevel=2,
        )
    else:
        save_evaluation(evaluation, sae, folder, output)
    return evaluation
