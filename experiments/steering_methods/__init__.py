"""Methods from the literature that choose features to steer by, and did no better than those of the package."""

from experiments.steering_methods.sae_rsv import sae_rsv
from experiments.steering_methods.spare import spare
from experiments.steering_methods.srps import srps
from sae_lens_hsae.interpret.steering import difference_of_means, sta

METHODS = {"sta": sta, "spare": spare, "srps": srps, "sae-rsv": sae_rsv, "means": difference_of_means}
"""Those of the package and these, by name."""
