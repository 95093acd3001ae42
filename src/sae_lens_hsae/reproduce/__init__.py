"""Comparisons, one command each: the paper's tables on a real model, and forests judged by what is known to be true."""

from sae_lens_hsae.reproduce.models import BATCH_SIZE, trainer_for
from sae_lens_hsae.reproduce.paper_tables import TABLES, Size, reproduce
from sae_lens_hsae.reproduce.planted import reproduce_planted

__all__ = ["BATCH_SIZE", "TABLES", "Size", "reproduce", "reproduce_planted", "trainer_for"]
