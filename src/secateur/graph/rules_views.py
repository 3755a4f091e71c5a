"""Op rules that move positions without changing values: views, slices, joins."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from secateur.graph.attention import attention_sizes
from secateur.graph.axes import Axis, fixed, merge, stack
from secateur.graph.flow import Flow, rule
from secateur.graph.program import Node, Ref, refs_in
from secateur.graph.sizes import Dim, Sized

# Functions whose inner views follow from the shapes of their tensors alone.
_SHAPED_BY_TENSORS = frozenset(
    name
    for line in (
        "flatten ravel squeeze unsqueeze linear bilinear matmul __matmul__ __rmatmul__ bmm mm",
        "addmm baddbmm einsum tensordot dot mv outer stack cat concat hstack vstack dstack",
        "scaled_dot_product_attention conv1d conv2d conv3d conv_transpose1d conv_transpose2d",
        "conv_transpose3d instance_norm batch_norm layer_norm rms_norm group_norm view_as",
        "reshape_as expand_as broadcast_tensors broadcast_to adaptive_avg_pool1d",
        "adaptive_avg_pool2d adaptive_max_pool1d avg_pool1d max_pool1d interpolate",
        "__getitem__ __setitem__ softmax mean sum movedim moveaxis transpose permute lstm gru",
        "rnn_tanh rnn_relu lstm_cell gru_cell cosine_similarity normalize norm where",
        "repeat_interleave prelu kron inner quantile nanquantile cdist local_response_norm",
        "_pad_packed_sequence",
    )
    for name in line.split()
)


def spread(args: Sequence[Any]) -> tuple[Any, ...]:
    """Return sizes given either one by one or as one sequence."""
    if len(args) == 1 and isinstance(args[0], tuple):
        return args[0]
    return tuple(args)


def stated_sizes(node: Node, shape: Sequence[int]) -> list[Any]:
    """Return what the model's code says of each output size; None where it says nothing."""
    call = node.call
    if call is None:
        return list(shape)
    if call.name in ("view", "reshape", "_unsafe_view"):
        given = call.args[1:] or tuple(call.kwargs.values())
        sizes = spread(given)
        if len(sizes) == len(shape) and all(isinstance(s, (int, Ref)) for s in sizes):
            # A tensor of one element is a number that comes from data.
            known = [n if isinstance(s, Ref) else s for n, s in zip(shape, sizes, strict=True)]
            return [None if s < 0 else s for s in known]
        return list(shape)
    if call.name == "unflatten":
        return _unflatten_sizes(call.args, call.kwargs, len(shape))
    if call.name in _SHAPED_BY_TENSORS:
        return [None] * len(shape)
    if call.name == "multi_head_attention_forward":
        return attention_sizes(call, shape)
    return list(shape)


def _unflatten_sizes(args: tuple[Any, ...], kwargs: dict[str, Any], rank: int) -> list[Any]:
    dim = int(kwargs.get("dim", args[1] if len(args) > 1 else 0))
    sizes = spread([kwargs["sizes"]] if "sizes" in kwargs else args[2:])
    start = dim % (rank - len(sizes) + 1)
    inner: list[Any] = [None if s < 0 else s for s in sizes]
    return [None] * start + inner + [None] * (rank - start - len(inner))


