"""Op rules that look positions up by number or return them: those dimensions stay."""

from __future__ import annotations

from collections.abc import Sequence

from secateur.graph.axes import Axis, fixed
from secateur.graph.flow import Flow, rule
from secateur.graph.program import Node, Ref


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


@rule("topk", "sort", "argsort", "argmax", "argmin", "kthvalue", "cumsum", "cumprod",
      "logcumsumexp", "cummax")  # fmt: skip
def along(flow: Flow, node: Node) -> None:
    """The order of the positions along one dimension matters: it is pinned."""
    if node.op == "aten.topk":
        dim = node.args[2] if len(node.args) > 2 else -1
    elif node.op in ("aten.argmax", "aten.argmin") and len(node.args) < 2:
        flow.give_up(node, "it returns a position")
        return
    else:
        dim = next((a for a in node.args[1:] if type(a) is int), -1)
    positions(flow, node, int(dim))


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
    flow.pin(node, [dims[d] for d in used], "positions are looked up by number")
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
    flow.set(node, [*before, *middle, *after])


@rule("index_select")
def index_select(flow: Flow, node: Node) -> None:
    """One dimension is looked up by number; the others pass."""
    dims = list(flow.dims(node.args[0]))
    dim = node.args[1] % len(dims)
    flow.pin(node, [dims[dim], *flow.dims(node.args[2])], "positions are looked up by number")
    size = flow.out_shape(node)[dim]
    dims[dim] = flow.pinned(size, f"{flow.where(node)}: looked up by number")
    flow.set(node, dims)


@rule("index_add", "index_add_", "index_copy", "index_copy_")
def index_add(flow: Flow, node: Node) -> None:
    """Rows of the source go where numbers say; the other dimensions are one."""
    dims, dim = flow.dims(node.args[0]), node.args[1] % len(flow.dims(node.args[0]))
    source = flow.dims(node.args[3])
    flow.pin(node, [dims[dim], source[dim], *flow.dims(node.args[2])], "rows go by number")
    _unify_others(flow, node, dims, source, dim)
    flow.set(node, dims)


@rule("gather")
def gather(flow: Flow, node: Node) -> None:
    """Positions along one dimension are looked up; the index has the shape of the result."""
    dims, index = flow.dims(node.args[0]), flow.dims(node.args[2])
    dim = node.args[1] % max(1, len(dims))
    flow.pin(node, [dims[dim], index[dim]], "positions are looked up by number")
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
