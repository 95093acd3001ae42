"""Models from folders for TransformerLens, hook points that a model lacks, and what an SAE's metadata may ask for."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from host_helpers import (
    CONTEXT,
    VOCABULARY,
    WIDTHS,
    runner_config,
    save_tiny_gpt2,
    tiny_config,
    tiny_dataset,
    tiny_model,
    train,
)
from huggingface_hub import constants
from sae_lens import SAE, LanguageModelSAETrainingRunner
from sae_lens.saes.sae import SAEMetadata
from small_saes import make_sae
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

from sae_lens_hsae import HierarchicalSAETrainingRunner, HierarchicalTrainingSAEConfig
from sae_lens_hsae.evaluation.hook_names import no_hook_point
from sae_lens_hsae.interpret.feature_cache.text import load_language_model
from sae_lens_hsae.text.load_model import load_model, model_of_run

D_IN = 640
TWO_LAYERS = {"center_writing_weights": False, "first_n_layers": 2}
"""Options with which TransformerLens takes `small_gemma`; the first is SAELens' own."""


@pytest.fixture(scope="module")
def small_gemma(tmp_path_factory) -> Path:
    """Two random layers as wide as those of Gemma 3 270M, for TransformerLens knows no smaller ones, and 100 words."""
    folder = tmp_path_factory.mktemp("models") / "gemma-3-270m"
    save_tiny_gpt2(folder)  # for its tokenizer
    torch.manual_seed(0)
    config = Gemma3TextConfig(
        vocab_size=VOCABULARY,
        hidden_size=D_IN,
        intermediate_size=2048,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=256,
        query_pre_attn_scalar=256,
        layer_types=["sliding_attention", "sliding_attention"],
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )
    Gemma3ForCausalLM(config).save_pretrained(folder)
    return folder


def test_transformer_lens_reads_a_folder_as_transformers_does(small_gemma):
    tokens = torch.randint(0, VOCABULARY, (3, CONTEXT), generator=torch.Generator().manual_seed(2))
    lens = load_model("HookedTransformer", str(small_gemma), "cpu", TWO_LAYERS, "blocks.1.hook_resid_post")
    plain = load_model("AutoModelForCausalLM", str(small_gemma), "cpu", None, "model.layers.1")
    with torch.no_grad():
        _, a = lens.run_with_cache(tokens, prepend_bos=False)
        _, b = plain.run_with_cache(tokens)
    torch.testing.assert_close(a["blocks.1.hook_resid_post"], b["model.layers.1"], rtol=1e-4, atol=1e-4)
    assert lens.tokenizer.bos_token_id == 0
    assert lens.tokenizer("w7 w8")["input_ids"][-2:] == [7, 8]


def test_saelens_own_runner_takes_the_folder_and_what_it_saves_finds_it_again(small_gemma, tmp_path, caplog):
    cfg = runner_config(
        tmp_path,
        sae=tiny_config(d_in=D_IN),
        model_name=str(small_gemma),
        hook_name="blocks.0.hook_resid_post",
        model_from_pretrained_kwargs=TWO_LAYERS,
    )
    with model_of_run(cfg) as model:
        train(LanguageModelSAETrainingRunner, cfg, override_model=model, override_dataset=tiny_dataset())
    assert "passed in a model" not in caplog.text
    again = load_language_model(SAE.load_from_disk(cfg.output_path or ""))
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], tensor, rtol=0, atol=0)


def test_a_folder_that_transformer_lens_has_no_name_for_is_refused(tmp_path):
    folder = save_tiny_gpt2(tmp_path / "mine")
    with pytest.raises(ValueError, match=r"mine'.*no model called 'mine'; name the folder.*AutoModelForCausalLM"):
        load_model("HookedTransformer", str(folder), "cpu", {}, "blocks.0.hook_resid_post")