@rule("view", "_unsafe_view", "reshape", "_reshape_alias", "_reshape_copy", "view_copy")
def view(flow: Flow, node: Node) -> None:
    """Group the dimensions into blocks of equal product; merge and split each."""
    source = node.args[0]
    if node.overload == "dtype":
        flow.give_up(node, "it reads the bytes as another type")
        return
    shape, target = flow.shape(source), flow.out_shape(node)
    if 0 in shape:
        flow.give_up(node, "the tensor is empty")
        return
    dims = flow.dims(source)
    out: list[Axis] = [fixed(1)] * len(target)
    kept: list[tuple[int, int]] = []
    for sources, big in view_blocks(shape, target):
        if len(big) == 1 and len(sources) == 1:
            out[big[0]] = dims[sources[0]]
            kept.append((big[0], sources[0]))
        elif big:
            joined = merge([dims[d] for d in sources])
            parts = flow.axes.split(joined, [target[d] for d in big], flow.where(node))
            for d, axis in zip(big, parts, strict=True):
                out[d] = axis
    for axis, stated in zip(out, stated_sizes(node, target), strict=True):
        if stated is not None and len(axis) > 1:
            flow.require(node, axis, stated)
    where = dict(kept)
    flow.moved(node, source, [where.get(d, -1) for d in range(len(target))])
    flow.set(node, out)


def view_blocks(
    shape: Sequence[int], target: Sequence[int]
) -> Iterator[tuple[list[int], list[int]]]:
    """Yield the dimensions of a view in blocks of equal product, those of size one left out.

    Each is a list of dimensions of ``shape`` and one of ``target``; neither has a zero.
    """
    i = j = 0
    while i < len(shape) or j < len(target):
        ins, outs = [i] if i < len(shape) else [], [j] if j < len(target) else []
        left = shape[i] if ins else 1
        right = target[j] if outs else 1
        while left != right:
            if left < right:
                i += 1
                ins.append(i)
                left *= shape[i]
            else:
                j += 1
                outs.append(j)
                right *= target[j]
        i, j = i + 1, j + 1
        yield [d for d in ins if shape[d] > 1], [d for d in outs if target[d] > 1]


@rule("permute", "permute_copy")
def permute(flow: Flow, node: Node) -> None:
    """Reorder the axes."""
    dims = flow.dims(node.args[0])
    order = [d % len(dims) for d in node.args[1]]
    flow.moved(node, node.args[0], order)
    flow.set(node, [dims[d] for d in order])


@rule("transpose", "t", "transpose_copy", "t_copy", "numpy_T", "swapaxes",
      "transpose_", "t_", "swapaxes_", "swapdims", "swapdims_")  # fmt: skip
def transpose(flow: Flow, node: Node) -> None:
    """Swap two axes."""
    dims = list(flow.dims(node.args[0]))
    order = list(range(len(dims)))
    if len(dims) > 1:
        a, b = (node.args[1], node.args[2]) if len(node.args) > 2 else (0, 1)
        order[a], order[b] = order[b], order[a]
    flow.moved(node, node.args[0], order)
    flow.set(node, [dims[d] for d in order])


@rule("unsqueeze", "unsqueeze_copy", "unsqueeze_")
def unsqueeze(flow: Flow, node: Node) -> None:
    """Insert a dimension of size one."""
    dims = list(flow.dims(node.args[0]))
    order, place = list(range(len(dims))), node.args[1] % (len(dims) + 1)
    order.insert(place, -1)
    dims.insert(place, fixed(1))
    flow.moved(node, node.args[0], order)
    flow.set(node, dims)


@rule("squeeze", "squeeze_copy", "squeeze_")
def squeeze(flow: Flow, node: Node) -> None:
    """Drop dimensions of size one; of the others named, two positions stay, or they would go."""
    dims = flow.dims(node.args[0])
    if len(node.args) > 1:
        which = node.args[1] if isinstance(node.args[1], tuple) else (node.args[1],)
        chosen = {d % len(dims) for d in which} if dims else set()
    else:
        chosen = set(range(len(dims)))
    drop = {d for d in chosen if len(dims[d]) == 1}
    for d in chosen - drop:
        flow.at_least(node, node.args[0], [d], 2)
    stay = [d for d in range(len(dims)) if d not in drop]
    flow.moved(node, node.args[0], stay)
    flow.set(node, [dims[d] for d in stay])


