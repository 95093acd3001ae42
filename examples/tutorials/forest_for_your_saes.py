# %% [markdown]
# # forest_for_your_saes

# %%
print(1)
