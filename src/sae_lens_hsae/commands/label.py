"""``hsae label`` and ``hsae judge``: a language model names the features of a saved SAE, and judges its edges."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sae_lens_hsae.commands.collected import read_collected
from sae_lens_hsae.interpret.dashboards import Dashboards
from sae_lens_hsae.interpret.labels import token_labels
from sae_lens_hsae.interpret.labels.files import LABELS_FILENAME
from sae_lens_hsae.interpret.language_model import Endpoint, Replies, Request, judge_pairs, label_features, sample_pairs
from sae_lens_hsae.interpret.language_model.judging import JUDGEMENTS_FILENAME, judge_requests
from sae_lens_hsae.interpret.language_model.naming import firing_by_level, label_requests
from sae_lens_hsae.storage.whole_files import file_written_whole

JUDGE_TEMPERATURE = 0.7


def add_label_and_judge(commands: Any) -> None:
    """Add ``label`` and ``judge`` to the subparsers of the command ``hsae``."""
    label = commands.add_parser("label", help="have a language model name the features of a saved SAE")
    judge = commands.add_parser("judge", help="have a language model judge edges of a saved SAE's forest, and controls")
    for parser, output in ((label, LABELS_FILENAME), (judge, JUDGEMENTS_FILENAME)):
        parser.add_argument("folder", help="where the SAE was saved and hsae explore has collected its dashboards")
        parser.add_argument(
            "--model", required=True, help="the language model's name at OPENAI_BASE_URL; the key is OPENAI_API_KEY"
        )
        parser.add_argument("--output", help=f"what to write (default: {output} in the folder)")
        parser.add_argument("--concurrency", type=int, default=8, help="questions at once (default: %(default)s)")
        parser.add_argument("--price", type=float, nargs=2, metavar=("IN", "OUT"), help="cost of a million tokens")
        parser.add_argument("--estimate", action="store_true", help="say what it would take, and stop")
    judge.add_argument("--edges", type=int, default=5000, help="edges to judge (default: %(default)s)")
    judge.add_argument("--repetitions", type=int, default=1, help="times each pair is judged (default: %(default)s)")


def run_label_or_judge(chosen: argparse.Namespace) -> None:
    """Run the command; bad input ends the process with code 1 and one line."""
    try:
        folder = Path(chosen.folder)
        endpoint = Endpoint(
            chosen.model,
            folder / "answers.sqlite",
            chosen.concurrency,
            temperature=JUDGE_TEMPERATURE if chosen.command == "judge" and chosen.repetitions > 1 else 0.0,
        )
        dashboards, text_of = read_collected(folder)
        if chosen.command == "label":
            _label(chosen, folder, endpoint, dashboards, text_of)
        else:
            _judge(chosen, folder, endpoint, dashboards, text_of)
    except (OSError, ValueError, ImportError) as error:
        sys.exit(f"hsae {chosen.command}: {error}")


def _label(
    chosen: argparse.Namespace, folder: Path, endpoint: Endpoint, dashboards: Dashboards, text_of: Callable[[int], str]
) -> None:
    by_tokens = token_labels(dashboards, text_of)
    features = [feature for level in firing_by_level(dashboards) for feature in level]
    # The parents' labels are not known yet; their tokens stand in for them.
    if not _go_on(chosen, endpoint, label_requests(dashboards, features, text_of, {}, by_tokens)):
        return
    labels, replies = label_features(dashboards, text_of, endpoint)
    output = Path(chosen.output or folder / LABELS_FILENAME)
    _write(output, json.dumps({str(feature): label for feature, label in labels.items()}, indent=1, ensure_ascii=False))
    print(f"{len(labels)} of {len(features)} features named in {output}; hsae explore --labels {output} shows them")
    for each in replies:
        _report(each)


def _judge(
    chosen: argparse.Namespace, folder: Path, endpoint: Endpoint, dashboards: Dashboards, text_of: Callable[[int], str]
) -> None:
    if chosen.repetitions < 1:
        raise ValueError(f"repetitions={chosen.repetitions} must be at least 1")
    pairs = sample_pairs(dashboards, chosen.edges)
    if not _go_on(chosen, endpoint, judge_requests(dashboards, pairs, text_of, chosen.repetitions)):
        return
    found = judge_pairs(dashboards, pairs, text_of, endpoint, chosen.repetitions)
    output = Path(chosen.output or folder / JUDGEMENTS_FILENAME)
    _write(output, found.pairs.to_csv(index=False))
    print(f"Judged a special case, with 95 % intervals; every pair in {output}\n{found.rates().round(3)}")
    if chosen.repetitions > 1:
        print(f"Repeated judgements that agree: {found.agreement():.1%}")
    _report(found.replies)


def _go_on(chosen: argparse.Namespace, endpoint: Endpoint, requests: list[Request]) -> bool:
    n, n_in, n_out = endpoint.estimate(requests)
    line = f"{n:,} questions to ask, about {n_in:,} tokens in and at most {n_out:,} out"
    if chosen.price:
        line += f"; at most about {(n_in * chosen.price[0] + n_out * chosen.price[1]) / 1e6:,.2f}"
    print(line, flush=True)
    return not chosen.estimate


def _report(replies: Replies) -> None:
    n_answered = sum(answer is not None for answer in replies.answers)
    print(
        f"{n_answered} answers ({replies.n_cached} from disk), {replies.n_malformed} malformed, "
        f"{len(replies.errors)} missing; {replies.prompt_tokens:,} tokens in, {replies.completion_tokens:,} out"
    )
    for i, error in list(replies.errors.items())[:5]:
        print(f"  question {i}: {error}")


def _write(path: Path, text: str) -> None:
    with file_written_whole(path) as aside:
        aside.write_text(text, encoding="utf-8")