@rule(
    "alias", "detach", "clone", "contiguous", "_to_copy", "to", "lift_fresh", "lift_fresh_copy",
    "lift", "copy", "alias_copy", "detach_", "native_dropout", "dropout", "_conj", "view_as_real_",
    "bernoulli", "positive", "zeros_like", "ones_like", "empty_like", "full_like", "rand_like",
    "randn_like", "fill", "fill_", "zero_", "normal_", "uniform_", "bernoulli_",
    "_pin_memory", "requires_grad_", "resolve_conj", "resolve_neg", "_fused_dropout",
)  # fmt: skip
def same(flow: Flow, node: Node) -> None:
    """Every dimension passes."""
    dims = flow.dims(node.args[0])
    if node.op in ("aten.alias", "aten.detach", "aten.clone", "aten._to_copy"):
        flow.moved(node, node.args[0], range(len(dims)))
    for index, key in enumerate(node.outs):
        if key >= 0 and flow.out_shape(node, index) == flow.shape(node.args[0]):
            flow.set(node, dims, index)


@rule("cat", "concat")
def cat(flow: Flow, node: Node) -> None:
    """Stack along one dimension, unify along the others."""
    refs = [r for r in node.args[0] if flow.shape(r) != (0,)]
    rank = len(flow.shape(refs[0]))
    given = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
    dim = given % rank
    first = flow.dims(refs[0])
    for ref in refs[1:]:
        for d, axis in enumerate(flow.dims(ref)):
            if d != dim:
                flow.unify(node, first[d], axis)
    out = list(first)
    out[dim] = stack([flow.dims(ref)[dim] for ref in refs])
    flow.set(node, out)


@rule("stack")
def stack_new(flow: Flow, node: Node) -> None:
    """Join along a new dimension, which cannot be cut."""
    refs = node.args[0]
    rank = len(flow.shape(refs[0])) + 1
    dim = (node.args[1] if len(node.args) > 1 else 0) % rank
    first = flow.dims(refs[0])
    for ref in refs[1:]:
        for left, right in zip(first, flow.dims(ref), strict=True):
            flow.unify(node, left, right)
    out = list(first)
    out.insert(dim, flow.pinned(len(refs), f"{flow.where(node)}: joined parts"))
    flow.set(node, out)


@rule("expand", "expand_copy", "broadcast_to")
def expand(flow: Flow, node: Node) -> None:
    """Repeat dimensions of size one; the new positions are as free as their stated size."""
    dims, target = flow.dims(node.args[0]), flow.out_shape(node)
    stated = _expand_sizes(node, target)
    lead = len(target) - len(dims)
    alike = {d + lead for d in flow.constant_dims(node.args[0])}
    flow.repeated(node.outs[0], {*range(lead), *alike})
    out = []
    for d, size in enumerate(target):
        if d >= lead and len(dims[d - lead]) == size:
            if size > 1 and isinstance(stated[d], int) and stated[d] >= 0:
                flow.require(node, dims[d - lead], stated[d])
            out.append(dims[d - lead])
        elif (axis := _partner(flow, node, d - len(target), size)) is not None:
            out.append(axis)
        elif node.call is not None and node.call.name in _COUPLED_LATER:
            out.append(flow.axes.fresh(size))
        elif stated[d] is None:
            out.append(flow.pinned(size, f"{flow.where(node)}: repeated positions"))
        else:
            out.append(flow.sized(node, size, stated[d]))
    flow.set(node, out)


# Functions that repeat their tensors to a common shape, aligned from the right.
_BROADCASTING = ("normalize", "cosine_similarity", "pairwise_distance", "broadcast_tensors",
                 "cdist", "mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss",
                 "gaussian_nll_loss", "triplet_margin_loss", "cosine_embedding_loss",
                 "take_along_dim")  # fmt: skip
# Functions that repeat a tensor for an operation of their own that couples what is repeated.
_COUPLED_LATER = ("__setitem__", "quantile", "nanquantile")
_PRODUCTS = ("matmul", "__matmul__", "__rmatmul__")


