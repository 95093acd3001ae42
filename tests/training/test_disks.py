"""Disks that fill up or become read-only while a run writes to them: real ones, of some hundred kilobytes."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

# As root of a namespace of its own, which may mount what nobody else sees.
NAMESPACE = ["unshare", "--user", "--map-root-user", "--mount"]

SCRIPT = """
import subprocess
import sys
from pathlib import Path

sys.path[:0] = [sys.argv[1], sys.argv[1] + "/training"]
import pytest
from own_runs import checkpoints_of, run_ours
from host_helpers import tiny_model
from test_resume import assert_equal_states
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
model, calls = tiny_model(), [0]


def remount(tensor, hook):
    calls[0] += 1
    if calls[0] == 8:
        mount("remount,ro")
    return tensor


model.hook_dict["blocks.0.hook_resid_post"].add_perma_hook(remount)
with pytest.raises(OSError, match="could not be written .*Read-only file system.* Make room"):
    on_disk(model=model, resume_from_checkpoint="auto")
stopped = whole_checkpoints()
assert names[:2] == stopped[:2] and len(stopped) < len(names), stopped

# It can be written to again.
mount("remount,rw")
_, resumed = on_disk(resume_from_checkpoint="auto")
assert_equal_states(resumed, undisturbed)
assert whole_checkpoints() == names
"""


@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs Linux' namespaces")
def test_full_and_read_only_disks_cost_nothing_that_was_written(tmp_path):
    if subprocess.run([*NAMESPACE, "true"], capture_output=True).returncode:
        pytest.skip("this system lets nobody make a namespace")
    done = subprocess.run(
        [*NAMESPACE, sys.executable, "-c", SCRIPT, str(Path(__file__).parents[1]), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-5000:]
