"""``hsae explore``: from a saved SAE to its explorer page."""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from operator import eq
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset

from hsae_command.parsers import DASHBOARD_TOKENS
from sae_lens_hsae.cli.about_page import about_page, text_read
from sae_lens_hsae.cli.collected import ELSEWHERE, PAGE_FILENAME, as_source, dashboards_beside, read_rows, text_source
from sae_lens_hsae.cli.outcome import Outcome
from sae_lens_hsae.evaluation import shared_edges
from sae_lens_hsae.forest.model_names import same_model
from sae_lens_hsae.hub.saved_model import load_hierarchical_sae
from sae_lens_hsae.interpret.circuits import read_circuit
from sae_lens_hsae.interpret.explain import explain
from sae_lens_hsae.interpret.explain.explain import check_text
from sae_lens_hsae.interpret.feature_cache import Dashboards, collect_dashboards, dashboards_folder, fingerprint
from sae_lens_hsae.interpret.feature_cache.text import load_language_model, load_tokenizer, tokens_and_activations
from sae_lens_hsae.interpret.feature_cache.unembedding import unembedding_of
from sae_lens_hsae.interpret.labels import token_labels
from sae_lens_hsae.interpret.labels.files import labels_beside
from sae_lens_hsae.interpret.page import PageSection, circuit_section, write_page
from sae_lens_hsae.sae.inference import HierarchicalSAE
from sae_lens_hsae.storage.whole_files import check_file_writable, check_writable
from sae_lens_hsae.text.as_trained import excluded_tokens
from sae_lens_hsae.text.hook_point import check_several
from sae_lens_hsae.text.rows import TextSource
from sae_lens_hsae.text.token_text import TokenTexts, parting_tokens


def run_explore(chosen: argparse.Namespace) -> Outcome:
    page = explore(
        chosen.folder,
        chosen.output,
        chosen.n_tokens,
        text_source(chosen),
        chosen.labels,
        chosen.renew,
        chosen.explained,
        chosen.device,
        circuits=chosen.circuit,
        other_seeds=chosen.other_seeds,
    )
    return Outcome(f"Open {page.resolve().as_uri()}", {"page": str(page)})


def explore(
    folder: str | Path,
    output: str | Path | None = None,
    n_tokens: int | None = None,
    text: TextSource | str | Path | None = None,
    labels: str | Path | None = None,
    renew: bool = False,
    explained: Sequence[str] = (),
    device: str = "cpu",
    model: Any = None,
    rows: Dataset | None = None,
    circuits: Sequence[str | Path] = (),
    other_seeds: Sequence[str | Path] = (),
) -> Path:
    """Write the explorer page of a saved ``HierarchicalSAE``; dashboards that stand beside it are used again.

    Args:
        output: the page; None puts ``explorer.html`` into the folder.
        n_tokens: tokens to read for the dashboards, where there are none yet or with ``renew``; None reads 100,000.
        text: what to read, a file or a `TextSource`, where nothing is collected yet or with ``renew``; None takes what
            training leaves out of the installed text.
        labels: a JSON object from flat feature index or name to label; None takes ``labels.json`` in the folder, if
            there. Other features are named by their distinctive tokens.
        renew: collect the dashboards again even where they stand.
        explained: texts to show token by token; for these the language model is loaded in any case.
        device: as of `evaluate`, like ``model`` and ``rows``.
        circuits: files that ``hsae circuit`` wrote; a section for each.
        other_seeds: folders of other trainings, as with another seed; edges that they have, too, are marked
            (`shared_edges`).

    Returns:
        The page's path.

    Raises:
        FileNotFoundError: if the folder holds no SAE, or there is no such text.
        ValueError: if dashboards, labels, a circuit or one of ``other_seeds`` are not of these SAEs, the text or one to
            explain does not do, or a text is named without ``renew`` where dashboards stand.
    """
    if n_tokens is not None and n_tokens < 1:
        raise ValueError(f"n_tokens={n_tokens} must be at least 1; {DASHBOARD_TOKENS} is a good number")
    for name, several in (("explained", explained), ("circuits", circuits), ("other_seeds", other_seeds)):
        check_several(name, str(several) if isinstance(several, Path) else several)
    for each in explained:
        check_text(each, "explained")
    source = as_source(text)
    folder, n_to_read = Path(folder), n_tokens or DASHBOARD_TOKENS
    path = Path(output or folder / PAGE_FILENAME)
    sae = load_hierarchical_sae(folder, device)
    check_file_writable("output", path)
    try:
        names = labels_beside(folder, sae.forest, labels, lambda: fingerprint(sae, sae.forest))
    except ValueError as error:
        if labels is not None or not renew:
            raise
        warnings.warn(f"{error}; the page is written without them", stacklevel=2)  # after a training, all else is new
        names = {}
    hook = str(sae.cfg.metadata.hook_name)
    circuit_sections = [_circuit_section(Path(file), hook, sae, path) for file in circuits]
    found_again = _found_again(sae, other_seeds, device)
    where = dashboards_folder(folder)
    dashboards = None if renew else dashboards_beside(folder, sae)
    if dashboards is None:
        check_writable("folder", folder, ELSEWHERE)
        Dashboards.check_replaceable(where)
    elif rows is not None or n_tokens is not None or not source.is_installed:
        n_read = dashboards.n_tokens
        named = "rows" if rows is not None else f"n_tokens={n_tokens}" if n_tokens is not None else source
        raise ValueError(
            f"{named}: {where} already holds what was collected on {n_read:,} tokens, and would be shown instead; add "
            "--renew to collect again, or leave this out to show it"
        )
    if model is None and (dashboards is None or explained):
        model = load_language_model(sae)
    # First, so that a text that cannot be explained costs no collection.
    explanations = [explain(sae, model, each) for each in explained]
    tokenizer = load_tokenizer(sae) if model is None else model.tokenizer
    if dashboards is None:
        read = read_rows(source, sae, model, n_to_read) if rows is None else rows
        dashboards = collect_dashboards(
            sae,
            sae.forest,
            tokens_and_activations(sae, model, read),
            n_tokens=n_to_read,
            exclude_tokens=excluded_tokens(sae, tokenizer),
            unembedding=unembedding_of(sae, model),
        )
        dashboards = replace(dashboards, text=text_read(source) if rows is None else "")
        dashboards.save(where)
    texts = TokenTexts(tokenizer)
    names = token_labels(dashboards, texts.__getitem__) | names
    title = f"{folder.resolve().name}: {sae.cfg.metadata.hook_name}"
    return write_page(
        dashboards,
        sae.forest,
        path,
        texts.__getitem__,
        names,
        title=title,
        explanations=explanations,
        sections=circuit_sections,
        separators=parting_tokens(tokenizer),
        found_again=found_again,
        about=about_page(sae, dashboards),
    )


