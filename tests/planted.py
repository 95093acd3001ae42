"""SAEs and dashboards of which it is known what fires where."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from sae_lens import SAE
from small_saes import D_IN, WIDTHS, make_sae

from sae_lens_hsae import FeatureForest, HierarchicalTrainingSAE
from sae_lens_hsae.cli.demo import minilm_folder
from sae_lens_hsae.interpret.feature_cache import Dashboards, collect_dashboards, dashboards_folder

FiresOn = Mapping[int, Iterable[int] | Mapping[int, float]]


def planted_sae(
    fires_on: FiresOn, parents: Mapping[int, int] | None = None, widths: Sequence[int] = WIDTHS
) -> tuple[HierarchicalTrainingSAE, FeatureForest]:
    """A forest in which few features read anything.

    Args:
        fires_on: the coordinates of x that each feature reads, or how strongly it reads each; all others read nothing.
        parents: of those features that have one.
        widths: of the levels.
    """
    sae = make_sae(level_widths=list(widths))
    for tensor in (sae.W_enc, sae.b_enc, sae.b_dec, sae.threshold):
        tensor.data.zero_()
    for feature, coordinates in fires_on.items():
        strengths = coordinates if isinstance(coordinates, Mapping) else dict.fromkeys(coordinates, 1.0)
        for coordinate, strength in strengths.items():
            sae.W_enc.data[coordinate, feature] = strength
    table = torch.full((sae.cfg.d_sae,), -1)
    for child, parent in (parents or {}).items():
        table[child] = parent
    return sae, FeatureForest(table, sae.cfg.level_widths)


def planted_dashboards(
    fires_on: FiresOn,
    parents: Mapping[int, int] | None = None,
    contexts: list[list[int]] | None = None,
    widths: Sequence[int] = WIDTHS,
) -> Dashboards:
    """Of contexts of 8 tokens (0 … 7, again and again), each of which is a coordinate of x."""
    tokens = torch.arange(320).view(40, 8) % 8 if contexts is None else torch.tensor(contexts)
    sae, forest = planted_sae(fires_on, parents, widths)
    return collect_dashboards(sae, forest, [(tokens, torch.eye(D_IN)[tokens])], progress=False)


def save_with_dashboards(folder: Path) -> Path:
    """A random SAE that names all-MiniLM-L6-v2 as its model, with its dashboards, as ``hsae explore`` leaves them."""
    sae = make_sae()
    sae.cfg.metadata.model_name = str(minilm_folder())
    sae.save_inference_model(folder)
    x = torch.randn(40, 8, D_IN, generator=torch.Generator().manual_seed(0)) * 2
    loaded: Any = SAE.load_from_disk(folder)
    tokens = 2000 + torch.arange(320).view(40, 8) % 40
    collect_dashboards(loaded, sae.forest, [(tokens, x)], progress=False).save(dashboards_folder(folder))
    return folder
