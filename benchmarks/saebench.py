"""The levels of a forest in SAEBench, each as the plain SAELens SAE that it is.

SAEBench's pins (numpy < 2, datasets < 4) need an environment of their own, from this project's folder:

    python3 -m venv .venv-saebench
    .venv-saebench/bin/pip install sae-bench -e .
    .venv-saebench/bin/python benchmarks/saebench.py runs/gpt2 --checks
    .venv-saebench/bin/python benchmarks/saebench.py runs/gpt2

Where torch is a build for the CPU, add ``pip uninstall torchvision``: another build of it breaks transformers' import.

``--checks`` takes every level through SAEBench's input checks and what of its core evaluation needs no language
model; without it the core evaluation runs, for which the model and its text are downloaded.
"""

import argparse
import warnings
from pathlib import Path
from typing import Any

import sae_lens
import torch
from sae_bench.evals.core.main import get_featurewise_weight_based_metrics, multiple_evals  # type: ignore
from sae_bench.sae_bench_utils.general_utils import load_and_format_sae  # type: ignore

from sae_lens_hsae import HierarchicalSAE


def levels_of(folder: Path, device: str) -> list[tuple[str, Any]]:
    """Name and SAE of each level."""
    sae = sae_lens.SAE.load_from_disk(folder, device=device)
    if not isinstance(sae, HierarchicalSAE):
        raise SystemExit(f"{folder} holds a {type(sae).__name__}; give the folder of a trained HierarchicalSAE")
    return [(f"{folder.name}_level_{level}", sae.level_sae(level)) for level in range(len(sae.levels))]


def check(name: str, sae: Any, device: str) -> None:
    """Raise an error where SAEBench would warn of an SAE or misread it."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        loaded = load_and_format_sae(name, sae, device)
    assert loaded is not None
    _, sae, _ = loaded
    assert sae.W_enc.shape == (sae.cfg.d_in, sae.cfg.d_sae)
    assert sae.W_dec.shape == (sae.cfg.d_sae, sae.cfg.d_in)
    x = torch.randn(2, 8, sae.cfg.d_in, device=device, dtype=sae.dtype)
    torch.testing.assert_close(sae(x), sae.decode(sae.encode(x)))
    metrics = get_featurewise_weight_based_metrics(sae)
    assert all(len(values) == sae.cfg.d_sae for values in metrics.values())
    print(f"{name}: {sae.cfg.d_sae} features at {sae.cfg.hook_name} of {sae.cfg.model_name} pass")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a saved HierarchicalSAE")
    parser.add_argument("--checks", action="store_true", help="only what needs no language model")
    parser.add_argument("--output", default="runs/saebench", help="default %(default)s")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="default %(default)s")
    chosen = parser.parse_args()
    levels = levels_of(chosen.folder, chosen.device)
    for name, sae in levels:
        check(name, sae, chosen.device)
    if not chosen.checks:
        multiple_evals(
            levels,
            n_eval_reconstruction_batches=200,
            n_eval_sparsity_variance_batches=2000,
            eval_batch_size_prompts=16,
            compute_featurewise_density_statistics=True,
            compute_featurewise_weight_based_metrics=True,
            exclude_special_tokens_from_reconstruction=True,
            output_folder=chosen.output,
            device=chosen.device,
        )


if __name__ == "__main__":
    main()
