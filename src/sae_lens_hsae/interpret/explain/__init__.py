"""Reading one text: which paths of the forest are active on each token, and how much of the activation they explain."""

from sae_lens_hsae.interpret.explain.explain import explain
from sae_lens_hsae.interpret.explain.explanation import Explanation

__all__ = ["Explanation", "explain"]
