"""Several processes that train one SAE."""
