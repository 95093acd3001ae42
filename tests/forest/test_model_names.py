"""Names that mean one model."""

import pytest

from sae_lens_hsae.forest.model_names import same_model


@pytest.mark.parametrize(
    ("name", "other", "same"),
    [
        ("gpt2", "gpt2-small", True),
        ("gemma-2-2b", "google/gemma-2-2b", True),
        ("Qwen3-4B", "qwen3-4b", True),
        ("/elsewhere/gemma-3-270m", "google/gemma-3-270m", True),
        ("/elsewhere/a-tune", "somebody/a-tune", True),
        ("gpt2", "gpt2-medium", False),
        ("pythia-70m", "pythia-160m", False),
        ("/elsewhere/a", "/elsewhere/b", False),
    ],
)
def test_names_mean_one_model(name, other, same):
    assert same_model(name, other) == same_model(other, name) == same


def test_two_folders_that_are_here_are_two_models(tmp_path, monkeypatch):
    for folder in ("a/model", "b/model"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    assert not same_model("a/model", "b/model")
    assert same_model("a/model", str(tmp_path / "a" / "model"))
