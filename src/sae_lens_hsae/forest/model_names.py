"""Whether two names mean one language model."""

from __future__ import annotations

from pathlib import Path


def same_model(name: str, other: str) -> bool:
    """Whether two ``model_name``s can mean one model: hub names, TransformerLens' aliases, or folders.

    A folder is known by its own name, as another machine may keep it elsewhere, unless both are here in two places.
    """
    folders = [folder.resolve() for folder in (Path(name), Path(other)) if (folder / "config.json").is_file()]
    if len(folders) == 2:
        return folders[0] == folders[1]
    return _called(name) == _called(other)


def _called(name: str) -> str:
    from transformer_lens.loading_from_pretrained import make_model_alias_map

    own = Path(name).name.lower()
    return make_model_alias_map().get(own, own).rpartition("/")[2].lower()
