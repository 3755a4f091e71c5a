"""Numbers and tensors that modules hold as plain attributes, by path.

They may lie in lists, tuples, dictionaries and plain objects (a dataclass, a namespace, an object
with slots), also in one that several modules share: its first path counts. A path is what the
model's own code would write: ``blocks.0.heads``, ``norm.shape[0]``, ``config.width``,
``config["width"]``.
"""

from __future__ import annotations

import ast
import dataclasses
import json
import sys
import types
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

from torch import Tensor, nn

from secateur.errors import PlanError
from secateur.graph.module_tree import modules_of

Change = Callable[[str, Any], Any]
"""From the path and the value of an integer or a tensor to what takes its place."""

# Longer containers are tables (of words, of records), and size nothing.
_LONGEST = 1000
_MACHINERY = frozenset(vars(nn.Module())) | {"training"}
_KEYS = (str, int, float, bool, type(None))
# Objects of these packages are no plain data, but for namespaces.
_FOREIGN = frozenset(sys.stdlib_module_names) | {"torch", "numpy"}
_NAMESPACES = (types.SimpleNamespace, Namespace)


def change_held(
    model: nn.Module,
    change: Change,
    *,
    but: Iterable[int] = (),
    configs: bool = True,
    integers: bool = True,
) -> dict[int, Any]:
    """Put ``change(path, value)`` in place of every integer and tensor that modules hold.

    Lists, dictionaries and objects are changed where they are, tuples are made anew. Submodules,
    parameters and buffers stay, and so do objects whose ids are in ``but``, and the configs of
    Hugging Face models unless ``configs``, and integers unless ``integers``.

    Returns:
        Every list, dictionary and object that was visited, by its id.
    """
    walk = _Walk(change, but, configs)
    plain = _CHANGELESS if integers else _CHANGELESS | {int}
    for name, module in modules_of(model):
        for key, value in _attributes(module, _MACHINERY):
            kind = type(value)
            if kind in plain or (kind is tuple and all(type(part) in plain for part in value)):
                continue
            made = walk.changed(f"{name}.{key}" if name else key, value)
            if made is not value:
                vars(module)[key] = made
    return walk.visited


_CHANGELESS = frozenset({bool, float, str, type(None)})


def held_values(
    model: nn.Module, *, configs: bool = True, integers: bool = True
) -> Iterator[tuple[str, Any]]:
    """Yield the path and value of every integer and tensor that modules hold.

    Integers are left out unless ``integers``, which is quicker.
    """
    found: list[tuple[str, Any]] = []

    def note(path: str, value: Any) -> Any:
        found.append((path, value))
        return value

    change_held(model, note, configs=configs, integers=integers)
    yield from found


def held_containers(model: nn.Module) -> dict[int, Any]:
    """Return every list, dictionary and plain object that modules hold, by its id."""
    return change_held(model, lambda _, value: value)


class _Walk:
    """Follows attributes into containers and plain objects, each once."""

    def __init__(self, change: Change, but: Iterable[int], configs: bool) -> None:
        self._change = change
        self._configs = configs
        self._but = frozenset(but)
        self.visited: dict[int, Any] = {}

    def changed(self, path: str, value: Any) -> Any:
        """Return what takes the place of ``value``; itself where nothing changes."""
        kind = type(value)
        if kind is int or isinstance(value, Tensor):
            return self._change(path, value)
        if kind in _CHANGELESS:
            return value
        if isinstance(value, tuple):
            return self._tuple(path, value)
        if id(value) in self._but or id(value) in self.visited:
            return value
        if not self._configs and _is_config(value):
            return value
        entries = list(_entries(value))
        if entries:
            self.visited[id(value)] = value
        for step, part, put in entries:
            if (made := self.changed(path + step, part)) is not part:
                put(made)
        return value

    def _tuple(self, path: str, value: Any) -> Any:
        if len(value) > _LONGEST:
            return value
        made = [self.changed(f"{path}[{i}]", part) for i, part in enumerate(value)]
        same = all(new is old for new, old in zip(made, value, strict=True))
        return value if same else _same_kind(value, made)


def _same_kind(value: Any, items: list[Any]) -> Any:
    """Return a tuple or named tuple of the class of ``value`` with other items."""
    return type(value)._make(items) if hasattr(value, "_fields") else type(value)(items)


def _entries(value: Any) -> Iterator[tuple[str, Any, Callable[[Any], None]]]:
    """Yield the step to every part of a container or plain object, the part, and its setter."""
    if isinstance(value, list):
        if len(value) <= _LONGEST:
            for i, part in enumerate(value):
                yield f"[{i}]", part, partial(list.__setitem__, value, i)
        return
    if isinstance(value, dict) and len(value) <= _LONGEST:
        for key, part in value.items():
            if _is_key(key):
                step = f"[{json.dumps(key) if isinstance(key, str) else repr(key)}]"
                yield step, part, partial(dict.__setitem__, value, key)
    if _is_plain(value):
        for key, part in _attributes(value):
            yield f".{key}", part, partial(object.__setattr__, value, key)


