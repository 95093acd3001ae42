"""The training step on a GPU: `FeatureRows`, the activations of a batch in full with one row per feature.

Its tensor cores form a product with all rows of a decoder in the time in which its memory gives out half a percent of
them one by one, so at L0 50 of thousands of features the dense products are the fast ones, and what is saved is
everything around them: passes over all activations, copies, and waiting. `docs/performance.md` has the arithmetic.
"""
