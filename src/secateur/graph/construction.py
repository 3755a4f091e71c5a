"""Attributes that say a size, by the code that constructs the layers of that size.

Two attributes may hold the same number, so values tell nothing. The source does: in
``self.hidden = hidden; self.a = nn.Linear(8, hidden)`` what ``hidden`` holds sizes a layer. Names
that the code sets equal are followed, through calls of modules, functions and methods, to the
arguments of PyTorch's layers and parameters. Where there is no source, nothing is known.
"""

from __future__ import annotations

import ast
import builtins
import functools
import inspect
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor, nn

# Arguments of PyTorch's layers that size them, and the dimension of the weight that they size.
_SIZES = {
    **dict.fromkeys(("out_features", "out_channels", "num_embeddings"), 0),
    **dict.fromkeys(("in_features", "in_channels", "input_size", "embedding_dim"), 1),
    **dict.fromkeys(
        "in1_features in2_features num_features num_channels normalized_shape hidden_size "  # noqa: SIM905
        "proj_size embed_dim d_model dim_feedforward kdim vdim num_parameters".split()
    ),
}
# What makes a tensor of the sizes that it is given.
_MAKERS = frozenset({"Parameter", "Buffer", "zeros", "ones", "empty", "rand", "randn", "full"})
_DEEPEST = 5

Term = tuple[str, str]
"""("self", attribute), ("field", name in another object) or (function, local name)."""
Parts = tuple[tuple[str, tuple[type, ...]], ...]
"""Classes of modules by the attribute that holds them; those of all modules by ""."""


@dataclass(frozen=True)
class SizeAttribute:
    """An integer that a model holds, and the dimensions that its code makes of that size."""

    path: str
    value: int
    places: tuple[tuple[str, int], ...]


class Home(NamedTuple):
    """The attribute that holds what is sized, "" for another place; and the dimension, if known.

    ``by_others`` where the code of another class or function sizes it.
    """

    name: str
    dim: int | None
    by_others: bool


def sized_by(kind: type, name: str, parts: Parts, *, field: bool = False) -> frozenset[Home]:
    """Return what the code of ``kind`` sizes by an attribute.

    Args:
        kind: class of a module.
        name: of its attribute, or of a field of a plain object that it holds.
        parts: classes of the modules below, which the code may make by names of its own.
        field: whether it is such a field.
    """
    return _sized(kind, ("field" if field else "self", name), parts, _DEEPEST)


def equal_fields(kind: type, name: str) -> frozenset[str]:
    """Return the fields of plain objects that the code of ``kind`` sets an attribute equal to."""
    code = _code_of(kind)
    alike = code.alike(("self", name)) if code else set()
    return frozenset(field for place, field in alike if place == "field")


def parts_of(module: nn.Module) -> Parts:
    """Return the classes of the modules below, by the attribute that holds them."""
    found = {
        name: tuple(_ordered(_classes(child)))
        for name, child in module._modules.items()
        if child is not None
    }
    every = _ordered(type(part) for part in module.modules() if part is not module)
    return (("", tuple(every)), *found.items())


def _classes(module: nn.Module) -> set[type]:
    """Return the class of a module, or those of what a container holds."""
    if isinstance(module, (nn.Sequential, nn.ModuleList, nn.ModuleDict)):
        return {kind for child in module.children() for kind in _classes(child)}
    return {type(module)}


def _ordered(kinds: Iterable[type]) -> list[type]:
    return sorted(set(kinds), key=lambda kind: (kind.__module__, kind.__qualname__))


@functools.lru_cache(maxsize=4096)
def _sized(owner: Any, term: Term, parts: Parts, depth: int) -> frozenset[Home]:
    """Return where the code of a class or function puts what it sizes by a term."""
    code = _code_of(owner)
    found: set[Home] = set()
    if code is None or depth == 0:
        return frozenset()
    alike = code.alike(term)
    classes = dict(parts)
    for scope, call, names in code.calls:
        homes = code.homes.get(id(call), ("",))
        places = [p for p, argument in _arguments(call) if alike & set(_terms(argument, scope))]
        for home in homes if places else ():
            for target in _targets(call, names, owner, scope):
                kinds = classes.get(home, classes.get("", ())) if target is None else (target,)
                for kind, place in ((k, p) for k in kinds for p in places):
                    how = _size(kind, place, (("", classes.get("", ())),), depth)
                    if how is not None:
                        found.add(how._replace(name=home))
    return frozenset(found)