def _is_key(key: Any) -> bool:
    return type(key) in _KEYS or (type(key) is tuple and all(type(k) in _KEYS for k in key))


def _is_config(value: Any) -> bool:
    """Tell whether an object is the config of a Hugging Face model."""
    return hasattr(value, "to_dict") and _is_of_transformers(value)


def _is_of_transformers(value: Any) -> bool:
    return any(_package(base) == "transformers" for base in type(value).__mro__)


def _is_plain(value: Any) -> bool:
    """Tell an object that holds data from modules, code, handles and library objects."""
    if isinstance(value, _NAMESPACES):
        return True
    if isinstance(value, (type, types.ModuleType, nn.Module)) or callable(value):
        return False
    if _package(type(value)) in _FOREIGN or (_is_of_transformers(value) and not _is_config(value)):
        return False
    return hasattr(value, "__dict__") or bool(_slots(type(value)))


def _package(kind: type) -> str:
    return kind.__module__.partition(".")[0]


def _slots(kind: type) -> list[str]:
    found: list[str] = []
    for base in kind.__mro__:
        names = vars(base).get("__slots__", ())
        found += [names] if isinstance(names, str) else names
    return [name for name in found if not name.startswith("__")]


def _attributes(owner: Any, but: Iterable[str] = ()) -> list[tuple[str, Any]]:
    """Return an object's attributes, and the integers that its own classes hold for it."""
    held = getattr(owner, "__dict__", {})
    found = {key: value for key, value in held.items() if key not in but}
    kind = type(owner)
    if _package(kind) in _FOREIGN and isinstance(owner, nn.Module):
        return list(found.items())  # PyTorch's own: no slots, no numbers of their classes
    for name in _slots(kind):
        if hasattr(owner, name) and name not in found:
            found[name] = getattr(owner, name)
    if hasattr(owner, "__dict__"):
        for base in kind.__mro__:
            if _package(base) in _FOREIGN:
                continue
            for key, value in vars(base).items():
                if type(value) is int and not key.startswith("_"):
                    found.setdefault(key, value)
    return list(found.items())


def set_held(model: nn.Module, values: Mapping[str, Any]) -> None:
    """Set attributes by path.

    Raises:
        PlanError: a path leads nowhere.
    """
    modules = dict(modules_of(model))
    for path, value in values.items():
        home, rest = owner_of(modules, path)
        try:
            _put(modules[home], _steps(rest), value)
        except (AttributeError, KeyError, IndexError, TypeError) as error:
            raise PlanError(f"plan sets {path!r}, which the model does not have") from error
        except (SyntaxError, ValueError) as error:
            raise PlanError(f"plan sets {path!r}, which is no attribute's path") from error


def owner_of(modules: Mapping[str, nn.Module], path: str) -> tuple[str, str]:
    """Return the name of the module that holds what ``path`` leads to, and the path from there."""
    home = path
    while home not in modules:
        home = home.rpartition(".")[0]
    return home, path[len(home) :].removeprefix(".")


def named_field(path: str) -> tuple[str, bool]:
    """Return the last name in a path from a module, and whether it is another object's field."""
    names = [key for how, key in _steps(path) if how == "." or isinstance(key, str)]
    return names[-1], len(names) > 1


Step = tuple[str, Any]
"""("." and an attribute's name) or ("[" and a key)."""


def _steps(text: str) -> list[Step]:
    """Read ``config["width"].sizes[1]``."""
    steps: list[Step] = []
    node: ast.expr = ast.parse(f"_.{text}", mode="eval").body
    while not isinstance(node, ast.Name):
        if isinstance(node, ast.Attribute):
            steps.append((".", node.attr))
        elif isinstance(node, ast.Subscript):
            steps.append(("[", ast.literal_eval(node.slice)))
        else:
            raise ValueError(text)
        node = node.value
    return steps[::-1]


def _put(owner: Any, steps: list[Step], value: Any) -> Any:
    """Set what ``steps`` lead to; return ``owner``, or the tuple that takes its place."""
    (how, key), *rest = steps
    # A config may gain a size that its class leaves to be derived.
    new = how == "." and not rest and hasattr(owner, "to_dict")
    old = None if new else getattr(owner, key) if how == "." else owner[key]
    made = _put(old, rest, value) if rest else value
    if how == ".":
        try:
            setattr(owner, key, made)
        except dataclasses.FrozenInstanceError:
            object.__setattr__(owner, key, made)
    elif isinstance(owner, tuple):
        return _same_kind(owner, [made if i == key else part for i, part in enumerate(owner)])
    elif made is not old:
        owner[key] = made
    return owner
