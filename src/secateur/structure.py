"""A network's modules as JSON: classes by name, attributes by :mod:`secateur.attribute_values`.

Reading calls no constructor: a module is made empty and then filled. Where a factory builds the
network, its modules are filled instead of new ones, and what JSON cannot describe stays as the
factory made it.
"""

from __future__ import annotations

import graphlib
import sys
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils.hooks import RemovableHandle

from secateur.attribute_reader import Reader
from secateur.attribute_values import REINSTALLED, WAY_OUT, blank_fails, lasting_hooks
from secateur.attribute_writer import Writer
from secateur.class_patches import replaced_method
from secateur.errors import CheckpointError
from secateur.graph.copies import named_tensors
from secateur.tensor_records import TensorReader, TensorWriter
from secateur.trust import Trust, finalises, name_of, static_attribute

_TABLES = ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set", "training")
_COMPILED = "_compiled_call_impl"  # nn.Module.__getstate__ drops it too
_RNN_REFERENCES = "_flat_weight_refs"  # weak references to what _flat_weights holds
_HOOKS = {
    "_forward_hooks": ("_forward_hooks_with_kwargs", "_forward_hooks_always_called"),
    "_forward_pre_hooks": ("_forward_pre_hooks_with_kwargs",),
    "_backward_hooks": (),
    "_backward_pre_hooks": (),
    "_state_dict_hooks": (),
    "_state_dict_pre_hooks": (),
}
_LOADING = ("_load_state_dict_pre_hooks", "_load_state_dict_post_hooks")  # for old weight files
_FLAGS = tuple(flag for flags in _HOOKS.values() for flag in flags)
_MACHINERY = frozenset(
    (*_TABLES, _COMPILED, _RNN_REFERENCES, *_HOOKS, *_FLAGS, *_LOADING, *REINSTALLED.values())
)
_KEPT = {"$": "kept"}


@dataclass(frozen=True)
class Described:
    """A network as JSON and tensors.

    Attributes:
        modules: {name: description}, as JSON; modules held outside the tree have names in "()".
        tensors: by name.
        ties: {other name of a parameter or buffer: the name that it is stored under}.
        training: names of the modules in training mode.
        names: {name: module}.
    """

    modules: dict[str, Any]
    tensors: TensorWriter
    ties: dict[str, str]
    training: list[str]
    names: dict[str, nn.Module]


def describe(model: nn.Module, *, has_factory: bool = False) -> Described:
    """Describe every module and tensor.

    Args:
        model: any network.
        has_factory: leave out what cannot be described, as a factory makes it.

    Raises:
        CheckpointError: names the first attribute that cannot be described.
    """
    return _Describing(model, has_factory).run()


