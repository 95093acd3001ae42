# %% [markdown]
# # train_and_read

# %%
print(1)
