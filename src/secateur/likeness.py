"""Is a network that was built again the one that it was built from? Every attribute is compared."""

from __future__ import annotations

import enum
import functools
import logging
import pathlib
import random
import re
import types
import weakref
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from secateur.attribute_values import (
    BASES,
    PLAIN,
    REINSTALLED,
    attributes_of,
    base_of,
    in_order,
    lasting_hooks,
    slots_of,
)
from secateur.trust import is_function

_PASSED_OVER = frozenset(
    (
        *("_load_state_dict_pre_hooks", "_load_state_dict_post_hooks", "_compiled_call_impl"),
        *REINSTALLED.values(),
    )
)
_BY_TEXT: tuple[type, ...] = (
    torch.dtype, torch.device, torch.memory_format, torch.layout, pathlib.PurePath,
    re.Pattern, np.dtype, np.generic, types.EllipsisType, types.NotImplementedType,
)  # fmt: skip
_BY_IDENTITY = (enum.Enum, types.ModuleType, logging.Logger)


def difference(
    model: nn.Module,
    other: nn.Module,
    names: Mapping[int, str],
    other_names: Mapping[int, str],
    *,
    has_factory: bool = False,
) -> str | None:
    """Say where two networks differ first, None if nowhere.

    Numbers of named tensors are not compared.

    Args:
        model: the network.
        other: what was built from its description.
        names: {id of a tensor of ``model``: its name}.
        other_names: the same of ``other``.
        has_factory: what a factory makes anew each time, as functions without a name, is the same
            where its code and what it closes over are.
    """
    comparison = _Comparison(names, other_names, has_factory)
    try:
        comparison.same(model, other, "")
    except _Different as found:
        return str(found)
    except RecursionError:
        return "its attributes are nested too deep"
    return None


class _Different(Exception):
    """Says where and how."""


