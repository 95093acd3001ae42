"""Names for features."""

from sae_lens_hsae.interpret.labels.token_labels import distinctive_tokens, token_labels

__all__ = ["distinctive_tokens", "token_labels"]
