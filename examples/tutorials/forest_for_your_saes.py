# %% [markdown]
# # A forest for SAEs that you have
#
# Any SAEs of growing width that read the same activations can get a forest afterwards, by the rules that HSAE uses in
# training. It is the baseline against which a trained forest has to show what it is worth, and the way to look at Gemma
# Scope's widths as one forest. `examples/gemma_scope.py` does that with a language model; here SAELens trains two small
# SAEs on made-up activations first.

# %%
from collections.abc import Iterator
from dataclasses import replace

import torch
from sae_lens import SAE, BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
from sae_lens.config import SAETrainerConfig
from sae_lens.synthetic import HierarchyConfig, SyntheticModel, SyntheticModelConfig, ZipfianFiringProbabilityConfig
from sae_lens.training.sae_trainer import SAETrainer

from sae_lens_hsae import FeatureForest, HierarchicalSAE, evaluate_forest
from sae_lens_hsae.forest import PAPER_RULE

D_IN, BATCH, STEPS = 64, 1024, 200
torch.manual_seed(0)
concepts = SyntheticModel(
    SyntheticModelConfig(
        num_features=120,
        hidden_dim=D_IN,
        firing_probability=ZipfianFiringProbabilityConfig(exponent=0.5, max_prob=0.2, min_prob=0.02),
        hierarchy=HierarchyConfig(total_root_nodes=12, branching_factor=4, max_depth=1),
        seed=0,
    )
)


def activations() -> Iterator[torch.Tensor]:
    """Batches (BATCH, D_IN) without end."""
    while True:
        yield concepts.sample(BATCH)


def train(width: int) -> SAE:
    """SAELens' BatchTopK, as it is saved and loaded: a JumpReLU SAE."""
    sae = BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(d_in=D_IN, d_sae=width, k=6))
    cfg = SAETrainerConfig(
        total_training_samples=STEPS * BATCH,
        train_batch_size_samples=BATCH,
        lr=5e-3,
        lr_end=0.0,
        lr_decay_steps=STEPS // 2,
        n_batches_for_norm_estimate=1,
    )
    SAETrainer(cfg=cfg, sae=sae, data_provider=activations()).fit()
    sae.save_inference_model(f"runs/width_{width}")
    return SAE.load_from_disk(f"runs/width_{width}")


saes = [train(32), train(128)]

# %% [markdown]
# ## Assign
#
# One call, which counts on activations what fires together. A fine feature takes, of the coarse ones that fire at least
# as often, that with the highest P(parent | child) − 2 P(parent), and none if that is below 0.25. With a language model
# count on 50,000 tokens, as the package's own experiments do.

# %%
stream = activations()
measured = [next(stream) for _ in range(20)]
forest = FeatureForest.from_saes(saes, activations=measured)
print(forest)

# %% [markdown]
# ## Measure, and compare similarities
#
# What "similar" means is a choice. The paper's rule compares encoder directions and leaves the fifth of the features
# without a parent that is least similar to any. It needs no data, but on Gemma 3 270M 81 of a hundred of its edges over
# JumpReLU SAEs read as unrelated. Here is its quota with every similarity.

# %%
print(evaluate_forest(saes, forest, measured))

for similarity in ("encoder", "decoder", "coactivation", "conditional"):
    rule = replace(PAPER_RULE, similarity=similarity)
    other = FeatureForest.from_saes(saes, rule, measured)
    boundary = evaluate_forest(saes, other, measured).boundaries[0]
    print(
        f"{similarity:>12}: Hamming {boundary.hamming:.2f}, P(parent | child) {boundary.p_parent_given_child:.2f}, "
        f"most children of a parent {boundary.max_children}"
    )

# %% [markdown]
# Look at the last column before you choose by the others. Here it differs little, but on a language model parents by
# co-activation were a few frequent features that took most children
# ([results](../results.md#what-makes-a-parent-and-shapes-of-the-trees)),
# and a parent that is nearly always active agrees with any child.
#
# ## Keep it
#
# `HierarchicalSAE.from_saes` makes one HSAE of JumpReLU or ReLU SAEs and their forest; level i encodes and decodes as
# `saes[i]` does. Every command takes the folder that it is saved to: `hsae convert` writes the forest as a file, and
# where the SAEs name their language model, `hsae explore`, `label`, `judge`, `steer` and the others read text with it.
# For SAEs of other architectures keep the table of parents: `write_forest(forest, "forest.json")`, from
# `sae_lens_hsae.forest.files`.

# %%
HierarchicalSAE.from_saes(saes, forest).save_model("runs/own")
frame = evaluate_forest(saes, forest, measured).to_dataframe()
print(frame[["level", "width", "l0", "variance_explained", "p_parent_given_child"]])
