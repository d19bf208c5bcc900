"""A device that has neither float64 nor sparse tensors, as Apple's GPUs, for tests on a CPU.

Its tensors hold CPU tensors and say that they are on another device ("meta", the one kind torch knows everywhere).
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_any, tree_map

DEVICE = torch.device("meta")


class There(Tensor):
    """A tensor on that device."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> "There":
        if held.dtype == torch.float64:
            raise TypeError("this device has no float64")
        if held.layout != torch.strided:
            raise TypeError("this device has no sparse tensors")
        made = Tensor._make_wrapper_subclass(
            cls, held.shape, held.stride(), held.storage_offset(), dtype=held.dtype, device=DEVICE
        )
        made.held = held
        return made

    def __repr__(self, **options: Any) -> str:
        return f"There({self.held})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})


class Device(TorchDispatchMode):
    """Within it tensors can be made there."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})


def run(func: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> Any:
    """Compute on the CPU; what comes of tensors there, or is asked for there, is there too."""
    target = kwargs.get("device")
    goes_there = tree_any(lambda x: isinstance(x, There), (args, kwargs)) if target is None else target == DEVICE
    if target is not None:
        kwargs = kwargs | {"device": torch.device("cpu")}
    of_there = {id(x.held): x for x in torch.utils._pytree.tree_leaves((args, kwargs)) if isinstance(x, There)}
    out = func(*tree_map(held, args), **tree_map(held, kwargs))
    if not goes_there:
        return out

    def there(x: Any) -> Any:
        return of_there[id(x)] if id(x) in of_there else There(x) if isinstance(x, Tensor) else x

    return tree_map(there, out)


def held(x: Any) -> Any:
    return x.held if isinstance(x, There) else x
