"""Op rules that look positions up by number or return them: those dimensions stay."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from secateur.graph.axes import Axis, fixed
from secateur.graph.flow import Flow, rule
from secateur.graph.program import Node, Ref
from secateur.graph.sizes import Sized


@rule("_local_scalar_dense")
def to_number(flow: Flow, node: Node) -> None:
    """A tensor of one element becomes a number: nothing is left to describe."""


@rule("nonzero")
def nonzero(flow: Flow, node: Node) -> None:
    """Positions that are not zero; of a single dimension, their numbers are followed."""
    dims = flow.dims(node.args[0])
    if len(dims) != 1:
        flow.give_up(node, "it returns positions")
        return
    flow.read(node, 0, 0, dims[0], "mask")
    flow.set(node, [fixed(n) for n in flow.out_shape(node)])
    flow.hold_positions(node.outs[0], dims[0])


@rule("embedding")
def embedding(flow: Flow, node: Node) -> None:
    """Rows are looked up by number: the rows stay, the columns pass."""
    weight = flow.dims(node.args[0])
    flow.pin(node, weight[:1], "rows are looked up by number")
    flow.roles.append(("embedding", weight[1]))
    flow.set(node, [*flow.dims(node.args[1]), weight[1]])


@rule("_embedding_bag", "_embedding_bag_forward_only")
def embedding_bag(flow: Flow, node: Node) -> None:
    """Rows are looked up by number and summed: the rows and bags stay, the columns pass."""
    weight = flow.dims(node.args[0])
    flow.pin(node, weight[:1], "rows are looked up by number")
    for ref in node.args[1:]:
        if isinstance(ref, Ref):
            flow.pin(node, flow.dims(ref), "it lists the bags")
    flow.roles.append(("embedding", weight[1]))
    bags = flow.pinned(flow.out_shape(node)[0], "bags")
    flow.set(node, [bags, weight[1]])
    if node.outs[-1] in flow.used:
        flow.pin(node, weight[1:], "it returns positions")


@rule("arange")
def arange(flow: Flow, node: Node) -> None:
    """Numbers in order; from 0 in steps of 1 they are all positions of a dimension so long.

    Those that ``one_hot`` compares with are as many as its result's positions, whose rule says so.
    """
    (size,) = flow.out_shape(node)
    call = node.call
    if call is not None and call.name == "one_hot":
        return
    given = call.args if call is not None and call.name == "arange" else ()
    named = {} if call is None else call.kwargs
    stated = named.get("end", given[min(1, len(given) - 1)] if given else None)
    plain = node.argument("start", 0) == 0 and node.argument("step", 1) == 1
    if not (plain and isinstance(stated, Sized)) or len(given) > 2 or int.__index__(stated) != size:
        flow.give_up(node, "its numbers are fixed in the code")
        return
    axis = flow.sized(node, size, stated)
    flow.set(node, [axis])
    flow.hold_positions(node.outs[0], axis, every=True)


@rule("index")
def index(flow: Flow, node: Node) -> None:
    """Indexed dimensions are pinned; the rest pass, the new ones come where NumPy puts them.

    A mask takes as many dimensions as it has. Numbers of all positions in order, as
    ``arange`` gives them, leave a dimension as it is.
    """
    dims = flow.dims(node.args[0])
    used = _indexed(flow, node)
    shape = flow.out_shape(node)
    flat = [d for taken, _ in used for d in taken]
    rest = [d for d in range(len(dims)) if d not in flat]
    new = len(shape) - len(rest)
    adjacent = flat == list(range(flat[0], flat[0] + len(flat)))
    at = flat[0] if adjacent else 0
    before = [dims[d] for d in rest if d < at]
    after = [dims[d] for d in rest if d >= at]
    sizes = shape[len(before) : len(before) + new]
    middle = [flow.pinned(n, f"{flow.where(node)}: looked up by number") for n in sizes]
    for taken, ref in used:
        along = flow.range_dim(ref)
        found = flow.look_up(node, dims[taken[0]], ref)
        if not found:
            flow.pin(node, [dims[d] for d in taken], "positions are looked up by number")
        place = len(middle) - len(flow.shape(ref)) + (along or 0)
        if found and along is not None and len(flow.dims(ref)[along]) == len(dims[taken[0]]):
            middle[place] = _joined(flow, node, used, ref, new - place)
        else:
            flow.pin(node, flow.dims(ref), "it holds positions")
    kept = [*rest[: len(before)], *[-1] * len(middle), *rest[len(before) :]]
    flow.moved(node, node.args[0], kept)
    flow.set(node, [*before, *middle, *after])


def _indexed(flow: Flow, node: Node) -> list[tuple[list[int], Ref]]:
    """List the dimensions that each index takes."""
    found, d = [], 0
    for ref in node.args[1]:
        wide = 1
        if isinstance(ref, Ref):
            mask = flow.program.tensors[ref.key].dtype in (torch.bool, torch.uint8)
            wide = len(flow.shape(ref)) if mask else 1
            found.append((list(range(d, d + wide)), ref))
        d += wide
    return found


def _joined(
    flow: Flow, node: Node, used: Sequence[tuple[list[int], Ref]], ref: Ref, from_end: int
) -> Axis:
    """Couple what all indices have where one of them counts all positions."""
    axis = flow.dims(ref)[-from_end]
    for _, other in used:
        theirs = flow.dims(other)
        if len(theirs) >= from_end and len(theirs[-from_end]) == len(axis):
            flow.unify(node, axis, theirs[-from_end])
    return axis


@rule("index_select")
def index_select(flow: Flow, node: Node) -> None:
    """One dimension is looked up by number; the others pass."""
    dims, ref = list(flow.dims(node.args[0])), node.args[2]
    dim = node.args[1] % len(dims)
    found = flow.look_up(node, dims[dim], ref)
    flow.moved(node, node.args[0], [-1 if d == dim else d for d in range(len(dims))])
    size = flow.out_shape(node)[dim]
    if found and flow.range_dim(ref) is not None and size == len(dims[dim]):
        flow.set(node, dims)
        return
    if not found:
        flow.pin(node, [dims[dim]], "positions are looked up by number")
    flow.pin(node, flow.dims(ref), "it holds positions")
    dims[dim] = flow.pinned(size, f"{flow.where(node)}: looked up by number")
    flow.set(node, dims)


@rule("index_add", "index_add_", "index_copy", "index_copy_", "index_reduce", "index_reduce_")
def index_add(flow: Flow, node: Node) -> None:
    """Rows of the source go where numbers say; the other dimensions are one."""
    dims, dim = flow.dims(node.args[0]), node.args[1] % len(flow.dims(node.args[0]))
    source = flow.dims(node.args[3])
    adds = node.op.startswith("aten.index_add")
    if not (adds and flow.look_up(node, dims[dim], node.args[2])):
        flow.pin(node, [dims[dim]], "rows go by number")
    flow.pin(node, [source[dim], *flow.dims(node.args[2])], "rows go by number")
    _unify_others(flow, node, dims, source, dim)
    flow.set(node, dims)


@rule("index_fill", "index_fill_")
def index_fill(flow: Flow, node: Node) -> None:
    """Positions of one dimension are filled by number; the others pass."""
    dims, dim = flow.dims(node.args[0]), node.args[1] % len(flow.dims(node.args[0]))
    flow.pin(node, [dims[dim], *flow.dims(node.args[2])], "positions are filled by number")
    flow.set(node, dims)


@rule("bucketize", "searchsorted")
def bucketize(flow: Flow, node: Node) -> None:
    """Each value becomes its place among sorted ones, which stay."""
    swapped = node.op == "aten.searchsorted"
    values, edges = node.args[:2][::-1] if swapped else node.args[:2]
    borders = flow.dims(edges)
    flow.pin(node, borders[-1:], "numbers of its positions are returned")
    dims = flow.dims(values) if isinstance(values, Ref) else []
    for left, right in zip(dims, borders[:-1], strict=False):
        flow.unify(node, left, right)
    if len(borders) > 1:
        flow.pin(node, dims[-1:], "they are sorted into rows")
    flow.set(node, dims)


@rule("isin")
def isin(flow: Flow, node: Node) -> None:
    """Each element is compared with all of a set, which stays."""
    elements, those = node.args[:2]
    if isinstance(those, Ref):
        flow.pin(node, flow.dims(those), "elements are compared with all of it")
    flow.set(node, flow.dims(elements) if isinstance(elements, Ref) else [])


@rule("masked_scatter", "masked_scatter_")
def masked_scatter(flow: Flow, node: Node) -> None:
    """Elements of the source, in order, replace those under the mask.

    Dimensions along which the mask is the same everywhere are taken whole, in the source
    too: the other ones stay.
    """
    x, mask, source = node.args[:3]
    dims, given = flow.dims(x), flow.dims(source)
    open_ = flow.constant_dims(mask)
    rank = len(flow.shape(mask))
    whole = 0
    while whole < min(len(given), len(dims)) and (
        whole >= rank or rank - 1 - whole in open_
    ) and len(given[-1 - whole]) == len(dims[-1 - whole]):  # fmt: skip
        whole += 1
    for k in range(1, whole + 1):
        flow.unify(node, dims[-k], given[-k])
        if k <= rank and len(flow.dims(mask)[-k]) == len(dims[-k]):
            flow.unify(node, dims[-k], flow.dims(mask)[-k])
    why = "elements are put in by their order"
    flow.pin(node, [*dims[: len(dims) - whole], *given[: len(given) - whole]], why)
    flow.pin(node, flow.dims(mask)[: max(0, rank - whole)], why)
    flow.set(node, dims)


@rule("gather")
def gather(flow: Flow, node: Node) -> None:
    """Positions along one dimension are looked up; the index has the shape of the result."""
    dims, index = flow.dims(node.args[0]), flow.dims(node.args[2])
    dim = node.args[1] % max(1, len(dims))
    if not flow.look_up(node, dims[dim], node.args[2]):
        flow.pin(node, [dims[dim]], "positions are looked up by number")
    flow.pin(node, [index[dim]], "it holds positions")
    _unify_others(flow, node, dims, index, dim)
    flow.set(node, index)


@rule("scatter", "scatter_", "scatter_add", "scatter_add_", "scatter_reduce", "scatter_reduce_")
def scatter(flow: Flow, node: Node) -> None:
    """Values go to positions along one dimension; the other dimensions are one."""
    dims, dim = flow.dims(node.args[0]), node.args[1] % len(flow.dims(node.args[0]))
    for ref in node.args[2:4]:
        if isinstance(ref, Ref) and flow.shape(ref):
            flow.pin(node, [flow.dims(ref)[dim]], "positions go by number")
            _unify_others(flow, node, dims, flow.dims(ref), dim)
    known = not node.op.startswith("aten.scatter_reduce")
    if not (known and flow.look_up(node, dims[dim], node.args[2])):
        flow.pin(node, [dims[dim]], "positions go by number")
    flow.set(node, dims)


def _unify_others(
    flow: Flow, node: Node, left: Sequence[Axis], right: Sequence[Axis], dim: int
) -> None:
    """Couple all dimensions but ``dim``; where sizes differ, only part is used: pin both."""
    for d, (a, b) in enumerate(zip(left, right, strict=True)):
        if d != dim and len(a) == len(b):
            flow.unify(node, a, b)
        elif d != dim:
            flow.pin(node, [a, b], "only part of it is used")


@rule("index_put", "index_put_", "_index_put_impl_")
def index_put(flow: Flow, node: Node) -> None:
    """Indexed dimensions are pinned; the rest is coupled to the values' last dimensions."""
    dims, values = flow.dims(node.args[0]), flow.dims(node.args[2])
    indexed = _indexed(flow, node)
    used = [d for taken, _ in indexed for d in taken]
    flow.pin(node, [dims[d] for d in used], "positions go by number")
    for _, ref in indexed:
        flow.pin(node, flow.dims(ref), "it holds positions")
    rest = [d for d in range(len(dims)) if d not in used]
    trailing = used == list(range(len(used)))
    for d, axis in zip(reversed(rest), reversed(values), strict=False):
        if trailing and len(axis) == len(dims[d]):
            flow.unify(node, dims[d], axis)
        elif len(axis) > 1:
            flow.pin(node, [dims[d], axis], "values are spread over it")
    flow.pin(node, values[: max(0, len(values) - len(rest))], "positions go by number")
    flow.set(node, dims)
