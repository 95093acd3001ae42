# %% [markdown]
# # steer_and_contrast

# %%
print(1)
