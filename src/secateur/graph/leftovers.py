"""Tensors of a trace that outlive it in caches of the model's own code.

Code may keep what it computes from sizes alone, by ``functools.lru_cache`` or in a dictionary: an
index of relative positions, say. If its first run is the trace, what it keeps has no values, and
every later run reads memory that nobody wrote. So whatever is still alive after a trace is looked
for, and taken out of where it is kept.
"""

from __future__ import annotations

import functools
import gc
import weakref
from collections.abc import Iterable
from typing import Any

from torch import Tensor

from secateur.errors import TraceError

_CACHED = type(functools.lru_cache(lambda: None))
_DEPTH = 3
"""How deep in lists, tuples and dictionaries of one cached result a tensor is looked for."""


def forget(made: Iterable[weakref.ref[Tensor]], *, failed: bool = False) -> None:
    """Empty the caches that hold tensors of a trace that is over.

    Args:
        made: all tensors that the trace made.
        failed: whether the trace did; then whoever keeps its error keeps tensors, too.

    Raises:
        TraceError: a tensor is kept where nothing can be taken out; says where.
    """
    left = [reference for reference in made if reference() is not None]
    if not left:
        return
    _empty_functions({id(reference()) for reference in left})
    _empty_dictionaries(left)
    if failed or all(reference() is None for reference in left):
        return
    # Objects that refer to each other in a circle live until they are collected.
    gc.collect()
    alive = [tensor for reference in left if (tensor := reference()) is not None]
    if alive:
        # What only another tensor refers to (the base of a view) has no place of its own.
        places = [(place, tensor) for tensor in alive if (place := _place(tensor, alive))]
        place, tensor = places[0] if places else ("its own state", alive[0])
        raise TraceError(
            f"the model's code keeps a tensor of shape {list(tensor.shape)} from one run to the "
            f"next in {place}, and a trace would leave one without values there: run the model "
            "once before it is traced, in a new process"
        )


def _empty_functions(wanted: set[int]) -> None:
    """Clear ``functools`` caches that hold one of the tensors."""
    for found in gc.get_objects():
        if type(found) is _CACHED and any(
            _holds(kept, wanted, _DEPTH) for kept in gc.get_referents(found)
        ):
            found.cache_clear()


def _empty_dictionaries(left: Iterable[weakref.ref[Tensor]]) -> None:
    """Delete what dictionaries keep under a key of their own; names of code are none."""
    for reference in left:
        tensor = reference()
        holders = [] if tensor is None else gc.get_referrers(tensor)
        for holder in holders:
            if isinstance(holder, dict) and not _is_namespace(holder):
                for key in [key for key, value in holder.items() if value is tensor]:
                    del holder[key]
        del tensor, holders


def _is_namespace(names: dict[Any, Any]) -> bool:
    """Tell the variables of a module, class or object from a dictionary that code fills."""
    return any(
        getattr(owner, "__dict__", None) is names or isinstance(owner, type)
        for owner in gc.get_referrers(names)
        if not isinstance(owner, dict | list | tuple)
    )


def _holds(kept: Any, wanted: set[int], depth: int) -> bool:
    if isinstance(kept, Tensor):
        return id(kept) in wanted
    if depth == 0:
        return False
    if isinstance(kept, dict):
        kept = list(kept.values())
    if isinstance(kept, list | tuple | set | frozenset):
        return any(_holds(one, wanted, depth - 1) for one in kept)
    return False


def _place(tensor: Tensor, mine: list[Tensor]) -> str:
    """Say what refers to a tensor: a variable by its name, else the kind of object."""
    for holder in gc.get_referrers(tensor):
        if holder is mine:
            continue
        if isinstance(holder, dict):
            name = next((key for key, value in holder.items() if value is tensor), None)
            for owner in gc.get_referrers(holder):
                if name and getattr(owner, "__dict__", None) is holder:
                    return f"{getattr(owner, '__name__', type(owner).__name__)}.{name}"
        elif isinstance(holder, list | tuple | set):
            return f"a {type(holder).__name__}"
    return ""
