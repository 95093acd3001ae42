"""An explorer page of a small forest whose tokens are hostile text, and a browser that has it open: fixtures."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from chromium import Browser
from small_saes import D_IN, WIDTHS, make_sae

from sae_lens_hsae import FeatureForest, HierarchicalTrainingSAE
from sae_lens_hsae.interpret.explain import Explanation
from sae_lens_hsae.interpret.feature_cache import Dashboards, DashboardSettings, collect_dashboards
from sae_lens_hsae.interpret.page import PageLimits, write_page

LONG = "x" * 10_000
HOSTILE = [
    " plain",
    " </script><script>window.ran = 1</script>",
    " <img src=x onerror='window.ran = 2'>",
    " \u202eright\u202c to left",
    " \x00\x07\x1b[31m",
    LONG,
    " \"'&amp;`${window.ran = 3}",
    " \ud800 lone",
    "שלום",
    "\n",
    " javascript:window.ran=4",
    " %zz",
]
LABELS = {2: "a label with <b>markup</b> & </script>", 5: "\u202egnirts"}
N_LEVELS = len(WIDTHS)


def stream(n: int = 60) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """One batch of hostile tokens (n, 20) with random activations."""
    generator = torch.Generator().manual_seed(1)
    return [(torch.randint(len(HOSTILE), (n, 20), generator=generator), torch.randn(n, 20, D_IN, generator=generator))]


def name_of(forest: FeatureForest, feature: int) -> str:
    """As the page has it, by a formula of its own."""
    level = int(forest.levels.level_of(torch.tensor(feature)))
    return f"{level}/{feature - forest.levels.offsets[level]}"


def leaf_of_all_levels(forest: FeatureForest) -> int:
    """A feature of the finest level with an ancestor at every other."""
    return next(f for f in range(sum(WIDTHS[:-1]), forest.n_features) if len(forest.path(f)) == N_LEVELS)


@pytest.fixture(scope="session")
def hostile_sae() -> HierarchicalTrainingSAE:
    sae = make_sae(seed=3)
    sae.threshold.data[-1] = 1e9  # the last feature never fires
    return sae


@pytest.fixture(scope="session")
def hostile_dashboards(hostile_sae: HierarchicalTrainingSAE) -> Dashboards:
    unembedding = torch.randn(D_IN, len(HOSTILE), generator=torch.Generator().manual_seed(0))
    settings = DashboardSettings(window=12, n_top=6, n_sampled=3)
    forest = hostile_sae.forest
    return collect_dashboards(hostile_sae, forest, stream(), settings=settings, unembedding=unembedding, progress=False)


@pytest.fixture(scope="session")
def hostile_text(hostile_sae: HierarchicalTrainingSAE) -> Explanation:
    """The hostile tokens as a text; the first is left out, and nothing fires on the last."""
    acts = hostile_sae.encode(stream()[0][1][0, : len(HOSTILE)]).detach()
    acts[0] = acts[-1] = 0
    positions, features = (acts > 0).nonzero(as_tuple=True)
    parents = hostile_sae.forest.parents[features]
    generator = torch.Generator().manual_seed(4)
    return Explanation(
        forest=hostile_sae.forest,
        text="".join(HOSTILE),
        tokens=tuple(HOSTILE),
        level_shares=torch.linspace(-0.5, 1, len(HOSTILE) * N_LEVELS).double().view(-1, N_LEVELS),
        positions=positions,
        features=features,
        activations=acts[positions, features],
        shares=torch.rand(len(features), generator=generator).double() - 0.2,
        without_parent=(parents >= 0) & (acts[positions, parents.clamp(min=0)] == 0),
        outlying=(0,),
    )


@pytest.fixture(scope="session")
def hostile_page(
    hostile_dashboards: Dashboards, hostile_text: Explanation, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    path = tmp_path_factory.mktemp("page") / "explorer.html"
    limits, title = PageLimits(features_per_block=7), "Forest <1> & “2”"
    forest, text_of = hostile_text.forest, HOSTILE.__getitem__
    return write_page(hostile_dashboards, forest, path, text_of, LABELS, title, limits, [hostile_text])


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """One Chromium for all tests."""
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.driver.quit()


@pytest.fixture
def opened(browser: Browser, hostile_page: Path) -> Browser:
    """The hostile page, as somebody sees it who opens it for the first time."""
    return browser.anew(hostile_page)
