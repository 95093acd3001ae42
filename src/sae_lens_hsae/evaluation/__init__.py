"""Measures of a hierarchy of features. They need a stack of levels and a `FeatureForest`, however those were made."""

from sae_lens_hsae.evaluation.hierarchy_metrics import (
    BoundaryEvaluation,
    ForestEvaluation,
    LevelEvaluation,
    evaluate_forest,
    level_saes,
)

__all__ = ["BoundaryEvaluation", "ForestEvaluation", "LevelEvaluation", "evaluate_forest", "level_saes"]
