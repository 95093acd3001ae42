"""What features mean: the tokens they fire on."""

from sae_lens_hsae.interpret.typical_tokens import typical_tokens

__all__ = ["typical_tokens"]
