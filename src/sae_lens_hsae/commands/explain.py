"""``hsae explain``: one text, token by token, as a saved SAE sees it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from sae_lens_hsae.commands.outcome import Outcome, add_json
from sae_lens_hsae.hierarchical_sae import HierarchicalSAE
from sae_lens_hsae.interpret.dashboards import Dashboards, dashboards_folder, fingerprint
from sae_lens_hsae.interpret.dashboards.text import load_language_model
from sae_lens_hsae.interpret.explain import Explanation, explain
from sae_lens_hsae.interpret.explain.terminal import N_PATHS, drawn
from sae_lens_hsae.interpret.labels import token_labels
from sae_lens_hsae.interpret.labels.files import LABELS_FILENAME, read_labels
from sae_lens_hsae.interpret.token_text import token_texts
from sae_lens_hsae.sharing.saved_model import load_hierarchical_sae
from sae_lens_hsae.storage.whole_files import file_written_whole


def add_explain(commands: Any) -> None:
    """Add ``explain`` to the subparsers of the command ``hsae``."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "explain",
        help="show which paths of the forest are active on each token of a text",
        description="Read one text with a saved SAE and its own language model. For each token: the share of the "
        "activation that each level explains, the active paths of the forest, coarse to fine, and where a child fires "
        "without its parent.",
    )
    parser.add_argument("folder", help="where the SAE was saved, such as runs/demo")
    parser.add_argument("--text", required=True, help="the text itself")
    parser.add_argument("--paths", type=int, default=N_PATHS, help="most paths per token (default: %(default)s)")
    parser.add_argument(
        "--labels",
        help=f"a JSON object from flat feature index to label (default: {LABELS_FILENAME} in the folder, if it is "
        "there; other features: their tokens, once hsae explore has read text)",
    )
    parser.add_argument("--output", help="also write every feature on every token to this CSV file")
    add_json(parser)


def run_explain(chosen: argparse.Namespace) -> Outcome:
    """Explain; write it, too, write it where that is asked for."""
    if chosen.paths < 1:
        raise ValueError(f"paths={chosen.paths} must be at least 1")
    explanation = explain_text(chosen.folder, chosen.text, chosen.labels)
    if chosen.output:
        with file_written_whole(Path(chosen.output)) as aside:
            explanation.to_frame().to_csv(aside, index=False)
    data = {
        "text": explanation.text,
        "tokens": explanation.levels_to_frame().to_dict("records"),
        "features": explanation.to_frame().to_dict("records"),
    }
    return Outcome(drawn(explanation, chosen.paths), data)


def explain_text(folder: str | Path, text: str, labels: str | Path | None = None) -> Explanation:
    """Explain one text by a saved ``HierarchicalSAE``, with the language model that it names.

    Args:
        folder: where the SAE was saved.
        text: the text.
        labels: a JSON object from flat feature index to label; None takes ``labels.json`` in the folder, if there.

    Raises:
        FileNotFoundError: if the folder holds no SAE, or there are no such labels.
        ValueError: if it holds another architecture, dashboards of other weights stand there, the labels are no such
            object, or the text is empty or longer than the model takes.
    """
    folder = Path(folder)
    sae = load_hierarchical_sae(folder)
    own = folder / LABELS_FILENAME
    path = labels or (own if own.is_file() else None)
    names = {} if path is None else read_labels(path)
    dashboards = _dashboards(folder, sae)
    model = load_language_model(sae)
    if dashboards is not None:
        texts = token_texts(model.tokenizer, range(len(model.tokenizer)))
        names = token_labels(dashboards, texts.__getitem__) | names
    return explain(sae, model, text, labels=names)


def _dashboards(folder: Path, sae: HierarchicalSAE) -> Dashboards | None:
    where = dashboards_folder(folder)
    if not where.exists():
        return None
    try:
        return Dashboards.load(where, fingerprint(sae, sae.forest))
    except (ValueError, FileNotFoundError) as error:
        raise ValueError(f"{error} (hsae explore {folder} --renew)") from error
