"""A second device for tests on a CPU: tensors that say they are on ``meta``, have numbers, and mix with no others."""

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

OTHER = torch.device("meta")
MAY_MIX = {"_to_copy", "copy_", "set_"}


class Elsewhere(torch.Tensor):
    """On the other device."""

    own: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> "Elsewhere":
        kind: Any = {"strides": inner.stride(), "dtype": inner.dtype, "device": OTHER}
        found = torch.Tensor._make_wrapper_subclass(cls, inner.shape, **kind)
        found.own = inner
        return found

    def tolist(self) -> Any:
        return self.own.tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class TwoDevices(TorchDispatchMode):
    """While this is open, ``.to(OTHER)`` moves tensors there, and every operation is on one device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def moved(sae: Any) -> Any:
    """An SAE on the other device."""
    if sae.device == OTHER:
        return sae
    for name, parameter in list(sae.named_parameters()):
        sae._parameters[name] = torch.nn.Parameter(Elsewhere(parameter.data), requires_grad=False)
    sae.device = OTHER
    return sae


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    name = func._schema.name.removeprefix("aten::")
    tensors = [each for each in tree_flatten((args, kwargs))[0] if isinstance(each, torch.Tensor)]
    there = [isinstance(each, Elsewhere) for each in tensors]
    picks_by_cpu = name.startswith("index") and bool(there) and there[0]
    if name not in MAY_MIX and any(there) and not picks_by_cpu:
        here = [each for each, is_there in zip(tensors, there, strict=True) if not is_there and each.ndim]
        assert not here, f"{func} takes tensors of two devices"
    asked = kwargs.get("device")
    to_other = any(there) if asked is None else torch.device(asked).type == OTHER.type
    plain = tree_map(lambda each: each.own if isinstance(each, Elsewhere) else each, (args, kwargs))
    if asked is not None:
        plain[1]["device"] = "cpu"
    found = func(*plain[0], **plain[1])
    if func._schema.is_mutable:
        return args[0]
    return (
        tree_map(lambda each: Elsewhere(each) if isinstance(each, torch.Tensor) else each, found) if to_other else found
    )
