"""Objects by their class and state: what both the writer and the reader of attributes ask.

Nothing here runs code of an object's class.
"""

from __future__ import annotations

import enum
import pathlib
import types
from collections import OrderedDict, defaultdict, deque
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

PLAIN = (bool, int, float, str, type(None))
DEEPEST = 100
SINGLE = {"Ellipsis": Ellipsis, "NotImplemented": NotImplemented, "NoneType": type(None)}
TORCH = (torch.dtype, torch.device, torch.memory_format, torch.layout)
BASES = (
    OrderedDict, defaultdict, dict, deque, list, tuple, set, frozenset,
    int, float, complex, str, bytes, bytearray, types.SimpleNamespace,
)  # fmt: skip
BASE_NAMES = {base.__name__: base for base in BASES}
MUTABLE = (dict, list, set, deque, bytearray, types.SimpleNamespace)
_OF_PYTHON = 1 << 9  # Py_TPFLAGS_HEAPTYPE
WAY_OUT = "save with factory='package.module:callable' instead"


REINSTALLED = {"transformers.utils.output_capturing": "_output_capturing_hooks_installed"}
"""Modules whose hooks are closures that they install again where the attribute is missing."""


def lasting_hooks(hooks: Mapping[int, Any]) -> dict[int, Any]:
    """Return the hooks that no library installs again by itself."""
    return {i: h for i, h in hooks.items() if getattr(h, "__module__", None) not in REINSTALLED}


def base_of(kind: type) -> type | None:
    """Return the built-in container or number that a class is made of, None if it is neither."""
    return next((base for base in BASES if issubclass(kind, base)), None)


def blank_fails(kind: type) -> str:
    """Say why an object of a class cannot be made without calling it; empty where it can."""
    base = base_of(kind)
    try:
        blank(kind, base, 0 if base in (int, float, complex) else b"" if base else "")
    except TypeError as error:
        return str(error)
    return ""


def blank(kind: type, base: type | None, data: Any) -> Any:
    """Make an object of a class without running any of its code."""
    if base is None:
        return object.__new__(kind)
    if base in (int, float, complex, bytes, tuple, frozenset):
        return base.__new__(kind, data)
    if base is str:
        return str.__new__(kind, data)
    return base.__new__(kind)  # type: ignore[call-overload]


def attributes_of(value: Any) -> dict[str, Any]:
    """Return the attributes that an object has of its own."""
    try:
        found: dict[str, Any] = object.__getattribute__(value, "__dict__")
    except AttributeError:
        return {}
    return found


def slots_of(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield name and value of the filled slots of an object."""
    for base in type(value).__mro__:
        if not base.__flags__ & _OF_PYTHON:
            continue
        for name, descriptor in vars(base).items():
            if isinstance(descriptor, types.MemberDescriptorType):
                try:
                    yield name, descriptor.__get__(value, type(value))
                except AttributeError:
                    continue


def in_order(items: Any) -> list[Any]:
    """Return the items of a set in an order that does not change from process to process."""
    return sorted(items, key=lambda item: (type(item).__name__, repr(item)))


def is_key(key: Any) -> bool:
    """Tell whether a value is told from others without code of its class."""
    if isinstance(key, (tuple, frozenset)) and type(key) in (tuple, frozenset, torch.Size):
        return all(is_key(part) for part in key)
    kind = type(key)
    return (
        kind in (*PLAIN, bytes, complex)
        or isinstance(key, (*TORCH, enum.Enum, pathlib.PurePath))
        or (isinstance(key, type) and type(key).__hash__ is type.__hash__)
        or isinstance(key, types.FunctionType | types.BuiltinFunctionType)
        or _hash_of(kind) in (object.__hash__, Tensor.__hash__, nn.Module.__hash__)
        or isinstance(key, (np.generic, np.dtype))
    )


def _hash_of(kind: Any) -> Any:
    return kind.__hash__


def short(value: Any) -> str:
    """Return a value's text, cut short."""
    text = repr(value) if isinstance(value, PLAIN) else f"a {type(value).__name__}"
    return text if len(text) <= 100 else f"{text[:97]}..."
