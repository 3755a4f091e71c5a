"""Op rules that take some of the positions of a dimension: select, slice, split."""

from __future__ import annotations

from typing import Any

from secateur.graph.attention import attention_width
from secateur.graph.flow import Flow, rule
from secateur.graph.program import Node, Ref
from secateur.graph.sizes import Apply, Dim, Sized, ceil_div, expr_of


@rule("select", "select_copy")
def select(flow: Flow, node: Node) -> None:
    """Take one position: its number is fixed, so the dimension is pinned, unless it was found."""
    dims = list(flow.dims(node.args[0]))
    dim = node.args[1] % len(dims)
    found = node.call.args[1] if node.call and node.call.name == "__getitem__" else None
    shape_only = node.args[2] in (0, -1) and node.outs[0] not in flow.used
    looked_up = isinstance(found, Ref) and dim == 0 and flow.look_up(node, dims[0], found)
    if not (looked_up or shape_only):
        flow.pin(node, [dims[dim]], "one position is taken by its number")
    flow.moved(node, node.args[0], [d for d in range(len(dims)) if d != dim])
    del dims[dim]
    flow.set(node, dims)


@rule("unbind", "unbind_copy")
def unbind(flow: Flow, node: Node) -> None:
    """Take every position by itself."""
    dims = list(flow.dims(node.args[0]))
    dim = (node.args[1] if len(node.args) > 1 else 0) % len(dims)
    flow.pin(node, [dims[dim]], "its positions are taken one by one")
    del dims[dim]
    for index in range(len(node.outs)):
        flow.set(node, dims, index)


@rule("slice", "slice_copy")
def slice_(flow: Flow, node: Node) -> None:
    """Take a range of positions; the code's bounds must still fall in the same places."""
    args = list(node.args) + [None] * (5 - len(node.args))
    source, dim, start, stop, step = args[0], args[1] or 0, args[2], args[3], args[4] or 1
    dims = list(flow.dims(source))
    dim %= len(dims)
    axis = dims[dim]
    size = len(axis)
    first, last, _ = slice(start, stop).indices(size)
    last = max(first, last)
    if step != 1:
        flow.pin(node, [axis], f"every {int(step)}th position is taken")
    if (first, last) != (0, size) and axis.shape[1]:
        low, high = _stated_bounds(flow, node, dim, first, last, size)
        if low == "end":
            flow.require(node, axis[first:], size - first)
        elif first > 0:
            flow.require(node, axis[:first], low)
        if high == "end":
            flow.require(node, axis[last:], size - last)
        elif last < size:
            flow.require(node, axis[:last], high)
    dims[dim] = axis[first:last:step]
    flow.set(node, dims)


_EVEN_SPLITS = ("tensor_split", "hsplit", "vsplit", "dsplit")


def _stated_bounds(
    flow: Flow, node: Node, dim: int, first: int, last: int, size: int
) -> tuple[Any, Any]:
    """Return the bounds as the code wrote them; "end" for one counted from the end."""
    call = node.call
    if call is not None and call.name == "narrow" and len(call.args) == 4:
        start, length = call.args[2], call.args[3]
        if isinstance(start, Ref) or isinstance(length, Ref):
            return first, last
        return (start, start + length) if start >= 0 else ("end", "end")
    if call is not None and call.name in _EVEN_SPLITS:
        parts = call.kwargs.get("sections", call.kwargs.get("indices_or_sections", call.args[1]))
        if isinstance(parts, int) and size % parts == 0:
            total, count = Dim(node.args[0].key, dim), expr_of(parts)
            flow.equal(node, Apply("%", total, count), 0)
            each = Sized(size // int.__index__(parts), Apply("//", total, count))
            return first // int.__index__(each) * each, last // int.__index__(each) * each
        flow.pin(node, [flow.dims(node.args[0])[dim]], "it is split at places fixed in the code")
    if call is not None and call.name in ("__getitem__", "__setitem__"):
        for at, item in _slices_of(call.args[1], len(flow.shape(call.args[0]))):
            if at == dim and item.indices(size)[:2] == (first, last):
                low = 0 if item.start is None else item.start
                high = size if item.stop is None else item.stop
                return ("end" if low < 0 else low), ("end" if high < 0 else high)
    return first, last


def _slices_of(index: Any, rank: int) -> list[tuple[int, slice]]:
    """List the slices of an index with the dimension that each meets when applied in order."""
    items = index if isinstance(index, tuple) else (index,)
    used = sum(1 for item in items if item is not None and item is not Ellipsis)
    found, dim = [], 0
    for item in items:
        if item is Ellipsis:
            dim += rank - used
        elif isinstance(item, slice):
            found.append((dim, item))
            dim += 1
        elif item is None or isinstance(item, Ref):
            dim += 1
    return found


@rule("split", "split_with_sizes", "unsafe_split", "unsafe_split_with_sizes", "chunk",
      "split_copy", "split_with_sizes_copy", "unsafe_chunk", "tensor_split")  # fmt: skip
def split(flow: Flow, node: Node) -> None:
    """Cut into consecutive ranges; each must keep the size that the code will ask for."""
    dims = flow.dims(node.args[0])
    dim = node.args[2] if len(node.args) > 2 else node.kwargs.get("dim", 0)
    dim %= len(dims)
    axis = dims[dim]
    sizes = [flow.out_shape(node, i)[dim] for i in range(len(node.outs))]
    stated = _stated_parts(flow, node, dim, sizes)
    start = 0
    for index, (size, value) in enumerate(zip(sizes, stated, strict=True)):
        part = axis[start : start + size]
        if value is not None and axis.shape[1]:
            flow.require(node, part, value)
        start += size
        out = list(dims)
        out[dim] = part
        flow.set(node, out, index)


def _stated_parts(flow: Flow, node: Node, dim: int, sizes: list[int]) -> list[Any]:
    call = node.call
    if call is not None and call.name == "multi_head_attention_forward":
        return [attention_width(call)] * (len(sizes) - 1) + [None]
    if call is not None and len(call.args) > 0 and isinstance(call.args[0], Ref):
        given = call.args[1] if len(call.args) > 1 else next(iter(call.kwargs.values()), None)
        if call.name in ("split", "split_with_sizes") and isinstance(given, tuple):
            if len(given) == len(sizes):
                return list(given)
        elif call.name == "split" and isinstance(given, int):
            # A shorter last part is what remains: only its literal size keeps it the last.
            return [given] * (len(sizes) - 1) + [given if sizes[-1] == given else int(sizes[-1])]
        elif call.name in ("chunk", "lstm", "gru", "lstm_cell", "gru_cell", "rnn_tanh"):
            parts = given if call.name == "chunk" else len(sizes)
            if isinstance(parts, int) and len(set(sizes[:-1])) <= 1:
                total = Dim(node.args[0].key, dim)
                each = Sized(sizes[0], ceil_div(total, expr_of(parts)))
                return [each] * (len(sizes) - 1) + [None]
    return list(sizes)
