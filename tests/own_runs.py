"""Short runs of our runner, and a disk that is full."""

import resource
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
from host_helpers import runner_config, tiny_dataset, tiny_model

from sae_lens_hsae.training.runner import HierarchicalSAETrainingRunner


def run_ours(tmp_path, name="run", model=None, dataset=None, options=None, **overrides):
    """Train with our runner in ``tmp_path/name``; gives the configuration and the SAE."""
    cfg = runner_config(tmp_path / name, **overrides)
    data = {"override_model": model or tiny_model(), "override_dataset": dataset or tiny_dataset()}
    return cfg, HierarchicalSAETrainingRunner(cfg, **data, **(options or {})).run()


def run_where_it_may_mount(script, *arguments):
    """Run a script as root of a namespace of its own, which may mount what nobody else sees; skip if there is none."""
    namespace = ["unshare", "--user", "--map-root-user", "--mount"]
    if shutil.which("unshare") is None or subprocess.run([*namespace, "true"], capture_output=True).returncode:
        pytest.skip("this system lets nobody make a namespace")
    command = [*namespace, sys.executable, "-c", script, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-5000:]


def begun(tmp_path, **overrides):
    """Configuration and only checkpoint of a run."""
    cfg, _ = run_ours(tmp_path, "begun", **{"n_checkpoints": 1} | overrides)
    (checkpoint,) = checkpoints_of(cfg)
    return cfg, checkpoint


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
