"""Activations from a known hierarchy of concepts, and how much of it a forest recovers."""

from experiments.planted.training import PlantedResult, compare
from experiments.planted.tree_recovery import TreeRecovery
from experiments.planted.trees import EASY, STANDARD, PlantedSetting, PlantedTrees, recover

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
