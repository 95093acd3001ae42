"""Names for features, and how well they say where a feature fires."""

from sae_lens_hsae.interpret.labels.detection import LabelDetection, label_detection
from sae_lens_hsae.interpret.labels.files import read_labels
from sae_lens_hsae.interpret.labels.token_labels import token_labels

__all__ = ["LabelDetection", "label_detection", "read_labels", "token_labels"]
