"""Fuzz what reads files, guided by coverage: inputs that reach new lines of the parsers are kept and varied further.

    pip install atheris          # wheels for Linux and some versions of Python
    python -m benchmarks.fuzz_parsers --seconds 60

Each parser gets a process of its own, a whole file to start from, and the file's words to build others of. An input
is a finding if the parser raises anything but a ``ValueError`` or an ``OSError`` with a printable message, takes more
than ten seconds or more than one GiB. The input is then written to the current folder and the command ends with 1; to
see it again: ``python -m benchmarks.fuzz_parsers --parser forest --input crash-…``.
"""

from __future__ import annotations

import argparse
import importlib
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

atheris: Any = importlib.import_module("atheris")  # it has wheels for few systems, so nothing installs it
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
with atheris.instrument_imports(include=["sae_lens_hsae"]):
    import conftest  # type: ignore[reportMissingImports] – on the path only now
    import hostile_files as tested  # type: ignore[reportMissingImports] – on the path only now

    from sae_lens_hsae import FeatureForest, HierarchicalSAE, HierarchicalSAEConfig, HierarchicalTrainingSAEConfig
    from sae_lens_hsae.forest.files import read_forest, write_forest
    from sae_lens_hsae.interpret.feature_cache import Dashboards
    from sae_lens_hsae.storage.json_files import read_json_object
    from sae_lens_hsae.training.checkpoints import MANIFEST, verify
    from sae_lens_hsae.training.trainer_state import read_trainer_state

SECONDS_PER_INPUT = 10
MAX_BYTES = 2**16
DEPTH = 20_000
"""Of nested lists, one of the first inputs: more than Python's stack holds, and than chance would find."""


def forest(folder: Path) -> tuple[Path, Callable[[], object]]:
    path = write_forest(conftest.make_sae().forest, folder / "forest.json")
    return path, lambda: read_forest(path)


def configuration(folder: Path) -> tuple[Path, Callable[[], object]]:
    path = folder / "cfg.json"
    path.write_text(json.dumps(conftest.make_sae().cfg.get_inference_sae_cfg_dict()))
    return path, lambda: HierarchicalSAEConfig.from_dict(read_json_object(path))


def training_configuration(folder: Path) -> tuple[Path, Callable[[], object]]:
    path = folder / "cfg.json"
    path.write_text(json.dumps(conftest.make_config().to_dict()))
    return path, lambda: HierarchicalTrainingSAEConfig.from_dict(read_json_object(path))


def model_configuration(folder: Path) -> tuple[Path, Callable[[], object]]:
    whole = tested.whole_model(folder)
    return whole / "cfg.json", lambda: HierarchicalSAE.load_from_disk(whole)


def model_weights(folder: Path) -> tuple[Path, Callable[[], object]]:
    whole = tested.whole_model(folder)
    return whole / "sae_weights.safetensors", lambda: HierarchicalSAE.load_from_disk(whole)


def checkpoint_manifest(folder: Path) -> tuple[Path, Callable[[], object]]:
    whole = tested.whole_checkpoint(folder)
    return whole / MANIFEST, lambda: verify(whole)


def trainer_state(folder: Path) -> tuple[Path, Callable[[], object]]:
    path = tested.whole_checkpoint(folder) / "trainer_state.pt"
    return path, lambda: read_trainer_state(path)


def dashboards_manifest(folder: Path) -> tuple[Path, Callable[[], object]]:
    whole = tested.whole_dashboards(folder / "dashboards")
    return whole / "manifest.json", lambda: _read_dashboards(whole)


def dashboards_tensors(folder: Path) -> tuple[Path, Callable[[], object]]:
    whole = tested.whole_dashboards(folder / "dashboards")
    return whole / "dashboards.safetensors", lambda: _read_dashboards(whole)


def _read_dashboards(folder: Path) -> None:
    dashboards = Dashboards.load(folder)
    FeatureForest(dashboards.parents, dashboards.level_widths)


PARSERS: dict[str, Callable[[Path], tuple[Path, Callable[[], object]]]] = {
    make.__name__: make
    for make in (
        forest, configuration, training_configuration, model_configuration, model_weights, checkpoint_manifest,
        trainer_state, dashboards_manifest, dashboards_tensors,
    )
}  # fmt: skip
"""By name: what makes a whole file in a folder, and gives the file and what reads it."""


def words(content: bytes) -> Iterator[bytes]:
    """Names and strings of a file, and what hostile files hold: what a fuzzer would hardly find by itself."""
    yield from dict.fromkeys(re.findall(rb'"[^"]{1,60}"', content))
    hostile = [*tested.HOSTILE, *tested.NUMBERS, None, True, False, [], {}]
    yield from (json.dumps(value).encode() for value in hostile if len(str(value)) < 100)


def fuzz(name: str, libfuzzer: list[str]) -> None:
    """Hand one parser to libFuzzer, which ends the process."""
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "whole").mkdir()
        (folder / "corpus").mkdir()
        path, read = PARSERS[name](folder / "whole")
        content = path.read_bytes()
        (folder / "corpus" / "whole").write_bytes(content)
        (folder / "corpus" / "deep").write_bytes(b"[" * DEPTH)
        escaped = ("".join(f"\\x{byte:02x}" for byte in word) for word in words(content))
        (folder / "words").write_text("".join(f'"{word}"\n' for word in escaped))

        def one_input(data: bytes) -> None:
            path.write_bytes(data)
            with tested.memory_limited():
                try:
                    read()
                except tested.CLEAR as error:
                    tested.check_message(error)

        one_input(content)
        settings = [f"-timeout={SECONDS_PER_INPUT}", f"-max_len={max(MAX_BYTES, 2 * len(content))}", "-rss_limit_mb=0"]
        corpus = [] if any(Path(argument).is_file() for argument in libfuzzer) else [str(folder / "corpus")]
        atheris.Setup([sys.argv[0], f"-dict={folder / 'words'}", *settings, *libfuzzer, *corpus], one_input)
        atheris.Fuzz()


def fuzz_all(seconds: int) -> dict[str, Any]:
    """Fuzz every parser for so long, each in a process of its own; inputs per parser, None where it found one."""
    inputs: dict[str, Any] = {}
    for name in PARSERS:
        command = [sys.executable, "-m", "benchmarks.fuzz_parsers", "--parser", name, "--seconds", str(seconds)]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace")
        counted = re.search(r"^Done (\d+) runs", done.stderr, flags=re.MULTILINE)
        if done.returncode == 0 and counted is not None:
            inputs[name] = int(counted[1])
            print(f"{name:<24} {inputs[name]:,} inputs", flush=True)
        else:
            inputs[name] = None
            print(f"{name:<24} {done.stderr[-4000:]}", flush=True)
    return inputs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=60, help="for each parser")
    parser.add_argument("--parser", choices=list(PARSERS), help="one instead of all")
    parser.add_argument("--input", type=Path, help="a file to give to that parser, instead of fuzzing it")
    chosen = parser.parse_args()
    if chosen.input is not None and chosen.parser is None:
        parser.error("--input needs the --parser to give it to")
    if chosen.parser is not None:
        fuzz(chosen.parser, [str(chosen.input)] if chosen.input else [f"-max_total_time={chosen.seconds}"])
    inputs = fuzz_all(chosen.seconds)
    found = [name for name, count in inputs.items() if count is None]
    print(f"{sum(filter(None, inputs.values())):,} inputs; findings: {', '.join(found) or 'none'}")
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
