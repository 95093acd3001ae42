"""``hsae label`` and ``hsae judge``: a language model names the features of a saved SAE, and judges its edges."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import asdict
from itertools import chain, count
from pathlib import Path

from sae_lens_hsae.cli.collected import ELSEWHERE, read_collected
from sae_lens_hsae.cli.outcome import Outcome
from sae_lens_hsae.interpret.feature_cache import Dashboards
from sae_lens_hsae.interpret.labels import token_labels
from sae_lens_hsae.interpret.labels.files import LABELS_FILENAME, labels_beside, write_labels
from sae_lens_hsae.interpret.language_model import Endpoint, Replies, Request, judge_pairs, label_features, sample_pairs
from sae_lens_hsae.interpret.language_model.endpoint import Parse
from sae_lens_hsae.interpret.language_model.judging import JUDGEMENTS_FILENAME, judge_requests, parse_judgement
from sae_lens_hsae.interpret.language_model.naming import firing_by_level, label_requests, parse_label
from sae_lens_hsae.storage.whole_files import check_file_writable, check_writable, write_whole

JUDGE_TEMPERATURE = 0.7


def run_label_or_judge(chosen: argparse.Namespace) -> Outcome:
    """Say what it takes, then ask and write the answers; only the former with ``--estimate``."""
    folder = Path(chosen.folder)
    output = Path(chosen.output or folder / (LABELS_FILENAME if chosen.command == "label" else JUDGEMENTS_FILENAME))
    endpoint = Endpoint(
        chosen.model,
        folder / "answers.sqlite",
        chosen.concurrency,
        temperature=JUDGE_TEMPERATURE if chosen.command == "judge" and chosen.repetitions > 1 else 0.0,
    )
    if not chosen.estimate:
        endpoint.check_can_ask()
        check_writable("folder", folder, ELSEWHERE)
        check_file_writable("output", output)
    dashboards, text_of = read_collected(folder)
    return (_label if chosen.command == "label" else _judge)(chosen, output, endpoint, dashboards, text_of)


def _label(
    chosen: argparse.Namespace, output: Path, endpoint: Endpoint, dashboards: Dashboards, text_of: Callable[[int], str]
) -> Outcome:
    by_tokens = token_labels(dashboards, text_of)
    features = [feature for level in firing_by_level(dashboards) for feature in level]
    # The parents' new labels are not known yet; those of before stand in for them, or their tokens.
    folder = Path(chosen.folder)
    named = labels_beside(folder, dashboards.forest, output, lambda: dashboards.fingerprint) if output.is_file() else {}
    requests = label_requests(dashboards, features, text_of, named, by_tokens)
    estimated = _estimate(chosen, endpoint, requests, parse_label)
    if chosen.estimate:
        return estimated
    print(estimated.text, flush=True)
    labels, replies = label_features(dashboards, text_of, endpoint)
    _check_answered(*replies)
    firing = set(features)
    labels = {feature: label for feature, label in named.items() if feature in firing} | labels
    n_replaced = sum(label != labels.get(feature) for feature, label in named.items())
    suffixes = chain([""], (f"-{n}" for n in count(2)))
    names = (output.with_name(f"former-{output.stem}{suffix}{output.suffix}") for suffix in suffixes)
    former = next(path for path in names if not path.exists())
    if n_replaced:  # somebody may have written some by hand
        write_whole(former, output.read_text(encoding="utf-8"))
    write_labels(output, labels, dashboards.fingerprint)
    shown_by = f"hsae explore {folder}" + (f" --labels {output}" if chosen.output else "")
    said = f"{len(labels)} of {len(features)} features named in {output}; {shown_by} shows them"
    if n_replaced:
        said += f"\n{n_replaced} of the earlier labels were replaced or left out; {former} keeps them"
    return Outcome(
        "\n".join([said, *map(_report, replies)]),
        {"output": str(output), "n_named": len(labels), "n_features": len(features), "replies": _counts(*replies)},
    )


def _judge(
    chosen: argparse.Namespace, output: Path, endpoint: Endpoint, dashboards: Dashboards, text_of: Callable[[int], str]
) -> Outcome:
    pairs = sample_pairs(dashboards, chosen.n_edges)
    requests = judge_requests(dashboards, pairs, text_of, chosen.repetitions)
    estimated = _estimate(chosen, endpoint, requests, parse_judgement)
    if chosen.estimate:
        return estimated
    print(estimated.text, flush=True)
    found = judge_pairs(dashboards, pairs, text_of, endpoint, chosen.repetitions)
    _check_answered(found.replies)
    write_whole(output, found.pairs.to_csv(index=False))
    rates = found.rates()
    n_copies, n_edges = int(dashboards.is_copy.sum()), len(dashboards.forest.edges())
    lines = [
        f"Share of each verdict, with 95 % intervals; every pair in {output}\n{rates.to_string()}",
        "refines: the child (B) is a part, kind or aspect of the parent (A); same: both are about one thing",
        "Controls: in A's place another feature of its level (random) or another child (sibling), or both swapped",
        f"Left out as copies of their parents: the children of {n_copies:,} of {n_edges:,} edges",
    ]
    plain = rates.drop(columns="n").map(asdict).assign(n=rates["n"]).to_dict("index")
    data = {"output": str(output), "rates": plain, "copies_left_out": n_copies, "replies": _counts(found.replies)}
    if chosen.repetitions > 1:
        agreement = found.agreement()
        lines.append(f"Repeated judgements that agree: {agreement:.1%}")
        data["agreement"] = agreement
    return Outcome("\n".join([*lines, _report(found.replies)]), data)


def _check_answered(*replies: Replies) -> None:
    """Check that there is anything to write, so that what stands is not lost for nothing."""
    if not _counts(*replies)["answered"]:
        why = next((error for each in replies for error in each.errors.values()), "there was no question")
        raise ValueError(f"no question was answered ({why}); nothing is written")


def _estimate(chosen: argparse.Namespace, endpoint: Endpoint, requests: list[Request], parse: Parse) -> Outcome:
    n, n_in, n_out, n_reasoned = endpoint.estimate(requests, parse)
    text = (
        f"{n:,} questions to ask, about {n_in:,} tokens in and at most {n_out:,} out, or {n_reasoned:,} if the model "
        "reasons first, not counting answers that must be asked again"
    )
    data: dict[str, float] = {
        "questions": n,
        "tokens_in": n_in,
        "tokens_out_at_most": n_out,
        "tokens_out_at_most_if_it_reasons": n_reasoned,
    }
    if chosen.price:
        cost, cost_reasoned = ((n_in * chosen.price[0] + out * chosen.price[1]) / 1e6 for out in (n_out, n_reasoned))
        data |= {"cost_at_most": cost, "cost_at_most_if_it_reasons": cost_reasoned}
        text += f"; at most about {cost:,.2f}, or {cost_reasoned:,.2f} if it reasons"
    return Outcome(text, data)


def _counts(*replies: Replies) -> dict[str, int]:
    return {
        "answered": sum(answer is not None for each in replies for answer in each.answers),
        "cached": sum(each.n_cached for each in replies),
        "malformed": sum(each.n_malformed for each in replies),
        "missing": sum(len(each.errors) for each in replies),
        "tokens_in": sum(each.prompt_tokens for each in replies),
        "tokens_out": sum(each.completion_tokens for each in replies),
    }


def _report(replies: Replies) -> str:
    n = _counts(replies)
    lines = [
        f"{n['answered']} answers ({n['cached']} from disk), {n['malformed']} malformed, {n['missing']} missing; "
        f"{n['tokens_in']:,} tokens in, {n['tokens_out']:,} out"
    ]
    return "\n".join([*lines, *(f"  question {i}: {error}" for i, error in list(replies.errors.items())[:5])])
