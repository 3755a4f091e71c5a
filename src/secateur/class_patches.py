"""Methods of classes that were replaced after the class was made: no other process has them."""

from __future__ import annotations

import ast
import functools
import sys
import types
from pathlib import Path

from torch import nn


def replaced_method(kind: type) -> str | None:
    """Name the first method of a module's class that is not the one in the class's source.

    Only methods that the source defines without a decorator are looked at; where there is no
    source, none.
    """
    for base in kind.__mro__:
        if base is nn.Module:
            return None
        for name, held in list(vars(base).items()):
            if isinstance(held, types.FunctionType) and not _is_at_home(base, name, held):
                line = _definitions(base.__module__, base.__qualname__).get(name)
                if line not in (None, held.__code__.co_firstlineno):
                    return f"{base.__qualname__}.{name}"
    return None


def _is_at_home(base: type, name: str, held: types.FunctionType) -> bool:
    wanted = (base.__module__, f"{base.__qualname__}.{name}")
    return (held.__module__, held.__qualname__) == wanted


@functools.lru_cache(maxsize=1024)
def _definitions(module: str, path: str) -> dict[str, int]:
    """Return the undecorated methods in a class's source, with their lines."""
    file = getattr(sys.modules.get(module), "__file__", None)
    if file is None or not file.endswith(".py") or not Path(file).is_file():
        return {}
    nodes: list[ast.stmt] = ast.parse(Path(file).read_text(encoding="utf-8")).body
    for part in path.split("."):
        found = [n for n in nodes if isinstance(n, ast.ClassDef) and n.name == part]
        if not found:
            return {}
        nodes = found[-1].body
    functions = [node for node in nodes if isinstance(node, ast.FunctionDef)]
    return {node.name: node.lineno for node in functions if not node.decorator_list}
