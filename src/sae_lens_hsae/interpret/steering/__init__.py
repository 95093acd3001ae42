"""Pushing, scaling, clamping and removing features of any level while a language model runs."""

from sae_lens_hsae.interpret.steering.edits import Edit, ablate, add, clamp, scale
from sae_lens_hsae.interpret.steering.effects import Effect, effect_of
from sae_lens_hsae.interpret.steering.steer import steer

__all__ = ["Edit", "Effect", "ablate", "add", "clamp", "effect_of", "scale", "steer"]
