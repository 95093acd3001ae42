"""Feature dashboards: what every feature fires on, computed in one pass over text and stored beside the model."""

from sae_lens_hsae.interpret.feature_cache.collect import collect_dashboards, dashboards_folder
from sae_lens_hsae.interpret.feature_cache.format import Dashboards, DashboardSettings, fingerprint

__all__ = [
    "DashboardSettings",
    "Dashboards",
    "collect_dashboards",
    "dashboards_folder",
    "fingerprint",
]
