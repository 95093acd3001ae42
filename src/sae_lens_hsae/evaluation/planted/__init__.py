"""Activations from a known hierarchy of concepts, and how much of it a forest recovers."""

from sae_lens_hsae.evaluation.planted.training import PlantedResult, compare
from sae_lens_hsae.evaluation.planted.tree_recovery import TreeRecovery
from sae_lens_hsae.evaluation.planted.trees import EASY, STANDARD, PlantedSetting, PlantedTrees, recover

__all__ = [
    "EASY",
    "STANDARD",
    "PlantedResult",
    "PlantedSetting",
    "PlantedTrees",
    "TreeRecovery",
    "compare",
    "recover",
]
