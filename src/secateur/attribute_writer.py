"""What modules hold besides tensors and submodules, as JSON.

Plain values stand for themselves; everything else is ``{"$": kind, ...}``. What several places hold
is written once and referred to, so that it is one thing again after loading.
"""

from __future__ import annotations

import base64
import enum
import functools
import inspect
import logging
import pathlib
import random
import re
import types
import typing
from collections import defaultdict, deque
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from secateur.attribute_values import (
    BASES,
    DEEPEST,
    MUTABLE,
    PLAIN,
    SINGLE,
    TORCH,
    WAY_OUT,
    attributes_of,
    base_of,
    blank_fails,
    in_order,
    is_key,
    slots_of,
)
from secateur.errors import CheckpointError
from secateur.numeric_values import is_numeric, write_numeric
from secateur.trust import finalises, is_function, is_of_system, name_of, static_attribute


class Writer:
    """Turns values into JSON.

    Args:
        module: gives the name of a module, new ones with the path where they are met.
        tensor: gives the name of a tensor, likewise.
        array: keeps the bytes of a NumPy array as a tensor, and gives its name.
    """

    def __init__(
        self,
        module: Callable[[nn.Module, str], str],
        tensor: Callable[[Tensor, str], str],
        array: Callable[[Tensor, str], str],
    ) -> None:
        self._module = module
        self._tensor = tensor
        self._array = array
        self._seen: dict[int, tuple[Any, dict[str, Any]]] = {}
        self._numbers = 0
        self._depth = 0

    def value(self, value: Any, path: str) -> Any:
        """Describe one value.

        Raises:
            CheckpointError: it cannot be described; the message has its path and type.
        """
        if type(value) in PLAIN:
            return value
        shared = isinstance(value, MUTABLE) or not isinstance(value, BASES)
        if shared and id(value) in self._seen:
            return self._again(value)
        self._depth += 1
        try:
            if self._depth > DEEPEST:
                raise CheckpointError(f"{path} is nested more than {DEEPEST} deep; {WAY_OUT}")
            node: dict[str, Any] = {}
            if shared:
                self._seen[id(value)] = (value, node)
            self._fill(node, value, path)
            return node
        except CheckpointError:
            self._seen.pop(id(value), None)
            raise
        finally:
            self._depth -= 1

    def _again(self, value: Any) -> dict[str, Any]:
        node = self._seen[id(value)][1]
        if node.get("$") in ("module", "tensor", "object"):
            return node
        if "id" not in node:
            node["id"] = self._numbers
            self._numbers += 1
        return {"$": "same", "id": node["id"]}

    def _fill(self, node: dict[str, Any], value: Any, path: str) -> None:
        for known, single in SINGLE.items():
            if value is single:
                node.update({"$": known})
                return
        if isinstance(value, nn.Module):
            node.update({"$": "module", "name": self._module(value, path)})
        elif isinstance(value, Tensor):
            node.update({"$": "tensor", "name": self._tensor(value, path)})
        elif isinstance(value, enum.Enum):
            name = value.name
            node.update({"$": "enum", "class": self.name(type(value), path)})
            if name in type(value).__members__:
                node["name"] = name
            else:
                node["value"] = value.value
        elif isinstance(value, TORCH):
            node.update({"$": type(value).__name__, "name": str(value).removeprefix("torch.")})
        elif is_numeric(value):
            state = write_numeric(value, lambda data: self._array(data, path))
            if state is None:
                raise refusal(value, path)
            node.update(state)
        elif not (self._callable(node, value, path) or self._simple(node, value, path)):
            self._object(node, value, path)

    def _callable(self, node: dict[str, Any], value: Any, path: str) -> bool:
        """Describe functions, classes, methods and partials."""
        if type(value) is functools.partial:
            parts = (value.func, list(value.args), dict(value.keywords))
            node.update({"$": "partial", "parts": [self.value(v, path) for v in parts]})
        elif isinstance(value, types.MethodType):
            owner, function = value.__self__, value.__func__
            kind = owner if isinstance(owner, type) else type(owner)
            name = getattr(function, "__name__", "")
            node.update({"$": "method", "self": self.value(owner, path)})
            if static_attribute(kind, name) is function:
                node["name"] = name
            else:
                node["function"] = self.value(function, path)
        elif isinstance(value, types.ModuleType):
            node.update({"$": "python module", "name": value.__name__})
        elif typing.get_origin(value) is not None or isinstance(value, typing._SpecialForm):
            node.update(self._annotation(value, path))
        elif isinstance(value, type) or is_function(value):
            node.update({"$": "object", "name": self.name(value, path)})
        else:
            return False
        return True

    def _annotation(self, value: Any, path: str) -> dict[str, Any]:
        args = [self.value(a, path) for a in typing.get_args(value)]
        if isinstance(value, types.UnionType):
            return {"$": "annotation", "name": "|", "args": args}
        if isinstance(value, types.GenericAlias):
            return {"$": "annotation", "origin": self.value(value.__origin__, path), "args": args}
        union = typing.get_origin(value) is typing.Union
        name = "Union" if union else getattr(value, "_name", None)
        if name not in typing.__all__:
            raise refusal(value, path)
        return {"$": "annotation", "name": name, "args": args}

    def _simple(self, node: dict[str, Any], value: Any, path: str) -> bool:
        """Describe values of fixed parts."""
        kind = type(value)
        parts: tuple[Any, ...]
        if isinstance(value, pathlib.PurePath):
            system = "Path" if isinstance(value, pathlib.Path) else kind.__name__
            node.update({"$": "path", "system": system, "text": str(value)})
        elif kind is torch.Size:
            node.update({"$": "Size", "items": list(value)})
        elif kind in (slice, range):
            parts = (value.start, value.stop, value.step)
            node.update({"$": kind.__name__, "parts": [self.value(v, path) for v in parts]})
        elif kind is types.MappingProxyType:
            node.update({"$": "mappingproxy", "of": self.value(dict(value), path)})
        elif kind is logging.Logger and logging.getLogger(value.name) is value:
            node.update({"$": "logger", "name": value.name})
        elif kind is re.Pattern:
            node.update({"$": "pattern", "of": self.value(value.pattern, path)})
            node["flags"] = value.flags
        elif kind is random.Random:
            node.update({"$": "random", "state": self.value(value.getstate(), path)})
        elif kind is inspect.Signature:
            parts = (list(value.parameters.values()), value.return_annotation)
            node.update({"$": "signature", "parts": [self.value(v, path) for v in parts]})
        elif kind is inspect.Parameter:
            parts = (value.name, value.kind.name, value.default, value.annotation)
            node.update({"$": "parameter", "parts": [self.value(v, path) for v in parts]})
        else:
            return False
        return True

    def _object(self, node: dict[str, Any], value: Any, path: str) -> None:
        """Describe a container, or any object by its class and its attributes."""
        kind = type(value)
        base = base_of(kind)
        exact = kind is base
        node["$"] = kind.__name__ if exact else "instance"
        if not exact:
            node["class"] = self.name(kind, path)
            reason = "runs code when it goes (__del__)" if finalises(kind) else blank_fails(kind)
            if reason:
                raise CheckpointError(
                    f"{path} holds a {kind.__name__}, which cannot be made again: {reason}; "
                    f"{WAY_OUT}"
                )
            if base is not None:
                node["base"] = base.__name__
        self._contents(node, value, base, path)
        if kind is base and base is not types.SimpleNamespace:
            return
        held = attributes_of(value)
        if held is value:
            node["state"] = "itself"
        elif held:
            node["state"] = {k: self.value(v, f"{path}.{k}") for k, v in held.items()}
        slots = {k: self.value(v, f"{path}.{k}") for k, v in slots_of(value)}
        if slots:
            node["slots"] = slots

    def _contents(self, node: dict[str, Any], value: Any, base: type | None, path: str) -> None:
        if base is None or base is types.SimpleNamespace:
            return
        if issubclass(base, dict):
            node["items"] = [
                [self._key(k, path), self.value(v, f"{path}[{k!r}]")] for k, v in base.items(value)
            ]
        elif base in (set, frozenset):
            node["items"] = [self._key(item, path) for item in in_order(value)]
        elif base in (list, tuple, deque):
            items = base.__iter__(value)
            node["items"] = [self.value(v, f"{path}[{i}]") for i, v in enumerate(items)]
        elif base in (bytes, bytearray):
            node["data"] = base64.b64encode(value).decode()
        elif base is complex:
            node["data"] = [value.real, value.imag]
        else:
            node["data"] = {int: int.__int__, float: float.__float__, str: str.__str__}[base](value)
        if base is defaultdict:
            node["default"] = self.value(value.default_factory, path)
        if base is deque:
            node["longest"] = value.maxlen

    def _key(self, key: Any, path: str) -> Any:
        if not is_key(key):
            raise CheckpointError(
                f"{path} holds a {type(key).__name__} as a key, whose own code tells keys apart; "
                f"{WAY_OUT}"
            )
        return self.value(key, path)

    def name(self, thing: Any, path: str) -> str:
        """Return the name of a class or function that is found again by it."""
        name = name_of(thing)
        if name is None:
            module = getattr(thing, "__module__", None)
            called = getattr(thing, "__qualname__", None) or getattr(thing, "__name__", repr(thing))
            raise CheckpointError(
                f"{path or 'the model'} holds {module}:{called}, which cannot be found again by "
                f"its name; put it at the top of a module that can be imported, or {WAY_OUT}"
            )
        if is_of_system(name, thing):
            raise CheckpointError(f"{path} holds {name}, which is no part of a network; {WAY_OUT}")
        return name


def refusal(value: Any, path: str) -> CheckpointError:
    """Return the error for a value that cannot be described."""
    return CheckpointError(
        f"{path} holds a {type(value).__name__}, which JSON cannot describe; {WAY_OUT}"
    )
