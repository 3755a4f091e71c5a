"""Attributes of modules from JSON: the other half of :mod:`secateur.attribute_writer`.

No constructor and no other code of a class runs; classes and functions are those that
:class:`secateur.trust.Trust` lets through.
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
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from secateur.attribute_values import (
    BASE_NAMES,
    DEEPEST,
    PLAIN,
    SINGLE,
    TORCH,
    attributes_of,
    base_of,
    blank,
    is_key,
    short,
)
from secateur.errors import CheckpointError
from secateur.numeric_values import read_numeric
from secateur.trust import Trust, finalises, root_of, static_attribute


class Reader:
    """Turns JSON back into values.

    Args:
        modules: by name.
        tensor: gives the tensor of a name.
        trust: finds classes and functions.
        array: gives the bytes of a name.
    """

    def __init__(
        self,
        modules: Mapping[str, nn.Module],
        tensor: Callable[[str], Tensor],
        trust: Trust,
        array: Callable[[str], Tensor],
    ) -> None:
        self._modules = modules
        self._tensor = tensor
        self._trust = trust
        self._array = array
        self._shared: dict[int, Any] = {}
        self._depth = 0

    def value(self, data: Any) -> Any:
        """Rebuild one value.

        Raises:
            CheckpointError: it is of no known kind, or not trusted.
        """
        if type(data) in PLAIN:
            return data
        if not isinstance(data, dict) or not isinstance(data.get("$"), str):
            raise CheckpointError(f"a value must be plain or have a kind, but got {short(data)}")
        self._depth += 1
        try:
            if self._depth > DEEPEST + 2:
                raise CheckpointError(f"a value is nested more than {DEEPEST} deep")
            return self._one(data["$"], data)
        finally:
            self._depth -= 1

    def _one(self, kind: str, data: dict[str, Any]) -> Any:
        if kind == "same":
            return self._shared[data["id"]]
        if kind in BASE_NAMES or kind == "instance":
            return self._object(kind, data)
        make = getattr(self, f"_make_{kind.replace(' ', '_')}", None)
        if make is not None:
            found = make(data)
        elif kind in SINGLE:
            found = SINGLE[kind]
        else:
            found = read_numeric(kind, data, self._array)
        if "id" in data:
            self._shared[data["id"]] = found
        return found

    def _make_module(self, data: dict[str, Any]) -> Any:
        return self._modules[data["name"]]

    def _make_tensor(self, data: dict[str, Any]) -> Any:
        return self._tensor(data["name"])

    def _make_enum(self, data: dict[str, Any]) -> Any:
        kind = self._trust.find(data["class"])
        if not (isinstance(kind, type) and issubclass(kind, enum.Enum)):
            raise CheckpointError(f"{data['class']} is no enum")
        if "name" in data:
            return kind._member_map_[data["name"]]
        if not (issubclass(kind, enum.Flag) and type(data["value"]) is int):
            raise CheckpointError(f"{data['class']} has no member {short(data.get('value'))}")
        return kind(data["value"])

    def _make_device(self, data: dict[str, Any]) -> Any:
        return torch.device(data["name"])

    def _make_dtype(self, data: dict[str, Any]) -> Any:
        found = vars(torch).get(data["name"])
        if not isinstance(found, TORCH):
            raise CheckpointError(f"PyTorch has no {data['$']} {short(data['name'])}")
        return found

    _make_memory_format = _make_dtype
    _make_layout = _make_dtype

    def _make_partial(self, data: dict[str, Any]) -> Any:
        function, args, keywords = (self.value(part) for part in data["parts"])
        name = data["parts"][0].get("name", "")
        # A class or function with chosen arguments is a call: only what does no more than
        # compute is taken from a stranger.
        inert = root_of(name) in ("torch", "math", "cmath", "_operator", "builtins", "numpy")
        if not (self._trust.names(name) or (inert and data["parts"][0]["$"] == "object")):
            raise CheckpointError(
                f"a partial of {name or 'an object'} is refused: partials run what the folder "
                "chooses; if you know where it comes from, name the module with trust=[...]"
            )
        return functools.partial(function, *args, **keywords)

    def _make_object(self, data: dict[str, Any]) -> Any:
        return self._trust.find(data["name"])

    def _make_python_module(self, data: dict[str, Any]) -> Any:
        return self._trust.module(data["name"])

    def _make_method(self, data: dict[str, Any]) -> Any:
        owner = self.value(data["self"])
        if "function" in data:
            function = self.value(data["function"])
        else:
            kind = owner if isinstance(owner, type) else type(owner)
            function = static_attribute(kind, data["name"])
        if not isinstance(function, types.FunctionType):
            raise CheckpointError(f"there is no method {short(data.get('name'))}")
        return types.MethodType(function, owner)

    def _make_annotation(self, data: dict[str, Any]) -> Any:
        args = tuple(self.value(arg) for arg in data["args"])
        if "origin" in data:
            return types.GenericAlias(self.value(data["origin"]), args)
        if data["name"] == "|":
            return functools.reduce(lambda a, b: a | b, args)
        if data["name"] not in typing.__all__ or not data["name"][0].isupper():
            raise CheckpointError(f"there is no annotation {short(data['name'])}")
        return vars(typing)[data["name"]][args] if args else vars(typing)[data["name"]]

    def _make_path(self, data: dict[str, Any]) -> Any:
        kinds = {"Path", "PurePosixPath", "PureWindowsPath"} & {data["system"]}
        return getattr(pathlib, next(iter(kinds)))(data["text"])

    def _make_Size(self, data: dict[str, Any]) -> Any:
        return torch.Size(data["items"])

    def _make_slice(self, data: dict[str, Any]) -> Any:
        return slice(*(self.value(part) for part in data["parts"]))

    def _make_range(self, data: dict[str, Any]) -> Any:
        return range(*data["parts"])

    def _make_mappingproxy(self, data: dict[str, Any]) -> Any:
        return types.MappingProxyType(self.value(data["of"]))

    def _make_logger(self, data: dict[str, Any]) -> Any:
        return logging.getLogger(str(data["name"]))

    def _make_pattern(self, data: dict[str, Any]) -> Any:
        return re.compile(self.value(data["of"]), data["flags"])

    def _make_random(self, data: dict[str, Any]) -> Any:
        found = random.Random(0)
        found.setstate(self.value(data["state"]))
        return found

    def _make_signature(self, data: dict[str, Any]) -> Any:
        parameters, answer = (self.value(part) for part in data["parts"])
        return inspect.Signature(parameters, return_annotation=answer)

    def _make_parameter(self, data: dict[str, Any]) -> Any:
        name, kind, default, annotation = (self.value(part) for part in data["parts"])
        return inspect.Parameter(
            name, inspect._ParameterKind[kind], default=default, annotation=annotation
        )

    def _object(self, kind: str, data: dict[str, Any]) -> Any:
        base = BASE_NAMES.get(data.get("base", "") if kind == "instance" else kind)
        made_of: type = base or object
        if kind == "instance":
            made_of = self._trust.find(data["class"])
            if not isinstance(made_of, type) or issubclass(made_of, (nn.Module, type, enum.Enum)):
                raise CheckpointError(f"{data['class']} is no class of plain objects")
            if finalises(made_of) or base_of(made_of) is not base:
                raise CheckpointError(f"{data['class']} cannot be made of such a state")
        made = blank(made_of, base, self._data(base, data))
        if "id" in data:
            self._shared[data["id"]] = made
        self._refill(made, base, data)
        if data.get("state") == "itself" and isinstance(made, dict):
            object.__setattr__(made, "__dict__", made)
        else:
            for key, value in data.get("state", {}).items():
                attributes_of(made)[key] = self.value(value)
        self._fill_slots(made, data.get("slots", {}))
        return made

    def _data(self, base: type | None, data: dict[str, Any]) -> Any:
        if base is tuple:
            return [self.value(item) for item in data["items"]]
        if base is frozenset:
            return [self._key(item) for item in data["items"]]
        if base in (bytes, bytearray):
            return base64.b64decode(data["data"], validate=True)
        if base is complex:
            return complex(*data["data"])
        wanted = {int: int, float: float, str: str}.get(base) if base else None
        if wanted is not None and type(data["data"]) is not wanted:
            raise CheckpointError(f"a {wanted.__name__} must not be {short(data['data'])}")
        return data.get("data")

    def _refill(self, made: Any, base: type | None, data: dict[str, Any]) -> None:
        if base is None:
            return
        if issubclass(base, dict):
            if base is defaultdict:
                made.default_factory = self.value(data["default"])
            for key, value in data["items"]:
                base.__setitem__(made, self._key(key), self.value(value))
        elif base is set:
            set.update(made, [self._key(item) for item in data["items"]])
        elif base is list:
            list.extend(made, (self.value(item) for item in data["items"]))
        elif base is deque:
            deque.__init__(made, maxlen=data["longest"])
            deque.extend(made, (self.value(item) for item in data["items"]))
        elif base is bytearray:
            bytearray.extend(made, base64.b64decode(data["data"], validate=True))

    def _key(self, data: Any) -> Any:
        found = self.value(data)
        if not is_key(found):
            raise CheckpointError(f"a {type(found).__name__} must not be a key")
        return found

    def _fill_slots(self, made: Any, slots: Mapping[str, Any]) -> None:
        for key, value in slots.items():
            found = [vars(b)[key] for b in type(made).__mro__ if key in vars(b)]
            if not (found and isinstance(found[0], types.MemberDescriptorType)):
                raise CheckpointError(f"{type(made).__name__} has no slot {short(key)}")
            found[0].__set__(made, self.value(value))
