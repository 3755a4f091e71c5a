"""What must not go: patterns of names that protect groups, and the most that each group gives up.

A pattern is a shell-style glob (``*``, ``?``, ``[abc]``; letter case counts). ``kind:head`` means
the groups of a kind, ``group:layer1.*`` those of a name, ``param:layer1.*`` those that a parameter
of that name takes part in.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

from secateur.errors import InputError, unmatched
from secateur.graph import Graph, Group

Limit = float | int
"""The largest share that may go (a float), or the fewest units that stay (an int)."""

# A product such as 0.7 x 10 may fall just short of its whole number.
SLACK = 1e-9

_WORDS: dict[str, Callable[[Group], Iterable[str]]] = {
    "group": lambda group: (group.name,),
    "kind": lambda group: (group.kind,),
    "param": lambda group: (slot.name for slot in group.slots),
}


def check_limits(limits: Mapping[str, Limit], max_sparsity: float | None) -> None:
    """Refuse values that are neither a share nor a number of units.

    Raises:
        InputError: names the pattern, the rule and the value.
    """
    for pattern, value in limits.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise InputError(f"limits of {pattern!r} must be a number, but got {value!r}")
        if isinstance(value, int):
            if value < 0:
                raise InputError(
                    f"limits of {pattern!r} must keep 0 units or more, but got {value}"
                )
        elif not 0 <= value <= 1:
            raise InputError(
                f"limits of {pattern!r} must be a share in [0.0, 1.0] that may go, or a whole "
                f"number of units that stay, but got {value}"
            )
    if max_sparsity is not None and not 0 <= max_sparsity <= 1:
        raise InputError(
            f"max_sparsity must satisfy 0 <= max_sparsity <= 1, but got {max_sparsity}"
        )


def check_protect(protect: Sequence[str]) -> None:
    """Refuse one text where a list of patterns belongs.

    Raises:
        InputError: ``protect`` is a text, or holds something else than texts.
    """
    if isinstance(protect, str):
        raise InputError(f"protect must be a list of patterns, but got the text {protect!r}")
    for pattern in protect:
        if not isinstance(pattern, str):
            raise InputError(f"protect must hold patterns, but got {pattern!r}")


def check_patterns(graph: Graph, protect: Sequence[str], limits: Mapping[str, Limit]) -> None:
    """Refuse patterns that match nothing, before any long work.

    Raises:
        InputError: names the pattern and the nearest names.
    """
    protected(graph, protect)
    ceilings(graph, limits)


def protected(graph: Graph, patterns: Sequence[str]) -> set[str]:
    """Return the names of the groups that ``patterns`` keep whole.

    A pattern without a prefix is matched against the groups' names and against the names of
    parameters and buffers: no tensor that it names is cut.

    Raises:
        InputError: a pattern matches nothing; names the nearest.
    """
    return {
        name
        for pattern in patterns
        for name in _matching(graph, pattern, "protect", ("group", "param"))
    }


def ceilings(
    graph: Graph, limits: Mapping[str, Limit], max_sparsity: float | None = None
) -> dict[str, int]:
    """Return how many units each group may give up at most; one unit always stays.

    Where several patterns match a group, the strictest holds. ``max_sparsity`` is the share for
    groups that no pattern matches.

    Raises:
        InputError: a pattern matches nothing; names the nearest.
    """
    found: dict[str, int] = {}
    for pattern, limit in limits.items():
        for name in _matching(graph, pattern, "limits", ("group",)):
            size = graph.by_name[name].size
            found[name] = min(found.get(name, size - 1), _most(size, limit))
    default = 1.0 if max_sparsity is None else float(max_sparsity)
    return {group.name: found.get(group.name, _most(group.size, default)) for group in graph.groups}


def _most(size: int, limit: Limit) -> int:
    if isinstance(limit, int) and limit > 0:
        return max(0, size - limit)
    return min(size - 1, math.floor(limit * size + SLACK))


def _matching(graph: Graph, pattern: str, what: str, plain: Sequence[str]) -> list[str]:
    """Return the groups that a pattern means; without a prefix by the words of ``plain``."""
    prefix, _, rest = pattern.partition(":")
    kinds, text = ((prefix,), rest) if prefix in _WORDS else (tuple(plain), pattern)
    found = [
        group.name
        for group in graph.groups
        if any(fnmatchcase(word, text) for kind in kinds for word in _WORDS[kind](group))
    ]
    if not found:
        words = {word for group in graph.groups for kind in kinds for word in _WORDS[kind](group)}
        raise unmatched(what, pattern, words)
    return found
