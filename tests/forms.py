"""The two forms of the activations between which a batch's density chooses."""

import pytest


@pytest.fixture(params=["dense", "entries"])
def form(request, monkeypatch):
    """The form that every batch of a test takes."""
    monkeypatch.setattr("sae_lens_hsae.sae.forms.MAX_DENSITY", {"dense": -1.0, "entries": 1.0}[request.param])
    return request.param


both_forms = pytest.mark.usefixtures("form")
"""For what holds in either form."""

one_form = pytest.mark.parametrize("form", ["entries"], indirect=True)
"""For what has the same activations in any form, or does not choose one."""
