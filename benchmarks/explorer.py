"""Size and speed of the explorer page, and memory of the pass that collects its dashboards, at the paper's size.

    python benchmarks/explorer.py                      # 30,720 features, 1M synthetic tokens; takes long
    python benchmarks/explorer.py --n-tokens 50000     # the page's figures change little, memory not at all
    python benchmarks/explorer.py --page runs/demo/explorer.html --widths 64 256 1024     # a page that is there

The SAEs are random directions with thresholds at which 50 features fire per token and level, over synthetic
activations: one vector per token of the vocabulary, plus noise. The page is opened in headless Chromium (Debian's
``chromium`` and ``chromium-driver``). The limits of the last column are the project's own; the last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from sae_lens import JumpReLUSAE, JumpReLUSAEConfig
from selenium import webdriver

from sae_lens_hsae.forest import PAPER_RULE, FeatureForest
from sae_lens_hsae.interpret.feature_cache import collect_dashboards
from sae_lens_hsae.interpret.page import write_page

PAPER_WIDTHS = [2048, 4096, 8192, 16_384]
D_IN = 128
L0 = 50
CONTEXT, CONTEXTS_AT_ONCE = 128, 8
VOCABULARY = 30_000
VIEWS = 60
LIMITS = {"memory_gib": 4.0, "page_mb": 30.0, "first_view_ms": 2000.0, "feature_ms_max": 200.0}

# From the change of the address until the view's frame is drawn.
OPEN_VIEW = """
const done = arguments[arguments.length - 1], hash = arguments[0], start = performance.now();
location.hash = hash;
(function wait() {
  if (document.getElementById("main").dataset.view !== hash) setTimeout(wait, 1);
  else requestAnimationFrame(() => done(performance.now() - start));
})();"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n-tokens", type=int, default=1_000_000)
    parser.add_argument("--widths", type=int, nargs="+", default=PAPER_WIDTHS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--page", type=Path, help="a page that is there, of --widths features")
    chosen = parser.parse_args()
    with TemporaryDirectory() as folder:
        figures = {} if chosen.page else made(chosen, Path(folder) / "explorer.html")
        page = chosen.page or Path(folder) / "explorer.html"
        figures |= {"page_mb": page.stat().st_size / 1e6}
        figures |= in_chromium(page.resolve(), chosen.widths, chosen.seed, Path(folder) / "profile")
    for name, value in figures.items():
        limit = f"  (at most {LIMITS[name]:g})" if name in LIMITS else ""
        print(f"{name:>20}  {value:12,.2f}{limit}")
    print(json.dumps(figures))


def made(chosen: argparse.Namespace, page: Path) -> dict[str, Any]:
    """Make a page; what that took."""
    generator = torch.Generator().manual_seed(chosen.seed)
    saes = [random_sae(width, generator) for width in chosen.widths]
    forest = FeatureForest.from_saes(saes, PAPER_RULE)
    before = peak_gib()
    start = time.perf_counter()
    dashboards = collect_dashboards(saes, forest, batches(generator), n_tokens=chosen.n_tokens)
    figures: dict[str, Any] = {"features": len(forest), "tokens": dashboards.n_tokens, "memory_before_gib": before}
    figures |= {"memory_gib": peak_gib(), "collect_s": time.perf_counter() - start}
    start = time.perf_counter()
    write_page(dashboards, forest, page, text_of)
    return figures | {"write_s": time.perf_counter() - start}


def random_sae(width: int, generator: torch.Generator) -> JumpReLUSAE:
    sae = JumpReLUSAE(JumpReLUSAEConfig(d_in=D_IN, d_sae=width, apply_b_dec_to_input=False))
    directions = torch.nn.functional.normalize(torch.randn(width, D_IN, generator=generator), dim=1)
    sae.W_enc.data, sae.W_dec.data = directions.T.contiguous(), directions.clone()
    sae.b_enc.data.zero_()
    sae.b_dec.data.zero_()
    # The projection of a standard normal vector on a unit direction is standard normal.
    share = torch.tensor(min(0.5, L0 / width), dtype=torch.float64)
    sae.threshold.data.fill_(torch.distributions.Normal(0.0, 1.0).icdf(1 - share).item())
    return sae


def batches(generator: torch.Generator) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    embedding = torch.randn(VOCABULARY, D_IN, generator=generator)
    # As in text, few tokens are common and most are rare.
    weights = 1 / torch.arange(1, VOCABULARY + 1, dtype=torch.float64)
    while True:
        drawn = torch.multinomial(weights, CONTEXTS_AT_ONCE * CONTEXT, replacement=True, generator=generator)
        tokens = drawn.view(CONTEXTS_AT_ONCE, CONTEXT)
        noise = torch.randn(*tokens.shape, D_IN, generator=generator)
        yield tokens, 0.8 * embedding[tokens] + 0.6 * noise


def text_of(token: int) -> str:
    """A word of a length that is usual for one."""
    return f" {token * 7919 % 10**6:x}"


def peak_gib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # KiB on Linux


def in_chromium(page: Path, widths: list[int], seed: int, profile: Path) -> dict[str, float]:
    options = webdriver.ChromeOptions()
    options.binary_location = "/usr/bin/chromium"
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", f"--user-data-dir={profile}"):
        options.add_argument(flag)
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService("/usr/bin/chromedriver"))
    try:
        driver.set_script_timeout(60)
        driver.get(page.as_uri())
        wait_for(lambda: driver.execute_script("return document.documentElement.dataset.ready"))
        figures = {"first_view_ms": float(driver.execute_script("return document.documentElement.dataset.ready"))}
        draw = random.Random(seed)
        levels = [draw.randrange(len(widths)) for _ in range(VIEWS)]
        views = [f"#/f/{level}/{draw.randrange(widths[level])}" for level in levels]
        times = sorted(driver.execute_async_script(OPEN_VIEW, view) for view in views)
        figures |= {"feature_ms_median": times[len(times) // 2], "feature_ms_max": times[-1]}
        compared = [f"#/compare/0/{draw.randrange(widths[0])}" for _ in range(VIEWS // 2)]
        times = sorted(driver.execute_async_script(OPEN_VIEW, view) for view in compared)
        figures |= {"compare_ms_median": times[len(times) // 2], "compare_ms_max": times[-1]}
        return figures
    finally:
        driver.quit()


def wait_for(condition: Callable[[], Any]) -> None:
    end = time.monotonic() + 60
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError("the page did not open within a minute")
        time.sleep(0.01)


if __name__ == "__main__":
    main()
