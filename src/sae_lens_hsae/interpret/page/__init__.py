"""The explorer page: a forest and its dashboards as one HTML file that needs no network."""

from sae_lens_hsae.interpret.page.circuits import circuit_section
from sae_lens_hsae.interpret.page.content import PageLimits
from sae_lens_hsae.interpret.page.page import PageSection, write_page
from sae_lens_hsae.text.token_text import TokenTexts, parting_tokens

__all__ = ["PageLimits", "PageSection", "TokenTexts", "circuit_section", "parting_tokens", "write_page"]
