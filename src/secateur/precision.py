"""Run a network in another floating-point precision than its own, whatever its code asks for."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn

from secateur.graph.dispatch import DispatchMode
from secateur.graph.grouped_product import GROUPED, grouped_product
from secateur.graph.normal_mode import in_normal_mode

COMPLEX = {torch.float64: torch.complex128, torch.float32: torch.complex64}

# Reading the bits of a tensor as another type has nothing to do with precision.
_BITS = ("aten.view.dtype",)


def precise_dtype(own: torch.dtype, wanted: torch.dtype) -> torch.dtype:
    """Return what stands for the type ``own`` in a network of precision ``wanted``."""
    if own.is_floating_point:
        return wanted
    return COMPLEX[wanted] if own.is_complex else own


def in_precision(tensor: Tensor, dtype: torch.dtype, device: torch.device | None = None) -> Tensor:
    """Copy a tensor to ``device``, floating ones in ``dtype`` and complex ones to match."""
    data = tensor.detach().to(device, precise_dtype(tensor.dtype, dtype), copy=True)
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(data, requires_grad=False)
    return data


class Precision(DispatchMode):
    """Keeps a network in ``dtype``, whose tensors are in it already, where its own code is not.

    Types that the code names become ``dtype``, and so do tensors that it makes from nothing
    (``torch.ones(t, t)``), from integers, or holds outside of its modules.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self._dtype = dtype

    @in_normal_mode
    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        names, shared, fresh = _aliases(func)
        if str(func) in _BITS:
            return func(*args, **(kwargs or {}))
        changed = [
            arg if name in shared else self._wide(arg)
            for name, arg in zip(names, args, strict=False)
        ]
        named = {
            name: arg if name in shared else self._wide(arg) for name, arg in (kwargs or {}).items()
        }
        if str(func.overloadpacket) == GROUPED and self._dtype == torch.float64:
            return grouped_product(*changed[:3])  # PyTorch's takes no float64
        result = func(*changed, **named)
        if not fresh:
            return result
        return (
            type(result)(map(self._cast, result))
            if isinstance(result, (tuple, list))
            else self._cast(result)
        )

    def _wide(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self._cast(value)
        if isinstance(value, torch.dtype):
            return precise_dtype(value, self._dtype)
        if isinstance(value, (list, tuple)):
            return type(value)(self._wide(item) for item in value)
        return value

    def _cast(self, value: Any) -> Any:
        # A single number mixes with any type, and must stay what the trace has read.
        if not isinstance(value, Tensor) or value.dim() == 0:
            return value
        wanted = precise_dtype(value.dtype, self._dtype)
        return value if value.dtype == wanted else value.to(wanted)


@functools.lru_cache(maxsize=4096)
def _aliases(func: Any) -> tuple[tuple[str, ...], frozenset[str], bool]:
    """Return the names of an operation's arguments, which of them it writes to or gives views of.

    And whether its results are tensors of their own.
    """
    arguments = func._schema.arguments
    shared = frozenset(a.name for a in arguments if a.alias_info is not None)
    made = str(func.overloadpacket).startswith("aten.lift_fresh")
    return tuple(a.name for a in arguments), shared, made or not shared
