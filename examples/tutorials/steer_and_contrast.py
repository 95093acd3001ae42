# %% [markdown]
# # Find what differs between texts, and steer it
#
# The model is a small transformer with random weights and the texts are random numbers, so that this needs no network.
# With a model from the hub only the first cell differs: `model_name="gpt2"` and a `dataset_path` in the config, then
# `load_language_model(sae)` and texts in place of tokens.

# %%
import torch
from datasets import Dataset
from sae_lens import SAE, HookedSAETransformer, LanguageModelSAERunnerConfig, LoggingConfig
from transformer_lens import HookedTransformerConfig

from sae_lens_hsae import HierarchicalSAE, HierarchicalSAETrainingRunner, HierarchicalTrainingSAEConfig
from sae_lens_hsae.cli.showcase import paper_optimizer
from sae_lens_hsae.interpret.contrast import contrast
from sae_lens_hsae.interpret.steering import ablate, add, effect_of, steer

D_MODEL, VOCABULARY, CONTEXT = 32, 60, 16
BATCH, STEPS = 512, 300
HOOK = "blocks.0.hook_resid_post"

torch.manual_seed(0)
model = HookedSAETransformer(
    HookedTransformerConfig(
        n_layers=2,
        d_model=D_MODEL,
        n_ctx=CONTEXT,
        d_head=16,
        n_heads=2,
        d_mlp=64,
        act_fn="gelu",
        d_vocab=VOCABULARY,
        init_weights=True,
        initializer_range=0.3,
        seed=0,
    )
)
texts = torch.randint(VOCABULARY, (2000, CONTEXT))

# %% [markdown]
# ## Train
#
# The runner is SAELens', with checkpoints that resume exactly. It gets the model and the tokens directly here.

# %%
cfg = LanguageModelSAERunnerConfig(
    sae=HierarchicalTrainingSAEConfig(
        d_in=D_MODEL,
        d_sae=112,
        level_widths=[16, 32, 64],
        target_l0=3,
        minimum_similarity=0.2,
        hierarchy_first_update=STEPS // 2,
    ),
    model_name="gpt2",  # not loaded: the model is given below
    hook_name=HOOK,
    dataset_path="",
    is_dataset_tokenized=True,
    prepend_bos=False,
    context_size=CONTEXT,
    training_tokens=STEPS * BATCH,
    train_batch_size_tokens=BATCH,
    store_batch_size_prompts=32,
    n_batches_in_buffer=64,
    n_batches_for_norm_estimate=5,
    dead_feature_window=100,
    device="cpu",
    output_path="runs/steering",
    checkpoint_path=None,
    verbose=False,
    logger=LoggingConfig(log_to_wandb=False),
    **paper_optimizer(STEPS, lr=1e-2),
)
dataset = Dataset.from_dict({"tokens": texts.tolist()})
HierarchicalSAETrainingRunner(cfg, override_model=model, override_dataset=dataset).run()

sae = SAE.load_from_disk("runs/steering")
assert isinstance(sae, HierarchicalSAE)
forest = sae.forest
print(forest)

# %% [markdown]
# ## Contrast
#
# Two sets of texts that differ in one thing: in the first, every fourth token is 7. Which features tell them apart? A
# text counts once, the p-values are corrected for the number of features, and features linked by edges are one finding,
# from the coarsest feature that shows the difference to the finest that holds it.

# %%
a, b = texts[:100].clone(), texts[100:200]
a[:, ::4] = 7


def read(tokens: torch.Tensor) -> torch.Tensor:
    """Activations at the SAE's hook point, (texts, CONTEXT, D_MODEL)."""
    with torch.no_grad():
        return model.run_with_cache(tokens, names_filter=HOOK)[1][HOOK]


result = contrast(sae, forest, list(read(a)), list(read(b)))
for finding in result.findings[:5]:
    more = "more" if finding.more_in_a else "less"
    path = " → ".join(map(forest.levels.name, finding.path))
    print(f"{more} in the first set: {path}, {finding.n_features} features in all")
print(result.to_frame().sort_values("q_value").head())

# %% [markdown]
# ## Steer
#
# Remove what was found, and its whole subtree, while the model runs, and see how far that goes. Steering moves the
# activation by the change of the feature alone: what the SAE does not reconstruct stays as it was. Only features that
# fire can be removed.

# %%
found = max((finding for finding in result.findings if finding.more_in_a), key=lambda finding: len(finding.path))
logits = model(a).detach()
with torch.no_grad(), steer(model, sae, [ablate(found.finest)]):
    without = model(a)
print(
    f"without {forest.levels.name(found.finest)} the logits change by {(without - logits).norm() / logits.norm():.2%}"
)

for feature in found.path:
    effect = effect_of(model, sae, [add(feature, 2.0)], a, target=found.finest)
    print(
        f"pushing {forest.levels.name(feature)}: KL {effect.kl_on:.3f} on the tokens that "
        f"{forest.levels.name(found.finest)} fires on, {effect.kl_off:.3f} on the others; "
        f"{effect.family_share:.0%} of the change of all features is in that feature's ancestors and subtree"
    )

# %% [markdown]
# A random model means nothing by its features, so read no more into the numbers than that the tools work. On a real
# one, compare the push of a fine feature with that of its parent, of the same norm: how much of the effect is off
# target?
