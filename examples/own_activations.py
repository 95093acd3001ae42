"""A forest of activations of your own, without a language model: from one array to the explorer page.

    python examples/own_activations.py                                   # made-up animals, half a minute
    python examples/own_activations.py activations.npy names.txt runs/mine

`activations.npy` holds one row per item (n, d_in): image embeddings, cells, sentences, anything. `names.txt` holds one
line per item. Features then show the items on which they fire. For a large array adapt `WIDTHS`, `L0` and `STEPS`.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from sae_lens.config import SAETrainerConfig
from sae_lens.training.sae_trainer import SAETrainer

from sae_lens_hsae import HierarchicalSAE, HierarchicalTrainingSAE, HierarchicalTrainingSAEConfig, evaluate_forest
from sae_lens_hsae.cli.showcase import paper_optimizer
from sae_lens_hsae.interpret.feature_cache import DashboardSettings, collect_dashboards
from sae_lens_hsae.interpret.labels import token_labels
from sae_lens_hsae.interpret.page import write_page

WIDTHS, L0 = [4, 16, 48], [1.0, 1.0, 2.0]
BATCH, STEPS = 512, 600
KINDS = {
    "bird": ["owl", "wren", "heron", "swift"],
    "fish": ["trout", "eel", "perch", "ray"],
    "insect": ["bee", "moth", "ant", "wasp"],
    "mammal": ["fox", "otter", "bat", "hare"],
}


def made_up(n: int = 8000, d_in: int = 48) -> tuple[torch.Tensor, list[str]]:
    """Animals: each the direction of its family, plus that of its kind, plus that of one of three colours."""
    generator = torch.Generator().manual_seed(0)
    families, kinds, colours = (
        torch.nn.functional.normalize(torch.randn(count, d_in, generator=generator), dim=1) for count in (4, 16, 3)
    )
    kind = torch.randint(16, (n,), generator=generator)
    colour = torch.randint(3, (n,), generator=generator)
    x = 2 * families[kind // 4] + 1.5 * kinds[kind] + colours[colour] + 0.05 * torch.randn(n, d_in, generator=generator)
    words = [word for members in KINDS.values() for word in members]
    return x, [words[k] for k in kind.tolist()]


def shuffled(x: torch.Tensor) -> Iterator[torch.Tensor]:
    """Batches of rows without end."""
    while True:
        yield x[torch.randint(len(x), (BATCH,))]


def train(x: torch.Tensor, folder: Path) -> HierarchicalSAE:
    """Train with SAELens' trainer, save, and load again."""
    torch.manual_seed(0)
    cfg = HierarchicalTrainingSAEConfig(d_in=x.shape[1], d_sae=sum(WIDTHS), level_widths=WIDTHS, target_l0=L0)
    sae = HierarchicalTrainingSAE(cfg)
    trainer = SAETrainerConfig(
        total_training_samples=STEPS * BATCH,
        train_batch_size_samples=BATCH,
        dead_feature_window=100,
        n_batches_for_norm_estimate=10,
        **paper_optimizer(STEPS, lr=1e-2),
    )
    SAETrainer(cfg=trainer, sae=sae, data_provider=shuffled(x)).fit()
    sae.save_inference_model(folder)
    return HierarchicalSAE.load_from_disk(folder)


def main(x: torch.Tensor, names: list[str], folder: Path) -> None:
    # Shuffle: if rows are sorted, the first batches are not typical, and training takes its scale from them.
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    x, names = x[order], [names[i] for i in order.tolist()]
    sae = train(x, folder)
    print(evaluate_forest(sae, sae.forest, x.split(BATCH)))

    # Every item is a context of one token, whose text is the item's name; items of one name are one token.
    number = {name: i for i, name in enumerate(dict.fromkeys(names))}
    ids = torch.tensor([number[name] for name in names])[:, None]
    settings = DashboardSettings(window=1, min_token_count=1)
    batches = zip(ids.split(BATCH), x[:, None].split(BATCH), strict=True)
    dashboards = collect_dashboards(sae, sae.forest, batches, settings=settings)
    texts = list(number)
    labels = token_labels(dashboards, texts.__getitem__)
    page = write_page(dashboards, sae.forest, folder / "explorer.html", texts.__getitem__, labels, folder.name)
    print(f"Open {page.resolve().as_uri()}")


if __name__ == "__main__":
    if len(sys.argv) == 4:
        rows = torch.from_numpy(np.load(sys.argv[1])).float()
        main(rows, Path(sys.argv[2]).read_text(encoding="utf-8").splitlines(), Path(sys.argv[3]))
    else:
        main(*made_up(), Path("runs/animals"))
