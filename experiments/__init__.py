"""Comparisons, one command each: the paper's tables on a real model, and forests judged by what is known to be true."""

from experiments.models import BATCH_SIZE, trainer_for
from experiments.paper_tables import TABLES, Size, reproduce
from experiments.planted_tables import reproduce_planted

__all__ = ["BATCH_SIZE", "TABLES", "Size", "reproduce", "reproduce_planted", "trainer_for"]
