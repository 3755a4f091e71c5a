"""Whether a network's own code can tell train mode from eval mode.

PyTorch's modules differ by dropout and batch statistics alone, which a neutral train mode switches
off. Where no code that the network's classes reach asks for the mode, its two passes are one.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from secateur.graph.hooks import is_filled, methods_of, names_in
from secateur.graph.module_tree import modules_of

_ASKS = frozenset(
    {
        "training", "is_grad_enabled", "requires_grad", "is_inference_mode_enabled", "grad_fn",
        "is_leaf", "is_inference", "grad", "train", "eval",
        # What is looked up by a computed name may be any of these.
        "getattr", "vars", "__dict__", "attrgetter", "globals", "locals", "__getattribute__",
        "exec", "import_module", "__import__",
    }
)  # fmt: skip
_PLAIN = (int, float, complex, str, bytes, type(None), Tensor)
_FOREIGN = frozenset(sys.stdlib_module_names - {"__main__"}) | {"torch", "numpy"}


def reads_mode(model: nn.Module) -> bool:
    """Tell whether code of the network may ask for its mode; True also where that is unclear.

    Read are all functions that methods of its classes name, or close over. An object or a module
    of the user's that such code names may hold any code, and so may a callable in an attribute.
    """
    modules = [module for _, module in modules_of(model)]
    kinds = {kind for module in modules for kind in type(module).__mro__ if not _is_foreign(kind)}
    if any({"train", "eval"} & vars(kind).keys() for kind in kinds):
        return True
    return any(map(_holds_code, modules)) or _asks(f for kind in kinds for f in methods_of(kind))


def _is_foreign(owner: Any) -> bool:
    """Tell PyTorch's own classes, functions and modules from those that may be the user's."""
    name = owner.__name__ if isinstance(owner, types.ModuleType) else owner.__module__
    return (name or "").partition(".")[0] in _FOREIGN


def _holds_code(module: nn.Module) -> bool:
    """Tell whether a module has hooks, or attributes with code of their own."""
    for name, value in vars(module).items():
        if name.endswith("_hooks") and isinstance(value, dict) and value:
            return True
        parts = value if isinstance(value, (list, tuple)) else (value,)
        if any(callable(part) and not _is_foreign(type(part)) for part in parts):
            return True
        if any(isinstance(part, types.FunctionType) and not _is_foreign(part) for part in parts):
            return True
    return False


def _asks(start: Iterable[types.FunctionType]) -> bool:
    seen: set[int] = set()
    waiting = list(start)
    while waiting:
        function = waiting.pop()
        if id(function) in seen or _is_foreign(function):
            continue
        seen.add(id(function))
        names = set(names_in(function.__code__))
        if names & _ASKS:
            return True
        closed = [cell.cell_contents for cell in function.__closure__ or () if is_filled(cell)]
        for value in (*(function.__globals__.get(name) for name in names), *closed):
            if isinstance(value, types.FunctionType):
                waiting.append(value)
            elif isinstance(value, type) and not _is_foreign(value):
                waiting += methods_of(value)
            elif not _is_harmless(value):
                return True
    return False


def _is_harmless(value: Any) -> bool:
    """Tell data and PyTorch's own code from what may be any code of the user's."""
    if isinstance(value, _PLAIN):
        return True
    if isinstance(value, (type, types.ModuleType)):
        return _is_foreign(value)
    if type(value) in (list, tuple, set, frozenset):
        return all(map(_is_harmless, value))
    if type(value) is dict:
        return all(map(_is_harmless, value.values()))
    if isinstance(value, (types.MethodType, types.BuiltinFunctionType)):
        return _is_foreign(type(value.__self__)) or _is_foreign(value)
    return _is_foreign(type(value))
