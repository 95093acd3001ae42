"""Files that may come from anybody: each loader gives a whole object or a clear error, and runs and writes nothing."""

import copy
import json
import pickle
import re
import resource
import shutil
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sae_lens import SAE
from safetensors.torch import save_file
from short_trainings import batches, new_trainer, take_steps
from small_saes import D_IN, make_config, make_sae

from sae_lens_hsae import FeatureForest, HierarchicalSAE, HierarchicalTrainingSAE, HierarchicalTrainingSAEConfig
from sae_lens_hsae.forest import validate_parents
from sae_lens_hsae.forest.files import read_forest, write_forest
from sae_lens_hsae.hub.push import stage
from sae_lens_hsae.hub.saved_model import load_evaluation
from sae_lens_hsae.interpret.feature_cache import Dashboards, collect_dashboards
from sae_lens_hsae.interpret.feature_cache.text import load_language_model
from sae_lens_hsae.interpret.labels.files import read_labels
from sae_lens_hsae.interpret.page.content import PageContent, PageLimits
from sae_lens_hsae.training.checkpoints import MANIFEST, Manifest, verify, write_manifest
from sae_lens_hsae.training.store import COUNTS, STATE_FILENAME, MixingBuffer, ResumableActivationsStore
from sae_lens_hsae.training.trainer import HierarchicalSAETrainer

CLEAR = (ValueError, OSError)
"""What a loader of ours may raise."""


@contextmanager
def memory_limited() -> Iterator[None]:
    """One GiB beyond what is taken already: a file of some kilobytes that asks for more is found out."""
    pages = int(Path("/proc/self/statm").read_text().split()[0]) if Path("/proc/self/statm").exists() else None
    before = resource.getrlimit(resource.RLIMIT_AS)
    if pages is not None:
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 2**30, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def check_message(error: BaseException) -> None:
    """It says something, and nothing that would steer a terminal."""
    assert str(error)
    assert all(character.isprintable() or character == "\n" for character in str(error))


# What stands in the place of a file.

