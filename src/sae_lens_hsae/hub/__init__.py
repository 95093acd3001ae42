"""What others need of a trained HSAE: a repository on the hub with its card, and the forest in other tools' formats."""

from sae_lens_hsae.hub.push import push

__all__ = ["push"]
