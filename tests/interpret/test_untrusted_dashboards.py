"""Dashboards that may come from anybody, finished and unfinished: whole, or a clear error."""

import pytest
import torch
from conftest import WIDTHS, make_sae
from hostile_files import (
    CLEAR,
    broken_tensors,
    check_message,
    fuzzed,
    memory_limited,
    whole_dashboards,
    with_one_broken,
)
from hypothesis import given
from hypothesis import strategies as st

from sae_lens_hsae import FeatureForest
from sae_lens_hsae.interpret.feature_cache import Dashboards
from sae_lens_hsae.interpret.feature_cache.resume import load_progress, save_progress
from sae_lens_hsae.interpret.feature_cache.statistics import FiringStatistics
from sae_lens_hsae.interpret.page.content import PageContent
from sae_lens_hsae.interpret.page.page import PageLimits


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


@pytest.fixture(scope="module")
def dashboards_folder(tmp_path_factory):
    return whole_dashboards(tmp_path_factory.mktemp("dashboards") / "whole")


def test_dashboards(dashboards_folder, scratch):
    assert Dashboards.load(dashboards_folder).n_features == sum(WIDTHS)

    @fuzzed
    @given(st.data())
    def check(data):
        with_one_broken(data, dashboards_folder, scratch / "dashboards", ["manifest.json", "dashboards.safetensors"])
        with memory_limited():
            try:
                dashboards = Dashboards.load(scratch / "dashboards")
            except CLEAR as error:
                check_message(error)
                return
            forest = FeatureForest(dashboards.parents, dashboards.level_widths)
            content = PageContent(dashboards, forest, str, {}, PageLimits())
            content.forest_block("title")
            list(content.feature_blocks())
            content.vocabulary_block()

    check()


def test_unfinished_collections(scratch):
    forest = make_sae().forest
    path, whole = scratch / "progress.safetensors", scratch / "progress-whole.safetensors"
    save_progress(whole, {"statistics": FiringStatistics(forest, torch.device("cpu"))}, {"version": 1})

    @fuzzed
    @given(broken_tensors(whole.read_bytes()))
    def check(content):
        path.write_bytes(content)
        statistics = FiringStatistics(forest, torch.device("cpu"))
        expected = {name: value.shape for name, value in vars(statistics).items() if isinstance(value, torch.Tensor)}
        with memory_limited():
            load_progress(path, {"statistics": statistics}, {"version": 1})
        for name, shape in expected.items():
            assert getattr(statistics, name).shape == shape

    check()
