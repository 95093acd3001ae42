"""`contrast`: which features differ between two sets of texts, and at which granularity."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from datasets import Dataset
from sae_lens import SAE
from scipy.sparse import csc_array, csr_array, vstack
from scipy.stats import false_discovery_control, mannwhitneyu

from sae_lens_hsae.evaluation import level_saes
from sae_lens_hsae.evaluation.stacks import check_fit
from sae_lens_hsae.forest import NO_PARENT, FeatureForest
from sae_lens_hsae.interpret.contrast.findings import Finding, join_alike, roll_up
from sae_lens_hsae.interpret.feature_cache.text import tokens_and_activations
from sae_lens_hsae.interpret.labels.files import Labels, by_feature
from sae_lens_hsae.text.as_trained import begins_bare, positions
from sae_lens_hsae.text.hook_point import check_several, checked_texts, ids_of_text, most_tokens

MIN_TEXTS = 8
"""The p-values are asymptotic; with fewer texts in a set they are not to be trusted."""
FEATURES_AT_ONCE = 1024
TEXTS_KEPT = 500
"""Texts of each set whose activations are kept, to say which features fire together, and for examples."""


@dataclass(frozen=True, eq=False)
class Contrast:
    """How two sets of texts differ. All tensors are (n_features,), features flat, coarse to fine.

    Attributes:
        forest: of the features.
        n_a, n_b: texts of each set.
        mean_a, mean_b: mean over the texts of a feature's mean activation on a text.
        effect: (mean_a − mean_b) / pooled standard deviation over texts (Cohen's d); 0 where nothing varies.
        auc: P(a text of A has the higher activation), ties counted half.
        p_value: Mann-Whitney, two-sided.
        q_value: ``p_value`` corrected for the number of features (Benjamini-Hochberg).
        significant: ``q_value`` ≤ alpha.
        share_of_parent: share of the parent's difference of means that lies on tokens where the feature fires.
        findings: the significant features, one entry per cause, strongest first.
    """

    forest: FeatureForest
    n_a: int
    n_b: int
    mean_a: torch.Tensor = field(repr=False)
    mean_b: torch.Tensor = field(repr=False)
    effect: torch.Tensor = field(repr=False)
    auc: torch.Tensor = field(repr=False)
    p_value: torch.Tensor = field(repr=False)
    q_value: torch.Tensor = field(repr=False)
    significant: torch.Tensor = field(repr=False)
    share_of_parent: torch.Tensor = field(repr=False)
    findings: tuple[Finding, ...]

    def to_frame(self, labels: Labels | None = None) -> pd.DataFrame:
        """One row per feature, with its level, its parent and its label if one is given.

        Args:
            labels: text for some of the features, by flat index or name.

        Raises:
            ValueError: if a label is of a feature that does not exist.
        """
        own = by_feature(labels, self.forest.index)
        names = ("mean_a", "mean_b", "effect", "auc", "p_value", "q_value", "significant", "share_of_parent")
        features = torch.arange(len(self.forest))
        frame = pd.DataFrame({name: getattr(self, name).numpy() for name in names})
        frame.insert(0, "level", self.forest.levels.level_of(features).numpy())
        frame.insert(1, "parent", self.forest.parents.numpy())
        frame.insert(2, "label", [own.get(feature, "") for feature in features.tolist()])
        return frame.rename_axis("feature")


@torch.no_grad()
def contrast(
    levels: Sequence[SAE[Any]] | SAE[Any],
    forest: FeatureForest,
    a: Iterable[torch.Tensor],
    b: Iterable[torch.Tensor],
    alpha: float = 0.05,
    localising_share: float = 0.8,
) -> Contrast:
    """Compare the features' activations on two sets of texts, and roll the differences up the forest.

    A text counts once however many tokens it has, since the tokens of one text are not independent. Where the sets
    are drawn from the same source, at most about a share ``alpha`` of comparisons find anything at all.

    Args:
        a: the one set; each item holds the activations of one text, (tokens, d_in) or (d_in,), as
            `text_activations` gives them. A tensor (n, d_in) is n texts of one token.
        alpha: rate of false discoveries among the significant features.
        localising_share: least share of a parent's difference for which a child alone stands for it.

    Raises:
        ValueError: if levels and forest do not fit, a set has fewer than 8 texts, both sets are the same, a text is
            empty, of another width or holds NaN or infinity, or a rate is not between 0 and 1.
    """
    for name, value in (("alpha", alpha), ("localising_share", localising_share)):
        if not 0 < value < 1:
            raise ValueError(f"{name}={value} must lie between 0 and 1")
    saes: list[Any] = list(level_saes(levels))  # type: ignore[arg-type]
    check_fit(saes, forest)
    (own_a, with_child_a, kept_a), (own_b, with_child_b, kept_b) = (
        _per_text(saes, forest, *each) for each in (("a", a), ("b", b))
    )
    if own_a.shape == own_b.shape and own_a.equal(own_b):
        raise ValueError("a and b hold the same texts in the same order; give two different sets")

    auc, p_value = _mann_whitney(own_a, own_b)
    q_value = torch.from_numpy(false_discovery_control(p_value.numpy()))
    mean_a, mean_b = own_a.mean(0), own_b.mean(0)
    n_a, n_b = len(own_a), len(own_b)
    pooled = (((n_a - 1) * own_a.var(0) + (n_b - 1) * own_b.var(0)) / (n_a + n_b - 2)).sqrt()
    effect = torch.where(pooled > 0, (mean_a - mean_b) / pooled, 0)
    parents = forest.parents
    of_parent = (mean_a - mean_b)[parents.clamp(min=0)]
    share = (with_child_a.mean(0) - with_child_b.mean(0)) / of_parent
    share[parents == NO_PARENT] = torch.nan
    significant = q_value <= alpha
    findings = roll_up(forest, significant, auc, share, localising_share)
    coarsest = [each.coarsest for each in findings]
    shown = vstack([*kept_a, *kept_b], format="csc")
    findings = join_alike(findings, torch.from_numpy(csc_array(shown)[:, coarsest].toarray()))
    return Contrast(
        forest=forest,
        n_a=n_a,
        n_b=n_b,
        mean_a=mean_a,
        mean_b=mean_b,
        effect=effect,
        auc=auc,
        p_value=p_value,
        q_value=q_value,
        significant=significant,
        share_of_parent=share,
        findings=tuple(_with_example(each, kept_a if each.more_in_a else kept_b) for each in findings),
    )


def text_activations(sae: SAE[Any], model: Any, texts: Iterable[str], max_tokens: int = 128) -> Iterator[torch.Tensor]:
    """Activations of each text (tokens, d_in) at the hook point that the SAE names, where training read positions.

    Each text is cut to ``max_tokens``, or to what the model takes; the model has a tokenizer. Where it has no token to
    put before a text, the text's first is left out. A ValueError at once, if ``texts`` is a single text; then, if a
    text has no token that is read.
    """
    check_several("texts", texts)
    return _text_activations(sae, model, texts, max_tokens)


def _text_activations(sae: SAE[Any], model: Any, texts: Iterable[str], max_tokens: int) -> Iterator[torch.Tensor]:
    limit = most_tokens(model)
    if limit is not None:
        max_tokens = min(max_tokens, limit)
    for i, text in enumerate(texts):
        start, ids = ids_of_text(model, sae, text)
        ids = ids[: max_tokens - len(start)]
        if not ids:
            raise ValueError(f"texts: number {i} ({text!r}) has no token; leave it out")
        rows = Dataset.from_dict({"tokens": [[*start, *ids]]})
        read = range(len(start) + len(ids))[positions(sae.cfg.metadata)]
        n_before = len(start) + begins_bare(sae.cfg.metadata, start)
        if not any(position >= n_before for position in read):
            raise ValueError(
                f"texts: number {i} ({text!r}) has no token at a position that was trained on (the SAE's metadata have "
                f"seqpos_slice={sae.cfg.metadata.seqpos_slice!r}), without a context's first; leave it out"
            )
        for _, x in tokens_and_activations(sae, model, rows):
            yield x[0, torch.tensor(read) >= n_before]


def _per_text(
    saes: Sequence[Any], forest: FeatureForest, name: str, texts: Iterable[torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor, list[csr_array]]:
    """(texts, n_features) float64: mean activation on each text, and that of the parent where the feature fires.

    And of the first texts the activations themselves, (tokens, n_features) each.
    """
    above = forest.parents.clamp(min=0)
    own, with_child, kept = [], [], []
    for x in checked_texts(name, texts, saes[0].cfg.d_in, MIN_TEXTS):
        acts = torch.cat([sae.encode(x.to(sae.device)).cpu() for sae in saes], dim=1).double()
        own.append(acts.mean(0))
        with_child.append((acts[:, above] * (acts != 0)).mean(0))
        if len(kept) < TEXTS_KEPT:
            kept.append(csr_array(acts.abs().float().numpy()))
    return torch.stack(own), torch.stack(with_child), kept


def _with_example(finding: Finding, texts: list[csr_array]) -> Finding:
    """A finding with the text and the token on which its finest feature is strongest, if it fires on one of these."""
    strongest = [text[:, [finding.finest]].toarray().ravel() for text in texts]
    text = int(np.argmax([each.max() for each in strongest]))
    if not strongest[text].max():
        return finding
    return replace(finding, example=(text, int(strongest[text].argmax())))


def _mann_whitney(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """AUC and p-value per feature, by scipy; ½ and 1 where all texts are equal."""
    aucs, p_values = [], []
    for own, other in zip(a.split(FEATURES_AT_ONCE, dim=1), b.split(FEATURES_AT_ONCE, dim=1), strict=True):
        found = mannwhitneyu(own.numpy(), other.numpy(), axis=0, method="asymptotic")
        aucs.append(torch.from_numpy(found.statistic) / (len(a) * len(b)))
        p_values.append(torch.from_numpy(found.pvalue).nan_to_num(nan=1.0).clamp(0, 1))
    return torch.cat(aucs), torch.cat(p_values)
