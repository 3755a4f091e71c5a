"""Op rules that run along dimensions: reductions, order statistics, cumulations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from secateur.graph.axes import Axis, fixed
from secateur.graph.flow import Flow, rule
from secateur.graph.program import Node, Ref
from secateur.graph.rules_layers import pointwise

# Reductions that also return which position each value came from.
_WITH_POSITIONS = ("aten.max", "aten.min", "aten.median", "aten.nanmedian", "aten.kthvalue",
                   "aten.mode", "aten.argmax", "aten.argmin")  # fmt: skip


@rule("mean", "sum", "amax", "amin", "var", "std", "var_mean", "std_mean", "prod", "logsumexp",
      "linalg_vector_norm", "norm", "any", "all", "nansum", "max", "min", "median", "nanmedian",
      "kthvalue", "mode", "aminmax", "argmax", "argmin", "count_nonzero")  # fmt: skip
def reduction(flow: Flow, node: Node) -> None:
    """The reduced dimensions end here: over the kept positions where they are cut."""
    if len(node.args) > 1 and isinstance(node.args[1], Ref):
        pointwise(flow, node)
        return
    dims = flow.dims(node.args[0])
    given = node.argument("dim")
    if given is None and node.op in ("aten.argmax", "aten.argmin"):
        flow.give_up(node, "it returns a position")
        return
    given = (given,) if isinstance(given, int) else given
    reduced = sorted({d % max(1, len(dims)) for d in given} if given else set(range(len(dims))))
    for d in reduced[: len(dims)]:
        flow.read(node, 0, d, dims[d], "gather")
    _need(flow, node, reduced)
    out = [axis for d, axis in enumerate(dims) if d not in reduced]
    for index in range(len(node.outs)):
        shape = flow.out_shape(node, index)
        kept = len(shape) == len(dims)
        flow.set(
            node,
            [fixed(1) if d in reduced else axis for d, axis in enumerate(dims)] if kept else out,
            index,
        )
    if given and dims and node.op in _WITH_POSITIONS:
        flow.hold_positions(node.outs[-1], dims[reduced[0]])


def _need(flow: Flow, node: Node, reduced: Sequence[int]) -> None:
    """Keep as many positions as the reduction needs to be defined."""
    if node.op in ("aten.var", "aten.std", "aten.var_mean", "aten.std_mean"):
        given = node.argument("correction")
        correction = int(node.argument("unbiased", True)) if given is None else int(given)
        flow.at_least(node, node.args[0], reduced, correction + 1)
    elif node.op == "aten.kthvalue":
        k = node.argument("k")
        flow.constant(node, _stated_count(node, k))
        flow.at_least(node, node.args[0], reduced, int(k))


def _stated_count(node: Node, count: int) -> Any:
    """Return how many positions are chosen, as the code says it."""
    call = node.call
    if call is None or call.name not in ("topk", "kthvalue"):
        return count
    return call.kwargs.get("k", call.args[1] if len(call.args) > 1 else count)


@rule("topk")
def topk(flow: Flow, node: Node) -> None:
    """Choose among the positions of one dimension: among the kept ones where it is cut.

    At least as many as are chosen must stay. The numbers returned are followed to
    where they look positions up (a router chooses among experts).
    """
    if not flow.shape(node.args[0]):
        flow.give_up(node, "it returns a position")
        return
    dims = list(flow.dims(node.args[0]))
    k, dim = node.argument("k"), node.argument("dim") % len(dims)
    flow.read(node, 0, dim, dims[dim], "gather")
    flow.constant(node, _stated_count(node, k))
    flow.at_least(node, node.args[0], [dim], int(k))
    flow.hold_positions(node.outs[1], dims[dim])
    dims[dim] = fixed(flow.out_shape(node)[dim])
    for index in range(2):
        flow.set(node, dims, index)


@rule("cumsum")
def running_sum(flow: Flow, node: Node) -> None:
    """A removed position adds nothing to those behind it."""
    dims = flow.dims(node.args[0])
    if dims:
        dim = node.argument("dim") % len(dims)
        flow.read(node, 0, dim, dims[dim], "mask")
    flow.set(node, dims)


@rule("cumprod", "logcumsumexp", "cummax", "cummin")
def cumulation(flow: Flow, node: Node) -> None:
    """Each position takes those before it in: over the kept ones where they are cut."""
    dims = flow.dims(node.args[0])
    if dims:
        dim = node.argument("dim") % len(dims)
        flow.read(node, 0, dim, dims[dim], "gather")
        if len(node.outs) > 1:
            flow.hold_positions(node.outs[1], dims[dim])
    for index in range(len(node.outs)):
        flow.set(node, dims, index)


@rule("sort", "argsort", "msort")
def sort(flow: Flow, node: Node) -> None:
    """Sorted along one dimension, a position is a rank and no unit: it is pinned.

    Numbers of positions stay such when they are sorted, and in the same order after a cut.
    """
    dims = flow.dims(node.args[0])
    if dims:
        dim = node.argument("dim", 0) % len(dims)
        flow.pin(node, [dims[dim]], "positions along it are returned")
    for index in range(len(node.outs)):
        flow.set(node, dims, index)
    held = flow.positions.get(node.args[0].key)
    if node.op == "aten.sort" and held is not None:
        flow.hold_positions(node.outs[0], held)


@rule("renorm")
def renorm(flow: Flow, node: Node) -> None:
    """Each position of one dimension is scaled by its norm over the others."""
    dims = flow.dims(node.args[0])
    dim = node.argument("dim") % len(dims)
    for d, axis in enumerate(dims):
        if d != dim:
            flow.read(node, 0, d, axis, "gather")
    flow.set(node, dims)


@rule("mse_loss", "smooth_l1_loss", "huber_loss", "binary_cross_entropy", "soft_margin_loss",
      "binary_cross_entropy_with_logits", "dist")  # fmt: skip
def distance(flow: Flow, node: Node) -> None:
    """Compare element by element; reduced, over the kept positions."""
    places = [place for place, ref in enumerate(node.args) if isinstance(ref, Ref)]
    whole = [flow.dims(node.args[place]) for place in places]
    if any(len(dims) != len(whole[0]) for dims in whole):
        raise ValueError("its arguments differ in rank")
    for other in whole[1:]:
        for left, right in zip(whole[0], other, strict=True):
            flow.unify(node, left, right)
    if flow.out_shape(node) == flow.shape(node.args[0]):
        flow.set(node, whole[0])
        return
    for place, dims in zip(places, whole, strict=True):
        for d, axis in enumerate(dims):
            flow.read(node, place, d, axis, "gather")
    flow.set(node, [])


@rule("_cdist_forward", "_euclidean_dist", "_pdist_forward")
def distances(flow: Flow, node: Node) -> None:
    """Distances between rows, over the kept columns: zeros would be rounded otherwise."""
    left = flow.dims(node.args[0])
    if node.op == "aten._pdist_forward":
        flow.read(node, 0, 1, left[1], "gather")
        flow.pin(node, left[:1], "its pairs are listed")
        flow.set(node, [flow.pinned(n, "pairs") for n in flow.out_shape(node)])
        return
    right = flow.dims(node.args[1])
    for a, b in zip(left[:-2], right[:-2], strict=True):
        flow.unify(node, a, b)
    flow.unify(node, left[-1], right[-1])
    for place, dims in enumerate((left, right)):
        flow.read(node, place, len(dims) - 1, dims[-1], "gather")
    flow.set(node, [*left[:-1], right[-2]])
    flow.count(1, [*left, right[-2]])


@rule("_trilinear")
def trilinear(flow: Flow, node: Node) -> None:
    """A product of three, each unsqueezed, summed over some dimensions (nn.Bilinear)."""
    new = [[int(d) for d in node.args[place]] for place in (3, 4, 5)]
    summed = {int(d) for d in node.args[6]}
    refs, rank = node.args[:3], len(flow.shape(node.args[0])) + len(new[0])
    # The dimension of each argument that meets each dimension of the product.
    meets: list[dict[int, int]] = []
    for ref, added in zip(refs, new, strict=True):
        places = [d for d in range(rank) if d not in added]
        meets.append({d: own for own, d in enumerate(places[: len(flow.shape(ref))])})
    product: list[Axis] = []
    for d in range(rank):
        found = [flow.dims(ref)[own[d]] for ref, own in zip(refs, meets, strict=True) if d in own]
        for other in found[1:]:
            flow.unify(node, found[0], other)
        product.append(found[0])
    for d in sorted(summed):
        sides = [(place, own[d]) for place, own in enumerate(meets) if d in own]
        weights = [s for s in sides if flow.is_weight(refs[s[0]])]
        if len(sides) != 2 or not weights:
            raise ValueError("no weight is contracted")
        left = next(s for s in sides if s != weights[0])
        flow.consume(node, left, weights[0], product[d])
    flow.set(node, [axis for d, axis in enumerate(product) if d not in summed])
    flow.count(1, product)
