"""What features mean by WordNet's glosses, and whether children mean a part of what their parents mean."""

from experiments.wordnet.concepts import FeatureConcepts, feature_concepts
from experiments.wordnet.database import WordNet, read_wordnet
from experiments.wordnet.judge import judge_forest
from experiments.wordnet.report import ForestMeaning
from experiments.wordnet.text import gloss_activations, gloss_rows

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
