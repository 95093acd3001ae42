import pytest
from wordnet_helpers import tiny_synsets

from experiments.wordnet.database import WordNet


@pytest.fixture
def tiny() -> WordNet:
    """A WordNet in which every answer is known."""
    return WordNet(tiny_synsets())
