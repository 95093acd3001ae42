# %% [markdown]
# # A forest for SAEs that you have
#
# Any SAEs of growing width that read the same activations can get a forest afterwards, by the rules that HSAE uses in
# training. It is the baseline against which a trained forest has to show what it is worth, and the way to look at Gemma
# Scope's widths as one forest (`examples/gemma_scope.py`). Here SAELens trains two small SAEs of its own first.

# %%
from collections.abc import Iterator
from dataclasses import replace

import torch
from sae_lens import SAE, BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
from sae_lens.config import SAETrainerConfig
from sae_lens.synthetic import HierarchyConfig, SyntheticModel, SyntheticModelConfig, ZipfianFiringProbabilityConfig
from sae_lens.training.sae_trainer import SAETrainer

from sae_lens_hsae import FeatureForest, evaluate_forest
from sae_lens_hsae.forest import PAPER_RULE
from sae_lens_hsae.forest.files import write_forest

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
# One call. By the paper's rule every fine feature takes the coarse one whose encoder direction is most similar; the
# fifth of them that is least similar to any stays unassigned.

# %%
forest = FeatureForest.from_saes(saes, PAPER_RULE)
print(forest)

# %% [markdown]
# ## Measure, and compare similarities
#
# What "similar" means is a choice. Directions need no data; the other two count on activations.

# %%
stream = activations()
measured = [next(stream) for _ in range(20)]
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
# Look at the last column before you choose by the others. Here it is the same for all, but on a language model parents
# by co-activation were a few frequent features that took most children
# ([results](../results.md#what-makes-a-parent-and-shapes-of-the-trees)),
# and a parent that is nearly always active agrees with any child.
#
# ## Keep it
#
# A post-hoc forest is a table of parents, so it is stored beside the SAEs, not in them.

# %%
write_forest(forest, "runs/forest.json")  # or .graphml, .csv
frame = evaluate_forest(saes, forest, measured).to_dataframe()
print(frame[["level", "width", "l0", "variance_explained", "p_parent_given_child"]])
