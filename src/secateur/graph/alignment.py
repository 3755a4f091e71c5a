"""Two traces of one network side by side: their operations, and where their tensors come from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from secateur.graph.program import Node, Program, Ref, family

# PyTorch takes or leaves these out by how a tensor lies in memory, not by what it holds.
_LAYOUT = frozenset(
    f"aten.{name}"
    for name in ("view", "_unsafe_view", "reshape", "_reshape_alias", "clone", "alias",
                 "contiguous", "detach")
)  # fmt: skip


@dataclass(frozen=True)
class Step:
    """An operation and where its tensors come from, comparable between two traces."""

    index: int
    node: Node
    sources: tuple[Any, ...]


def alike(olds: Sequence[Step], news: Sequence[Step]) -> int:
    """Return how many operations from the first on are of the same kinds."""
    for place, (old, new) in enumerate(zip(olds, news, strict=False)):
        if family(old.node.op) != family(new.node.op):
            return place
    return min(len(olds), len(news))


def steps_of(
    program: Program, layout: bool, constants: bool
) -> tuple[list[Step], Counter[tuple[Any, ...]], list[Any]]:
    """List the operations with the origin of every tensor that they read, and of the outputs.

    An origin is a name, an input's number, a constant's values as bytes (none: unknown), or
    (step, output).

    Args:
        program: whose operations.
        layout: list those, too, that only lay memory out.
        constants: list those, too, that compute a constant; else they are counted beside.
    """
    origin: dict[int, Any] = {key: number for number, key in enumerate(program.inputs)}
    known = program.way != "real"  # there they may come from data
    for key, info in enumerate(program.tensors):
        if info.kind in ("parameter", "buffer"):
            origin[key] = info.name
        elif key not in origin:
            origin[key] = program.literals.get(key, b"") if known else b""
    steps: list[Step] = []
    computed: Counter[tuple[Any, ...]] = Counter()
    for index, node in enumerate(program.nodes):
        keys = [ref.key for ref in node.refs]
        if not layout and node.op in _LAYOUT and keys:
            origin.update(dict.fromkeys(node.outs, origin[keys[0]]))
            continue
        if not constants and all(isinstance(origin[key], bytes) for key in keys):
            origin.update(dict.fromkeys(node.outs, b""))
            computed[node.op, str(_without_tensors(node.args)), str(node.kwargs)] += 1
            continue
        steps.append(Step(index, node, tuple(origin[key] for key in keys)))
        origin.update({key: (len(steps), place) for place, key in enumerate(node.outs)})
    return steps, computed, [origin[key] for key in program.outputs]


def _without_tensors(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(_without_tensors, value))
    return None if isinstance(value, Ref) else value


def same_origin(one: Any, other: Any) -> bool:
    """Tell whether two tensors come from the same place; a constant may be of unknown values."""
    constant = isinstance(one, bytes) and isinstance(other, bytes)
    return bool(one == other) or (constant and not (one and other))


def same_values(one: Any, other: Any) -> bool:
    """Tell whether two arguments are the same, whatever tensors stand in them; NaN is itself."""
    if isinstance(one, Ref) or isinstance(other, Ref):
        return isinstance(one, Ref) and isinstance(other, Ref)
    if isinstance(one, tuple) and isinstance(other, tuple):
        return len(one) == len(other) and all(map(same_values, one, other))
    return bool(one == other) or (one != one and other != other)


def runs_alike(one: Program, other: Program) -> bool:
    """Tell whether two passes run the same operations on the same tensors and numbers."""
    (olds, _, left), (news, _, right) = (steps_of(program, True, True) for program in (one, other))
    return (
        len(olds) == len(news)
        and left == right
        and list(one.numbers.values()) == list(other.numbers.values())
        and all(_runs_as(one, other, a, b) for a, b in zip(olds, news, strict=True))
    )


def _runs_as(one: Program, other: Program, old: Step, new: Step) -> bool:
    a, b = old.node, new.node
    return (
        (a.op, a.overload, old.sources) == (b.op, b.overload, new.sources)
        and same_values(a.args, b.args)
        and same_values(tuple(a.kwargs.items()), tuple(b.kwargs.items()))
        and [one.tensors[k] if k >= 0 else None for k in a.outs]
        == [other.tensors[k] if k >= 0 else None for k in b.outs]
    )
