"""Checks of a saved SAE's files, which may come from anybody, before they are read into memory."""

from __future__ import annotations

from pathlib import Path

from sae_lens.constants import ACTIVATION_SCALER_CFG_FILENAME, SAE_CFG_FILENAME, SAE_WEIGHTS_FILENAME
from safetensors import SafetensorError, safe_open

from sae_lens_hsae.config import ARCHITECTURE, HierarchicalSAEConfig
from sae_lens_hsae.storage.json_files import is_number, printable, read_json_object


def check_model_files(folder: Path) -> None:
    """Check that a folder holds the configuration and the weights of an SAE of this architecture."""
    HierarchicalSAEConfig.from_dict(read_json_object(folder / SAE_CFG_FILENAME))
    check_tensor_file(folder / SAE_WEIGHTS_FILENAME)


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


def check_tensor_file(path: Path) -> None:
    """Check that a safetensors file is there and whole, by its header alone."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing")
    try:
        with safe_open(path, framework="pt"):
            return
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
