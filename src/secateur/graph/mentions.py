"""Names that the code of a network's classes mentions: what no method mentions is dead weight."""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Iterator
from typing import Any

from torch import nn

from secateur.graph.module_tree import modules_of

_ANY = frozenset({"getattr", "children", "named_children", "_modules", "_parameters", "_buffers"})
_SETS_UP = ("init", "reset")


def mentioned(model: nn.Module) -> tuple[frozenset[str], bool]:
    """Return the names that methods of the model's classes mention, and whether any name may be.

    Code that looks attributes up by computed names may mean any. Methods that set a network up
    do not count, nor does what a subclass has replaced.
    """
    names: set[str] = set()
    kinds: set[Any] = {type(module) for _, module in modules_of(model)}
    for kind in kinds:
        names |= _of_class(kind)
    for _, module in modules_of(model):
        if "forward" in vars(module):
            names |= _of_function(vars(module)["forward"])
    return frozenset(names), bool(names & _ANY)


@functools.cache
def _of_class(kind: Any) -> frozenset[str]:
    """Return the names that the methods of a class mention, PyTorch's own left out."""
    names: set[str] = set()
    for method in dir(kind):
        if any(part in method for part in _SETS_UP):
            continue
        for owner in kind.__mro__:
            if method not in vars(owner):
                continue
            if owner.__module__.partition(".")[0] == "torch":
                break
            found = _of_function(vars(owner)[method])
            names |= found
            if "super" not in found:
                break
    return frozenset(names)


def _of_function(value: Any) -> frozenset[str]:
    """Return the names in the code of a function, method or property."""
    if isinstance(value, property):
        return frozenset().union(*(_of_function(f) for f in (value.fget, value.fset) if f))
    value = inspect.unwrap(getattr(value, "__func__", value))
    code = getattr(value, "__code__", None)
    return frozenset(_names(code)) if isinstance(code, types.CodeType) else frozenset()


def _names(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, str):
            yield constant
        elif isinstance(constant, types.CodeType):
            yield from _names(constant)
