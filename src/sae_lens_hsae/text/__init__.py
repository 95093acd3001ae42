"""Language models and the text they read."""
