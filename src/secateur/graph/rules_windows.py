"""Op rules of windows: overlapping views of a tensor's memory."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import reduce
from typing import Any

from secateur.graph.axes import fixed
from secateur.graph.flow import Flow, Requirement, rule
from secateur.graph.program import Node, Ref, inner_dims
from secateur.graph.sizes import Apply, Dim, Expr, expr_of


@rule("as_strided", "as_strided_copy")
def as_strided(flow: Flow, node: Node) -> None:
    """Windows over some dimensions; the ones before and behind them pass.

    A dimension passes that has the size and the step in memory that it had. The steps of the
    windows must be whole rows of what lies inside, and stay so: the code computes them from sizes.
    """
    x, sizes, strides = node.args[0], flow.out_shape(node), tuple(map(int, node.args[2]))
    shape = flow.shape(x)
    inner = inner_dims(shape, flow.program.strides[x.key])
    offset = node.args[3] if len(node.args) > 3 else None
    if offset is not None or inner is None:
        flow.give_up(node, "it looks at memory that is not laid out by the sizes")
        return
    first, last, row = _windows(shape, inner, sizes, strides)
    dims, middle, ending = flow.dims(x), len(shape) - last, len(sizes) - last
    stated = _stated(node, sizes, strides)
    whole: Expr
    for place, (size, step) in enumerate(stated):
        if first <= place < ending:
            whole = Apply("*", strides[place] // _count(shape, row), _product(x, row))
        else:
            d = place if place < first else place - len(sizes) + len(shape)
            whole = _product(x, inner[d])
            flow.require(node, dims[d], size)
        if expr_of(step) != whole:
            away = Apply("-", expr_of(step), whole)
            flow.requirements.append(Requirement(away, fixed(0), flow.where(node)))
    flow.pin(node, dims[first:middle], "windows are taken along it")
    pinned = [flow.pinned(n, f"{flow.where(node)}: windows") for n in sizes[first:ending]]
    flow.set(node, [*dims[:first], *pinned, *dims[middle:]])


def window_steps(
    node: Node, before: Sequence[int], strides: Sequence[int], after: Sequence[int]
) -> list[int] | None:
    """Return the steps in memory of ``as_strided`` over a tensor of another shape.

    Args:
        node: the operation over the tensor as it was traced.
        before: shape of that tensor.
        strides: of that tensor.
        after: its other shape.

    Returns:
        one step for every dimension of the result, None where the rule follows none.
    """
    inner = inner_dims(before, strides)
    if inner is None or len(node.args) > 3:
        return None
    sizes, steps = (tuple(map(int, given)) for given in node.args[1:3])
    first, last, row = _windows(before, inner, sizes, steps)
    found = []
    for place, step in enumerate(steps):
        if first <= place < len(sizes) - last:
            found.append(step // _count(before, row) * _count(after, row))
        else:
            d = place if place < first else place - len(sizes) + len(before)
            found.append(_count(after, inner[d]))
    return found


def _windows(
    shape: Sequence[int],
    inner: Sequence[tuple[int, ...]],
    sizes: Sequence[int],
    strides: Sequence[int],
) -> tuple[int, int, tuple[int, ...]]:
    """Return how many first and last dimensions pass, and the dimensions inside the windows.

    Windows step over whole rows of these, within the memory of the dimensions that they cover.
    """
    steps = [_count(shape, dims) if n > 1 else 0 for n, dims in zip(shape, inner, strict=True)]
    moves = [step if n > 1 else 0 for n, step in zip(sizes, strides, strict=True)]
    before, after = list(zip(shape, steps, strict=True)), list(zip(sizes, moves, strict=True))
    if before == after:
        return len(shape), 0, ()
    least = min(len(before), len(after))
    first = next((d for d in range(least) if before[d] != after[d]), least)
    last = next((d for d in range(least) if before[-1 - d] != after[-1 - d]), least)
    for lead in range(first, -1, -1):
        for tail in range(min(last, least - lead), -1, -1):
            covered = [d for d in range(lead, len(shape) - tail) if shape[d] > 1]
            if not covered:
                continue
            outermost = max(covered, key=lambda d: len(inner[d]))
            inside = (outermost, *inner[outermost])
            row = inside[len(covered) :]
            unit = _count(shape, row)
            windows = after[lead : len(after) - tail]
            reach = sum((size - 1) * step for size, step in windows)
            if (
                set(inside[: len(covered)]) == set(covered)
                and all(step % unit == 0 for _, step in windows)
                and reach < _count(shape, covered) * unit
            ):
                return lead, tail, row
    return 0, 0, ()


def _count(shape: Sequence[int], dims: Iterable[int]) -> int:
    return math.prod(shape[d] for d in dims)


def _product(ref: Ref, dims: Iterable[int]) -> Expr:
    sizes: list[Expr] = [Dim(ref.key, d) for d in dims]
    return reduce(lambda left, right: Apply("*", left, right), sizes) if sizes else 1


def _stated(node: Node, sizes: Sequence[int], strides: Sequence[int]) -> list[tuple[Any, Any]]:
    """Return size and stride of every dimension as the code gave them."""
    call = node.call
    if call is None or not call.name.startswith("as_strided"):
        return list(zip(sizes, strides, strict=True))
    given = dict(zip(("input", "size", "stride"), call.args, strict=False)) | call.kwargs
    return [
        (n if isinstance(size, Ref) else size, m if isinstance(step, Ref) else step)
        for size, step, n, m in zip(given["size"], given["stride"], sizes, strides, strict=True)
    ]
