"""The forest: which feature is under which, and how it is written to files and shown in notebooks."""

from sae_lens_hsae.forest.concepts import Concepts, copies_of_parents
from sae_lens_hsae.forest.feature_forest import FeatureForest, validate_parents
from sae_lens_hsae.forest.levels import NO_PARENT
from sae_lens_hsae.forest.parents import PAPER_RULE, ParentRule

__all__ = [
    "NO_PARENT",
    "PAPER_RULE",
    "Concepts",
    "FeatureForest",
    "ParentRule",
    "copies_of_parents",
    "validate_parents",
]
