"""A network's modules as JSON: classes by name, attributes as plain values.

What can be described: numbers, strings, None, tuples, lists, sets, dicts, dtypes,
devices, enums, tensors held as attributes, submodules, importable functions,
``functools.partial`` of such and plain objects whose attributes can be described.
Anything else is refused when saving, with the attribute's path. Loading imports
classes and functions by name and calls none of them.
"""

from __future__ import annotations

import enum
import functools
import importlib
import types
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from secateur.errors import CheckpointError

_PLAIN = (bool, int, float, str, type(None))
_TABLES = ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set")
_RNN_CACHE = ("_flat_weights", "_flat_weight_refs")
_LOADING = ("_load_state_dict_pre_hooks", "_load_state_dict_post_hooks")
_HOOKS = frozenset(
    key for key, value in vars(nn.Module()).items() if isinstance(value, OrderedDict)
)


def describe(model: nn.Module, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Describe every module; tensors held as plain attributes are added to ``tensors``.

    Raises:
        CheckpointError: names the first attribute that cannot be described.
    """
    modules: dict[int, str] = {}
    described: dict[str, Any] = {}
    for name, module in model.named_modules():
        modules[id(module)] = name
    for name, module in model.named_modules():
        writer = _Writer(modules, tensors)
        described[name] = {
            "class": _name_of(parametrize.type_before_parametrizations(module), name),
            "parametrized": _parametrized(module),
            "parameters": {
                key: None if value is None else _join(name, key)
                for key, value in module._parameters.items()
            },
            "buffers": {
                key: None if value is None else _join(name, key)
                for key, value in module._buffers.items()
            },
            "volatile": sorted(module._non_persistent_buffers_set),
            "modules": {
                key: None if child is None else modules[id(child)]
                for key, child in module._modules.items()
            },
            "attributes": writer.attributes(name, module),
        }
    return described


def _parametrized(module: nn.Module) -> list[str]:
    """Return the names of the tensors that are computed from others."""
    found = module._modules.get("parametrizations")
    return list(found._modules) if found is not None else []


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _name_of(thing: Any, path: str) -> str:
    """Return "module:qualname" of a class or function that can be imported again."""
    name = f"{thing.__module__}:{thing.__qualname__}"
    try:
        found = import_object(name)
    except CheckpointError:
        found = None
    if found is not thing:
        raise CheckpointError(
            f"{path or 'the model'} holds {name}, which cannot be found again by its name; "
            "save with factory='package.module:callable' instead"
        )
    return name


def import_object(name: str) -> Any:
    """Import what "package.module:qualified.name" names.

    Raises:
        CheckpointError: there is no such thing.
    """
    module, _, path = name.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for part in path.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError, ValueError) as error:
        raise CheckpointError(f"{name} cannot be imported: {error}") from error
    return found


class _Writer:
    """Turns attribute values into JSON."""

    def __init__(self, modules: dict[int, str], tensors: dict[str, Tensor]) -> None:
        self._modules = modules
        self._tensors = tensors

    def attributes(self, path: str, module: nn.Module) -> dict[str, Any]:
        """Describe the attributes of one module."""
        found = {}
        for key, value in vars(module).items():
            if key in _TABLES or (key in _RNN_CACHE and isinstance(module, nn.RNNBase)):
                continue
            if key in _HOOKS:
                if value and key not in _LOADING:  # those only translate old weight files
                    raise CheckpointError(
                        f"{path or 'the model'} has hooks ({key}), which cannot be saved; remove "
                        "them, or save with factory='package.module:callable'"
                    )
                continue
            found[key] = self.value(value, _join(path, key))
        return found

    def value(self, value: Any, path: str) -> Any:
        """Describe one value."""
        if type(value) in _PLAIN:
            return value
        if isinstance(value, nn.Module) and id(value) in self._modules:
            return {"$": "module", "name": self._modules[id(value)]}
        if isinstance(value, Tensor):
            name = f"attribute:{path}"
            self._tensors[name] = value.detach().contiguous().clone()
            return {"$": "tensor", "name": name}
        if isinstance(value, enum.Enum):
            return {"$": "enum", "class": _name_of(type(value), path), "name": value.name}
        if isinstance(value, (torch.dtype, torch.device, torch.memory_format, torch.layout)):
            kind = type(value).__name__
            return {"$": kind, "name": str(value).removeprefix("torch.")}
        if isinstance(value, PurePath):
            return str(value)
        if type(value) in (list, tuple, set, frozenset, torch.Size):
            items = sorted(value) if isinstance(value, (set, frozenset)) else value
            return {
                "$": type(value).__name__,
                "items": [self.value(v, f"{path}[{i}]") for i, v in enumerate(items)],
            }
        if isinstance(value, functools.partial):
            parts = (value.func, list(value.args), dict(value.keywords))
            return {"$": "partial", "parts": [self.value(v, path) for v in parts]}
        if isinstance(value, (type, types.FunctionType, types.BuiltinFunctionType)):
            return {"$": "object", "name": _name_of(value, path)}
        if isinstance(value, types.MethodType) and id(value.__self__) in self._modules:
            owner = self._modules[id(value.__self__)]
            return {"$": "method", "module": owner, "name": value.__func__.__name__}
        if type(value) in (dict, OrderedDict):
            return {
                "$": type(value).__name__,
                "items": [
                    [self.value(k, path), self.value(v, f"{path}[{k!r}]")] for k, v in value.items()
                ],
            }
        if hasattr(value, "__dict__") and not callable(value):
            return {
                "$": "instance",
                "class": _name_of(type(value), path),
                "state": {k: self.value(v, _join(path, k)) for k, v in vars(value).items()},
            }
        raise CheckpointError(
            f"{path} holds a {type(value).__name__}, which JSON cannot describe; "
            "save with factory='package.module:callable' instead"
        )


def build(
    described: Mapping[str, Any], tensors: Mapping[str, Tensor], ties: Mapping[str, str]
) -> nn.Module:
    """Build the network that :func:`describe` described.

    Raises:
        CheckpointError: a class or function is not there, or is none.
    """
    modules: dict[str, nn.Module] = {}
    for name, entry in described.items():
        kind = import_object(entry["class"])
        if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
            raise CheckpointError(f"{entry['class']} is no torch.nn.Module")
        module = kind.__new__(kind)
        nn.Module.__init__(module)
        modules[name] = module
    roots = {entry["class"].partition(".")[0].partition(":")[0] for entry in described.values()}
    reader = _Reader(modules, tensors, roots | {"torch", "math", "operator", "collections"})
    made: dict[str, Tensor] = {}
    for name, entry in described.items():
        module = modules[name]
        for kind_of, table in (("parameters", module._parameters), ("buffers", module._buffers)):
            for key, full in entry[kind_of].items():
                if full is None:
                    table[key] = None
                    continue
                source = ties.get(full, full)
                if source not in made:
                    data = tensors[source]
                    made[source] = nn.Parameter(data, data.is_floating_point()) if (
                        kind_of == "parameters"
                    ) else data  # fmt: skip
                table[key] = made[source]  # type: ignore[assignment]
        module._non_persistent_buffers_set = set(entry["volatile"])
        for key, child in entry["modules"].items():
            module._modules[key] = None if child is None else modules[child]
        for key, value in entry["attributes"].items():
            object.__setattr__(module, key, reader.value(value))
        if isinstance(module, nn.RNNBase):
            module._init_flat_weights()
    for name, entry in described.items():
        if entry["parametrized"]:
            parametrize._inject_new_class(modules[name])
            for tensor_name in entry["parametrized"]:
                parametrize._inject_property(modules[name], tensor_name)
    return modules[""]


class _Reader:
    """Turns JSON back into attribute values."""

    def __init__(
        self, modules: Mapping[str, nn.Module], tensors: Mapping[str, Tensor], roots: set[str]
    ) -> None:
        self._modules = modules
        self._tensors = tensors
        self._roots = roots

    def value(self, data: Any) -> Any:
        """Rebuild one value."""
        if not isinstance(data, dict):
            return data
        kind = data["$"]
        if kind == "module":
            return self._modules[data["name"]]
        if kind == "tensor":
            return self._tensors[data["name"]]
        if kind == "enum":
            return self._import(data["class"])[data["name"]]
        if kind == "device":
            return torch.device(data["name"])
        if kind in ("dtype", "memory_format", "layout"):
            return getattr(torch, data["name"])
        if kind in ("list", "tuple", "set", "frozenset", "Size"):
            makers = {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset}
            return makers.get(kind, torch.Size)([self.value(v) for v in data["items"]])
        if kind in ("dict", "OrderedDict"):
            pairs = [(self.value(k), self.value(v)) for k, v in data["items"]]
            return dict(pairs) if kind == "dict" else OrderedDict(pairs)
        if kind == "partial":
            function, args, keywords = (self.value(v) for v in data["parts"])
            return functools.partial(function, *args, **keywords)
        if kind == "object":
            return self._import(data["name"])
        if kind == "method":
            return getattr(self._modules[data["module"]], data["name"])
        if kind == "instance":
            cls = self._import(data["class"])
            made = cls.__new__(cls)
            for key, value in data["state"].items():
                object.__setattr__(made, key, self.value(value))
            return made
        raise CheckpointError(f"unknown kind of value {kind!r}")

    def _import(self, name: str) -> Any:
        root = name.partition(":")[0].partition(".")[0]
        if root not in self._roots:
            raise CheckpointError(
                f"{name} is refused: only the packages of the network's own modules are trusted"
            )
        return import_object(name)
