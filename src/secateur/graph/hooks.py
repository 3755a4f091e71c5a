"""Hooks of a copied network that keep what they store to themselves.

A copy of a network has its hooks, and they have the variables of the network's own: what one stores
or counts while the copy runs would be the user's. So functions get variables of their own here, as
they are at the time of the copy. Where the network's code reads a variable that a hook writes, as
in a U-Net whose decoder finds what hooks stored, both stay one, and its contents are put back.
"""

from __future__ import annotations

import contextlib
import functools
import sys
import types
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any, TypeAlias

from torch import nn

from secateur.graph.module_tree import modules_of

CopyValue: TypeAlias = Callable[[Any, dict[int, Any]], Any]

# Hooks of these compute, as weight norm does, and store nothing of the user's.
_FOREIGN = frozenset(sys.stdlib_module_names - {"__main__"}) | {"torch", "numpy", "secateur"}


def separate_hooks(model: nn.Module, memo: dict[int, Any], copy_value: CopyValue) -> None:
    """Give the hooks of ``model``, a deep copy, variables of their own.

    Args:
        model: changed in place.
        memo: of the deep copy, so that a hook finds the copy of what the network holds.
        copy_value: deep-copies a value with a memo.
    """
    tables = list(_tables(model))
    if tables:
        separated = _Separated(memo, copy_value, _read_by_code(model))
        for hooks in tables:
            for key, hook in hooks.items():
                hooks[key] = separated.hook(hook)


@contextlib.contextmanager
def shared_variables_put_back(model: nn.Module) -> Iterator[None]:
    """Put the variables that the network's code names back as they were.

    Those are of the modules in which its classes stand, and what their methods close over; and
    what hooks share with it.
    """
    methods = _methods_of(model)
    homes = {id(method.__globals__) for method in methods}
    functions = {id(f): f for f in _reached(methods, homes)}
    found = [hook for hooks in _tables(model) for hook in hooks.values()]
    if found:
        read = _read_by_code(model)
        mixed = (f for hook in found for f in _functions_of(hook) if _meets(f, read))
        functions |= {id(f): f for f in mixed}
    back = _to_put_back(functions.values())
    try:
        yield
    finally:
        for put in back:
            put()


def _tables(model: nn.Module) -> Iterator[dict[int, Any]]:
    for _, module in modules_of(model):
        for name, hooks in vars(module).items():
            if name.endswith("_hooks") and isinstance(hooks, dict) and hooks:
                yield hooks


class _Separated:
    """Copies functions with the variables that they close over and those of their modules."""

    def __init__(
        self, memo: dict[int, Any], copy_value: CopyValue, read: set[tuple[int, str]]
    ) -> None:
        self._memo = memo
        self._copy_value = copy_value
        self._read = read
        self._functions: dict[int, Any] = {}
        self._globals: dict[int, dict[str, Any]] = {}
        self._kept: list[Any] = []

    def hook(self, hook: Any) -> Any:
        """Return a hook like ``hook``; an object was copied with the network already."""
        if isinstance(hook, types.MethodType):
            return types.MethodType(self.hook(hook.__func__), hook.__self__)
        if isinstance(hook, functools.partial):
            return functools.partial(self.hook(hook.func), *hook.args, **hook.keywords)
        if isinstance(hook, types.FunctionType):
            shared = any(_meets(function, self._read) for function in _functions_of(hook))
            return hook if shared else self._function(hook)
        inner = getattr(hook, "hook", None)  # PyTorch's wrappers of hooks for state dicts
        if isinstance(inner, types.FunctionType | types.MethodType) and hasattr(hook, "__dict__"):
            vars(hook)["hook"] = self.hook(inner)
        return hook

    def _function(self, function: types.FunctionType) -> Any:
        if _is_foreign(function):
            return function
        if id(function) in self._functions:
            return self._functions[id(function)]
        cells = tuple(types.CellType() for _ in function.__closure__ or ())
        made = types.FunctionType(
            function.__code__, self._own_globals(function), function.__name__, None, cells or None
        )
        self._functions[id(function)] = made
        self._kept.append(function)
        for cell, old in zip(cells, function.__closure__ or (), strict=True):
            if is_filled(old):
                cell.cell_contents = self._value(old.cell_contents)
        made.__defaults__ = self._value(function.__defaults__)
        made.__kwdefaults__ = self._value(function.__kwdefaults__)
        made.__module__, made.__qualname__ = function.__module__, function.__qualname__
        vars(made).update({key: self._value(value) for key, value in vars(function).items()})
        return made

    def _own_globals(self, function: types.FunctionType) -> dict[str, Any]:
        """Return the function's module's variables, of which those that it names are copied."""
        theirs = function.__globals__
        mine = self._globals.get(id(theirs))
        if mine is None:
            mine = self._globals[id(theirs)] = dict(theirs)
        for name in names_in(function.__code__):
            if name in theirs and mine[name] is theirs[name]:
                mine[name] = self._value(theirs[name])
        return mine

    def _value(self, value: Any) -> Any:
        if isinstance(value, types.FunctionType):
            return self._function(value)
        if isinstance(value, types.MethodType):
            return types.MethodType(self.hook(value.__func__), self._value(value.__self__))
        try:
            return self._copy_value(value, self._memo)
        except Exception:  # noqa: BLE001 - a handle, a loader: whatever cannot be copied is shared
            return value


