"""Is an edge real? A language model judges pairs of features, edges that are no copies beside controls.

HSAE App. C asks whether B is a special case of A. Here the question has three answers, `RELATIONS`; the first is that.
Controls, drawn for every edge: *random*, the child with a feature of the parent's level that fires about as often as
the parent; *sibling*, two children of one parent; *swapped*, the edge with parent and child exchanged.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from sae_lens_hsae.evaluation.cluster_bootstrap import resampled_means
from sae_lens_hsae.forest import FeatureForest
from sae_lens_hsae.interpret.feature_cache import Dashboards
from sae_lens_hsae.interpret.language_model.endpoint import Endpoint, Replies, Request
from sae_lens_hsae.interpret.language_model.prompts import JUDGE, contexts, listed

KINDS = ("edge", "random", "sibling", "swapped")
RELATIONS = ("refines", "same", "none")
"""Of B to A: a part, a kind or an aspect of it, and narrower; about the same thing, but not narrower; no relation."""
COLUMNS = ("kind", "broad", "narrow", "repetition", "relation", "confidence")
JUDGEMENTS_FILENAME = "judgements.csv"
N_RESAMPLES = 2000
N_NEAR = 5
"""Features that a random control is drawn from."""


@dataclass(frozen=True, eq=False)
class Judgements:
    """What was judged.

    Attributes:
        pairs: one row per pair and repetition: kind, broad, narrow, repetition, relation (of `RELATIONS`; None without
            an answer), confidence.
        replies: what it took.
    """

    pairs: pd.DataFrame
    replies: Replies

    def rates(self) -> pd.DataFrame:
        """Per kind of pair, in the first repetition: n judged, and each relation's share and its interval.

        The pairs of one broad feature are resampled together, as its edges are no independent draws.
        """
        rows = {}
        first = self.pairs["repetition"] == 0
        for kind in KINDS:
            judged = self.pairs.loc[first & (self.pairs["kind"] == kind) & self.pairs["relation"].notna()]
            said = torch.tensor([[each == relation for relation in RELATIONS] for each in judged["relation"]])
            broad = torch.tensor(judged["broad"].to_numpy(dtype="int64"))
            generator = torch.Generator().manual_seed(0)
            means = resampled_means(said.reshape(len(judged), len(RELATIONS)), broad, N_RESAMPLES, generator)
            shares = {relation: means.estimate(i, is_share=True) for i, relation in enumerate(RELATIONS)}
            rows[kind] = {"n": len(judged), **shares}
        return pd.DataFrame.from_dict(rows, orient="index")

    def agreement(self) -> float:
        """Share of the pairs with several answers whose answers are all the same; NaN if there are none."""
        by_pair = self.pairs.dropna(subset="relation").groupby(["kind", "broad", "narrow"])["relation"]
        repeated = by_pair.nunique()[by_pair.size() > 1]
        return float((repeated == 1).mean()) if len(repeated) else float("nan")


def sample_pairs(dashboards: Dashboards, n_edges: int = 5000) -> list[tuple[str, int, int]]:
    """Pairs (kind, broad, narrow): edges between features that fired, drawn without repetition, and their controls.

    Copies of parents (``dashboards.is_copy``) are left out, as children and as siblings.

    Raises:
        ValueError: if ``n_edges`` is not positive, or no parent and child that is no copy ever fired.
    """
    if n_edges < 1:
        raise ValueError(f"n_edges={n_edges} must be at least 1")
    forest = dashboards.forest
    fired = dashboards.n_firing > 0
    edges = forest.edges()
    distinct = fired & ~dashboards.is_copy
    edges = edges[fired[edges[:, 0]] & distinct[edges[:, 1]]]
    if not len(edges):
        raise ValueError("no parent fired together with a child that is no copy; collect the dashboards on more text")
    generator = torch.Generator().manual_seed(0)
    drawn = edges[torch.randperm(len(edges), generator=generator)[:n_edges]]
    by_level = [own.start + fired[own].nonzero().flatten() for own in forest.levels]
    sizes = dashboards.n_firing.double().log()

    @cache
    def near(parent: int) -> list[int]:
        """The features of a parent's level that fire about as often."""
        others = by_level[int(forest.levels.level_of(torch.tensor(parent)))]
        others = others[others != parent]
        distance = (sizes[others] - sizes[parent]).abs()
        if len(others) > N_NEAR:  # a sort of all would take most of the time
            is_near = distance <= distance.kthvalue(N_NEAR).values
            others, distance = others[is_near], distance[is_near]
        return others[distance.argsort(stable=True)[:N_NEAR]].tolist()

    @cache
    def fired_children(parent: int) -> list[int]:
        children = torch.tensor(forest.children(parent))
        return children[distinct[children]].tolist()

    def one_of(features: list[int]) -> int:
        return features[int(torch.randint(len(features), (), generator=generator))]

    pairs: list[tuple[str, int, int]] = []
    for parent, child in drawn.tolist():
        pairs += [("edge", parent, child), ("swapped", child, parent)]
        if near(parent):
            pairs.append(("random", one_of(near(parent)), child))
        if siblings := [other for other in fired_children(parent) if other != child]:
            pairs.append(("sibling", one_of(siblings), child))
    return pairs


