"""Checks of a saved SAE's files, which may come from anybody, before they are read into memory."""

from __future__ import annotations

from pathlib import Path

from sae_lens.constants import ACTIVATION_SCALER_CFG_FILENAME, SAE_CFG_FILENAME, SAE_WEIGHTS_FILENAME
from sae_lens.loading.pretrained_sae_loaders import handle_config_defaulting
from safetensors import SafetensorError, safe_open

from sae_lens_hsae.config import ARCHITECTURE, HierarchicalSAEConfig
from sae_lens_hsae.storage.exact_storage import SUFFIX
from sae_lens_hsae.storage.json_files import is_number, printable, read_json_object


def check_model_files(folder: Path) -> None:
    """Check that a folder holds the configuration and the weights of an SAE of this architecture, and that they fit."""
    saved = read_json_object(folder / SAE_CFG_FILENAME)
    try:
        saved = handle_config_defaulting(saved)
    except Exception as error:  # SAELens takes the types of what it reads for granted
        raise ValueError(f"{folder / SAE_CFG_FILENAME} is damaged ({printable(error)})") from error
    if "dtype" not in saved:
        raise ValueError(f"{folder / SAE_CFG_FILENAME} is damaged: it has no dtype")
    cfg = HierarchicalSAEConfig.from_dict(saved)
    shapes = check_tensor_file(folder / SAE_WEIGHTS_FILENAME)
    n, d_in = cfg.d_sae, cfg.d_in
    expected = {
        "W_enc": (d_in, n), "b_enc": (n,), "W_dec": (n, d_in), "b_dec": (len(cfg.level_widths), d_in),
        "parents" + SUFFIX: (n, 8),
    }  # fmt: skip
    for name, shape in expected.items():
        if shapes.get(name) != shape:
            raise ValueError(
                f"{folder / SAE_WEIGHTS_FILENAME} has {name} of shape {shapes.get(name)}, but level_widths="
                f"{cfg.level_widths} and d_in={d_in} need {shape}; the files do not belong together"
            )


def scale_beside(folder: Path) -> float | None:
    """The factor of the activations that a checkpoint of the training holds; None where there is none."""
    path = folder / ACTIVATION_SCALER_CFG_FILENAME
    if not path.is_file():
        return None
    scaler = read_json_object(path)
    factor = scaler.get("scaling_factor", "missing")
    if not (factor is None or (is_number(factor) and factor > 0)) or scaler.get("has_whitening") is not False:
        raise ValueError(
            f"{str(path)!r} is damaged: scaling_factor={factor!r} must be a positive number or null, and has_whitening "
            "false; take another checkpoint"
        )
    return factor


def check_tensor_file(path: Path) -> dict[str, tuple[int, ...]]:
    """Check a safetensors file, which may be missing or damaged, by its header alone, and give the tensors' shapes."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing")
    try:
        with safe_open(path, framework="pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - it is no dict
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is damaged ({printable(error)}); save or download it again") from error


def check_architecture(cfg_path: Path) -> None:
    """Raise a ValueError if a saved config is of another architecture."""
    saved = read_json_object(cfg_path).get("architecture")
    if saved != ARCHITECTURE:
        raise ValueError(
            f"{cfg_path} has architecture={saved!r}, but this SAE is {ARCHITECTURE!r}; "
            f"resume from a checkpoint of this run, or train with the configuration of that one"
        )
