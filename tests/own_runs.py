"""Short runs of our runner, and a disk that is full."""

import resource
from contextlib import contextmanager
from pathlib import Path

import torch
from host_helpers import runner_config, tiny_dataset, tiny_model

from sae_lens_hsae.training.runner import HierarchicalSAETrainingRunner


def run_ours(tmp_path, name="run", model=None, options=None, **overrides):
    """Train with our runner in ``tmp_path/name``; gives the configuration and the SAE."""
    cfg = runner_config(tmp_path / name, **overrides)
    torch.manual_seed(1)
    runner = HierarchicalSAETrainingRunner(
        cfg, override_model=model or tiny_model(), override_dataset=tiny_dataset(), **(options or {})
    )
    return cfg, runner.run()


def checkpoints_of(cfg):
    folder = Path(str(cfg.checkpoint_path))
    return sorted(
        (path for path in folder.iterdir()), key=lambda path: (path.name.startswith("final"), len(path.name), path.name)
    )


@contextmanager
def file_size_limited_to(n_bytes):
    """A disk that takes no more: the kernel refuses to let any file grow beyond this."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
