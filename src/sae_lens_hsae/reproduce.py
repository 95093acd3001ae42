"""The paper's experiments at a size that two cores can run: which models are compared, and their training.

One *cell* is one model trained on one stream of activations: a layer, a target L0, a seed. Cells are shared between
tables, each is kept as a JSON file when it is finished, and a later call trains only what is missing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from sae_lens import LoggingConfig, MatryoshkaBatchTopKTrainingSAE, MatryoshkaBatchTopKTrainingSAEConfig
from sae_lens.config import SAETrainerConfig
from sae_lens.load_model import load_model
from sae_lens.saes.sae import TrainingSAE
from sae_lens.training.activations_store import ActivationsStore
from sae_lens.training.sae_trainer import SAETrainer
from safetensors.torch import load_file, save_file
from tqdm.auto import tqdm
from transformers import AutoTokenizer

from sae_lens_hsae.config import HierarchicalTrainingSAEConfig
from sae_lens_hsae.demo import CONTEXT_SIZE, SPECIAL_TOKENS, minilm_config
from sae_lens_hsae.evaluation import evaluate_forest
from sae_lens_hsae.evaluation.matryoshka import groups_and_prefixes, inference_sae
from sae_lens_hsae.evaluation.wordnet import read_wordnet
from sae_lens_hsae.evaluation.wordnet_text import gloss_rows
from sae_lens_hsae.forest import FeatureForest
from sae_lens_hsae.levels import Levels
from sae_lens_hsae.showcase import paper_optimizer
from sae_lens_hsae.training_sae import HierarchicalTrainingSAE

WIDTHS = (128, 256, 512, 1024)
BATCH_SIZE = 1024
LEARNING_RATE = 1e-3
HELD_OUT = 100_000
"""Tokens measured on, which are not trained on."""

PAPER: dict[str, Any] = {"structural_loss_coefficient": 0.01, "perturbation_rate": 0.05}
INDEPENDENT: dict[str, Any] = {"structural_loss_coefficient": 0.0, "perturbation_rate": 0.0}
"""Exactly as many independent SAEs as there are levels; the last update is then the post-hoc assignment (App. F.2)."""

MATRYOSHKA = "matryoshka, post hoc"
"""SAELens' Matryoshka BatchTopK with the same total L0; its groups are the levels."""

MODELS: dict[str, dict[str, Any]] = {
    "HSAE": {},
    "HSAE (paper)": PAPER,
    "post hoc": INDEPENDENT,
    "no constraint": PAPER | {"structural_loss_coefficient": 0.0},
    "no perturbation": PAPER | {"perturbation_rate": 0.0},
    "full tree": PAPER | {"unassigned_fraction": 0.0},
    "fixed tree": PAPER | {"freeze_hierarchy_after": 100},  # the first forest is the last
    "binary tree": PAPER | {"max_children": 2},
    "decoder cosine": PAPER | {"hierarchy_similarity": "decoder"},
    "co-activation": PAPER | {"hierarchy_similarity": "coactivation"},
    MATRYOSHKA: {},
}
TRADE_OFF: dict[str, dict[str, Any]] = {
    f"ρ={rho:g}, r={r:g}": {"structural_loss_coefficient": rho, "perturbation_rate": r}
    for rho, r in [(0.03, 0.0), (0.1, 0.0), (0.3, 0.0), (1.0, 0.0), (0.0, 0.02), (0.0, 0.1), (0.0, 0.2), (0.1, 0.05)]
}


@dataclass(frozen=True)
class Stream:
    """Where activations come from, and what is asked of the models that read them."""

    layer: int
    target_l0: float
    seed: int

    @property
    def name(self) -> str:
        return f"layer{self.layer}-l0_{self.target_l0:g}-seed{self.seed}"


@dataclass(frozen=True)
class Table:
    """A comparison: these models on these layers and targets."""

    models: tuple[str, ...]
    places: tuple[tuple[int, float], ...] = ((3, 16),)

    def streams(self, seeds: int) -> list[Stream]:
        return [Stream(layer, target, seed) for layer, target in self.places for seed in range(seeds)]


