"""What hostile files hold, and what a loader may do with them."""

import copy
import json
import resource
import shutil
import struct
from contextlib import contextmanager
from pathlib import Path

import torch
from conftest import D_IN, WIDTHS, make_sae
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from test_resume import batches, new_trainer, take_steps

from sae_lens_hsae import HierarchicalSAE, HierarchicalSAEConfig
from sae_lens_hsae.interpret.feature_cache import collect_dashboards
from sae_lens_hsae.training.trainer import HierarchicalSAETrainer

fuzzed = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
    database=None,
)


CLEAR = (ValueError, OSError)
"""What a loader of ours may raise."""


@contextmanager
def memory_limited():
    """One GiB beyond what is taken already: a file of some kilobytes that asks for more is found out."""
    pages = int(Path("/proc/self/statm").read_text().split()[0]) if Path("/proc/self/statm").exists() else None
    before = resource.getrlimit(resource.RLIMIT_AS)
    if pages is not None:
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 2**30, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def check_message(error):
    """It says something, and nothing that would steer a terminal."""
    assert str(error)
    assert all(character.isprintable() or character == "\n" for character in str(error))


HOSTILE = [
    "", "../../../etc/passwd", "/dev/zero", "<script>alert(1)</script>", "\x1b[2J\x1b]0;x\x07", "\x00", "a" * 5000,
    "__class__", "self", "NaN", "\ud800", "‮", "{0.__class__}", "%s%n",
]  # fmt: skip


NUMBERS = [
    0,
    -1,
    1,
    2**31,
    2**53 + 1,
    2**63 - 1,
    2**63,
    -(2**63) - 1,
    10**30,
    10**400,
    0.5,
    -0.0,
    1e308,
    float("nan"),
    float("inf"),
]


leaves = st.sampled_from([None, True, False, *NUMBERS, *HOSTILE]) | st.integers(-3, 40) | st.text(max_size=8)


values = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(HOSTILE) | st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)


def places(value, path=()):
    """Every place in nested dicts and lists."""
    yield path
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, entry in inside:
        yield from places(entry, (*path, key))


@st.composite
def altered(draw, value):
    """A copy of some JSON with one to three entries replaced, removed or added."""
    value = copy.deepcopy(value)
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(list(places(value))))
        if not path:
            if draw(st.integers(0, 9)) == 0:
                return draw(values)
            continue
        at = value
        for key in path[:-1]:
            at = at[key]
        how = draw(st.sampled_from(["replace", "replace", "remove", "add"]))
        if how == "replace":
            at[path[-1]] = draw(values)
        elif how == "remove":
            del at[path[-1]]
        elif isinstance(at, dict):
            at[draw(st.sampled_from(HOSTILE))] = draw(values)
        else:
            at.append(draw(values))
    return value


@st.composite
def broken(draw, content):
    """Some bytes cut, lengthened, flipped, overwritten or replaced."""
    content = bytearray(content)
    for _ in range(draw(st.integers(1, 3))):
        how = draw(st.sampled_from(["flip", "cut", "insert", "overwrite", "replace"]))
        # Most of what can go wrong is decided by the beginning and the end.
        at = min(len(content), draw(st.integers(0, 300) | st.integers(0, max(0, len(content)))))
        if how == "flip" and at < len(content):
            content[at] ^= 1 << draw(st.integers(0, 7))
        elif how == "cut":
            del content[at:]
        elif how == "insert":
            content[at:at] = draw(st.binary(max_size=20))
        elif how == "overwrite":
            new = draw(st.binary(max_size=20))
            content[at : at + len(new)] = new
        elif draw(st.integers(0, 9)) == 0:
            content = bytearray(draw(st.binary(max_size=50)))
    return bytes(content)


@st.composite
def broken_tensors(draw, content):
    """A safetensors file with its header altered, or its bytes, or the length that it says its header has."""
    kind = draw(st.sampled_from(["header", "header", "field", "length", "bytes"]))
    if kind == "bytes":
        return draw(broken(content))
    (length,) = struct.unpack("<Q", content[:8])
    header, rest = json.loads(content[8 : 8 + length]), content[8 + length :]
    if kind == "length":
        return (
            struct.pack("<Q", draw(st.sampled_from([0, 1, length - 1, length + 1, 2**40, 2**63, 2**64 - 1])))
            + content[8:]
        )
    if kind == "header":
        header = draw(altered(header))
    else:
        name = draw(st.sampled_from([name for name in header if name != "__metadata__"]))
        field = draw(st.sampled_from(["dtype", "shape", "data_offsets"]))
        if field == "dtype":
            header[name]["dtype"] = draw(
                st.sampled_from(["F64", "F32", "F16", "BF16", "I64", "I32", "U8", "BOOL", "F8_E4M3", "X"])
            )
        else:
            header[name][field] = draw(st.lists(st.sampled_from([0, 1, 2, 4, 8, 33, 2**40, 2**62, 2**64]), max_size=4))
    text = json.dumps(header).encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(text)) + text + rest


def broken_file(path):
    """Strategy for what may stand in the place of a file."""
    content = path.read_bytes()
    if path.suffix == ".safetensors":
        return broken_tensors(content)
    if path.suffix == ".json":
        # Lone surrogates cannot stand in UTF-8, but they can stand in JSON's own escapes.
        return altered(json.loads(content)).map(lambda value: json.dumps(value).encode()) | broken(content)
    return broken(content)


def with_one_broken(data, whole, folder, names):
    """A copy of a folder in which one file is broken; gives the file."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(whole, folder)
    path = folder / data.draw(st.sampled_from(names))
    path.write_bytes(data.draw(broken_file(whole / path.name)))
    return path


def whole_model(folder):
    make_sae().save_inference_model(folder)
    return folder


def whole_checkpoint(folder):
    trainer = new_trainer(HierarchicalSAETrainer)
    take_steps(trainer, batches(), 3)
    trainer.save_checkpoint("96", base_path=folder)
    (folder / "96" / "activations_store_state.safetensors").unlink(missing_ok=True)
    return folder / "96"


def whole_dashboards(folder):
    sae = make_sae()
    cfg = HierarchicalSAEConfig(d_in=D_IN, d_sae=sum(WIDTHS), level_widths=WIDTHS)
    inference = HierarchicalSAE(cfg)
    inference.load_state_dict({name: getattr(sae, name) for name in inference.state_dict()})
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 50, (8, 6), generator=generator)
    x = torch.randn(8, 6, D_IN, generator=generator) * 2
    collect_dashboards(inference, inference.forest, [(tokens, x)], progress=False).save(folder)
    return folder
