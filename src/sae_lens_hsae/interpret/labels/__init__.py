"""Names for features, and how well they say where a feature fires."""

from sae_lens_hsae.interpret.labels.detection import LabelDetection, label_detection
from sae_lens_hsae.interpret.labels.token_labels import distinctive_tokens, token_labels

__all__ = ["LabelDetection", "distinctive_tokens", "label_detection", "token_labels"]