@pytest.mark.parametrize(
    ("kind", "name", "error", "message"),
    [
        ("HookedTransformer", "/nowhere/gpt2", ValueError, r"model_name='/nowhere/gpt2' is no folder with a model"),
        ("AutoModelForCausalLM", "./nowhere", ValueError, r"model_name='\./nowhere' is no folder with a model"),
        ("HookedTransformer", "gpt3", ValueError, r"='gpt3': .* no model called 'gpt3'; it knows .*gpt2.*; set"),
        ("HookedTransformer", "pythia-70m", OSError, r"model_name='pythia-70m' cannot be loaded: "),
        ("AutoModelForCausalLM", "someone/none", OSError, r"model_name='someone/none' cannot be loaded: "),
    ],
)
def test_a_model_that_is_not_there_is_named(tmp_path, monkeypatch, kind, name, error, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pythia-70m").mkdir()  # no model, though it is called like one
    with pytest.raises(error, match=message) as refusal:
        load_model(kind, name, "cpu", {}, "h.0")
    assert len(str(refusal.value)) < 600


def test_a_hook_point_that_is_missing_comes_with_those_that_are_there(small_gemma, tmp_path):
    gpt2 = save_tiny_gpt2(tmp_path / "gpt2")
    for kind, folder, options, hook, message in [
        ("HookedTransformer", small_gemma, TWO_LAYERS, "blocks.2.hook_resid_post", "blocks.0.hook_resid_post, bl"),
        ("HookedTransformer", small_gemma, TWO_LAYERS, "model.layers.1", "blocks.0.hook_resid_post, blocks.1.hook_r"),
        ("AutoModelForCausalLM", gpt2, {}, "transformer.h.2", "transformer.h.0, transformer.h.1"),
        ("AutoModelForCausalLM", gpt2, {}, "blocks.0.hook_resid_post", "transformer.h.0, transformer.h.1"),
        ("AutoModelForCausalLM", gpt2, {}, "transformer.h.0.mpl", "transformer.h.0.mlp"),
    ]:
        cfg = runner_config(
            tmp_path,
            sae=HierarchicalTrainingSAEConfig(d_in=D_IN, d_sae=sum(WIDTHS), level_widths=WIDTHS, target_l0=3),
            model_class_name=kind,
            model_name=str(folder),
            model_from_pretrained_kwargs=options,
            hook_name=hook,
        )
        with pytest.raises(ValueError, match=f"hook_name={hook!r} is no hook point .* it has {message}"):
            HierarchicalSAETrainingRunner(cfg, override_dataset=tiny_dataset())


@pytest.mark.parametrize("kind", ["AutoModelForCausalLM", "HookedTransformer"])
def test_contexts_that_are_longer_than_the_model_takes_are_refused(gpt2, tmp_path, kind):
    cfg = runner_config(
        tmp_path, model_name=str(gpt2), model_class_name=kind, hook_name="transformer.h.0", context_size=CONTEXT + 8
    )
    model = tiny_model() if kind == "HookedTransformer" else None
    rows = Dataset.from_dict({"text": [" ".join(f"w{i}" for i in range(1, 90))] * 40})
    with pytest.raises(ValueError, match="context_size: 40 tokens, but the model takes at most 32; give fewer"):
        HierarchicalSAETrainingRunner(cfg, override_dataset=rows, override_model=model)


def test_many_hook_points_are_not_all_listed():
    assert no_hook_point("h.99", [f"h.{i}" for i in range(18)]).endswith("it has h.0, h.1 … h.17")
    assert no_hook_point("nothing", ["a", "b"]).endswith("it has a, b")


def test_where_a_model_lay_in_training_does_not_matter_and_its_revision_does(tmp_path, monkeypatch):
    revision = "3f5a" * 10
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    cached = tmp_path / "hub" / "models--someone--gpt2"
    save_tiny_gpt2(cached / "snapshots" / revision)
    # What main has is a tokenizer, for SAELens takes that from there whatever the revision, and no weights.
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("main")
    shutil.copytree(
        cached / "snapshots" / revision, cached / "snapshots" / "main", ignore=shutil.ignore_patterns("model.*")
    )
    options = {"device_map": "cuda:63", "revision": revision}
    sae = make_sae(normalize_activations="none")
    sae.cfg.metadata = SAEMetadata(
        model_name="someone/gpt2",
        model_class_name="AutoModelForCausalLM",
        hook_name="transformer.h.0",
        model_from_pretrained_kwargs=options,
    )
    assert load_language_model(sae).hook_dict.keys() == {"transformer.h.0"}
    del options["revision"]
    with pytest.raises(OSError, match="someone/gpt2"):
        load_language_model(sae)


def test_a_setting_that_could_not_be_saved_is_refused_before_training(tmp_path):
    cfg = runner_config(tmp_path, output_path=tmp_path / "out")
    vars(cfg)["n_eval_batches"] = np.int64(3)
    with pytest.raises(ValueError, match=r"n_eval_batches could not be saved .*int64.*numbers as Python's"):
        HierarchicalSAETrainingRunner(cfg)
    assert cfg.output_path == str(tmp_path / "out")


def test_options_that_could_not_be_saved_are_refused_before_training(tmp_path):
    options = {"several": [{"token": "hf_secret", "dtype": torch.bfloat16}]}
    cfg = runner_config(tmp_path, model_from_pretrained_kwargs=options)
    message = "_kwargs could not be saved .*type dtype is not JSON.*'bfloat16'"
    with pytest.raises(ValueError, match=message) as refused:
        train(HierarchicalSAETrainingRunner, cfg)
    assert "hf_secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"token": "hf_secret"}, "token"),
        ({"hf_kwargs": {"use_auth_token": "hf_secret"}}, "use_auth_token"),
        ({"proxies": {"https": "http://me:hf_secret@proxy"}}, "https"),
    ],
)
def test_an_access_token_is_refused_before_it_is_written_anywhere(tmp_path, options, name):
    cfg = runner_config(tmp_path, model_from_pretrained_kwargs=options)
    with pytest.raises(ValueError, match=rf"_kwargs holds '{name}', .* or set HF_TOKEN") as refused:
        train(HierarchicalSAETrainingRunner, cfg)
    assert "hf_secret" not in str(refused.value)
    assert not any(path.is_file() for path in tmp_path.rglob("*"))
