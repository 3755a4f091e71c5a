"""Tensors of a trace that outlive it in caches of the model's own code.

Code may keep what it computes from sizes alone, by ``functools.lru_cache`` or in a dictionary: an
index of relative positions, say. If its first run is the trace, what it keeps has no values, and
every later run reads memory that nobody wrote. So whatever is still alive after a trace is looked
for, and taken out of where it is kept; most of it is put back before (:mod:`secateur.graph.hooks`).

All of it together reads the objects of the process a fixed number of times, however many tensors
are left: one reading takes a tenth of a second and more.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor

from secateur.errors import TraceError
from secateur.graph.function_caches import CACHED
from secateur.graph.referrers import owners_of

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
    made = list(made)
    if not _alive(made):
        return
    # Objects that refer to each other in a circle live until they are collected.
    gc.collect()
    alive = _alive(made)
    if not alive:
        return
    _empty_functions({id(tensor) for tensor in alive})
    _empty_dictionaries(alive)
    del alive
    if failed or not _alive(made):
        return
    gc.collect()
    alive = _alive(made)
    if alive:
        place, tensor = _place(alive)
        raise TraceError(
            f"the model's code keeps a tensor of shape {list(tensor.shape)} from one run to the "
            f"next in {place}, and a trace would leave one without values there: run the model "
            "once before it is traced, in a new process"
        )


def _alive(made: Iterable[weakref.ref[Tensor]]) -> list[Tensor]:
    return [tensor for reference in made if (tensor := reference()) is not None]


def _empty_functions(wanted: set[int]) -> None:
    """Clear ``functools`` caches that hold one of the tensors."""
    for found in gc.get_objects():
        if type(found) is CACHED and any(
            _holds(kept, wanted, _DEPTH) for kept in gc.get_referents(found)
        ):
            found.cache_clear()


def _empty_dictionaries(alive: Sequence[Tensor]) -> None:
    """Delete what dictionaries keep under a key of their own; names of code are none."""
    wanted = {id(tensor) for tensor in alive}
    holders = [holder for holder in gc.get_referrers(*alive) if isinstance(holder, dict)]
    owners = owners_of(holders)
    for holder in holders:
        if not any(_is_namespace(holder, owner) for owner in owners[id(holder)]):
            for key in [key for key, value in holder.items() if id(value) in wanted]:
                del holder[key]


def _is_namespace(names: dict[Any, Any], owner: Any) -> bool:
    """Tell the variables of a module, class or object from a dictionary that code fills."""
    if isinstance(owner, dict | list | tuple):
        return False
    return getattr(owner, "__dict__", None) is names or isinstance(owner, type)


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


def _place(alive: Sequence[Tensor]) -> tuple[str, Tensor]:
    """Say where one of the tensors is kept: a variable by its name, else the kind of object."""
    holders = owners_of(alive)
    names = owners_of([holder for found in holders.values() for holder in found])
    for tensor in alive:
        for holder in holders[id(tensor)]:
            if isinstance(holder, dict):
                name = next((key for key, value in holder.items() if value is tensor), None)
                for owner in names[id(holder)]:
                    if name and getattr(owner, "__dict__", None) is holder:
                        return f"{getattr(owner, '__name__', type(owner).__name__)}.{name}", tensor
            elif isinstance(holder, list | tuple | set):
                return f"a {type(holder).__name__}", tensor
            elif not isinstance(holder, Tensor):
                held = getattr(holder, "__dict__", {})
                name = next((key for key, value in held.items() if value is tensor), None)
                if name:
                    return f"{type(holder).__name__}.{name}", tensor
    # What only another tensor refers to (the base of a view) has no place of its own.
    return "its own state", alive[0]
