"""A short run for ``torchrun``: resumes by itself; with --kill its rank 1 is killed, the first time it is started."""

import argparse
import os
import signal
from pathlib import Path

import torch
from host_helpers import HOOK, runner_config, tiny_config, tiny_dataset, tiny_model

from sae_lens_hsae import HierarchicalSAETrainingRunner


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kill", action="store_true")
    chosen = parser.parse_args()
    model, n_calls = tiny_model(), 0

    def kill(tensor: torch.Tensor, hook: object) -> torch.Tensor:  # noqa: ARG001 – TransformerLens passes it by name
        nonlocal n_calls
        n_calls += 1
        checkpoints = list(chosen.folder.glob("checkpoints/*/[!.]*/manifest.json"))
        if len(checkpoints) >= 2 and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
            (chosen.folder / "was-killed").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return tensor

    if chosen.kill and os.environ["RANK"] == "1":
        model.hook_dict[HOOK].add_perma_hook(kill)
    cfg = runner_config(
        chosen.folder,
        sae=tiny_config(dtype="float64"),
        dtype="float64",
        training_tokens=60 * 128,
        train_batch_size_tokens=128,
        n_checkpoints=8,
        resume_from_checkpoint="auto",
    )
    HierarchicalSAETrainingRunner(cfg, override_model=model, override_dataset=tiny_dataset(600)).run()


if __name__ == "__main__":
    main()