class _Comparison:
    def __init__(
        self, names: Mapping[int, str], other_names: Mapping[int, str], has_factory: bool
    ) -> None:
        self._names = names
        self._other_names = other_names
        self._has_factory = has_factory
        self._pairs: dict[int, Any] = {}
        self._back: dict[int, Any] = {}

    def same(self, a: Any, b: Any, path: str) -> None:
        """Compare two values and what they hold.

        Raises:
            _Different: they differ.
        """
        if isinstance(a, _BY_IDENTITY) or type(a) in PLAIN or isinstance(a, _BY_TEXT):
            by_text = not isinstance(a, _BY_IDENTITY) and type(a) is type(b)
            if not (a is b or (by_text and repr(a) == repr(b))):
                raise _Different(f"{path} is {_short(a)}, and would be {_short(b)}")
            return
        if isinstance(a, type):
            if not (a is b or (isinstance(b, type) and self._same_class(a, b))):
                raise _Different(f"{path} is {_short(a)}, and would be {_short(b)}")
            return
        if isinstance(a, (Tensor, nn.Module)) or not self._is_value(a):
            if id(a) in self._pairs:
                if self._pairs[id(a)] is not b:
                    raise _Different(f"{path} is held in several places, and would be several")
                return
            if id(b) in self._back:
                raise _Different(f"{path} would be the same object as another attribute")
            self._pairs[id(a)], self._back[id(b)] = b, a
        if isinstance(a, nn.Module) and isinstance(b, nn.Module):
            self._modules(a, b, path)
        elif isinstance(a, Tensor) and isinstance(b, Tensor):
            self._tensors(a, b, path)
        elif is_function(a) or isinstance(a, types.MethodType | functools.partial):
            self._functions(a, b, path)
        elif type(a) is not type(b):
            raise _Different(f"{path} is a {type(a).__name__}, and would be a {type(b).__name__}")
        else:
            self._objects(a, b, path)

    @staticmethod
    def _is_value(a: Any) -> bool:
        """Tell whether it makes no difference if a value is one object or two."""
        immutable = (int, float, complex, str, bytes, tuple, frozenset, slice, range)
        return isinstance(a, immutable) or not (isinstance(a, BASES) or hasattr(a, "__dict__"))

    def _modules(self, a: nn.Module, b: nn.Module, path: str) -> None:
        kinds = [parametrize.type_before_parametrizations(m) for m in (a, b)]
        if kinds[0] is not kinds[1] and not self._same_class(*kinds):
            raise _Different(
                f"{path or 'the model'} is a {kinds[0].__name__}, "
                f"and would be a {kinds[1].__name__}"
            )
        mine, theirs = (_attributes_of(m) for m in (a, b))
        for key in mine:
            if key in ("_parameters", "_buffers", "_modules"):
                self._mapping(mine[key], theirs[key], path)
        self._attributes(mine, theirs, path, ("_parameters", "_buffers", "_modules"))

    def _attributes(
        self, a: Mapping[str, Any], b: Mapping[str, Any], path: str, skip: tuple[str, ...] = ()
    ) -> None:
        for key in a:
            if key not in b:
                raise _Different(f"{_join(path, key)} would be missing")
            if key not in skip:
                self.same(a[key], b[key], _join(path, key))
        for key in b:
            if key not in a:
                raise _Different(f"{_join(path, key)} would be there, and is not")

    def _mapping(self, a: Mapping[Any, Any], b: Mapping[Any, Any], path: str) -> None:
        if list(map(str, a)) != list(map(str, b)):
            raise _Different(f"{path or 'the model'} would hold {_short(list(b))}")
        for (key, value), other in zip(a.items(), b.values(), strict=True):
            self.same(value, other, _join(path, str(key)))

    def _tensors(self, a: Tensor, b: Tensor, path: str) -> None:
        name, other = self._names.get(id(a)), self._other_names.get(id(b))
        if name != other:
            raise _Different(f"{path} would be tied to {other}")
        about = [
            (t.shape, t.dtype, t.layout, t.requires_grad and t.is_leaf, type(t)) for t in (a, b)
        ]
        if about[0] != about[1]:
            raise _Different(f"{path} would be another kind of tensor")
        if name is None and not torch.equal(a.detach(), b.detach()):
            raise _Different(f"{path} would have other numbers")
        self._attributes(vars(a), vars(b), path)

    def _functions(self, a: Any, b: Any, path: str) -> None:
        if a is b:
            return
        if isinstance(a, functools.partial) and isinstance(b, functools.partial):
            self.same(a.func, b.func, path)
            self.same(a.args, b.args, path)
            self.same(a.keywords, b.keywords, path)
        elif isinstance(a, types.MethodType) and isinstance(b, types.MethodType):
            self.same(a.__func__, b.__func__, path)
            self.same(a.__self__, b.__self__, path)
        elif self._has_factory and self._same_code(a, b):
            cells = [[c.cell_contents for c in f.__closure__ or ()] for f in (a, b)]
            self.same(cells[0], cells[1], path)
            self.same(a.__defaults__, b.__defaults__, path)
        else:
            raise _Different(f"{path} is {_short(a)}, and would be {_short(b)}")

    @staticmethod
    def _same_code(a: Any, b: Any) -> bool:
        both = isinstance(a, types.FunctionType) and isinstance(b, types.FunctionType)
        return both and a.__code__ == b.__code__

    def _same_class(self, a: type, b: type) -> bool:
        """Compare two classes that a factory makes anew each time."""
        return self._has_factory and (a.__module__, a.__qualname__) == (
            b.__module__,
            b.__qualname__,
        )

    @staticmethod
    def _tells_apart(a: Any) -> bool:
        kind: Any = type(a)
        return kind.__eq__ is not object.__eq__

    def _objects(self, a: Any, b: Any, path: str) -> None:
        if isinstance(a, types.MappingProxyType):
            self.same(dict(a), dict(b), path)
            return
        base = base_of(type(a))
        stateless = base is None and not attributes_of(a) and not list(slots_of(a))
        if stateless or isinstance(a, (random.Random, weakref.ref)):
            self._opaque(a, b, path)
            return
        if base is not None and base is not types.SimpleNamespace:
            self._contents(a, b, base, path)
        if attributes_of(a) is not a:
            self._attributes(attributes_of(a), attributes_of(b), path)
        self._attributes(dict(slots_of(a)), dict(slots_of(b)), path)

    def _contents(self, a: Any, b: Any, base: Any, path: str) -> None:
        if issubclass(base, dict):
            pairs = [list(base.items(value)) for value in (a, b)]
            self._sequence([k for k, _ in pairs[0]], [k for k, _ in pairs[1]], path)
            for (key, value), (_, other) in zip(*pairs, strict=True):
                self.same(value, other, f"{path}[{_short(key)}]")
            self.same(
                getattr(a, "default_factory", None), getattr(b, "default_factory", None), path
            )
        elif base in (set, frozenset):
            self._sequence(in_order(a), in_order(b), path)
        elif hasattr(base, "__getitem__") and base not in (str, bytes, bytearray):
            self._sequence(list(base.__iter__(a)), list(base.__iter__(b)), path)
        elif base.__repr__(a) != base.__repr__(b):
            raise _Different(f"{path} is {_short(a)}, and would be {_short(b)}")

    def _sequence(self, a: list[Any], b: list[Any], path: str) -> None:
        if len(a) != len(b):
            raise _Different(f"{path} holds {len(a)} items, and would hold {len(b)}")
        for i, (one, other) in enumerate(zip(a, b, strict=True)):
            self.same(one, other, f"{path}[{i}]")

    def _opaque(self, a: Any, b: Any, path: str) -> None:
        """Compare what has no attributes that Python shows."""
        if isinstance(a, np.ndarray):
            same = (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())
        elif isinstance(a, random.Random):
            same = a.getstate() == b.getstate()
        elif isinstance(a, np.random.Generator):
            same = repr(a.bit_generator.state) == repr(b.bit_generator.state)
        elif isinstance(a, np.random.RandomState):
            same = repr(a.get_state()) == repr(b.get_state())
        elif isinstance(a, torch.Generator):
            same = torch.equal(a.get_state(), b.get_state())
        elif not self._tells_apart(a) or isinstance(a, weakref.ref):
            # Two of a class without any state are alike; a factory makes its own.
            same = self._has_factory or type(a).__module__ != "builtins"
        else:
            same = bool(a == b) or repr(a) == repr(b)
        if not same:
            raise _Different(f"{path} is {_short(a)}, and would be {_short(b)}")


def _attributes_of(module: nn.Module) -> dict[str, Any]:
    """Return a module's attributes; of its hooks, those that last, whatever their numbers."""
    held = {key: value for key, value in vars(module).items() if key not in _PASSED_OVER}
    hooks = {key: lasting_hooks(value) for key, value in held.items() if key.endswith("hooks")}
    numbers = {number for table in hooks.values() for number in table}
    for key in held:
        if key in hooks:
            held[key] = list(hooks[key].values())
        elif key.endswith(("_with_kwargs", "_always_called")):
            held[key] = len(numbers & set(held[key]))
    return held


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _short(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text[:77]}..."
