"""Files that may come from anybody: whatever they hold, loading gives a whole object or a clear error.

``HSAE_FUZZ_EXAMPLES`` sets how many inputs each of the ten fuzzed loaders gets.
"""

import copy
import json
import os
import pickle
import re
import resource
import shutil
import struct
import traceback
import zipfile
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import torch
from conftest import D_IN, WIDTHS, make_config, make_sae
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sae_lens import SAE
from test_resume import batches, new_trainer, take_steps

import sae_lens_hsae
from sae_lens_hsae import FeatureForest, HierarchicalSAE, HierarchicalSAEConfig, HierarchicalTrainingSAEConfig
from sae_lens_hsae.explorer.content import PageContent
from sae_lens_hsae.explorer.page import PageLimits
from sae_lens_hsae.forest import validate_parents
from sae_lens_hsae.forest.files import read_forest
from sae_lens_hsae.interpret.dashboards import Dashboards, collect_dashboards
from sae_lens_hsae.interpret.dashboards.resume import load_progress, save_progress
from sae_lens_hsae.interpret.dashboards.statistics import FiringStatistics
from sae_lens_hsae.interpret.dashboards.text import load_language_model
from sae_lens_hsae.interpret.labels.files import read_labels
from sae_lens_hsae.sharing.saved_model import load_evaluation
from sae_lens_hsae.training.checkpoints import MANIFEST, Manifest, verify, write_manifest
from sae_lens_hsae.training.resumable_store import COUNTS, STATE_FILENAME, MixingBuffer, ResumableActivationsStore
from sae_lens_hsae.training.trainer import HierarchicalSAETrainer

