"""What features mean by WordNet's glosses, and whether children mean a part of what their parents mean."""

from sae_lens_hsae.evaluation.wordnet.concepts import FeatureConcepts, feature_concepts
from sae_lens_hsae.evaluation.wordnet.database import WordNet, read_wordnet
from sae_lens_hsae.evaluation.wordnet.judge import judge_forest
from sae_lens_hsae.evaluation.wordnet.report import ForestMeaning
from sae_lens_hsae.evaluation.wordnet.text import gloss_activations, gloss_rows

__all__ = [
    "FeatureConcepts",
    "ForestMeaning",
    "WordNet",
    "feature_concepts",
    "gloss_activations",
    "gloss_rows",
    "judge_forest",
    "read_wordnet",
]
