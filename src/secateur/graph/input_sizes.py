"""Views that mix positions with channels: what they cut apart may depend on the inputs' sizes.

A ``reshape(b, c, h, w)`` of ``[b, h * w, c]`` splits the channels at places that ``h`` and ``w``
fix. At one size of the inputs that looks like any other split, so where a network has such a
view it is traced at a second size, and what does not split alike at both is pinned.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from secateur.graph.axes import Axis
from secateur.graph.copies import map_tensors
from secateur.graph.flow import Flow
from secateur.graph.modules import where_is
from secateur.graph.program import Node, Program, Ref, family, tensor_leaves
from secateur.graph.rules_views import stated_sizes, view_blocks
from secateur.graph.sizes import Dim, Expr, expr_of, leaves

_VIEWS = frozenset(
    f"aten.{name}"
    for name in ("view", "_unsafe_view", "reshape", "_reshape_alias", "_reshape_copy", "view_copy")
)
_RANGES = frozenset(
    f"aten.{name}"
    for name in ("slice", "slice_copy", "split", "split_with_sizes", "split_copy",
                 "split_with_sizes_copy", "unsafe_split", "unsafe_split_with_sizes")
)  # fmt: skip
_WRITTEN_SIZES = ("view", "reshape", "unflatten")


def find_lengths(flow: Flow) -> set[int]:
    """Return the lengths beside free dimensions in operations that may depend on input sizes.

    Empty where no operation of the example's pass can: its views keep what is free apart from
    all other dimensions.
    """
    program = flow.program
    found: set[int] = set()
    fed = set(program.inputs)
    for node in program.nodes[: program.ends[0] if program.ends else None]:
        if any(ref.key in fed for ref in node.refs):
            fed.update(node.outs)
        if node.op in _VIEWS and node.overload != "dtype" and isinstance(node.args[0], Ref):
            found |= _lengths_of_view(flow, node, fed=node.args[0].key in fed)
        elif node.op in _RANGES and node.call is not None and _cuts_free(flow, node):
            for value in _integers((node.call.args, tuple(node.call.kwargs.values()))):
                found |= _other_lengths(flow, expr_of(value), ones=True)
    for requirement in flow.requirements:
        if _free(flow, requirement.axis) and _period(flow, requirement.axis) == len(
            requirement.axis
        ):
            found |= _other_lengths(flow, requirement.expr)
    for op, left, right, outcome in program.comparisons:
        held = op == "==" and outcome
        if not held and any(
            _is_free(flow, leaf) for side in (left, right) for leaf in leaves(side)
        ):
            found |= _other_lengths(flow, left, ones=True) | _other_lengths(flow, right, ones=True)
    return found


def _cuts_free(flow: Flow, node: Node) -> bool:
    """Tell whether a range is taken of a dimension that can be cut."""
    shape, dims = flow.shape(node.args[0]), flow.dims(node.args[0])
    given = node.argument("dim", 0)
    return bool(shape) and _free(flow, dims[given % len(shape)])


def _integers(value: Any) -> Iterator[int]:
    """Yield the integers in the arguments of a call."""
    if isinstance(value, int):
        yield value
    elif isinstance(value, tuple):
        for item in value:
            yield from _integers(item)
    elif isinstance(value, slice):
        yield from _integers((value.start, value.stop, value.step))


def _is_free(flow: Flow, leaf: Any) -> bool:
    return isinstance(leaf, Dim) and _free(flow, flow.dims(Ref(leaf.tensor))[leaf.dim])


def _free(flow: Flow, axis: Axis) -> bool:
    return bool(flow.axes.canon(axis).shape[1])


def _other_lengths(flow: Flow, expr: Expr, *, ones: bool = False) -> set[int]:
    """Return the sizes in an expression of dimensions that nothing can be cut from."""
    found = (leaf for leaf in leaves(expr) if isinstance(leaf, Dim) and not _is_free(flow, leaf))
    return {flow.shape(Ref(leaf.tensor))[leaf.dim] for leaf in found} - ({1} if not ones else set())


def _period(flow: Flow, axis: Axis) -> int:
    """Return after how many rows an axis begins anew; its length where all rows differ; else 0.

    Rows are of atoms as they came into being: units that are coupled differ.
    """
    axis = axis[:, [not flow.axes.is_pinned(column[column > 0]).all() for column in axis.T]]
    rows = len(np.unique(axis, axis=0))
    times = len(axis) // rows
    whole = times * rows == len(axis)
    return rows if whole and np.array_equal(axis, np.tile(axis[:rows], (times, 1))) else 0


def _lengths_of_view(flow: Flow, node: Node, *, fed: bool) -> set[int]:
    shape, target = flow.shape(node.args[0]), flow.out_shape(node)
    axes = flow.dims(node.args[0])
    free = [_free(flow, axis) for axis in axes]
    if not any(free) or 0 in shape:
        return set()
    stated = stated_sizes(node, target)
    inner = zip(shape[1:], free[1:], strict=True)
    others = {n for n, is_free in inner if n > 1 and not is_free}
    written = node.call is not None and node.call.name in _WRITTEN_SIZES
    left_open = fixed_beside = False
    for sources, parts in view_blocks(shape, target):
        if any(free[d] for d in sources):
            if len(parts) > 1 and not _splits_alike(flow, sources, parts, axes, stated):
                found = set().union(
                    *(_other_lengths(flow, _expr(stated[d])) for d in parts), others
                )
                return found or {1}
            left_open |= written and any(stated[d] is None for d in parts)
        else:
            fixed_beside |= written and any(
                stated[d] is not None and not _has_dims(stated[d]) for d in parts
            )
    if (left_open and fixed_beside and fed) or _moves_past_ones(flow, node, free, stated):
        return others or {1}
    return set()


def _expr(value: Any) -> Expr:
    return expr_of(value) if isinstance(value, int) else 1


def _is_fixed(flow: Flow, value: Any) -> bool:
    return value is not None and not _other_lengths(flow, _expr(value))


def _has_dims(value: Any) -> bool:
    return any(isinstance(leaf, Dim) for leaf in leaves(_expr(value)))


def _splits_alike(
    flow: Flow,
    sources: Sequence[int],
    parts: Sequence[int],
    axes: Sequence[Axis],
    stated: Sequence[Any],
) -> bool:
    """Tell whether a block splits at the same places at every size of the inputs.

    It does where what cannot be cut stands before what can, and no size behind the first is made
    from it.
    """
    if _splits_what_is_left(sources, parts, axes, stated):
        return False
    if len(sources) == 1 and all(_is_fixed(flow, stated[d]) for d in parts):
        return True
    first = next(place for place, d in enumerate(sources) if _free(flow, axes[d]))
    inner = [axes[d] for d in sources[first:]]
    periods = [_period(flow, axis) if _free(flow, axis) else 0 for axis in inner]
    if not periods[0] or any(p != len(a) for p, a in zip(periods[1:], inner[1:], strict=True)):
        return False
    leads = first > 0 or periods[0] < len(inner[0])
    return not any(_other_lengths(flow, _expr(stated[d])) for d in parts[1 if leads else 0 :])


def _splits_what_is_left(
    sources: Sequence[int],
    parts: Sequence[int],
    axes: Sequence[Axis],
    stated: Sequence[Any],
) -> bool:
    """Tell whether positions may be split with a dimension, of which the example has but one."""
    behind = axes[sources[-1] + 1 :]
    ones = bool(behind) and all(len(axis) == 1 for axis in behind)
    return ones and any(stated[d] is None for d in parts)


def _moves_past_ones(flow: Flow, node: Node, free: Sequence[bool], stated: Sequence[Any]) -> bool:
    """Tell whether sizes of the inputs that are one here would stand on another side."""
    target = flow.out_shape(node)
    out = flow.dims(Ref(node.outs[0]))
    places = [d for d, axis in enumerate(out) if _free(flow, axis)]
    if not places:
        return False
    ones = [d for d, n in enumerate(target) if n == 1 and d > 0 and _has_dims(stated[d])]
    behind = len(free) - 1 - max(d for d, is_free in enumerate(free) if is_free)
    if any(d > places[-1] for d in ones):
        return behind == 0
    return bool(ones) and behind > 0 and places[-1] == len(target) - 1


def resized_inputs(example_inputs: Any, lengths: set[int]) -> Iterator[Any]:
    """Yield example inputs of other sizes that a network may take, the nearest first.

    They repeat the example: images in their last dimensions, sequences in the second or third,
    the batch by one more. ``lengths`` are what became of the sizes inside; one more of these.
    """
    tensors = [t for t in tensor_leaves(example_inputs) if t.dim() > 1 and t.numel()]
    if not tensors:
        return
    main = max(tensors, key=lambda t: (t.is_floating_point() and t.dim() > 2, t.dim() > 2))
    for dims in _sized_dims(main.dim()):
        for more, batch in _steps([main.shape[d] for d in dims], lengths):
            grown = {main.shape[d]: main.shape[d] + more for d in dims}
            yield _grown(example_inputs, main, dims, grown, batch)


def _sized_dims(rank: int) -> list[tuple[int, ...]]:
    if rank < 4:
        return [(d,) for d in range(1, rank)]
    return [tuple(range(2, rank)), tuple(range(1, rank - 1))]


def _steps(sizes: Sequence[int], lengths: set[int]) -> Iterator[tuple[int, int]]:
    """Yield by how much sizes grow, and the batch beside them."""
    sides = {math.isqrt(n) for n in lengths if math.isqrt(n) ** 2 == n}
    inner = (lengths | sides) - {0, 1}
    strides = {size // n for size in sizes for n in inner if size % n == 0 and size > n}
    found = [*sorted(strides)[:3], 32] if strides else [1, 2, 4, 8, 16, 32]
    yield from ((more, 1) for more in found)
    yield from ((more, 0) for more in found[:2])


def _grown(
    example_inputs: Any, main: Tensor, dims: Sequence[int], grown: dict[int, int], batch: int
) -> Any:
    def change(tensor: Tensor) -> Tensor:
        shape = list(tensor.shape)
        for d, size in enumerate(shape):
            if d == 0:
                shape[d] += batch if size == main.shape[0] else 0
            elif tensor.shape == main.shape:
                shape[d] = grown[size] if d in dims else size
            else:
                shape[d] = grown.get(size, size)
        return repeated_to(tensor, shape)

    return map_tensors(example_inputs, change)


def repeated_to(tensor: Tensor, shape: Sequence[int]) -> Tensor:
    """Return a tensor of ``shape`` that repeats the values of ``tensor`` along each dimension."""
    found = tensor.detach()
    for d, size in enumerate(shape):
        if size != found.shape[d]:
            index = torch.arange(size, device=found.device) % found.shape[d]
            found = found.index_select(d, index)
    return found


def with_shapes(example_inputs: Any, shapes: Sequence[Sequence[int]]) -> Any | None:
    """Return example inputs whose tensors have ``shapes``; None where they are of other kinds."""
    tensors = tensor_leaves(example_inputs)
    if len(tensors) != len(shapes) or any(
        t.dim() != len(shape) or (not t.numel() and tuple(t.shape) != tuple(shape))
        for t, shape in zip(tensors, shapes, strict=True)
    ):
        return None
    wanted = {id(t): shape for t, shape in zip(tensors, shapes, strict=True)}
    return map_tensors(example_inputs, lambda t: repeated_to(t, wanted[id(t)]))


def views_differ(one: Program, other: Program) -> bool:
    """Tell whether the sizes of views differ between two passes, beside the batch.

    Where there is no view, whether those of any operation do.
    """
    before, after = _by_place(one.nodes), _by_place(other.nodes)
    pairs = [(old, after[place]) for place, old in before.items() if place in after]
    views = [(old, new) for old, new in pairs if old.op in _VIEWS] or pairs
    return any(
        one.tensors[a].shape[1:] != other.tensors[b].shape[1:]
        for old, new in views
        for a, b in zip(old.outs, new.outs, strict=False)
        if a >= 0 and b >= 0
    )


def pin_size_dependent(flow: Flow, base: Flow) -> bool:
    """Pin what is free in ``base`` and parts elsewhere at another size; return whether any is.

    ``flow`` follows the passes of ``base`` and, as its last, the first of these at that size.
    """
    program = flow.program
    before = _by_place(program.nodes[: program.ends[0]])
    after = _by_place(program.nodes[program.ends[-2] :])
    resized: dict[int, int] = {}
    found: list[tuple[int, int, str]] = []
    for place, old in before.items():
        new = after.get(place)
        if new is None or len(old.outs) != len(new.outs):
            continue
        resized.update(zip(old.outs, new.outs, strict=True))
        if old.op in _VIEWS and old.overload != "dtype":
            dims, reason = _moved_dims(flow, base, old, new), _REASON
        elif old.op in _RANGES:
            dims, reason = _moved_ranges(flow, old, new), _RANGE_REASON
        else:
            continue
        reason = f"{where_is(old.op, old.module)}: {reason}"
        free = [d for d in dims if _free(base, base.dims(old.args[0])[d])]
        found += [(node.args[0].key, d, reason) for d in free for node in (old, new)]
    for op, left, right, outcome in base.program.comparisons:
        held = op == "==" and outcome
        sides = [leaf for one in (left, right) for leaf in leaves(one) if isinstance(leaf, Dim)]
        if not held and any(_resized(flow, leaf, resized) for leaf in sides):
            found += [
                (leaf.tensor, leaf.dim, "the code compares it with a size of the input")
                for leaf in sides
                if _is_free(base, leaf)
            ]
    for key, d, reason in found:
        flow.axes.pin(flow.dims(Ref(key))[d], reason)
    return bool(found)


def _by_place(nodes: Sequence[Node]) -> dict[tuple[str, str, int], Node]:
    """Number the operations of each kind in each module; all views are of one kind."""
    turns: Counter[tuple[str, str]] = Counter()
    found = {}
    for node in nodes:
        kind = "view" if node.op in _VIEWS else family(node.op)
        found[kind, node.module, turns[kind, node.module]] = node
        turns[kind, node.module] += 1
    return found


def _resized(flow: Flow, leaf: Dim, pairs: dict[int, int]) -> bool:
    other = pairs.get(leaf.tensor, -1)
    if other < 0:
        return False
    one, two = flow.shape(Ref(leaf.tensor)), flow.shape(Ref(other))
    return len(one) == len(two) and one[leaf.dim] != two[leaf.dim]


_REASON = "how it parts positions from channels depends on the size of the input"
_RANGE_REASON = "which part is taken depends on the size of the input"


def _moved_dims(flow: Flow, base: Flow, old: Node, new: Node) -> list[int]:
    """Return the dimensions that a view splits at other places in another pass."""
    s1, s2 = flow.shape(old.args[0]), flow.shape(new.args[0])
    t1, t2 = flow.out_shape(old), flow.out_shape(new)
    if len(s1) != len(s2) or len(t1) != len(t2) or 0 in s1 or 0 in s2:
        return []
    found = []
    for d, (one, two) in enumerate(
        zip(flow.dims(old.args[0]), flow.dims(new.args[0]), strict=True)
    ):
        digits = _digits(flow, one, two, base.axes.canon(base.dims(old.args[0])[d]))
        inner = math.prod(s1[d + 1 :]), math.prod(s2[d + 1 :])
        parts = [
            (_parts(inner[0] * run1, size, t1), _parts(inner[1] * run2, size, t2))
            for run1, run2, size in digits or ()
        ]
        if digits is None or any(before != after or after is None for before, after in parts):
            found.append(d)
    return found


def _digits(flow: Flow, one: Axis, two: Axis, before: Axis) -> list[tuple[int, int, int]] | None:
    """Return the run at both sizes, and the count, of what varies along a dimension.

    None where that is not the same, or not what it was ``before`` the other size was known.
    """
    if len(one) == len(two):
        return [(1, 1, len(one))]
    columns = [flow.axes.canon(axis) for axis in (one, two)]
    found = [{frozenset(c[c > 0].tolist()): _digit(c) for c in axis.T} for axis in columns]
    known = sorted(_digit(column) for column in before.T)
    if found[0].keys() != found[1].keys() or sorted(found[0].values()) != known:
        return None
    digits = []
    for atoms, (run, count) in found[0].items():
        other, same = found[1][atoms]
        if not count or count != same:
            return None
        digits.append((run, other, count))
    return digits


def _digit(column: np.ndarray[Any, np.dtype[np.int64]]) -> tuple[int, int]:
    """Return how long each value of a column stands, and how many come before the first again."""
    changes = np.flatnonzero(np.diff(column)) + 1
    run = math.gcd(len(column), *changes.tolist())
    short = column[::run]
    for count in range(len(np.unique(short)), len(short) + 1):
        if len(short) % count == 0 and np.array_equal(
            short, np.tile(short[:count], len(short) // count)
        ):
            return run, count
    return run, 0


def _parts(inner: int, size: int, target: Sequence[int]) -> list[tuple[int, int, int]] | None:
    """Return which part of a digit, ``inner`` apart and of ``size`` values, each dimension has.

    None where a dimension ends within a value.
    """
    found = []
    within = 1
    for d in reversed(range(len(target))):
        low, high = max(inner, within), min(inner * size, within * target[d])
        if low < high:
            found.append((d, low // inner, high // inner))
        within *= target[d]
        if max(inner, within) % min(inner, within):
            return None
        if within > inner and max(inner * size, within) % min(inner * size, within):
            return None
    return found


def _moved_ranges(flow: Flow, old: Node, new: Node) -> list[int]:
    """Return the dimensions of one size of which another range is taken in another pass."""
    one, two = (flow.shape(node.args[0]) for node in (old, new))
    if len(one) != len(two):
        return []
    taken = [
        [[flow.shape(Ref(key))[d] for key in node.outs] for d in range(len(one))]
        for node in (old, new)
    ]
    return [d for d in range(len(one)) if one[d] == two[d] and taken[0][d] != taken[1][d]]