def _size(target: Any, place: int | str, parts: Parts, depth: int) -> Home | None:
    """Return how an argument sizes a layer, None where it does not."""
    if target in _MAKERS:
        return Home("", None, by_others=False)
    if isinstance(target, type) and not issubclass(target, nn.Module):
        return None
    home, function = target, target
    if isinstance(target, type):
        home = next(base for base in target.__mro__ if "__init__" in vars(base))
        function = vars(home)["__init__"]
    function = inspect.unwrap(function)
    code = getattr(function, "__code__", None)
    if code is None:
        return None
    names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    if names and (isinstance(target, type) or names[0] == "self"):
        names = names[1:]
    name = place if isinstance(place, str) else names[place] if place < len(names) else ""
    if name not in names:
        return None
    if function.__module__.partition(".")[0] == "torch":
        if name not in _SIZES:
            return None
        dim = _SIZES[name]
        turned = isinstance(target, type) and issubclass(target, nn.modules.conv._ConvTransposeNd)
        return Home("", 1 - dim if turned and dim is not None else dim, by_others=False)
    owner = home if isinstance(target, type) else function
    if not _sized(owner, (function.__name__, name), parts, depth - 1):
        return None
    return Home("", None, by_others=True)


class _Scope(NamedTuple):
    """A function's name, and the name of its first argument."""

    name: str
    first: str


class _Code:
    """Calls and equal names in the source of functions.

    Attributes:
        calls: every call, with the function that it is in and the names of its module.
        homes: of a call, the attributes that what it makes goes to.
    """

    def __init__(self) -> None:
        self.calls: list[tuple[_Scope, ast.Call, dict[str, Any]]] = []
        self.homes: dict[int, tuple[str, ...]] = {}
        self._equal: dict[Term, set[Term]] = defaultdict(set)

    def read(self, function: Any) -> set[str]:
        """Read the source of a function; return the methods of its own object that it calls."""
        tree = _source(function)
        before = len(self.calls)
        for part in ast.walk(tree) if tree is not None else ():
            if isinstance(part, ast.FunctionDef):
                first = part.args.args[0].arg if part.args.args else ""
                self._read(part, _Scope(part.name, first), function.__globals__)
        return {
            call.func.attr
            for scope, call, _ in self.calls[before:]
            if isinstance(call.func, ast.Attribute) and _is_self(call.func.value, scope)
        }

    def _read(self, function: ast.FunctionDef, scope: _Scope, names: dict[str, Any]) -> None:
        for node in ast.walk(function):
            if isinstance(node, ast.Call):
                self.calls.append((scope, node, names))
                if isinstance(node.func, ast.Name) and node.func.id == "dict":
                    for keyword in node.keywords:
                        self._join([("field", keyword.arg or "")], _same(keyword.value, scope))
            elif isinstance(node, ast.Assign):
                self._assign(node.targets, node.value, scope)
            elif isinstance(node, (ast.AnnAssign, ast.NamedExpr)) and node.value is not None:
                self._assign([node.target], node.value, scope)
            elif isinstance(node, (ast.For, ast.comprehension)):
                for one, other in _iterated(node.target, node.iter):
                    self._join(list(_terms(one, scope)), list(_terms(other, scope)))

    def _assign(self, targets: list[ast.expr], value: ast.expr, scope: _Scope) -> None:
        for target in targets:
            if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
                for one, other in zip(target.elts, value.elts, strict=False):
                    self._assign([one], other, scope)
                continue
            parts = target.elts if isinstance(target, ast.Tuple) else [target]
            for part in parts:
                self._join(_same(part, scope), _same(value, scope))
                self._join(_same(targets[0], scope), _same(part, scope))
                if isinstance(part, ast.Attribute) and _is_self(part.value, scope):
                    for call in ast.walk(value):
                        if isinstance(call, ast.Call):
                            self.homes[id(call)] = (*self.homes.get(id(call), ()), part.attr)

    def _join(self, left: Iterable[Term], right: Iterable[Term]) -> None:
        for one in left:
            for other in right:
                self._equal[one].add(other)
                self._equal[other].add(one)

    def alike(self, term: Term) -> set[Term]:
        """Return the terms that the code sets equal to ``term``, and it."""
        found, left = {term}, [term]
        while left:
            more = self._equal[left.pop()] - found
            found |= more
            left += more
        return found


def _same(value: ast.expr, scope: _Scope) -> list[Term]:
    """Return the terms that an expression may be equal to.

    A function may return an argument, and a factor may be 1: what is equal by its value as well
    is decided by whoever asks.
    """
    parts: list[ast.expr] = []
    if isinstance(value, ast.BoolOp):
        parts = value.values
    elif isinstance(value, ast.IfExp):
        parts = [value.body, value.orelse]
    elif isinstance(value, ast.BinOp) and isinstance(value.op, ast.Mult) and _may_keep(value):
        parts = [value.left, value.right]
    elif isinstance(value, ast.Call) and _is_function(value.func):
        parts = [argument for _, argument in _arguments(value)]
    elif isinstance(value, ast.Subscript):
        if isinstance(value.slice, ast.Constant) and isinstance(value.slice.value, str):
            return [("field", value.slice.value)]
        parts = [value.value]
    elif isinstance(value, ast.Attribute):
        return [("self" if _is_self(value.value, scope) else "field", value.attr)]
    elif isinstance(value, ast.Name):
        return [(scope.name, value.id)]
    return [term for part in parts for term in _same(part, scope)]