def _is_foreign(owner: Any) -> bool:
    return (getattr(owner, "__module__", None) or "").partition(".")[0] in _FOREIGN


def names_in(code: types.CodeType) -> Iterator[str]:
    """Yield the names that code mentions, that of functions inside it included."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from names_in(constant)


def is_filled(cell: types.CellType) -> bool:
    """Tell whether a closed-over variable has a value."""
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


def _functions_of(hook: Any) -> list[types.FunctionType]:
    """Return the functions that make up a hook, those that they name among them."""
    if isinstance(hook, types.MethodType):
        hook = hook.__func__
    if isinstance(hook, functools.partial):
        return _functions_of(hook.func)
    return _reached([hook] if isinstance(hook, types.FunctionType) else [])


def _reached(
    start: Iterable[types.FunctionType], homes: Collection[int] | None = None
) -> list[types.FunctionType]:
    """Return functions and all that they name or close over, methods of classes included.

    With ``homes``, the ids of modules' variables, functions of other modules are left out.
    """
    found: dict[int, types.FunctionType] = {}
    waiting = list(start)
    while waiting:
        function = waiting.pop()
        if id(function) in found or _is_foreign(function):
            continue
        if homes is not None and id(function.__globals__) not in homes:
            continue
        found[id(function)] = function
        named = [function.__globals__.get(name) for name in names_in(function.__code__)]
        closed = [c.cell_contents for c in function.__closure__ or () if is_filled(c)]
        for value in (*named, *closed):
            if isinstance(value, types.FunctionType):
                waiting.append(value)
            elif isinstance(value, type) and not _is_foreign(value):
                waiting += methods_of(value)
    return list(found.values())


def methods_of(kind: type) -> list[types.FunctionType]:
    """Return the functions that a class itself defines, those of its properties included."""
    plain = [getattr(value, "__func__", value) for value in vars(kind).values()]
    plain += [value.fget for value in vars(kind).values() if isinstance(value, property)]
    return [value for value in plain if isinstance(value, types.FunctionType)]


def _variables(function: types.FunctionType) -> Iterator[tuple[int, str]]:
    """Yield the variables that a function knows: by module and name, or by the cell."""
    for name in names_in(function.__code__):
        value = function.__globals__.get(name)
        code = isinstance(value, type | types.ModuleType) or callable(value)
        if name in function.__globals__ and not code:
            yield id(function.__globals__), name
    for cell in function.__closure__ or ():
        if is_filled(cell) and not isinstance(cell.cell_contents, type):
            yield id(cell), ""


def _read_by_code(model: nn.Module) -> set[tuple[int, str]]:
    """Return the variables that the code of the network's modules knows."""
    found = _reached(_methods_of(model))
    return {variable for function in found for variable in _variables(function)}


def _methods_of(model: nn.Module) -> list[types.FunctionType]:
    kinds = {kind for _, module in modules_of(model) for kind in type(module).__mro__}
    return [f for kind in kinds if not _is_foreign(kind) for f in methods_of(kind)]


def _meets(function: types.FunctionType, read: set[tuple[int, str]]) -> bool:
    return not read.isdisjoint(_variables(function))


def _to_put_back(functions: Iterable[types.FunctionType]) -> list[Callable[[], None]]:
    """Return what puts the variables of functions back, and the contents of containers."""
    back: dict[tuple[int, str], Callable[[], None]] = {}
    values: dict[int, Any] = {}
    for function in functions:
        theirs = function.__globals__
        for variable in _variables(function):
            if variable not in back and variable[1]:
                values[id(theirs[variable[1]])] = theirs[variable[1]]
                put = functools.partial(theirs.__setitem__, variable[1], theirs[variable[1]])
                back[variable] = put
        for cell in function.__closure__ or ():
            if is_filled(cell) and (id(cell), "") not in back:
                values[id(cell.cell_contents)] = cell.cell_contents
                put = functools.partial(setattr, cell, "cell_contents", cell.cell_contents)
                back[id(cell), ""] = put
    fill = [functools.partial(_fill, value, _contents(value)) for value in values.values()]
    return [*back.values(), *fill]


def _contents(value: Any) -> Any:
    return value.copy() if type(value) in _CONTAINERS else None


# No classes of the user's: reading one may compute.
_CONTAINERS = (dict, OrderedDict, defaultdict, Counter, list, set, deque)


def _fill(value: Any, contents: Any) -> None:
    """Give a container the contents that it had, where it has others now."""
    if contents is None or _items(value) == _items(contents):
        return
    if isinstance(value, dict | set):
        value.clear()
        value.update(contents)
    else:
        value.clear()
        value.extend(contents)


def _items(value: Any) -> list[tuple[int, int]]:
    parts = value.items() if isinstance(value, dict) else ((part, None) for part in value)
    return [(id(key), id(part)) for key, part in parts]
