"""Measures of a hierarchy of features. They need a stack of levels and a `FeatureForest`, however those were made."""

from sae_lens_hsae.evaluation.cross_entropy import cross_entropy_recovered
from sae_lens_hsae.evaluation.hierarchy_metrics import evaluate_forest
from sae_lens_hsae.evaluation.records import BoundaryEvaluation, LevelEvaluation
from sae_lens_hsae.evaluation.results import ForestEvaluation
from sae_lens_hsae.evaluation.stability import EdgeAgreement, seed_stability, shared_edges
from sae_lens_hsae.evaluation.stacks import level_saes

__all__ = [
    "BoundaryEvaluation",
    "EdgeAgreement",
    "ForestEvaluation",
    "LevelEvaluation",
    "cross_entropy_recovered",
    "evaluate_forest",
    "level_saes",
    "seed_stability",
    "shared_edges",
]