def _partner(flow: Flow, node: Node, place: int, size: int) -> Axis | None:
    """Return the axis of another operand to which a function repeats this one."""
    call = node.call
    batch = call is not None and call.name in _PRODUCTS and place <= -3
    if call is None or not (batch or call.name in _BROADCASTING):
        return None
    for key in refs_in((call.args, tuple(call.kwargs.values()))):
        if len(flow.shape(Ref(key))) >= -place:
            axis = flow.dims(Ref(key))[place]
            if len(axis) == size:
                return axis
    return None


def _expand_sizes(node: Node, target: Sequence[int]) -> list[Any]:
    call = node.call
    if call is not None and call.name in ("expand", "broadcast_to"):
        sizes = spread(call.args[1:] or tuple(call.kwargs.values()))
        if len(sizes) == len(target):
            return list(sizes)
    if call is not None and call.name == "expand_as":
        other = call.kwargs.get("other", call.args[-1])
        return [Sized(n, Dim(other.key, d)) for d, n in enumerate(target)]
    if call is not None and call.name == "repeat_interleave" and len(call.args) > 1:
        return [call.args[1] if n == call.args[1] else None for n in target]
    return [None] * len(target)


@rule("repeat", "tile")
def repeat(flow: Flow, node: Node) -> None:
    """Tile: repeated dimensions are a new factor times the old axis."""
    dims, target = flow.dims(node.args[0]), flow.out_shape(node)
    times = node.args[1]
    call = node.call
    stated: Sequence[Any] = times
    if call is not None and call.name in ("repeat", "tile"):
        given = spread(call.args[1:])
        stated = given if len(given) == len(times) else times
    elif call is not None and call.name == "instance_norm":
        stated = times
    lead = len(target) - len(dims)
    out = []
    for d, count in enumerate(times):
        axis = dims[d - lead] if d >= lead else fixed(1)
        if count == 1:
            out.append(axis)
        else:
            out.append(merge([flow.sized(node, count, stated[d]), axis]))
    flow.set(node, out)