def judge_requests(
    dashboards: Dashboards, pairs: list[tuple[str, int, int]], text_of: Callable[[int], str], n_repetitions: int = 1
) -> list[Request]:
    """The questions, all pairs of one repetition after the other; the kind of a pair does not show."""
    texts = {f: contexts(dashboards, f, text_of) for f in {f for _, *both in pairs for f in both}}
    users = [
        f"{listed('Feature A is active on:', texts[broad])}\n\n{listed('Feature B is active on:', texts[narrow])}"
        for _, broad, narrow in pairs
    ]
    return [Request(JUDGE, user, repetition) for repetition in range(n_repetitions) for user in users]


def judge_pairs(
    dashboards: Dashboards,
    pairs: list[tuple[str, int, int]],
    text_of: Callable[[int], str],
    endpoint: Endpoint,
    n_repetitions: int = 1,
) -> Judgements:
    """Have every pair judged; see `sample_pairs`.

    Args:
        pairs: (kind, broad, narrow).
        n_repetitions: times each pair is judged; for several give the endpoint a temperature.
    """
    requests = judge_requests(dashboards, pairs, text_of, n_repetitions)
    replies = endpoint.ask(requests, parse_judgement, "Judging")
    rows = [
        (*pair, repetition, *(answer or (None, None)))
        for (repetition, pair), answer in zip(
            ((repetition, pair) for repetition in range(n_repetitions) for pair in pairs), replies.answers, strict=True
        )
    ]
    return Judgements(pd.DataFrame(rows, columns=list(COLUMNS)).astype({"relation": object}), replies)


def read_judgements(path: str | Path) -> pd.DataFrame:
    """``Judgements.pairs`` as ``hsae judge`` wrote them; a ValueError if the file holds anything else."""
    try:
        pairs = pd.read_csv(path, dtype={"broad": "int64", "narrow": "int64", "repetition": "int64"})
    except ValueError as error:  # also a file that pandas cannot take apart
        raise ValueError(f"{path} is not what hsae judge writes ({error}); delete it, or judge again") from error
    if tuple(pairs.columns) != COLUMNS or not set(pairs["relation"].dropna()) <= set(RELATIONS):
        raise ValueError(f"{path} is not what hsae judge writes; delete it, or judge again")
    return pairs


def parent_verdicts(pairs: pd.DataFrame, forest: FeatureForest, relation: str = "refines") -> torch.Tensor:
    """(n_features,) share of a parent's judged edges with this relation; NaN for features without a judged edge.

    A ValueError if ``pairs``, as in `Judgements`, have an edge that is none of the forest's.
    """
    judged = pairs.loc[pairs["kind"] == "edge"]
    own = set(map(tuple, forest.edges().tolist()))
    for edge in zip(judged["broad"], judged["narrow"], strict=True):
        if edge not in own:
            raise ValueError(
                f"pairs: {edge[0]} → {edge[1]} is no edge of this forest, so another forest was judged, perhaps of an "
                f"earlier training; delete {JUDGEMENTS_FILENAME}, or judge again with hsae judge"
            )
    edges = judged.dropna(subset="relation")
    shares = (edges["relation"] == relation).astype(float).groupby(edges["broad"]).mean()
    verdicts = torch.full((len(forest),), torch.nan, dtype=torch.float64)
    verdicts[torch.tensor(shares.index.to_numpy(), dtype=torch.int64)] = torch.tensor(shares.to_numpy())
    return verdicts


def parse_judgement(answer: dict[str, Any]) -> tuple[str, float]:
    """Relation and confidence of an answer; a ValueError if it is none."""
    relation, confidence = answer["relation"], answer["confidence"]
    if relation not in RELATIONS:
        raise ValueError(f"relation must be one of {', '.join(RELATIONS)}")
    if isinstance(confidence, bool) or not isinstance(confidence, (int, float)) or not 0 <= confidence <= 1:
        raise ValueError("confidence must be a number from 0 to 1")
    return relation, float(confidence)
