"""Everything from training to the explorer page in seconds, without a network: a random GPT-2 of 16 dimensions.

Run it with `python examples/tiny.py runs/tiny`. Nothing can be learned about language from it; it shows the calls, and
that an installation works.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from sae_lens import SAE, LanguageModelSAERunnerConfig, LanguageModelSAETrainingRunner, LoggingConfig
from transformer_lens import HookedTransformer, HookedTransformerConfig

from sae_lens_hsae import HierarchicalSAE, HierarchicalTrainingSAEConfig, evaluate_forest
from sae_lens_hsae.forest.files import write_forest
from sae_lens_hsae.interpret.feature_cache import collect_dashboards
from sae_lens_hsae.interpret.page import write_page

VOCABULARY, CONTEXT, D_MODEL = 100, 32, 16
WIDTHS = [8, 16, 32]
BATCH, STEPS = 64, 30


def model() -> HookedTransformer:
    return HookedTransformer(
        HookedTransformerConfig(
            n_layers=1,
            d_model=D_MODEL,
            n_ctx=CONTEXT,
            d_head=8,
            n_heads=2,
            d_mlp=32,
            act_fn="gelu",
            d_vocab=VOCABULARY,
            device="cpu",
            seed=0,
        )
    )


def config(output_path: str) -> LanguageModelSAERunnerConfig[Any]:
    return LanguageModelSAERunnerConfig(
        sae=HierarchicalTrainingSAEConfig(
            d_in=D_MODEL, d_sae=sum(WIDTHS), level_widths=WIDTHS, target_l0=3, hierarchy_first_update=5
        ),
        model_name="tiny",
        hook_name="blocks.0.hook_resid_post",
        context_size=CONTEXT,
        prepend_bos=False,
        training_tokens=STEPS * BATCH,
        train_batch_size_tokens=BATCH,
        store_batch_size_prompts=4,
        n_batches_in_buffer=4,
        n_batches_for_norm_estimate=3,
        lr=3e-3,
        device="cpu",
        output_path=output_path,
        checkpoint_path=None,
        logger=LoggingConfig(log_to_wandb=False),
        verbose=False,
        model_from_pretrained_kwargs={},
    )


def main(folder: Path) -> None:
    torch.manual_seed(0)
    tokens = torch.randint(0, VOCABULARY, (300, CONTEXT))
    cfg = config(str(folder))
    runner = LanguageModelSAETrainingRunner(
        cfg, override_model=model(), override_dataset=Dataset.from_dict({"tokens": tokens.tolist()})
    )
    runner.run()

    sae = SAE.load_from_disk(folder)
    assert isinstance(sae, HierarchicalSAE)
    read = tokens[:40]
    with torch.no_grad():
        _, cache = model().run_with_cache(read, names_filter=[cfg.hook_name])
    x = cache[cfg.hook_name]
    print(evaluate_forest(sae, sae.forest, x.flatten(0, 1)))

    dashboards = collect_dashboards(sae, sae.forest, [(read, x)])
    page = write_page(dashboards, sae.forest, folder / "explorer.html", lambda token: f" t{token}", title="tiny")
    print(f"{page} and {write_forest(sae.forest, folder / 'forest.json')} are written")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
