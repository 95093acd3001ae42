"""Flat numbering of the features of a stack of levels."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_lens_hsae.forest.levels import Levels

WIDTHS = st.lists(st.integers(1, 40), min_size=1, max_size=5, unique=True).map(lambda w: tuple(sorted(w)))


@settings(deadline=None)
@given(WIDTHS)
def test_every_feature_is_in_exactly_one_level(widths: tuple[int, ...]):
    levels = Levels(widths)
    flat = [levels.named(f"{level}/{feature}") for level, width in enumerate(widths) for feature in range(width)]
    assert flat == list(range(levels.n_features))
    levels_of = [[i] for i, width in enumerate(widths) for _ in range(width)]
    assert levels.level_of(torch.tensor(flat)[:, None]).tolist() == levels_of


@pytest.mark.parametrize("level", [3, -4])
def test_a_slice_is_of_a_level_that_exists(level: int):
    levels = Levels((2, 3, 5))
    assert levels[-1] == levels[2] == slice(5, 10)
    with pytest.raises(IndexError, match=f"level {level} does not exist; choose one from 0 to 2"):
        levels[level]


def test_split_gives_views_of_the_last_dimension():
    values = torch.arange(20).reshape(2, 10)
    parts = Levels((2, 3, 5)).split(values)
    assert [tuple(part.shape) for part in parts] == [(2, 2), (2, 3), (2, 5)]
    assert torch.equal(torch.cat(parts, dim=-1), values)
    parts[1][0, 0] = -1
    assert values[0, 2] == -1


def test_names_are_read_as_they_are_written():
    levels = Levels((2, 3, 5))
    names = [f"{level}/{number}" for level, width in enumerate(levels.widths) for number in range(width)]
    assert [levels.name(feature) for feature in range(10)] == names
    assert [levels.named(name) for name in names] == list(range(10))
    for name, message in (("2/5", "feature 5 is not in level 2, which has 5"), ("3/0", "level 3 does not exist")):
        with pytest.raises(IndexError, match=message):
            levels.named(name)
    for name in ("", "4", "0/", "/1", "-1/0", "0/1/0", "a/b", "0/²"):
        with pytest.raises(ValueError, match="write level/number"):
            levels.named(name)


@pytest.mark.parametrize(
    ("widths", "fault"),
    [
        ((), "is empty"),
        ((2, 0), "holds 0, which is not a positive whole number"),
        ((True, 3), "holds True"),
        ((2, "3"), "holds '3'"),
        ((4, 4), r"level_widths=\[4, 4\] is not strictly increasing \(4 is followed by 4\)"),
    ],
)
def test_invalid_widths_are_named_with_an_example(widths: tuple[int, ...], fault: str):
    with pytest.raises(ValueError, match=fault) as error:
        Levels(widths)
    assert "for example level_widths=[2048, 4096, 8192, 16384]" in str(error.value)
