"""SAELens' own tests with this package's architecture in place of theirs: python -m release.host_tests SOURCE.

SOURCE is a checkout of SAELens at the version that is installed; its sdist holds no tests. They run on the SAELens that
is installed. Every list of architectures in them is replaced by one architecture, first ``jumprelu`` and then ``hsae``;
models and text that they would fetch have stand-ins. Of the tests that build an SAE and pass with the first, those are
listed that fail with the second, and why. Where SAELens' rule is not ours the difference is explained (`DIFFERENCES`);
if one is not, the exit code is 1.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from fnmatch import fnmatchcase
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
THEIRS, OURS = "jumprelu", "hsae"

DIFFERENCES = {
    "every level has a b_dec of its own, and SAELens' SAEs have one": (
        "test_sae_init",
        "test_StandardTrainingSAE_initialization_standard",
        "test_*_match*_old*",  # copies the weights into an SAE of an old version
    ),
    "decoder rows have unit norm, also in what is saved": (
        "test_StandardTrainingSAE_initialization_decoder_norm",
        "test_StandardTrainingSAE_initialization_enc_dec_T_no_unit_norm",
        "test_StandardTrainingSAE_save_and_load_inference_sae",
    ),
    "the scale of the activations is folded into biases and thresholds: rows stay as they are, features scale with x": (
        "test_TrainingSAE_fold_activation_norm_scaling_factor_all_architectures",
        "test_StandardSAE_fold_norm_scaling_factor",
        "test_sae_fold_norm_scaling_factor_all_architectures",
        "test_from_pretrained_folds_norm_scaling_factor",
    ),
    "one level is decoded, so what weights spread over all features is not reconstructed": (
        "test_get_sparsity_and_variance_metrics_identity_sae_perfect_reconstruction",
        "test_standard_sae_run_hooks_equivalence",
    ),
    "layer norm and constant norm are refused": (
        "test_StandardSAE_layer_norm",
        "test_StandardSAE_constant_norm_rescale",
    ),
}
"""Where SAELens' rule is not ours: what is ours, and patterns of the names of the tests of theirs."""


def explanation(name: str) -> str | None:
    """Why a test may fail; None where nothing explains it."""
    test = name.rpartition("::")[2].partition("[")[0]
    return next((why for why, tests in DIFFERENCES.items() if any(fnmatchcase(test, each) for each in tests)), None)


def outcomes(
    source: Path, architecture: str, selected: list[str], only: list[str] | None = None
) -> dict[str, dict[str, Any]]:
    """Of every test of these files, or of ``only`` some, its outcome, why it failed, and whether it built an SAE."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        environment = {
            **os.environ,
            "HOST_TESTS_ARCHITECTURE": architecture,
            "HOST_TESTS_REPORT": str(report),
            "HOST_TESTS_ONLY": json.dumps(only),
            "HF_HUB_OFFLINE": "1",
            "WANDB_MODE": "disabled",
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT), os.environ.get("PYTHONPATH", "")]),
        }
        options = ["-q", "--continue-on-collection-errors", "-p", "release.host_tests_plugin", "-p", "no:cacheprovider"]
        command = [sys.executable, "-m", "pytest", *options, "--rootdir", str(source), "-c", os.devnull, *selected]
        done = subprocess.run(command, cwd=source, env=environment, stdout=sys.stderr, check=False)
        if not report.is_file():
            sys.exit(f"pytest ended with code {done.returncode} before any test; its output says why")
        return json.loads(report.read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("source", type=Path, help="a checkout of SAELens")
    parser.add_argument("selected", nargs="*", default=["tests"], help="files of tests in it (default: all)")
    chosen = parser.parse_args()
    source = chosen.source.resolve()
    if not (source / "tests" / "helpers.py").is_file():
        sys.exit(f"{source} holds no tests/helpers.py; give a checkout of SAELens, its sdist has no tests")
    theirs = outcomes(source, THEIRS, chosen.selected)
    passing = [name for name, each in theirs.items() if each["outcome"] == "passed" and each["built"]]
    ours = outcomes(source, OURS, chosen.selected, passing)
    failing = [name for name in passing if ours.get(name, {}).get("outcome") != "passed"]
    unexplained = 0
    for name in failing:
        why = explanation(name)
        unexplained += why is None
        print(f"{name}\n    {ours.get(name, {'reason': 'not collected'})['reason']}\n    {why or 'NOT EXPLAINED'}")
    print(
        f"sae-lens {version('sae-lens')}: of {len(passing)} tests that build an SAE and pass with {THEIRS}, "
        f"{len(passing) - len(failing)} pass with {OURS}; of the others {unexplained} are not explained"
    )
    sys.exit(min(1, unexplained))


if __name__ == "__main__":
    main()
