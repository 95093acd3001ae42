"""Hierarchical sparse autoencoders (HSAE, arXiv 2602.11881) as an architecture of SAELens.

Importing this package registers the architecture ``"hsae"`` with SAELens.
"""

from sae_lens.registry import register_sae_class, register_sae_training_class

from sae_lens_hsae.config import ARCHITECTURE, HierarchicalSAEConfig, HierarchicalTrainingSAEConfig
from sae_lens_hsae.evaluation import evaluate_forest
from sae_lens_hsae.forest import FeatureForest, ParentRule
from sae_lens_hsae.sae.inference import HierarchicalSAE
from sae_lens_hsae.sae.training import HierarchicalTrainingSAE
from sae_lens_hsae.training.forest_log import ForestLogging
from sae_lens_hsae.training.runner import HierarchicalSAETrainingRunner
from sae_lens_hsae.training.trainer import HierarchicalSAETrainer

__version__ = "0.1.0"

__all__ = [
    "FeatureForest",
    "ForestLogging",
    "HierarchicalSAE",
    "HierarchicalSAEConfig",
    "HierarchicalSAETrainer",
    "HierarchicalSAETrainingRunner",
    "HierarchicalTrainingSAE",
    "HierarchicalTrainingSAEConfig",
    "ParentRule",
    "evaluate_forest",
]

register_sae_class(ARCHITECTURE, HierarchicalSAE, HierarchicalSAEConfig)
register_sae_training_class(ARCHITECTURE, HierarchicalTrainingSAE, HierarchicalTrainingSAEConfig)