HOSTILE = [
    "", "../../../etc/passwd", "/dev/zero", "<script>alert(1)</script>", "\x1b[2J\x1b]0;x\x07", "\x00", "a" * 5000,
    "__class__", "self", "NaN", "\ud800", "‮", "{0.__class__}", "%s%n",
]  # fmt: skip
NUMBERS = [
    0, -1, 1, 2**31, 2**53 + 1, 2**63 - 1, 2**63, -(2**63) - 1, 10**30, 10**400,
    0.5, -0.0, 1e308, float("nan"), float("inf"),
]  # fmt: skip
VALUES = st.recursive(
    st.sampled_from([None, True, False, *NUMBERS, *HOSTILE]) | st.integers(-3, 40) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(HOSTILE) | st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in nested dicts and lists."""
    yield path
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, entry in inside:
        yield from places(entry, (*path, key))


@st.composite
def altered(draw: st.DrawFn, value: Any) -> Any:
    """A copy of some JSON with one to three entries replaced, removed or added, or, now and then, another value."""
    if draw(st.integers(0, 19)) == 0:
        return draw(VALUES)
    value = copy.deepcopy(value)
    for _ in range(draw(st.integers(1, 3))):
        *above, key = draw(st.sampled_from(list(places(value))[1:]))
        at = value
        for step in above:
            at = at[step]
        how = draw(st.sampled_from(["replace", "replace", "remove", "add"]))
        if how == "replace":
            at[key] = draw(VALUES)
        elif how == "remove" and len(list(places(value))) > 2:
            del at[key]
        elif isinstance(at, dict):
            at[draw(st.sampled_from(HOSTILE))] = draw(VALUES)
        else:
            at.append(draw(VALUES))
    return value


@st.composite
def broken(draw: st.DrawFn, content: bytes) -> bytes:
    """Some bytes cut, lengthened, flipped or overwritten."""
    new = bytearray(content)
    for _ in range(draw(st.integers(1, 3))):
        # Most of what can go wrong is decided by the beginning and the end.
        at = min(len(new), draw(st.integers(0, 300) | st.integers(0, max(0, len(new)))))
        length = draw(st.sampled_from([0, 1, 20, len(new)]))
        new[at : at + length] = draw(st.binary(max_size=20))
    return bytes(new)


@st.composite
def broken_tensors(draw: st.DrawFn, content: bytes) -> bytes:
    """A safetensors file with its header altered, or the length that it says its header has."""
    (length,) = struct.unpack("<Q", content[:8])
    header, rest = json.loads(content[8 : 8 + length]), content[8 + length :]
    kind = draw(st.sampled_from(["length", "header", "header", "dtype", "shape", "data_offsets"]))
    if kind == "length":
        lengths = st.sampled_from([0, 1, length - 1, length + 1, 2**40, 2**63, 2**64 - 1])
        return struct.pack("<Q", draw(lengths)) + content[8:]
    if kind == "header":
        header = draw(altered(header))
    else:
        dtypes = st.sampled_from(["F64", "F32", "F16", "BF16", "I64", "I32", "U8", "BOOL", "F8_E4M3", "X"])
        sizes = st.lists(st.sampled_from([0, 1, 2, 4, 8, 33, 2**40, 2**62, 2**64]), max_size=4)
        name = draw(st.sampled_from([name for name in header if name != "__metadata__"]))
        header[name][kind] = draw(dtypes if kind == "dtype" else sizes)
    text = json.dumps(header).encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(text)) + text + rest


def broken_file(path: Path) -> st.SearchStrategy[bytes]:
    content = path.read_bytes()
    if path.suffix == ".safetensors":
        return broken_tensors(content) | broken(content)
    if path.suffix == ".json":
        # Lone surrogates cannot stand in UTF-8, but they can stand in JSON's own escapes.
        return altered(json.loads(content)).map(lambda value: json.dumps(value).encode()) | broken(content)
    return broken(content)


# The loaders.


class Loader(NamedTuple):
    """One way into the package.

    Attributes:
        write: a whole object's files into a folder.
        names: of the files that may be broken.
        read: the object from such a folder, checked to be whole.
    """

    write: Callable[[Path], object]
    names: tuple[str, ...]
    read: Callable[[Path], object]


def assert_forest(forest: FeatureForest) -> None:
    validate_parents(forest.parents, forest.levels)
    assert FeatureForest.from_dict(json.loads(json.dumps(forest.to_dict()))) == forest
    assert all(forest.path(feature)[-1] == feature for feature in range(len(forest)))


def read_config(folder: Path) -> None:
    cfg = HierarchicalTrainingSAEConfig.from_dict(json.loads((folder / "cfg.json").read_bytes()))
    assert sum(cfg.level_widths) == cfg.d_sae
    if cfg.d_in * cfg.d_sae < 1e6:
        assert HierarchicalTrainingSAE(cfg).W_enc.shape == (cfg.d_in, cfg.d_sae)


def read_model(folder: Path) -> None:
    sae = HierarchicalSAE.load_from_disk(folder)
    assert_forest(sae.forest)
    x = torch.zeros(2, sae.cfg.d_in, dtype=sae.dtype)
    assert sae(x).shape == x.shape
    assert sae.encode(x).shape == (2, len(sae.forest))


def write_checkpoint(folder: Path) -> None:
    trainer = new_trainer(HierarchicalSAETrainer)
    take_steps(trainer, batches(), 3)
    trainer.save_checkpoint("96", base_path=folder.parent / "saved")
    (folder.parent / "saved" / "96").rename(folder)


def read_manifest(folder: Path) -> None:
    verify(folder)
    told = json.loads((folder / MANIFEST).read_text())["files"]
    assert all(Path(name).name == name and (folder / name).is_file() for name in told)


def read_checkpoint(folder: Path) -> None:
    """With a manifest that was made to fit."""
    (folder / MANIFEST).unlink()
    write_manifest(folder, Manifest(96, finished=False))
    verify(folder)
    trainer = new_trainer(HierarchicalSAETrainer)
    before = copy.deepcopy(trainer.sae.state_dict())
    try:
        trainer.load_trainer_state(folder)
        trainer.sae.load_weights_from_checkpoint(folder)
    except CLEAR:
        after = trainer.sae.state_dict()
        assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
        raise
    validate_parents(trainer.sae.parents, trainer.sae.levels)
    assert len(trainer.optimizer.state) <= 5


def write_store(folder: Path) -> None:
    state = {"kept": torch.ones(3, D_IN), "serving": torch.ones(2, D_IN), "rng_state": torch.get_rng_state()}
    save_file({**state, **{name: torch.tensor(1) for name in COUNTS}}, folder / STATE_FILENAME)


def read_store(folder: Path) -> None:
    store = ResumableActivationsStore.__new__(ResumableActivationsStore)
    vars(store).update(dataset=None, d_in=D_IN, cached_activation_dataset=None, device=torch.device("cpu"))
    store._dataloader = buffer = MixingBuffer(8, 4, iter(()), 0.5)
    buffer.kept = buffer.serving = torch.ones(3, D_IN)
    with torch.random.fork_rng():
        store.load_from_checkpoint(folder)
    for held in (buffer.kept, buffer.serving):
        assert held is None or held.shape[1] == D_IN


def write_dashboards(folder: Path) -> None:
    sae = make_sae()
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 50, (8, 6), generator=generator)
    x = torch.randn(8, 6, D_IN, generator=generator) * 2
    shutil.rmtree(folder)
    collect_dashboards(sae, sae.forest, [(tokens, x)], progress=False).save(folder)


def read_dashboards(folder: Path) -> None:
    dashboards = Dashboards.load(folder)
    forest = FeatureForest(dashboards.parents, dashboards.level_widths)
    content = PageContent(dashboards, forest, str, {}, PageLimits())
    content.forest_block("title")
    list(content.feature_blocks())
    content.vocabulary_block()


CHECKPOINT = ("cfg.json", "sae_weights.safetensors", "trainer_state.pt", "activation_scaler.json")
LOADERS = {
    "forest": Loader(
        lambda folder: write_forest(make_sae().forest, folder / "forest.json"),
        ("forest.json",),
        lambda folder: assert_forest(read_forest(folder / "forest.json")),
    ),
    "configuration": Loader(
        lambda folder: (folder / "cfg.json").write_text(json.dumps(make_config().to_dict())), ("cfg.json",), read_config
    ),
    "model": Loader(make_sae().save_inference_model, ("cfg.json", "sae_weights.safetensors"), read_model),
    "manifest": Loader(write_checkpoint, (MANIFEST,), read_manifest),
    "checkpoint": Loader(write_checkpoint, CHECKPOINT, read_checkpoint),
    "store": Loader(write_store, (STATE_FILENAME,), read_store),
    "dashboards": Loader(write_dashboards, ("manifest.json", "dashboards.safetensors"), read_dashboards),
}


def written(kind: str, folder: Path) -> Path:
    folder.mkdir()
    LOADERS[kind].write(folder)
    return folder


@pytest.mark.parametrize("kind", LOADERS)
def test_a_broken_file_is_a_clear_error_or_a_whole_object(kind, tmp_path):
    whole, loader = written(kind, tmp_path / "whole"), LOADERS[kind]
    strategies = {name: broken_file(whole / name) for name in loader.names}
    shutil.copytree(whole, tmp_path / "unbroken")
    loader.read(tmp_path / "unbroken")

    @settings(
        max_examples=60, deadline=None, derandomize=True, database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
    )  # fmt: skip
    @given(st.data())
    def check(data: st.DataObject) -> None:
        shutil.rmtree(tmp_path / "broken", ignore_errors=True)
        shutil.copytree(whole, tmp_path / "broken")
        name = data.draw(st.sampled_from(loader.names))
        (tmp_path / "broken" / name).write_bytes(data.draw(strategies[name]))
        with memory_limited():
            try:
                loader.read(tmp_path / "broken")
            except CLEAR as error:
                check_message(error)

    check()


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return written("model", tmp_path_factory.mktemp("hostile") / "model")


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"a":' * 100_000, "[1]", '"\\ud800', "9" * 5000], ids=lambda text: text[:5]
)
def test_json_of_any_kind_is_an_object_or_a_clear_error(model, tmp_path, text):
    whole = HierarchicalSAE.load_from_disk(model)
    readers: dict[str, Callable[[Path], object]] = {
        "forest.json": read_forest,
        "labels.json": read_labels,
        "evaluation.json": lambda path: load_evaluation(whole, path.parent),
        "cfg.json": lambda path: HierarchicalSAE.load_from_disk(path.parent),
        "manifest.json": lambda path: verify(path.parent),
    }
    for name, read in readers.items():
        path = tmp_path / name
        path.write_text(text)
        with pytest.raises(ValueError, match=re.escape(name)) as caught:
            read(path)
        check_message(caught.value)


def test_a_field_of_no_sense_is_named_with_nothing_that_steers_a_terminal(model, tmp_path):
    shutil.copytree(model, tmp_path / "model")
    path = tmp_path / "model" / "cfg.json"
    whole = json.loads(path.read_text())
    # SAELens' own loader repeats the first two as they are.
    wrong = {"dtype": "\x1f", "architecture": "\x1b[2J", "output_level": True, "d_in": 10**400}
    for field, value in wrong.items():
        path.write_text(json.dumps(whole | {field: value}))
        for loader in (HierarchicalSAE, *([] if isinstance(value, str) else [SAE])):
            with pytest.raises(ValueError, match=f"{field}=") as caught:
                loader.load_from_disk(path.parent)
            check_message(caught.value)


class Exploit:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_no_code_in_a_file_is_run(tmp_path):
    made, path = tmp_path / "made", written("checkpoint", tmp_path / "0") / "trainer_state.pt"
    trainer = new_trainer(HierarchicalSAETrainer)
    path.write_bytes(pickle.dumps(Exploit(made)))
    with pytest.raises(ValueError, match=r"trainer_state\.pt' is damaged"):
        trainer.load_trainer_state(path.parent)
    torch.save({"n_training_samples": Exploit(made)}, path)
    with pytest.raises(ValueError, match=r"trainer_state\.pt' is damaged"):
        trainer.load_trainer_state(path.parent)
    assert not made.exists()
    sae = make_sae(normalize_activations="none")
    sae.cfg.metadata.model_name, sae.cfg.metadata.hook_name = "someone/model", "blocks.0.hook_resid_post"
    sae.cfg.metadata.model_from_pretrained_kwargs = {"trust_remote_code": True}
    with pytest.raises(ValueError, match=r"model_from_pretrained_kwargs=\{'trust_remote_code': True\}"):
        load_language_model(sae)


@pytest.mark.parametrize("outside", ["../../outside", "{folder}/outside"])
def test_no_path_in_a_configuration_decides_where_anything_is_written(tmp_path, outside):
    sae = make_sae()
    for name in ("model_name", "model_class_name", "hook_name", "dataset_path", "neuronpedia_id", "wandb_run"):
        setattr(sae.cfg.metadata, name, outside.format(folder=tmp_path))
    chosen = tmp_path / "a" / "b"
    sae.save_model(chosen / "checkpoint")
    sae.save_inference_model(chosen / "model")
    loaded = HierarchicalSAE.load_from_disk(chosen / "model")
    loaded.save_model(chosen / "again")
    loaded.level_sae(1).save_model(chosen / "level")
    stage(chosen / "model", chosen / "staged", "someone/forest", "layer_3", levels=True)
    written = {path.relative_to(tmp_path).parts[:2] for path in tmp_path.rglob("*") if path.is_file()}
    assert written == {("a", "b")}