TABLES = {
    "main": Table(("HSAE", "HSAE (paper)", "post hoc", MATRYOSHKA), ((3, 16), (1, 16), (5, 16), (3, 8), (3, 32))),
    "mechanisms": Table(("HSAE (paper)", "no constraint", "no perturbation", "post hoc")),
    "trees": Table(("HSAE (paper)", "full tree", "fixed tree", "binary tree")),
    "similarity": Table(("HSAE (paper)", "decoder cosine", "co-activation")),
    "tradeoff": Table(("HSAE (paper)", "post hoc", *TRADE_OFF)),
}


def minilm_activations(folder: Path) -> Callable[[int, int], torch.Tensor]:
    """A source for :func:`reproduce`: all-MiniLM-L6-v2 on WordNet's glosses, kept in ``folder`` once computed.

    Returns:
        (layer, tokens) → that many activations (tokens, 384) after a layer, shuffled, of mean norm √384.
    """

    def activations(layer: int, n_tokens: int) -> torch.Tensor:
        path = folder / f"layer{layer}-{n_tokens}tokens.safetensors"
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            unfinished = path.with_suffix(".unfinished")
            save_file({"x": _read_glosses(layer, n_tokens)}, unfinished)
            unfinished.rename(path)
        return load_file(path)["x"]

    return activations


def _read_glosses(layer: int, n_tokens: int) -> torch.Tensor:
    cfg = minilm_config(hook_name=f"bert.encoder.layer.{layer}")
    model = load_model(cfg.model_class_name, cfg.model_name, device="cpu", hook_names=[cfg.hook_name])
    tokenizer = AutoTokenizer.from_pretrained(cfg.model_name)
    rows = gloss_rows(read_wordnet(), tokenizer, CONTEXT_SIZE, separator_token=SPECIAL_TOKENS[-1])
    store = ActivationsStore.from_config(model, cfg, override_dataset=rows.dataset())
    parts, found = [], 0
    with tqdm(total=n_tokens, desc=f"Layer {layer} on WordNet's glosses", unit="tok") as progress:
        while found < n_tokens:
            parts.append(store.get_filtered_llm_batch())
            found += len(parts[-1])
            progress.update(min(found, n_tokens) - progress.n)
    x = torch.cat(parts)[torch.randperm(found, generator=torch.Generator().manual_seed(0))][:n_tokens]
    return x * (x.shape[1] ** 0.5 / x.norm(dim=1).mean())


def reproduce(
    table: str,
    activations: Callable[[int, int], torch.Tensor],
    folder: Path,
    steps: int = 1500,
    seeds: int = 3,
) -> list[dict[str, Any]]:
    """Train and measure the cells of a table that ``folder`` does not hold yet; all its cells in the end.

    Args:
        table: a name in ``TABLES``.
        activations: (layer, tokens) → that many activations (tokens, d_in), shuffled, of mean norm √d_in.
        folder: where finished cells are kept.
        steps: training steps of every model.
        seeds: how many; of the initial weights and of the order of the batches.

    Raises:
        ValueError: if there is no such table.
    """
    if table not in TABLES:
        raise ValueError(f"table={table!r}: choose one of {', '.join(TABLES)}")
    folder.mkdir(parents=True, exist_ok=True)
    cells = [(stream, model) for stream in TABLES[table].streams(seeds) for model in TABLES[table].models]
    results = []
    for stream, model in tqdm(cells, desc=f"Table {table}", unit="model"):
        path = folder / f"{stream.name}-{steps}steps-{_file_name(model)}.json"
        if not path.exists():
            x = activations(stream.layer, HELD_OUT + steps * BATCH_SIZE)
            result = {**asdict(stream), "steps": steps, "model": model, **measure(model, stream, x, steps)}
            unfinished = path.with_suffix(".unfinished")
            unfinished.write_text(json.dumps(result))
            unfinished.rename(path)
        results.append(json.loads(path.read_text()))
    return results