fuzzed = settings(
    max_examples=int(os.environ.get("HSAE_FUZZ_EXAMPLES", "250")),
    deadline=None,
    derandomize="HSAE_FUZZ_EXAMPLES" not in os.environ,
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


def check_error(error, host_reads_first=False):
    """It is one that a loader of ours may raise; SAELens' and Python's own only where they read a file before us."""
    *_, (innermost, _) = traceback.walk_tb(error.__traceback__)
    ours = Path(sae_lens_hsae.__file__).parent in Path(innermost.f_code.co_filename).parents
    if isinstance(error, MemoryError) or ours or not host_reads_first:
        assert isinstance(error, CLEAR), repr(error)
        check_message(error)


# What hostile files hold.

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


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


def with_one_broken(data, whole, folder, names):
    """A copy of a folder in which one file is broken; gives the file."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(whole, folder)
    path = folder / data.draw(st.sampled_from(names))
    path.write_bytes(data.draw(broken_file(whole / path.name)))
    return path


# The loaders.


def forest_dict():
    return make_sae().forest.to_dict()


@fuzzed
@given(altered(forest_dict()) | values)
def test_forests(data):
    with memory_limited():
        try:
            forest = FeatureForest.from_dict(data)
        except CLEAR as error:
            check_message(error)
            return
    validate_parents(forest.parents, forest.levels)
    assert FeatureForest.from_dict(json.loads(json.dumps(forest.to_dict()))) == forest
    for feature in range(len(forest)):
        assert forest.path(feature)[-1] == feature


@pytest.mark.parametrize("of", ["inference", "training"])
def test_configurations(of):
    whole = make_config().to_dict() if of == "training" else make_sae().cfg.get_inference_sae_cfg_dict()
    whole = json.loads(json.dumps(whole))
    read = (HierarchicalTrainingSAEConfig if of == "training" else HierarchicalSAEConfig).from_dict
    assert read(whole).d_in == D_IN

    @fuzzed
    @given(altered(whole) | values)
    def check(data):
        with memory_limited():
            try:
                cfg = read(data)
            except CLEAR as error:
                check_message(error)
                return
            assert sum(cfg.level_widths) == cfg.d_sae
            if cfg.d_in * cfg.d_sae < 1e6:
                made = HierarchicalSAE(cfg) if isinstance(cfg, HierarchicalSAEConfig) else type(make_sae())(cfg)
                assert made.W_enc.shape == (cfg.d_in, cfg.d_sae)

    check()


def whole_model(folder):
    make_sae().save_inference_model(folder)
    return folder


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return whole_model(tmp_path_factory.mktemp("model"))


def assert_whole(sae):
    forest = sae.forest
    validate_parents(forest.parents, forest.levels)
    x = torch.zeros(2, sae.cfg.d_in, dtype=sae.dtype)
    assert sae(x).shape == x.shape
    assert sae.encode(x).shape == (2, forest.n_features)


@pytest.mark.parametrize("loader", [HierarchicalSAE, SAE])
def test_models(model_folder, scratch, loader):
    @fuzzed
    @given(st.data())
    def check(data):
        with_one_broken(data, model_folder, scratch / "model", ["cfg.json", "sae_weights.safetensors"])
        with memory_limited():
            try:
                sae = loader.load_from_disk(scratch / "model")
            except Exception as error:
                check_error(error, host_reads_first=loader is SAE)
                return
        if isinstance(sae, HierarchicalSAE):
            assert_whole(sae)

    assert_whole(loader.load_from_disk(model_folder))
    check()


def whole_checkpoint(folder):
    trainer = new_trainer(HierarchicalSAETrainer)
    take_steps(trainer, batches(), 3)
    trainer.save_checkpoint("96", base_path=folder)
    (folder / "96" / "activations_store_state.safetensors").unlink(missing_ok=True)
    return folder / "96"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return whole_checkpoint(tmp_path_factory.mktemp("checkpoint"))


def test_manifests(checkpoint, scratch):
    @fuzzed
    @given(st.data())
    def check(data):
        path = with_one_broken(data, checkpoint, scratch / "manifest", [MANIFEST])
        with memory_limited():
            try:
                verify(path.parent)
            except CLEAR as error:
                check_message(error)
                return
        told = json.loads(path.read_text())["files"]
        assert all(Path(name).name == name and (checkpoint / name).is_file() for name in told)

    check()


def test_checkpoints_whose_manifest_was_made_to_fit(checkpoint, scratch):
    names = ["cfg.json", "sae_weights.safetensors", "trainer_state.pt", "activation_scaler.json"]

    @fuzzed
    @given(st.data())
    def check(data):
        path = with_one_broken(data, checkpoint, scratch / "checkpoint", names)
        (path.parent / MANIFEST).unlink()
        write_manifest(path.parent, Manifest(96, finished=False))
        with memory_limited():
            verify(path.parent)
            trainer = new_trainer(HierarchicalSAETrainer)
            before = copy.deepcopy(trainer.sae.state_dict())
            try:
                trainer.load_trainer_state(path.parent)
                trainer.sae.load_weights_from_checkpoint(path.parent)
            except CLEAR as error:
                check_message(error)
                after = trainer.sae.state_dict()
                assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
                return
            validate_parents(trainer.sae.parents, trainer.sae.levels)
            assert len(trainer.optimizer.state) <= 5

    check()


def test_states_of_the_store(scratch):
    store = ResumableActivationsStore.__new__(ResumableActivationsStore)
    vars(store).update(dataset=None, d_in=D_IN, cached_activation_dataset=None, device=torch.device("cpu"))
    store._dataloader = buffer = MixingBuffer(8, 4, iter(()), 0.5)
    buffer.kept = buffer.serving = torch.ones(3, D_IN)
    from safetensors.torch import save_file

    whole = scratch / "store-whole"
    whole.mkdir()
    state = {"kept": torch.ones(3, D_IN), "serving": torch.ones(2, D_IN), "rng_state": torch.get_rng_state()}
    save_file({**state, **{name: torch.tensor(1) for name in COUNTS}}, whole / STATE_FILENAME)
    store.load_from_checkpoint(whole)
    random_state = torch.get_rng_state()

    @fuzzed
    @given(st.data())
    def check(data):
        path = with_one_broken(data, whole, scratch / "store", [STATE_FILENAME])
        with memory_limited(), suppress(*CLEAR):
            store.load_from_checkpoint(path.parent)
        for held in (buffer.kept, buffer.serving):
            assert held is None or held.shape[1] == D_IN

    check()
    torch.set_rng_state(random_state)


def whole_dashboards(folder):
    sae = make_sae()
    cfg = HierarchicalSAEConfig(d_in=D_IN, d_sae=sum(WIDTHS), level_widths=WIDTHS)
    inference = HierarchicalSAE(cfg)
    inference.load_state_dict({name: sae.state_dict()[name] for name in inference.state_dict()})
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 50, (8, 6), generator=generator)
    x = torch.randn(8, 6, D_IN, generator=generator) * 2
    collect_dashboards(inference, inference.forest, [(tokens, x)], progress=False).save(folder)
    return folder


@pytest.fixture(scope="module")
def dashboards_folder(tmp_path_factory):
    return whole_dashboards(tmp_path_factory.mktemp("dashboards") / "whole")


def test_dashboards(dashboards_folder, scratch):
    assert Dashboards.load(dashboards_folder).n_features == sum(WIDTHS)

    @fuzzed
    @given(st.data())
    def check(data):
        with_one_broken(data, dashboards_folder, scratch / "dashboards", ["manifest.json", "dashboards.safetensors"])
        with memory_limited():
            try:
                dashboards = Dashboards.load(scratch / "dashboards")
            except CLEAR as error:
                check_message(error)
                return
            forest = FeatureForest(dashboards.parents, dashboards.level_widths)
            content = PageContent(dashboards, forest, str, {}, PageLimits())
            content.forest_block("title")
            list(content.feature_blocks())
            content.vocabulary_block()

    check()


def test_unfinished_collections(scratch):
    forest = make_sae().forest
    path, whole = scratch / "progress.safetensors", scratch / "progress-whole.safetensors"
    save_progress(whole, {"statistics": FiringStatistics(forest, torch.device("cpu"))}, {"version": 1})

    @fuzzed
    @given(broken_tensors(whole.read_bytes()))
    def check(content):
        path.write_bytes(content)
        statistics = FiringStatistics(forest, torch.device("cpu"))
        expected = {name: value.shape for name, value in vars(statistics).items() if isinstance(value, torch.Tensor)}
        with memory_limited():
            load_progress(path, {"statistics": statistics}, {"version": 1})
        for name, shape in expected.items():
            assert getattr(statistics, name).shape == shape

    check()


# Attacks by hand.


class Exploit:
    """Unpickled, it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("how", ["pickled", "huge", "compressed", "legacy"])
def test_a_hostile_trainer_state_does_nothing(checkpoint, tmp_path, how):
    shutil.copytree(checkpoint, tmp_path / "0")
    path, made = tmp_path / "0" / "trainer_state.pt", tmp_path / "made"
    if how == "pickled":
        torch.save({"n_training_samples": Exploit(made)}, path)
    elif how == "legacy":
        path.write_bytes(pickle.dumps(Exploit(made)))
    else:
        with zipfile.ZipFile(path) as archive:
            records = {record.filename: archive.read(record) for record in archive.infolist()}
        if how == "huge":
            # torch's unpickler knows bytearray, and would make one of any size.
            records["trainer_state/data.pkl"] = (
                b"\x80\x02cbuiltins\nbytearray\nq\x00" + pickle.dumps(10**12, 2)[2:-1] + b"\x85R."
            )
        compression = zipfile.ZIP_DEFLATED if how == "compressed" else zipfile.ZIP_STORED
        with zipfile.ZipFile(path, "w", compression) as archive:
            for name, content in records.items():
                archive.writestr(name, content)
    trainer = new_trainer(HierarchicalSAETrainer)
    with memory_limited(), pytest.raises(ValueError, match=r"trainer_state\.pt' is damaged"):
        trainer.load_trainer_state(tmp_path / "0")
    assert not made.exists()


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"a":' * 100_000, "[1]", '"\\ud800', "9" * 5000], ids=lambda text: text[:5]
)
def test_json_of_any_kind_is_an_object_or_a_clear_error(model_folder, tmp_path, text):
    whole = HierarchicalSAE.load_from_disk(model_folder)
    readers = {
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


@pytest.mark.parametrize(
    ("field", "value", "loaders"),
    [
        ("dtype", "\x1f", [HierarchicalSAE]),  # SAELens repeats it as it is
        ("architecture", "\x1b[2J", [HierarchicalSAE]),
        ("output_level", True, [HierarchicalSAE, SAE]),
        ("d_in", 10**400, [HierarchicalSAE, SAE]),
    ],
)
def test_a_field_of_no_sense_is_named_with_nothing_that_steers_a_terminal(
    model_folder, tmp_path, field, value, loaders
):
    shutil.copytree(model_folder, tmp_path / "model")
    path = tmp_path / "model" / "cfg.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    for loader in loaders:
        with pytest.raises(ValueError, match=f"{field}=") as caught:
            loader.load_from_disk(path.parent)
        check_message(caught.value)


@pytest.mark.parametrize("factor", [0, -1.0, 10**400, "1", True, float("nan")])
def test_a_scale_that_is_no_positive_number_is_refused(checkpoint, tmp_path, factor):
    shutil.copytree(checkpoint, tmp_path / "0")
    (tmp_path / "0" / "activation_scaler.json").write_text(
        json.dumps({"scaling_factor": factor, "has_whitening": False})
    )
    with pytest.raises(ValueError, match="must be a positive number or null"):
        new_trainer(HierarchicalSAETrainer).load_trainer_state(tmp_path / "0")


def test_metadata_cannot_have_code_run():
    sae = make_sae()
    sae.cfg.metadata.model_name, sae.cfg.metadata.hook_name = "someone/model", "blocks.0.hook_resid_post"
    sae.cfg.metadata.model_from_pretrained_kwargs = {"trust_remote_code": True}
    with pytest.raises(ValueError, match=r"model_from_pretrained_kwargs=\{'trust_remote_code': True\}"):
        load_language_model(sae)
