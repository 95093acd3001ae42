"""A language model behind an OpenAI-compatible endpoint names features and judges pairs of them."""

from sae_lens_hsae.interpret.language_model.endpoint import Endpoint, Replies, Request
from sae_lens_hsae.interpret.language_model.judging import Judgements, judge_pairs, sample_pairs
from sae_lens_hsae.interpret.language_model.naming import label_features

__all__ = ["Endpoint", "Judgements", "Replies", "Request", "judge_pairs", "label_features", "sample_pairs"]
