"""Disks that fill up or become read-only while a run writes to them: real ones, of some hundred kilobytes."""

from pathlib import Path

from own_runs import run_where_it_may_mount

SCRIPT = """
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, sys.argv[1])
import pytest
from own_runs import checkpoints_of, run_ours
from host_helpers import hooked_model
from short_trainings import assert_equal_states
from sae_lens_hsae.training.checkpoints import verify

folder, disk = Path(sys.argv[2]), Path(sys.argv[2]) / "disk"
disk.mkdir()


def mount(options):
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(disk)], check=True)


def on_disk(**overrides):
    return run_ours(folder, "on-disk", n_checkpoints=6, checkpoint_path=str(disk / "checkpoints"), **overrides)


def whole_checkpoints():
    found = list(disk.glob("checkpoints/*/*"))
    for checkpoint in found:
        verify(checkpoint)
    return sorted(int(checkpoint.name) for checkpoint in found)


cfg, undisturbed = run_ours(folder, "undisturbed", n_checkpoints=6)
names = sorted(int(path.name) for path in checkpoints_of(cfg))
page = 4096
one = sum(-(-path.stat().st_size // page) * page for path in checkpoints_of(cfg)[0].iterdir())

# It fills up.
mount(f"size={int(2.5 * one)}")
with pytest.raises(OSError, match=rf"the checkpoint .*{names[2]}' could not be written .* Make room"):
    on_disk()
assert whole_checkpoints() == names[:2], whole_checkpoints()

# It is read-only from the beginning.
mount("remount,ro")
for name in ("checkpoint_path", "output_path"):
    with pytest.raises(PermissionError, match=f"{name}=.*cannot be written to; give another path"):
        run_ours(folder, "refused", n_checkpoints=1, **{name: str(disk / "new" / "folder")})
assert whole_checkpoints() == names[:2]

# It becomes read-only while a resumed run is on its way.
mount(f"remount,rw,size={20 * one}")


def remount(tensor):
    mount("remount,ro")
    return tensor


with pytest.raises(OSError, match="could not be written .*Read-only file system.* Make room"):
    on_disk(model=hooked_model(remount, at=8), resume_from_checkpoint="auto")
stopped = whole_checkpoints()
assert names[:2] == stopped[:2] and len(stopped) < len(names), stopped

# It can be written to again.
mount("remount,rw")
_, resumed = on_disk(resume_from_checkpoint="auto")
assert_equal_states(resumed, undisturbed)
assert whole_checkpoints() == names
"""


def test_full_and_read_only_disks_cost_nothing_that_was_written(tmp_path):
    run_where_it_may_mount(SCRIPT, Path(__file__).parents[1], tmp_path)