def measure(model: str, stream: Stream, x: torch.Tensor, steps: int) -> dict[str, Any]:
    """Train one model on all but the last ``HELD_OUT`` rows of ``x`` and measure it on those."""
    torch.manual_seed(stream.seed)
    sae = _new_sae(model, stream.target_l0, x.shape[1])
    train(sae, x[:-HELD_OUT], steps, stream.seed)
    held_out = x[-HELD_OUT:].split(BATCH_SIZE)
    if isinstance(sae, MatryoshkaBatchTopKTrainingSAE):
        groups, prefixes = groups_and_prefixes(inference_sae(sae), sae.cfg.matryoshka_widths)
        forest = FeatureForest.from_saes(groups)
        result = evaluate_forest(groups, forest, held_out).to_dict()
        # A group reconstructs only together with the coarser ones.
        of_prefixes = evaluate_forest(prefixes, _no_edges(prefixes), held_out).to_dict()
        for level, prefix in zip(result["levels"], of_prefixes["levels"], strict=True):
            level["variance_explained"] = prefix["variance_explained"]
        return result
    assert isinstance(sae, HierarchicalTrainingSAE)
    return evaluate_forest(sae, sae.forest, held_out).to_dict()


def train(sae: TrainingSAE[Any], x: torch.Tensor, steps: int, seed: int) -> None:
    """Train any SAELens SAE on rows of ``x`` with the paper's optimizer, in an order that the seed decides."""
    trainer_for(sae, _batches(x, seed), steps).fit()
    if isinstance(sae, HierarchicalTrainingSAE):
        sae.finish_training()


def trainer_for(sae: TrainingSAE[Any], batches: Iterator[torch.Tensor], steps: int) -> SAETrainer[Any, Any]:
    """SAELens' own trainer with the paper's optimizer, for ``steps`` batches of activations that are scaled already."""
    cfg = SAETrainerConfig(
        n_checkpoints=0,
        checkpoint_path=None,
        save_final_checkpoint=False,
        total_training_samples=steps * BATCH_SIZE,
        device=str(sae.device),
        autocast=False,
        lr_decay_steps=0,
        n_restart_cycles=1,
        train_batch_size_samples=BATCH_SIZE,
        dead_feature_window=100,
        feature_sampling_window=2000,
        logger=LoggingConfig(log_to_wandb=False),
        n_batches_for_norm_estimate=1,
        **paper_optimizer(steps, LEARNING_RATE),
    )
    return SAETrainer(cfg=cfg, sae=sae, data_provider=batches)


def _new_sae(model: str, target_l0: float, d_in: int) -> TrainingSAE[Any]:
    levels = Levels(WIDTHS)
    if model == MATRYOSHKA:
        return MatryoshkaBatchTopKTrainingSAE(
            MatryoshkaBatchTopKTrainingSAEConfig(
                d_in=d_in,
                d_sae=levels.n_features,
                k=target_l0 * len(levels),
                matryoshka_widths=list(levels.offsets[1:]),
            )
        )
    fields: dict[str, Any] = {
        "d_in": d_in,
        "d_sae": levels.n_features,
        "level_widths": list(WIDTHS),
        "target_l0": target_l0,
        "normalize_activations": "none",  # the stream is scaled already
    }
    return HierarchicalTrainingSAE(HierarchicalTrainingSAEConfig(**fields | (MODELS | TRADE_OFF)[model]))


def _batches(x: torch.Tensor, seed: int) -> Iterator[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    while True:
        for rows in torch.randperm(len(x), generator=generator)[: len(x) // BATCH_SIZE * BATCH_SIZE].split(BATCH_SIZE):
            yield x[rows]


def _no_edges(saes: list[Any]) -> FeatureForest:
    widths = [sae.cfg.d_sae for sae in saes]
    return FeatureForest(torch.full((sum(widths),), -1), widths)


def _file_name(model: str) -> str:
    return "".join(letter if letter.isalnum() or letter in ".=-" else "_" for letter in model)
