"""The comparison by SAELens' own tests, on tests made here in their form."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent

HELPERS = """
from sae_lens import JumpReLUSAEConfig, JumpReLUTrainingSAEConfig, LanguageModelSAERunnerConfig, LoggingConfig
ALL_ARCHITECTURES = ["standard", "gated"]
SAE_CONFIG_BUILDERS, SAE_TRAINING_CONFIG_BUILDERS, SAE_RUNNER_CONFIG_BUILDERS = {}, {}, {}

def build_jumprelu_sae_cfg(**kwargs):
    return JumpReLUSAEConfig(**{"d_in": 8, "d_sae": 32, **kwargs})

def build_jumprelu_runner_cfg(**kwargs):
    sae = JumpReLUTrainingSAEConfig(d_in=8, d_sae=32)
    return LanguageModelSAERunnerConfig(sae=sae, logger=LoggingConfig(log_to_wandb=False), **kwargs)

SAE_CONFIG_BUILDERS["jumprelu"] = build_jumprelu_sae_cfg
SAE_RUNNER_CONFIG_BUILDERS["jumprelu"] = build_jumprelu_runner_cfg
SAE_TRAINING_CONFIG_BUILDERS["jumprelu"] = lambda **kwargs: build_jumprelu_runner_cfg(**kwargs).sae
"""
TESTS = """
import pytest
import torch
from datasets import load_dataset
from sae_lens import SAE, StandardSAEConfig, StandardTrainingSAE, TrainingSAE
from transformer_lens import HookedTransformer
from tests.helpers import ALL_ARCHITECTURES, SAE_CONFIG_BUILDERS, SAE_TRAINING_CONFIG_BUILDERS, build_sae_training_cfg

@pytest.mark.parametrize("architecture", ALL_ARCHITECTURES)
def test_all(architecture):
    assert SAE.from_dict(SAE_CONFIG_BUILDERS[architecture]().to_dict()).cfg.architecture() == architecture

@pytest.mark.parametrize("architecture", ["standard", "topk"])
def test_one_bias(architecture):
    sae = TrainingSAE.from_dict(SAE_TRAINING_CONFIG_BUILDERS[architecture]().to_dict())
    assert sae.b_dec.shape == (8,), "one bias"

def test_sae_init():
    assert StandardTrainingSAE(build_sae_training_cfg()).b_dec.shape == (8,), "one here too"

def test_without_a_name():
    assert SAE.from_dict(StandardSAEConfig(d_in=8, d_sae=32).to_dict()).encode(torch.zeros(2, 8)).shape == (2, 32)

@pytest.mark.parametrize("architecture", ALL_ARCHITECTURES)
def test_stand_ins(architecture):
    SAE.from_dict(SAE_CONFIG_BUILDERS[architecture](d_in=16).to_dict())
    model = HookedTransformer.from_pretrained("tiny-stories-1M")
    text = load_dataset("NeelNanda/c4-10k", split="train")["text"][0]
    assert model(model.to_tokens(text[:40])).shape[-1] == model.cfg.d_vocab

@pytest.mark.parametrize("architecture", ALL_ARCHITECTURES)
def test_that_fails_with_both(architecture):
    SAE.from_dict(SAE_CONFIG_BUILDERS[architecture]().to_dict())
    HookedTransformer.from_pretrained("gpt2")

@pytest.mark.parametrize("architecture", ALL_ARCHITECTURES)
def test_that_builds_none(architecture):
    assert architecture

def test_that_fails_and_builds_none():
    raise AssertionError
"""


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "release.host_tests", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_the_difference_between_two_architectures_is_told(tmp_path):
    (tmp_path / "tests").mkdir()
    for name, content in (("__init__", ""), ("helpers", HELPERS), ("test_sae", TESTS)):
        (tmp_path / "tests" / f"{name}.py").write_text(content)
    done = run(str(tmp_path))
    assert done.returncode == 1, done.stderr[-2000:]
    *failing, last = done.stdout.splitlines()
    assert failing == [
        "tests/test_sae.py::test_one_bias[…]",
        "    AssertionError: one bias",
        "    NOT EXPLAINED",
        "tests/test_sae.py::test_sae_init",
        "    AssertionError: one here too",
        "    every level has a b_dec of its own, and SAELens' SAEs have one",
    ]
    assert last.endswith(
        ": of 5 tests that build an SAE and pass with jumprelu, 3 pass with hsae; of the others 1 are not explained"
    )


def test_a_folder_without_their_tests_is_refused(tmp_path):
    done = run(str(tmp_path))
    assert done.returncode == 1
    assert "holds no tests/helpers.py; give a checkout of SAELens" in done.stderr
