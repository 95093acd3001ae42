"""Forests after several blocks from one run of SAELens' MultiSAETrainingRunner."""

from pathlib import Path
from typing import Any

from host_helpers import restored_signal_handlers, thirty_steps, tiny_config, tiny_dataset
from sae_lens import MultiSAETrainingRunner, MultiSAETrainingRunnerConfig

from sae_lens_hsae.hub.saved_model import load_hierarchical_sae
from sae_lens_hsae.text.load_model import model_of_run

BLOCKS = (0, 1)


def train(gpt2: Path, output: Path, blocks: tuple[int, ...]) -> int:
    """Thirty steps for one SAE after each block.

    Returns:
        How many prompts the model read.
    """
    of_model: dict[str, Any] = {"model_name": str(gpt2), "model_class_name": "AutoModelForCausalLM"}
    cfg = MultiSAETrainingRunnerConfig(
        saes={f"block{block}": tiny_config(level_widths=[4, 8, 16]) for block in blocks},
        hook_names={f"block{block}": f"transformer.h.{block}" for block in blocks},
        output_path=str(output),
        checkpoint_path=None,
        **thirty_steps() | of_model,
    )
    n_read = 0

    def count(_: Any, given: Any, output: Any) -> None:  # noqa: ARG001
        nonlocal n_read
        n_read += len(given[0])

    with model_of_run(cfg) as model, restored_signal_handlers():
        model.model.get_input_embeddings().register_forward_hook(count)
        MultiSAETrainingRunner(cfg, override_dataset=tiny_dataset(), override_model=model).run()
    return n_read


def test_the_model_reads_the_text_once_for_all_blocks(gpt2, tmp_path, caplog):
    n_read = train(gpt2, tmp_path / "all", BLOCKS)
    assert 0 < n_read == train(gpt2, tmp_path / "one", BLOCKS[:1])
    assert "override_" not in caplog.text, "the config does name the model"
    for block in BLOCKS:
        sae = load_hierarchical_sae(tmp_path / "all" / f"block{block}")
        assert sae.cfg.metadata.hook_name == f"transformer.h.{block}"
        assert len(sae.forest.edges()) > 0