@rule("constant_pad_nd")
def pad(flow: Flow, node: Node) -> None:
    """Constant padding adds positions, as many as the code states; cropping takes a range."""
    dims = list(flow.dims(node.args[0]))
    amounts = node.args[1]
    call = node.call
    stated = amounts
    if call is not None and call.name == "pad" and len(call.args) > 1:
        stated = call.args[1] if len(call.args[1]) == len(amounts) else amounts
    for k in range(len(amounts) // 2):
        low, high = amounts[2 * k], amounts[2 * k + 1]
        d = len(dims) - 1 - k
        if low < 0 or high < 0:
            flow.pin(node, [dims[d]], "it is cropped by a fixed amount")
        axis = dims[d][max(0, -low) : len(dims[d]) - max(0, -high)]
        parts = [axis]
        if low > 0:
            parts.insert(0, flow.sized(node, low, stated[2 * k]))
        if high > 0:
            parts.append(flow.sized(node, high, stated[2 * k + 1]))
        dims[d] = stack(parts)
    flow.set(node, dims)


@rule("flip")
def flip(flow: Flow, node: Node) -> None:
    """Read dimensions backwards."""
    dims = list(flow.dims(node.args[0]))
    for d in node.argument("dims"):
        dims[d] = dims[d][::-1]
    flow.set(node, dims)


@rule("roll")
def roll(flow: Flow, node: Node) -> None:
    """Put the last positions first: as many of them must stay as the code states."""
    source, shifts, which = node.args[0], node.argument("shifts"), node.argument("dims")
    dims = list(flow.dims(source))
    if not which:
        flow.pin(node, dims, "its positions are reordered")
    for shift, stated, d in zip(shifts, _stated_shifts(node, shifts), which, strict=bool(which)):
        axis = dims[d]
        back = shift % max(1, len(axis))
        cut = len(axis) - back
        if back and axis.shape[1]:
            ahead = shift > 0
            part = axis[cut:] if ahead else axis[:cut]
            count = stated if ahead else -stated
            if abs(shift) < len(axis):
                flow.require(node, part, count)
            else:
                flow.pin(node, [axis], "its positions are reordered")
        dims[d] = np.concatenate([axis[cut:], axis[:cut]])
    flow.set(node, dims)


def _stated_shifts(node: Node, shifts: Sequence[int]) -> Sequence[Any]:
    """Return the shifts as the code wrote them."""
    call = node.call
    if call is None or call.name != "roll":
        return shifts
    given = call.kwargs.get("shifts", call.args[1] if len(call.args) > 1 else shifts)
    found = given if isinstance(given, tuple) else (given,)
    return found if len(found) == len(shifts) else shifts


@rule("tril", "triu", "tril_", "triu_")
def triangle(flow: Flow, node: Node) -> None:
    """Rows are compared with columns by number: both are one dimension, its order kept."""
    dims, off = flow.dims(node.args[0]), node.argument("diagonal", 0)
    # Between neighbours others may go, so only the diagonal itself is a border that stays.
    strict = -1 if "tril" in node.op else 1
    if len(dims[-1]) == len(dims[-2]) and off in (0, strict):
        flow.unify(node, dims[-2], dims[-1])
    else:
        flow.pin(node, dims[-2:], "rows are compared with columns by number")
    flow.set(node, dims)


@rule("diagonal", "diagonal_copy", "trace")
def diagonal(flow: Flow, node: Node) -> None:
    """Equal positions of two dimensions, which are one."""
    dims = flow.dims(node.args[0])
    one, other = (node.argument(name, k) % len(dims) for k, name in enumerate(("dim1", "dim2")))
    axis = dims[one]
    if node.argument("offset", 0) == 0 and len(axis) == len(dims[other]):
        flow.unify(node, axis, dims[other])
    else:
        flow.pin(node, [axis, dims[other]], "rows are compared with columns by number")
        axis = flow.pinned(flow.out_shape(node)[-1], "a diagonal") if node.outs else axis
    rest = [a for d, a in enumerate(dims) if d not in (one, other)]
    if node.op == "aten.trace":
        for d in (one, other):
            flow.read(node, 0, d, dims[d], "gather")
        flow.set(node, [])
    else:
        flow.set(node, [*rest, axis])


@rule("diag_embed", "eye")
def square(flow: Flow, node: Node) -> None:
    """A square of zeros but for its diagonal: rows and columns are one dimension."""
    shape = flow.out_shape(node)
    if node.op == "aten.eye":
        named = node.call is not None and node.call.name == "eye" and node.call.args
        stated = node.call.args[0] if node.call and named else shape[0]
        axis = flow.sized(node, shape[0], stated)
        if len(set(shape)) > 1:
            raise ValueError("it is not square")
        flow.set(node, [axis, axis])
        return
    dims = flow.dims(node.args[0])
    if node.argument("offset", 0):
        raise ValueError("off the diagonal")
    out = list(dims[:-1])
    one, other = (node.argument(name, k) % len(shape) for k, name in ((-2, "dim1"), (-1, "dim2")))
    for place in sorted((one, other)):
        out.insert(place, dims[-1])
    flow.set(node, out)


@rule("select_scatter", "slice_scatter", "diagonal_scatter")
def scatter_part(flow: Flow, node: Node) -> None:
    """A part of one dimension is replaced by number: it is pinned, the others are one."""
    if node.op == "aten.diagonal_scatter":
        raise ValueError("two dimensions are replaced at once")
    dims, part = flow.dims(node.args[0]), list(flow.dims(node.args[1]))
    dim = node.argument("dim", 0) % len(dims)
    if node.op == "aten.select_scatter":
        part.insert(dim, fixed(1))
    flow.pin(node, [dims[dim], part[dim]], "a part of it is replaced by number")
    for d, axis in enumerate(dims):
        if d != dim:
            flow.unify(node, axis, part[d])
    flow.set(node, dims)
