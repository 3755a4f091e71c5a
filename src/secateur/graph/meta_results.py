"""Results of operations on meta tensors, computed once for each layout of the arguments.

PyTorch finds the shape of a result by running Python or C++ arithmetic on shapes: 10 us to
10 ms for each operation, the same for each of a network's equal layers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor

Layout: TypeAlias = "tuple[tuple[int, ...], tuple[int, ...], torch.dtype]"


class MetaResults:
    """Runs operations on meta tensors; one with arguments of known layout is answered at once.

    Args:
        compute: runs an operation that was not met before.
    """

    def __init__(self, compute: Callable[[Any, tuple[Any, ...], dict[str, Any]], Any]) -> None:
        self._compute = compute
        self._known: dict[Any, tuple[bool, tuple[Layout, ...]]] = {}
        self._kinds: dict[Any, str] = {}

    def run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return what ``func`` returns: new meta tensors, or its first argument."""
        kind = self._kinds.get(func) or self._kinds.setdefault(func, _kind_of(func))
        if kind == _VIEW:
            return func(*args, **kwargs)
        try:
            key = (func, _layout_of(args), _layout_of(tuple(kwargs.items())))
            found = self._known.get(key)
        except (_NotMeta, TypeError):  # a real tensor, or an argument that cannot be hashed
            return func(*args, **kwargs)
        if found is None:
            result = self._compute(func, args, kwargs)
            several = isinstance(result, (tuple, list))
            parts = tuple(result) if several else (result,)
            if all(isinstance(part, Tensor) and part.is_meta for part in parts):
                layouts = tuple((tuple(t.shape), t.stride(), t.dtype) for t in parts)
                # In place: remembered only where the tensor keeps its layout.
                if kind == _NEW or key[1][0][:3] == layouts[0]:
                    self._known[key] = several, layouts
            return result
        if kind == _IN_PLACE:
            return args[0]
        several, layouts = found
        made = tuple(
            torch.empty_strided(shape, stride, dtype=dtype, device="meta")
            for shape, stride, dtype in layouts
        )
        return made if several else made[0]


_NEW, _IN_PLACE, _VIEW = "new", "in place", "view"


def _kind_of(func: Any) -> str:
    """Tell whether ``func`` returns new tensors, the first argument that it writes to, or views."""
    schema = func._schema
    aliases = [value.alias_info for value in (*schema.arguments, *schema.returns)]
    if not any(aliases):
        return _NEW
    first = schema.arguments[0].alias_info
    in_place = func.overloadpacket.__name__.endswith("_") and first is not None and first.is_write
    alone = sum(alias is not None for alias in aliases) == 2 and len(schema.returns) == 1
    return _IN_PLACE if in_place and alone else _VIEW


class _NotMeta(Exception):
    """An argument is no meta tensor."""


def _layout_of(value: Any) -> Any:
    if isinstance(value, Tensor):
        if not value.is_meta or value.layout != torch.strided:
            raise _NotMeta
        return tuple(value.shape), value.stride(), value.dtype, value.is_conj(), value.is_neg()
    if isinstance(value, (tuple, list)):
        return tuple(_layout_of(item) for item in value)
    return type(value), value
