"""``functools`` caches of the model's own code, while a network is traced.

To such a cache a size of the trace equals the integer that it is. So a result that was kept before
the trace would be given for it, and the trace would not see what it was made from; and what is
computed in the trace would be given to whoever asks later.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import sys
import threading
import types
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn

from secateur.graph.referrers import owners_of
from secateur.graph.sizes import Sized, SizedFloat, expr_of

CACHED = type(functools.lru_cache(lambda: None))
# Their caches keep plain results of plain arguments, or are asked by nobody's network.
_FOREIGN = frozenset(sys.stdlib_module_names) | {"torch", "numpy", "sympy", "secateur"}


class KeyedBySize(BaseException):
    """Ends a trace before a size becomes a key; no handler of the model's own may stop it."""


def keyed_by_size() -> None:
    """Raise :class:`KeyedBySize`."""
    raise KeyedBySize


@contextlib.contextmanager
def private_caches(*, every: bool = False) -> Iterator[None]:
    """Compute what this thread asks caches with sizes, tensors or modules, apart from them.

    Inside, a function stands where each cached one did; other threads reach the cache through it.
    The same arguments are computed once, as with the cache itself.

    Args:
        every: compute what it asks with any arguments, as sizes are plain integers.
    """
    replaced: list[tuple[Callable[[Any], None], Any]] = []
    try:
        found = [each for each in gc.get_objects() if type(each) is CACHED and _is_users(each)]
        holders = owners_of(found)
        owners = owners_of([holder for each in holders.values() for holder in each])
        for cached in found:
            apart = _apart(cached, every)
            for holder in holders[id(cached)]:
                for put in _places(holder, cached, owners[id(holder)]):
                    replaced.append((put, cached))
                    put(apart)
        del found, holders, owners
        yield
    finally:
        for put, cached in reversed(replaced):
            put(cached)


def _is_users(cached: Any) -> bool:
    module = getattr(cached, "__module__", None) or ""
    return module.partition(".")[0] not in _FOREIGN


def _places(holder: Any, cached: Any, owners: list[Any]) -> list[Callable[[Any], None]]:
    """Return what sets each variable, attribute or cell that refers to a cached function."""
    if isinstance(holder, types.CellType):
        return [functools.partial(setattr, holder, "cell_contents")]
    if not isinstance(holder, dict):
        return []
    names = [name for name, value in holder.items() if value is cached]
    # A class must be told: it remembers where it found its attributes.
    kinds = [owner for owner in owners if isinstance(owner, type)]
    if kinds:
        return [functools.partial(setattr, kind, name) for kind in kinds for name in names]
    return [functools.partial(holder.__setitem__, name) for name in names]


def _apart(cached: Any, every: bool) -> Callable[..., Any]:
    here = threading.get_ident()
    known: dict[Any, Any] = {}
    running = 0

    @functools.wraps(cached)
    def computed(*args: Any, **kwargs: Any) -> Any:
        nonlocal running
        if threading.get_ident() != here or not (every or _is_traced((args, kwargs))):
            return cached(*args, **kwargs)
        if running:
            # It calls itself: sizes told by how they were made would all be different.
            args, kwargs = _numbers(args), _numbers(kwargs)
            if not (every or _is_traced((args, kwargs))):
                return cached(*args, **kwargs)
        running += 1
        try:
            key = _key((args, tuple(kwargs.items())))
            if key not in known:
                known[key] = cached.__wrapped__(*args, **kwargs)
            return known[key]
        finally:
            running -= 1

    for name in ("cache_info", "cache_clear", "cache_parameters"):
        setattr(computed, name, getattr(cached, name))
    return computed


def _numbers(value: Any) -> Any:
    """Return arguments with plain numbers, which fixes the sizes that they were."""
    if isinstance(value, tuple):
        return tuple(map(_numbers, value))
    if isinstance(value, dict):
        return {key: _numbers(part) for key, part in value.items()}
    if isinstance(value, Sized):
        return int(value)
    return float(value) if isinstance(value, SizedFloat) else value


def _is_traced(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(_is_traced, value.values()))
    if isinstance(value, list | tuple | set | frozenset):
        return any(map(_is_traced, value))
    return isinstance(value, Sized | SizedFloat | Tensor | nn.Module)


def _key(value: Any) -> Any:
    """Return a key that tells sizes of the same value by what they were made from."""
    if isinstance(value, tuple):
        return tuple(map(_key, value))
    if isinstance(value, Sized):
        return Sized, int.__index__(value), expr_of(value)
    return type(value), value
