"""Which features differ between two sets of texts, and at which granularity."""

from sae_lens_hsae.interpret.contrast.compare import Contrast, contrast, text_activations
from sae_lens_hsae.interpret.contrast.findings import Finding

__all__ = ["Contrast", "Finding", "contrast", "text_activations"]
