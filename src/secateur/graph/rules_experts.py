"""Op rules of mixtures that sort tokens by expert: counts, offsets, grouped products."""

from __future__ import annotations

from typing import Any

from secateur.graph.axes import fixed
from secateur.graph.flow import RULES, Flow, Requirement, rule
from secateur.graph.program import Node, Ref
from secateur.graph.sizes import Apply, Dim

# PyTorch's grouped product takes rows that begin at multiples of 16 bytes alone: eight
# numbers of half precision, to which a network may be cast after its cut.
_ALIGNMENT = 16
_MOST_NUMBERS = 8


@rule("_grouped_mm")
def aligned_product(flow: Flow, node: Node) -> None:
    """A grouped product by PyTorch: rows must stay aligned, in half precision if they are now."""
    left, right = node.args[0], node.args[1]
    itemsize = flow.program.tensors[left.key].dtype.itemsize
    grouped(flow, node)
    for ref, dim in ((left, len(flow.shape(left)) - 1), (right, 2)):
        size = flow.shape(ref)[dim]
        numbers = _MOST_NUMBERS if size % _MOST_NUMBERS == 0 else _ALIGNMENT // itemsize
        if flow.dims(ref)[dim].shape[1]:
            rest = Apply("%", Dim(ref.key, dim), numbers)
            flow.requirements.append(Requirement(rest, fixed(0), flow.where(node)))


@RULES.register("transformers.grouped_mm_fallback")
def grouped(flow: Flow, node: Node) -> None:
    """[rows, K], sorted by group, times [G, K, N] by the ends of the groups' rows, [G]."""
    left, right = node.args[0], node.args[1]
    ends = node.args[2] if len(node.args) > 2 else None
    rows, weight = flow.dims(left), flow.dims(right)
    if len(weight) != 3 or len(rows) != (2 if isinstance(ends, Ref) else 3):
        flow.give_up(node, "it splits columns by groups")
        return
    if isinstance(ends, Ref):
        flow.unify(node, flow.dims(ends)[0], weight[0])
    else:
        flow.unify(node, rows[0], weight[0])
    flow.contract(node, (0, len(rows) - 1), (1, 1))
    flow.set(node, [*rows[:-1], weight[2]])
    flow.count(1, [*rows, weight[2]])


@rule("histc")
def histogram(flow: Flow, node: Node) -> None:
    """How often each position was chosen, if every position has a bin of its own."""
    given = _stated(node, ("input", "bins", "min", "max"))
    bins, low, high = (given.get(name, 0) for name in ("bins", "min", "max"))
    size = flow.out_shape(node)[0]
    if low != 0 or high != size - 1:
        flow.give_up(node, "its bins are no positions")
        return
    axis = flow.sized(node, size, bins)
    if not flow.look_up(node, axis, node.args[0]):
        flow.give_up(node, "what it counts are no positions")
        return
    flow.require(node, axis, high + 1)
    flow.state(1, axis)
    flow.state(3, axis, less=1)
    flow.pin(node, flow.dims(node.args[0]), "it holds positions")
    flow.set(node, [axis])


@rule("bincount")
def count_each(flow: Flow, node: Node) -> None:
    """How often each position was chosen."""
    given = _stated(node, ("input", "weights", "minlength"))
    size = flow.out_shape(node)[0]
    least = given.get("minlength", 0)
    if least != size or given.get("weights") is not None:
        flow.give_up(node, "its length comes from data")
        return
    axis = flow.sized(node, size, least)
    if not flow.look_up(node, axis, node.args[0]):
        flow.give_up(node, "what it counts are no positions")
        return
    flow.state(2, axis)
    flow.pin(node, flow.dims(node.args[0]), "it holds positions")
    flow.set(node, [axis])


def _stated(node: Node, names: tuple[str, ...]) -> dict[str, Any]:
    """Return the arguments as the model's code gave them, by name."""
    call = node.call
    if call is None or call.name != node.op.removeprefix("aten."):
        return dict(zip(names, node.args, strict=False))
    return {**dict(zip(names, call.args, strict=False)), **call.kwargs}
