"""The four distributions that one looks at first: activation heat map, frequency, L0 per token, magnitudes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots
from tqdm.auto import tqdm

from sae_lens_hsae.evaluation.hierarchy_metrics import token_chunks
from sae_lens_hsae.evaluation.stacks import LevelSAE, SAEStack, check_same_input, level_saes
from sae_lens_hsae.interpret.feature_cache.statistics import N_BINS, bin_edges, bin_of
from sae_lens_hsae.interpret.plots.style import finished, level_colours

TOKENS_SHOWN = 200
COLUMNS_PER_LEVEL = 120
TOKENS_AT_ONCE = 512
BINS_MERGED = 2


@torch.no_grad()
def activation_distributions(
    levels: Sequence[LevelSAE] | SAEStack,
    activations: Iterable[torch.Tensor],
    n_tokens: int | None = None,
    progress: bool = True,
) -> go.Figure:
    """What the features of every level do on a stream of activations, in four panels.

    The heat map has the first tokens from top to bottom and the features from the most to the least frequent, levels
    side by side; where features are more than columns, a column is the strongest of its features. One pass; memory
    does not grow with the stream.

    Args:
        levels: one SAE per level, coarse to fine, or one object for all (``HierarchicalSAE``).
        activations: tensors of shape (batch, d_in).
        n_tokens: stop after this many; None takes all.

    Raises:
        ValueError: if the SAEs do not read the same activations, a batch has another shape, or there is no token.
    """
    saes = level_saes(levels)
    check_same_input(saes)
    widths = [sae.cfg.d_sae for sae in saes]
    l0 = [torch.zeros(width + 1, dtype=torch.int64) for width in widths]
    fires = [torch.zeros(width, dtype=torch.int64) for width in widths]
    magnitude = [torch.zeros(N_BINS, dtype=torch.int64) for _ in widths]
    first: list[list[torch.Tensor]] = [[] for _ in widths]
    seen = 0
    with tqdm(total=n_tokens, desc="Distributions", unit="tok", disable=not progress) as bar:
        for x in token_chunks(activations, saes[0].cfg.d_in, n_tokens, TOKENS_AT_ONCE):
            for level, sae in enumerate(saes):
                acts = sae.encode(x.to(sae.device)).float().abs().cpu()
                active = acts > 0
                fires[level] += active.sum(0)
                l0[level] += torch.bincount(active.sum(1), minlength=widths[level] + 1)
                magnitude[level] += torch.bincount(bin_of(acts[active]), minlength=N_BINS)
                if seen < TOKENS_SHOWN:
                    first[level].append(acts[: TOKENS_SHOWN - seen])
            seen += len(x)
            bar.update(len(x))
    if not seen:
        raise ValueError("activations held no token; pass (batch, d_in) tensors, and no iterator that is used up")

    titles = [
        "Activations, token by token",
        "Frequency of the features",
        "L0 per token",
        "Strength where they are active",
    ]
    figure = make_subplots(rows=2, cols=2, subplot_titles=titles, vertical_spacing=0.16)
    figure.add_trace(_heat_map(first, fires), row=1, col=1)
    figure.update_yaxes(title_text="token", autorange="reversed", row=1, col=1)
    figure.update_xaxes(
        title_text="features: levels side by side, frequent to rare", showticklabels=False, row=1, col=1
    )
    for level, colour in enumerate(level_colours(len(saes))):
        name, group = f"level {level}", {"legendgroup": f"level {level}", "marker": {"color": colour}}
        frequency = (fires[level].double() / seen)[fires[level] > 0]
        silent = int((fires[level] == 0).sum())
        figure.add_trace(
            go.Histogram(
                x=frequency.log10().numpy(), nbinsx=40, name=f"{name} ({silent:,} never fired)", opacity=0.55, **group
            ),
            row=1, col=2,
        )  # fmt: skip
        line = {"mode": "lines", "name": name, "showlegend": False, "line": {"color": colour}, "legendgroup": name}
        most = int(l0[level].nonzero().max())
        figure.add_trace(go.Scatter(x=list(range(most + 1)), y=(l0[level][: most + 1] / seen).tolist(), **line), 2, 1)
        edges, counts = bin_edges()[::BINS_MERGED], magnitude[level].view(-1, BINS_MERGED).sum(1)
        inside = counts.nonzero().flatten()
        if len(inside):
            shown = slice(int(inside.min()), int(inside.max()) + 1)
            middle = (edges[:-1] * edges[1:]).sqrt()[shown]
            share = counts[shown] / counts.sum()
            figure.add_trace(go.Scatter(x=middle.tolist(), y=share.tolist(), **line), 2, 2)
    figure.update_xaxes(title_text="log₁₀ of the share of tokens", row=1, col=2)
    figure.update_xaxes(title_text="active features", row=2, col=1)
    figure.update_xaxes(title_text="activation", type="log", row=2, col=2)
    figure.update_yaxes(title_text="features", row=1, col=2)
    figure.update_yaxes(title_text="share of tokens", row=2, col=1)
    figure.update_yaxes(title_text="share of activations", row=2, col=2)
    figure.update_layout(barmode="overlay", legend={"orientation": "h", "y": -0.1})
    return finished(figure, f"Activations of {sum(widths):,} features on {seen:,} tokens", 860)


def _heat_map(first: list[list[torch.Tensor]], fires: list[torch.Tensor]) -> go.Heatmap:
    parts = []
    for acts, count in zip(first, fires, strict=True):
        ordered = torch.cat(acts)[:, count.argsort(descending=True, stable=True)]
        columns = [column.amax(1) for column in ordered.tensor_split(min(COLUMNS_PER_LEVEL, len(count)), dim=1)]
        gap = torch.full((len(ordered), 2), torch.nan)
        parts += [torch.stack(columns, dim=1), gap]
    shown = torch.cat(parts[:-1], dim=1)
    # Few activations are far above the rest, and would leave everything else dark.
    high = shown[shown > 0].quantile(0.99).item() if (shown > 0).any() else 1.0
    bar = {"x": 0.455, "y": 0.8, "len": 0.42, "thickness": 10}
    return go.Heatmap(z=shown.numpy(), zmin=0, zmax=high, colorscale="Greys", colorbar=bar, name="activation")