def _is_function(called: ast.expr) -> bool:
    """Tell a function from a class by its name."""
    name = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
    return name[:1].islower() or name[:1] == "_"


def _terms(value: ast.AST, scope: _Scope) -> Iterator[Term]:
    """Yield the terms in an expression, but for those in calls: these are looked at themselves."""
    if isinstance(value, (ast.Attribute, ast.Name, ast.Subscript)):
        yield from _same(value, scope)
    elif not isinstance(value, ast.Call) and not (
        isinstance(value, ast.BinOp) and not _may_keep(value)
    ):
        for part in ast.iter_child_nodes(value):
            yield from _terms(part, scope)


def _may_keep(value: ast.BinOp) -> bool:
    """Tell whether a result may be equal to an operand: not where a constant changes it."""
    neutral = 0 if isinstance(value.op, (ast.Add, ast.Sub)) else 1
    constants = [part for part in (value.left, value.right) if isinstance(part, ast.Constant)]
    return all(part.value == neutral for part in constants)


def _iterated(target: ast.expr, source: ast.expr) -> Iterator[tuple[ast.expr, ast.expr]]:
    """Yield what a loop's names go through; a count is no element."""
    if not isinstance(source, ast.Call):
        yield target, source
        return
    name = getattr(source.func, "id", "")
    parts = target.elts if isinstance(target, ast.Tuple) else [target]
    if name == "range":
        return
    if name == "zip" and len(parts) == len(source.args):
        pairs: Iterable[tuple[ast.expr, ast.expr]] = zip(parts, source.args, strict=True)
    elif name == "enumerate" and len(parts) == 2:
        pairs = ((parts[1], source.args[0]),)
    else:  # reversed(widths), widths.items()
        values = (
            [*source.args, source.func] if isinstance(source.func, ast.Attribute) else source.args
        )
        pairs = ((target, value) for value in values)
    for one, other in pairs:
        yield from _iterated(one, other)


def _is_self(value: ast.expr, scope: _Scope) -> bool:
    return isinstance(value, ast.Name) and value.id == scope.first


def _arguments(call: ast.Call) -> Iterator[tuple[int | str, ast.expr]]:
    for place, argument in enumerate(call.args):
        if isinstance(argument, ast.Starred):
            break
        yield place, argument
    for keyword in call.keywords:
        if keyword.arg is not None:
            yield keyword.arg, keyword.value


def _layer_of(owner: Any) -> type | None:
    """Return the layer of PyTorch that a class extends, None where it is no more than a module."""
    bases = owner.__mro__ if isinstance(owner, type) else ()
    found = next((base for base in bases if base.__module__.partition(".")[0] == "torch"), None)
    return None if found is nn.Module else found


def _targets(
    call: ast.Call, names: dict[str, Any], owner: Any, scope: _Scope
) -> Iterator[type | Any]:
    """Yield what a call calls, None where its name tells nothing."""
    function = call.func
    found = None
    if isinstance(function, ast.Attribute):
        if function.attr in _MAKERS:
            yield function.attr
            return
        if ast.unparse(function) == "super().__init__":
            found = _layer_of(owner)
            if found is None:
                return
        elif _is_self(function.value, scope):
            found = getattr(owner, function.attr, None)
        else:
            found = getattr(names.get(getattr(function.value, "id", "")), function.attr, None)
            if found is None and hasattr(Tensor, function.attr):  # x.view(-1, size)
                return
    elif isinstance(function, ast.Name):
        if function.id in _MAKERS:
            yield function.id
            return
        if function.id not in names and hasattr(builtins, function.id):
            return
        found = names.get(function.id)
    found = getattr(found, "func", found)  # a functools.partial
    if found is None or inspect.isfunction(found) or isinstance(found, type):
        yield found


@functools.lru_cache(maxsize=512)
def _code_of(owner: Any) -> _Code | None:
    """Read the source that constructs a class, or that of a function; None where there is none.

    It constructs a class what its bases' ``__init__`` do, and the methods that these call.
    """
    code = _Code()
    if not isinstance(owner, type):
        code.read(owner)
        return code if code.calls else None
    bases = [base for base in owner.__mro__ if base.__module__.partition(".")[0] != "torch"]
    left = [vars(base)["__init__"] for base in bases if "__init__" in vars(base)]
    met = {"__init__"}
    while left:
        function = inspect.unwrap(left.pop())
        called = code.read(function) - met if inspect.isfunction(function) else set()
        met |= called
        left += [
            getattr(vars(base)[name], "__func__", vars(base)[name])
            for name in sorted(called)
            for base in bases
            if name in vars(base)
        ]
    return code if code.calls else None


@functools.lru_cache(maxsize=2048)
def _source(function: Any) -> ast.AST | None:
    try:
        lines = inspect.getsource(function)
        # Not dedented: a text within may begin further left.
        return ast.parse(f"if True:\n{lines}" if lines[:1].isspace() else lines)
    except (OSError, TypeError, SyntaxError, ValueError):
        return None
