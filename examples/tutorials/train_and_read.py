# %% [markdown]
# # Train a small forest and read it
#
# The activations here are made up, so that it is known what a forest should find: 8 topics, each with 4 subjects. On a
# token each topic is present with probability 0.15, and with it exactly one of its subjects.

# %%
from collections.abc import Iterator

import torch
from sae_lens.config import SAETrainerConfig
from sae_lens.training.sae_trainer import SAETrainer

from sae_lens_hsae import HierarchicalSAE, HierarchicalTrainingSAE, HierarchicalTrainingSAEConfig, evaluate_forest
from sae_lens_hsae.cli.showcase import paper_optimizer

D_IN, TOPICS, SUBJECTS = 64, 8, 4
BATCH, STEPS = 1024, 600

generator = torch.Generator().manual_seed(0)
topics = torch.nn.functional.normalize(torch.randn(TOPICS, D_IN, generator=generator), dim=-1)
subjects = torch.nn.functional.normalize(torch.randn(TOPICS * SUBJECTS, D_IN, generator=generator), dim=-1)


def activations() -> Iterator[torch.Tensor]:
    """Batches (BATCH, D_IN) without end."""
    while True:
        present = torch.rand(BATCH, TOPICS, generator=generator) < 0.15
        strength = 1 + torch.rand(BATCH, TOPICS, generator=generator)
        chosen = torch.randint(SUBJECTS, (BATCH, TOPICS), generator=generator)
        subject = torch.nn.functional.one_hot(chosen, SUBJECTS) * (present * strength)[..., None]
        noise = 0.05 * torch.randn(BATCH, D_IN, generator=generator)
        yield (present * strength) @ topics + subject.flatten(1).float() @ subjects + noise


# %% [markdown]
# ## Train
#
# Two levels, as wide as there are topics and subjects. L̂0 is what is present on a token: 8 · 0.15 of either. Any of
# SAELens' trainers takes the SAE; this is the plain one, with the paper's optimizer. On a language model, SAELens'
# runner or `hsae train` builds all of this from one config.

# %%
torch.manual_seed(0)
cfg = HierarchicalTrainingSAEConfig(
    d_in=D_IN,
    d_sae=TOPICS + TOPICS * SUBJECTS,
    level_widths=[TOPICS, TOPICS * SUBJECTS],
    target_l0=TOPICS * 0.15,
)
sae = HierarchicalTrainingSAE(cfg)
trainer_cfg = SAETrainerConfig(
    total_training_samples=STEPS * BATCH,
    train_batch_size_samples=BATCH,
    dead_feature_window=100,
    n_batches_for_norm_estimate=10,
    **paper_optimizer(STEPS, lr=2e-2),
)
SAETrainer(cfg=trainer_cfg, sae=sae, data_provider=activations()).fit()
sae.save_inference_model("runs/tutorial")

# %% [markdown]
# ## Load and measure
#
# A `HierarchicalSAE` is a stack of levels and a forest. SAELens' own `SAE.load_from_disk` gives the same.

# %%
forest_sae = HierarchicalSAE.load_from_disk("runs/tutorial")
forest = forest_sae.forest
print(forest)

stream = activations()
evaluation = evaluate_forest(forest_sae, forest, (next(stream) for _ in range(20)))
print(evaluation)

# %% [markdown]
# Read from the top. *L0* should be the target and *dead* 0. *Variance explained* of the coarse level is lower: eight
# directions cannot tell the subjects apart. *P(parent | child)* near 1 says that a child hardly fires without its
# parent; *P(child | parent)* is near 1/4 at best, since each topic has four subjects.
#
# ## Is it true?
#
# Agreement is not truth, so compare with what was planted: a feature stands for the topic or subject whose direction is
# nearest to its own. A coarse feature that has learnt a topic points at the topic plus the mean of its subjects. Even
# here, where the widths fit and every concept is as frequent as the next, not every topic has a feature of its own and
# not every edge is true, although the metrics look good.

# %%
roots, fine = forest_sae.W_dec.detach().split([TOPICS, TOPICS * SUBJECTS])
of_topic = topics + subjects.view(TOPICS, SUBJECTS, D_IN).mean(1)
of_subject = topics.repeat_interleave(SUBJECTS, 0) + subjects
cosine = torch.nn.functional.cosine_similarity
topic_of = cosine(roots[:, None], of_topic[None], dim=-1).argmax(-1)
subject_of = cosine(fine[:, None], of_subject[None], dim=-1).argmax(-1)

edges = forest.edges()
true = topic_of[edges[:, 0]] == subject_of[edges[:, 1] - TOPICS] // SUBJECTS
print(
    f"{len(topic_of.unique())} of {TOPICS} topics and {len(subject_of.unique())} of {TOPICS * SUBJECTS} subjects found"
)
print(f"{true.float().mean():.0%} of {len(edges)} edges lead from a topic to one of its own subjects")

root = int(forest.n_children.argmax())
print(f"feature {root} stands for topic {int(topic_of[root])}; its children stand for subjects", end=" ")
print([int(subject_of[child - TOPICS]) for child in forest.children(root)])

# %% [markdown]
# Real activations have no such answer. `experiments.planted` has larger planted trees with correlated
# concepts of unequal frequency, on which forests are much harder to find.