def _found_again(sae: HierarchicalSAE, other_seeds: Sequence[str | Path], device: str) -> dict[str, torch.Tensor]:
    """By the name of each other training, the part of its path that the others do not share: its `shared_edges`."""
    seen, found = [("the SAE itself", sae)], {}
    paths = [Path(folder).resolve() for folder in other_seeds]
    root = Path(os.path.commonpath([path.parent for path in paths])) if paths else Path()
    for folder, path in zip(other_seeds, paths, strict=True):
        other = load_hierarchical_sae(folder, device)
        compared: list[tuple[str, Any, Any, Callable[[Any, Any], bool]]] = [
            ("hook point", sae.cfg.metadata.hook_name, other.cfg.metadata.hook_name, eq),
            ("model", str(sae.cfg.metadata.model_name), str(other.cfg.metadata.model_name), same_model),
            ("number of levels", len(sae.forest.levels), len(other.forest.levels), eq),
            ("d_in", sae.cfg.d_in, other.cfg.d_in, eq),
        ]
        for what, own, its, same in compared:
            if not same(own, its):
                raise ValueError(
                    f"other_seeds: {str(folder)!r} has another {what}, {its} and not {own}; give a training of the "
                    "same activations with another seed"
                )
        for name, before in seen:
            if before.W_dec.shape == other.W_dec.shape and before.W_dec.equal(other.W_dec):
                raise ValueError(
                    f"other_seeds: {str(folder)!r} has the same features as {name}; give each training once"
                )
        seen.append((repr(str(folder)), other))
        print(f"Looking for the edges of {str(folder)!r}", file=sys.stderr)
        found[path.relative_to(root).as_posix()] = shared_edges(sae, sae.forest, other, other.forest)
    return found


def _circuit_section(file: Path, hook: str, sae: HierarchicalSAE, page: Path) -> PageSection:
    """A circuit in a file as a section of a page, with links to the pages of its other hook points."""
    circuit = read_circuit(file)
    pages = {
        own: Path(os.path.relpath(file.parent / folder / PAGE_FILENAME, page.parent)).as_posix()
        for own, folder in circuit.folders.items()
    }
    return circuit_section(circuit, hook, sae.forest, file.stem, pages)