class _Describing:
    def __init__(self, model: nn.Module, has_factory: bool) -> None:
        self._has_factory = has_factory
        self._tensors = TensorWriter()
        self._named: dict[int, str] = {}
        self._queue: dict[str, nn.Module] = {}
        self._ties: dict[str, str] = {}
        self._patched: dict[type, str | None] = {}
        self._values = Writer(self._module_name, self._tensor_name, self._tensors.array)
        self._take_in(model, "")

    def run(self) -> Described:
        described: dict[str, Any] = {}
        while len(described) < len(self._queue):  # which grows meanwhile
            name = list(self._queue)[len(described)]
            described[name] = self._module(name, self._queue[name])
        for tensor, name in self._tensors.all():
            self._tensors.describe_attributes(tensor, name, self._values)
        training = [name for name, module in self._queue.items() if module.training]
        return Described(described, self._tensors, self._ties, training, self._queue)

    def _take_in(self, module: nn.Module, prefix: str) -> None:
        """Name a module and all below it, and their tensors."""
        for path, below in module.named_modules():
            if id(below) not in self._named:
                name = _join(prefix, path) if path else prefix
                self._named[id(below)] = name
                self._queue[name] = below
        for path, tensor in named_tensors(module):
            self._tensors.name(tensor, _join(prefix, path))

    def _module_name(self, module: nn.Module, path: str) -> str:
        if id(module) not in self._named:
            self._take_in(module, f"({path})")
        return self._named[id(module)]

    def _tensor_name(self, tensor: Tensor, path: str) -> str:
        return self._tensors.name(tensor, f"attribute:{path}")

    def _module(self, name: str, module: nn.Module) -> dict[str, Any]:
        return {
            "class": self._class_name(module, name),
            "parametrized": _parametrized(module),
            "parameters": self._table(name, module._parameters),
            "buffers": self._table(name, module._buffers),
            "volatile": sorted(module._non_persistent_buffers_set),
            "modules": {
                key: None if child is None else self._named[id(child)]
                for key, child in module._modules.items()
            },
            "hooks": {
                key: self._hooks(name, module, key)
                for key in _HOOKS
                if lasting_hooks(vars(module)[key])
            },
            "attributes": {
                key: self._attribute(value, _join(name, key))
                for key, value in vars(module).items()
                if key not in _MACHINERY
            },
        }  # fmt: skip

    def _class_name(self, module: nn.Module, name: str) -> str:
        if self._has_factory:
            return _label(module)
        kind = parametrize.type_before_parametrizations(module)
        reason = "runs code when it goes (__del__)" if finalises(kind) else blank_fails(kind)
        if reason:
            raise CheckpointError(
                f"{name or 'the model'} is a {kind.__name__}, which cannot be made again: "
                f"{reason}; {WAY_OUT}"
            )
        found = self._values.name(kind, name)
        if kind not in self._patched:
            self._patched[kind] = replaced_method(kind)
        patched = self._patched[kind]
        if patched is not None:
            raise CheckpointError(
                f"{name or 'the model'} is a {kind.__name__} whose {patched} was replaced after "
                "the class was made, which another process does not know; replace it on the "
                f"instances (types.MethodType), or {WAY_OUT}"
            )
        return found

    def _table(self, name: str, table: Mapping[str, Tensor | None]) -> dict[str, str | None]:
        found: dict[str, str | None] = {}
        for key, tensor in table.items():
            full = _join(name, key)
            found[key] = None if tensor is None else full
            stored = None if tensor is None else self._tensors.name(tensor, full)
            if stored is not None and stored != full:
                self._ties[full] = stored
        return found

    def _attribute(self, value: Any, path: str) -> Any:
        try:
            return self._values.value(value, path)
        except CheckpointError:
            if not self._has_factory:
                raise
            return _KEPT

    def _hooks(self, name: str, module: nn.Module, key: str) -> Any:
        held = vars(module)
        try:
            return [
                [self._values.value(hook, f"{name}.{key}"), [i in held[f] for f in _HOOKS[key]]]
                for i, hook in lasting_hooks(held[key]).items()
            ]
        except CheckpointError as error:
            if self._has_factory:
                return _KEPT
            raise CheckpointError(
                f"{name or 'the model'} has hooks ({key}), which cannot be saved; remove them, or "
                f"{WAY_OUT}: {error}"
            ) from error


def _parametrized(module: nn.Module) -> list[str]:
    """Return the names of the tensors that are computed from others."""
    found = module._modules.get("parametrizations")
    return list(found._modules) if found is not None else []


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _label(module: nn.Module) -> str:
    """Return the name of a module's class, found again by it or not."""
    kind = parametrize.type_before_parametrizations(module)
    return name_of(kind) or f"{kind.__module__}:{kind.__qualname__}"


def names_in(layout: Mapping[str, Any]) -> set[str]:
    """Return the names of all classes and functions that a description uses."""
    entries = [*layout["modules"].values(), *layout["tensors"].values()]
    found = {entry["class"] for entry in entries if "class" in entry}
    waiting: list[Any] = entries
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            key = {"instance": "class", "enum": "class", "object": "name"}.get(one.get("$", ""))
            if key is not None:
                found.add(one[key])
            waiting.extend(one.values())
        elif isinstance(one, list):
            waiting.extend(one)
    return found


def build(
    described: Mapping[str, Any],
    tensors: TensorReader,
    ties: Mapping[str, str],
    training: frozenset[str],
    trust: Trust,
    base: nn.Module | None = None,
) -> nn.Module:
    """Build the network that :func:`describe` described.

    Args:
        described: the modules.
        tensors: gives the tensors.
        ties: other names of tensors.
        training: names of the modules in training mode.
        trust: finds classes and functions.
        base: what a factory built; its modules are filled.

    Raises:
        CheckpointError: a class or function is not there, is none, or is not trusted.
    """
    there = {} if base is None else dict(base.named_modules())
    trust.add_packages(entry["class"] for entry in described.values())
    modules: dict[str, nn.Module] = {}
    for name, entry in described.items():
        found = there.get(name)
        if found is not None and entry["class"] == _label(found):
            modules[name] = found
        else:
            modules[name] = _empty(trust, entry["class"])
    values = Reader(modules, tensors.tensor, trust, tensors.array)
    filling = _Filling(modules, values, tensors, ties)
    for name, entry in described.items():
        filling.fill(name, entry)
        modules[name].training = name in training
    tensors.finish(values)
    for module in modules.values():
        if isinstance(module, nn.RNNBase):
            weights = vars(module)["_flat_weights"]
            vars(module)[_RNN_REFERENCES] = [w if w is None else weakref.ref(w) for w in weights]
    for name, entry in described.items():
        missing = [t for t in entry["parametrized"] if t not in vars(type(modules[name]))]
        if missing:
            parametrize._inject_new_class(modules[name])
        for tensor_name in missing:
            parametrize._inject_property(modules[name], tensor_name)
    _check_tree(modules, described)
    _tell_transformers(modules)
    return modules[""]


