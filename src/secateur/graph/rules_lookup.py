"""Op rules that look positions up by number or return them: those dimensions stay."""

from __future__ import annotations

from collections.abc import Sequence

from secateur.graph.axes import Axis, fixed
from secateur.graph.flow import Flow, rule
from secateur.graph.program import Node, Ref
from secateur.graph.sizes import Dim


def positions(flow: Flow, node: Node, dim: int) -> None:
    """Operations that return positions pin the dimension that they look along."""
    dims = flow.dims(node.args[0])
    dim %= max(1, len(dims))
    flow.pin(node, dims[dim : dim + 1], "positions along it are returned")
    for index, key in enumerate(node.outs):
        if key < 0:
            continue
        shape = flow.out_shape(node, index)
        if len(shape) == len(dims):
            out = [axis if d != dim else fixed(shape[d]) for d, axis in enumerate(dims)]
        else:
            out = [axis for d, axis in enumerate(dims) if d != dim]
        flow.set(node, out, index)


@rule("sort", "argsort", "kthvalue", "cumprod", "logcumsumexp", "cummax")
def along(flow: Flow, node: Node) -> None:
    """The order of the positions along one dimension matters: it is pinned.

    Numbers of positions stay such when they are sorted, and in the same order after a cut.
    """
    dim = next((a for a in node.args[1:] if type(a) is int), -1)
    positions(flow, node, int(dim))
    held = flow.positions.get(node.args[0].key)
    if node.op == "aten.sort" and held is not None:
        flow.hold_positions(node.outs[0], held)


@rule("cumsum")
def running_sum(flow: Flow, node: Node) -> None:
    """A removed position adds nothing to those behind it."""
    dims = flow.dims(node.args[0])
    if dims:
        dim = int(node.args[1]) % len(dims)
        flow.read(node, 0, dim, dims[dim], "mask")
    flow.set(node, dims)


@rule("topk", "argmax", "argmin")
def choose(flow: Flow, node: Node) -> None:
    """Choose among the positions of one dimension: among the kept ones where it is cut.

    At least as many as are chosen must stay. The numbers returned are followed to
    where they look positions up (a router chooses among experts).
    """
    ranked = node.op == "aten.topk"
    given = node.args[2:3] if ranked else node.args[1:2]
    if not flow.shape(node.args[0]) or (not ranked and (not given or given[0] is None)):
        flow.give_up(node, "it returns a position")
        return
    dims = list(flow.dims(node.args[0]))
    dim = int(given[0] if given else -1) % len(dims)
    axis = dims[dim]
    flow.read(node, 0, dim, axis, "gather")
    if ranked:
        flow.at_least(node, axis, Dim(node.args[0].key, dim), int(node.args[1]))
    out = dims[:dim] + dims[dim + 1 :]
    if len(flow.out_shape(node)) == len(dims):
        out.insert(dim, fixed(flow.out_shape(node)[dim]))
    for index in range(len(node.outs)):
        flow.set(node, out, index)
    flow.hold_positions(node.outs[-1], axis)


@rule("_local_scalar_dense")
def to_number(flow: Flow, node: Node) -> None:
    """A tensor of one element becomes a number: nothing is left to describe."""


@rule("aminmax")
def extremes(flow: Flow, node: Node) -> None:
    """``one_hot`` looks at the range of its numbers to check them; nothing else is told by it."""
    if node.call is None or node.call.name != "one_hot":
        flow.give_up(node, "it has no rule")
        return
    for index in range(len(node.outs)):
        flow.set(node, [fixed(n) for n in flow.out_shape(node, index)], index)


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


@rule("index")
def index(flow: Flow, node: Node) -> None:
    """Indexed dimensions are pinned; the rest pass, the new ones come where NumPy puts them."""
    dims, indices = flow.dims(node.args[0]), node.args[1]
    used = [d for d, ref in enumerate(indices) if isinstance(ref, Ref)]
    for d in used:
        if not flow.look_up(node, dims[d], indices[d]):
            flow.pin(node, [dims[d]], "positions are looked up by number")
    shape = flow.out_shape(node)
    rest = [d for d in range(len(dims)) if d not in used]
    new = len(shape) - len(rest)
    adjacent = used == list(range(used[0], used[-1] + 1))
    at = used[0] if adjacent else 0
    before = [dims[d] for d in rest if d < at]
    after = [dims[d] for d in rest if d >= at]
    middle = [
        flow.pinned(n, f"{flow.where(node)}: looked up by number")
        for n in shape[len(before) : len(before) + new]
    ]
    for ref in indices:
        if isinstance(ref, Ref):
            flow.pin(node, flow.dims(ref), "it holds positions")
    kept = [*rest[: len(before)], *[-1] * len(middle), *rest[len(before) :]]
    flow.moved(node, node.args[0], kept)
    flow.set(node, [*before, *middle, *after])


@rule("index_select")
def index_select(flow: Flow, node: Node) -> None:
    """One dimension is looked up by number; the others pass."""
    dims = list(flow.dims(node.args[0]))
    dim = node.args[1] % len(dims)
    if not flow.look_up(node, dims[dim], node.args[2]):
        flow.pin(node, [dims[dim]], "positions are looked up by number")
    flow.pin(node, flow.dims(node.args[2]), "it holds positions")
    flow.moved(node, node.args[0], [-1 if d == dim else d for d in range(len(dims))])
    size = flow.out_shape(node)[dim]
    dims[dim] = flow.pinned(size, f"{flow.where(node)}: looked up by number")
    flow.set(node, dims)


@rule("index_add", "index_add_", "index_copy", "index_copy_")
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
    used = [d for d, ref in enumerate(node.args[1]) if isinstance(ref, Ref)]
    flow.pin(node, [dims[d] for d in used], "positions go by number")
    rest = [d for d in range(len(dims)) if d not in used]
    trailing = used == list(range(len(used)))
    for d, axis in zip(reversed(rest), reversed(values), strict=False):
        if trailing and len(axis) == len(dims[d]):
            flow.unify(node, dims[d], axis)
        elif len(axis) > 1:
            flow.pin(node, [dims[d], axis], "values are spread over it")
    flow.pin(node, values[: max(0, len(values) - len(rest))], "positions go by number")
    flow.set(node, dims)
