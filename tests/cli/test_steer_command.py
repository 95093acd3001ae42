"""``hsae steer`` on a tiny GPT-2 and an SAE saved for it."""

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from host_helpers import CONTEXT, sae_at

from sae_lens_hsae import HierarchicalSAE
from sae_lens_hsae.cli import main as cli
from sae_lens_hsae.cli.contrast import read_sets
from sae_lens_hsae.interpret.contrast import text_activations
from sae_lens_hsae.interpret.feature_cache.text import load_language_model
from sae_lens_hsae.interpret.steering import METHODS, descend, examples_of, steer_by
from sae_lens_hsae.interpret.steering.writing import continued, perplexity

POSITIVE = [f"w{i} w{i + 1} w3 w4" for i in range(5, 15)]
NEGATIVE = [f"w{i} w{i + 2} w60 w61 w62" for i in range(40, 50)]


@pytest.fixture(scope="module")
def saved(gpt2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("steer")
    sae_at("transformer.h.0", model=gpt2, prepend_bos=True).save_inference_model(folder / "run")
    (folder / "run" / "labels.json").write_text(json.dumps(dict.fromkeys(range(33), "a label")))
    for name, texts in (("a", POSITIVE), ("b", NEGATIVE)):
        (folder / f"{name}.txt").write_text("\n".join(texts) + "\n\n")
    return folder


def arguments(saved: Path, *more: str) -> list[str]:
    files = ["--positive", str(saved / "a.txt"), "--negative", str(saved / "b.txt")]
    return ["steer", str(saved / "run"), *files, "--prompt", "w1 w2", "--n-tokens", "5", *more]


@pytest.mark.parametrize("method", METHODS)
def test_the_command_does_what_the_functions_do(saved, method, capsys):
    # In so small a forest the stricter selector finds nothing below the one root that it chooses.
    descends = method == "means"
    level = 1 if descends else 2
    further = ["--level", str(level), *(["--descend"] if descends else [])]
    cli.main(arguments(saved, "--method", method, "--strength", "30", "--json", *further))
    told = json.loads(capsys.readouterr().out)
    sae = HierarchicalSAE.load_from_disk(saved / "run")
    model: Any = load_language_model(sae)
    examples = examples_of(sae, text_activations(sae, model, POSITIVE), text_activations(sae, model, NEGATIVE))
    selection = descend(METHODS[method], examples, 1) if descends else METHODS[method](examples)
    assert [each["feature"] for each in told["features"]] == list(selection.features)
    assert told["level"] == level
    assert {each["label"] for each in told["features"]} == {"a label"}
    prompt = torch.tensor([[0, 1, 2]])
    before = continued(model, prompt, 5)
    with steer_by(model, sae, selection, 30.0):
        after = continued(model, prompt, 5)
    assert not before.equal(after)
    for name, tokens in (("before", before), ("after", after)):
        assert told[name]["text"] == model.tokenizer.decode(tokens[0, 1:].tolist())
        assert told[name]["perplexity"] == pytest.approx(perplexity(model, tokens, 3).item(), rel=1e-4)


def test_a_text_ends_where_its_line_does(tmp_path):
    (tmp_path / "a.txt").write_text("one\x0ctext\n\n another\u2028one \r\n", encoding="utf-8")
    [texts] = read_sets(Namespace(max_tokens=2, a=tmp_path / "a.txt"), ["a"], 2)
    assert texts == ["one\x0ctext", "another\u2028one"]


def test_it_prints_features_and_both_texts(saved, capsys):
    cli.main(arguments(saved, "--method", "means"))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("features of level 2 by means:")
    assert "a label" in lines[1]
    assert "more" in lines[9]
    assert lines[10] == "", "there is no page to link to"
    page = saved / "run" / "explorer.html"
    page.touch()
    cli.main(arguments(saved, "--method", "means"))
    assert capsys.readouterr().out.splitlines()[10] == f"  Open one: {page.as_uri()}#feature={lines[1].split()[1]}"
    page.unlink()
    assert [line.split(":")[1].split()[:2] for line in (lines[-3], lines[-1])] == [["w1", "w2"]] * 2


def test_what_is_written_is_the_likeliest_or_drawn_by_the_seed(saved):
    model: Any = load_language_model(HierarchicalSAE.load_from_disk(saved / "run"))
    prompt = torch.tensor([[0, 5], [0, 9]])
    greedy = continued(model, prompt, 4)
    with torch.no_grad():
        logits = model(greedy)
        loss = -logits.log_softmax(-1)[:, 1:-1].gather(-1, greedy[:, 2:, None])[..., 0]
    assert greedy[:, 2:].equal(logits[:, 1:-1].argmax(-1))
    torch.testing.assert_close(perplexity(model, greedy, 2), loss.mean(1).exp())
    drawn = [continued(model, prompt, 4, temperature=3.0, seed=seed) for seed in (1, 1, 2)]
    assert drawn[0].equal(drawn[1])
    assert not drawn[0].equal(drawn[2])
    with pytest.raises(ValueError, match="n_tokens=40 after the text: 42 tokens, but the model takes at most 32"):
        continued(model, prompt, 40)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--strength", "0"], "strength=0.0 must be a finite number other than 0"),
        (["--strength", "nan"], "strength=nan must be"),
        (["--level", "3"], "hsae steer: level=3: level 3 does not exist; choose one from 0 to 2"),
        (["--prompt", " "], "prompt=' ' is empty"),
        (["--n-tokens", "0"], "argument --n-tokens: 0 must be at least 1"),
        (["--temperature", "-1"], "temperature=-1.0 must be 0 or more"),
        (["--negative", "{}/turned.txt"], "hold the same texts, so there is no contrast"),
        (["--negative", "{}/none.txt"], "none.txt"),
        (["--positive", "{}/one.txt"], "one.txt' holds 1 texts, one a line; give at least 2"),
    ],
)
def test_bad_input_is_refused_before_the_model_is_loaded(saved, more, message, monkeypatch, capsys):
    (saved / "one.txt").write_text("w1 w2")
    (saved / "turned.txt").write_text("\n".join([*POSITIVE[::-1], POSITIVE[0]]))
    monkeypatch.setattr("sae_lens_hsae.cli.steer.load_language_model", lambda _: pytest.fail("the model was loaded"))
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments(saved, *(word.format(saved) for word in more)))
    assert message in str(stopped.value) + capsys.readouterr().err


@pytest.mark.parametrize("n_words", [CONTEXT - 1, 3 * CONTEXT])
def test_a_prompt_longer_than_the_model_takes_is_refused(saved, n_words):
    message = f"--n-tokens=5 after the prompt: {n_words + 6} tokens, but the model takes at most {CONTEXT}"
    with pytest.raises(SystemExit, match=message):
        cli.main(arguments(saved, "--prompt", "w1 " * n_words))