def _tell_transformers(modules: Mapping[str, nn.Module]) -> None:
    """Note which outputs models of transformers record, as their constructors do."""
    library = sys.modules.get("transformers.utils.output_capturing")
    registry = vars(library).get("_CAN_RECORD_REGISTRY") if library is not None else None
    if registry is None:
        return
    for module in modules.values():
        outputs = static_attribute(type(module), "_can_record_outputs")
        if isinstance(outputs, dict):
            registry[str(type(module)) if type(registry) is dict else module] = outputs


def _empty(trust: Trust, name: str) -> nn.Module:
    """Make a module without calling its class."""
    kind = trust.find(name)
    if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
        raise CheckpointError(f"{name} is no torch.nn.Module")
    made: nn.Module = object.__new__(kind)
    vars(made).update(vars(nn.Module()))
    return made


class _Filling:
    def __init__(
        self,
        modules: Mapping[str, nn.Module],
        values: Reader,
        tensors: TensorReader,
        ties: Mapping[str, str],
    ) -> None:
        self._modules = modules
        self._values = values
        self._tensors = tensors
        self._ties = ties

    def fill(self, name: str, entry: Mapping[str, Any]) -> None:
        """Give one module its tensors, submodules, hooks and attributes."""
        module = self._modules[name]
        held = vars(module)
        for key in [k for k in held if k not in _MACHINERY and k not in entry["attributes"]]:
            del held[key]
        for kind, table in (("parameters", module._parameters), ("buffers", module._buffers)):
            table.clear()
            for key, full in entry[kind].items():
                table[key] = None if full is None else self._tensor(name, key, full, kind)  # type: ignore[assignment]
        held["_non_persistent_buffers_set"] = set(entry["volatile"])
        module._modules.clear()
        for key, child in entry["modules"].items():
            module._modules[key] = None if child is None else self._modules[child]
        for key, value in entry["attributes"].items():
            if key in _MACHINERY:
                raise CheckpointError(f"{_join(name, key)} is no attribute of a network's own")
            if value != _KEPT:
                held[key] = self._values.value(value)
            elif key not in held:
                raise CheckpointError(f"{_join(name, key)} is not made by the factory")
        for key, hooks in entry["hooks"].items():
            self._hook(module, key, hooks)

    def _tensor(self, name: str, key: str, full: Any, kind: str) -> Tensor:
        if full != _join(name, key):
            raise CheckpointError(f"{_join(name, key)} must not be taken from {full!r}")
        found = self._tensors.tensor(self._ties.get(full, full))
        if kind == "parameters" and not isinstance(found, nn.Parameter):
            raise CheckpointError(f"{full} is no parameter")
        return found

    def _hook(self, module: nn.Module, key: str, hooks: Any) -> None:
        flags = _HOOKS[key]
        if hooks == _KEPT:
            return
        table = vars(module)[key]
        table.clear()
        for call, flagged in hooks:
            hook = self._values.value(call)
            if not callable(hook):
                raise CheckpointError(f"a hook must be callable, but got {type(hook).__name__}")
            handle = RemovableHandle(table)
            table[handle.id] = hook
            for flag, on in zip(flags, flagged, strict=True):
                if on:
                    vars(module)[flag][handle.id] = True


def _check_tree(modules: Mapping[str, nn.Module], described: Mapping[str, Any]) -> None:
    """Refuse modules that are not where their names say, or that hold themselves."""
    children = {name: set(entry["modules"].values()) for name, entry in described.items()}
    try:
        graphlib.TopologicalSorter(children).prepare()
    except graphlib.CycleError as error:
        raise CheckpointError("a module holds itself") from error
    found = {name for name in modules if name.startswith("(")}
    found |= {name for name, module in modules[""].named_modules() if module is modules.get(name)}
    if found != set(modules):
        raise CheckpointError(
            f"{min(set(modules) ^ found)[:200]!r} is no module where its name says it is"
        )
