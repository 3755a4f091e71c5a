"""Op rules that compute: pointwise, contractions, norms, pooling, reductions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from secateur.graph.axes import Axis, fixed, merge
from secateur.graph.flow import Flow, rule
from secateur.graph.program import Call, Node, Program, Ref
from secateur.graph.rules_sequences import padded_sizes
from secateur.graph.sizes import Dim, Sized


@rule("add", "add_", "sub_", "mul_", "div_", "copy_", "masked_fill", "masked_fill_", "where",
      "relu_", "relu", "hardtanh", "hardtanh_", "leaky_relu_", "elu_", "silu_", "hardswish_",
      "hardsigmoid_", "sigmoid_", "tanh_", "clamp_", "clamp_min_", "mish_", "gelu_", "rsub",
      "celu_", "celu", "selu", "elu", "silu", "mish", "gelu", "hardswish", "hardsigmoid",
      "softplus", "leaky_relu", "threshold", "rrelu_with_noise_", "softshrink", "hardshrink",
      "selu_", "threshold_", "exp_", "neg_", "sqrt_", "pow_", "addcmul", "lerp",
      "logical_not", "bitwise_not", "isnan", "native_dropout_backward", "rrelu_with_noise",
      "log_sigmoid_forward", "maximum", "minimum", "_safe_where", "complex",
      "fake_quantize_per_tensor_affine", "fake_quantize_per_tensor_affine_cachemask",
      "nan_to_num", "logit", "floor_divide", "polar",
      "eq", "ne", "lt", "gt", "le", "ge", "_assert_tensor_metadata")  # fmt: skip
def pointwise(flow: Flow, node: Node) -> None:
    """Element by element with broadcasting: aligned axes are one axis."""
    if node.op == "aten.eq" and node.call and node.call.name == "one_hot":
        one_hot(flow, node, node.call)
        return
    refs = [ref for ref in node.refs if flow.shape(ref)]
    for index, key in enumerate(node.outs):
        if key < 0:
            continue
        shape = flow.out_shape(node, index)
        out: list[Axis] = []
        for d, size in enumerate(shape):
            place = d - len(shape)
            axes = [
                flow.dims(ref)[place]
                for ref in refs
                if len(flow.shape(ref)) >= -place and flow.shape(ref)[place] == size
            ]
            for other in axes[1:]:
                flow.unify(node, axes[0], other)
            out.append(axes[0] if axes and size != 1 else fixed(size))
        flow.set(node, out, index)


def classes(call: Call) -> Any:
    """Return the number of classes as the code gave it to ``one_hot``; -1 for unknown."""
    return call.kwargs.get("num_classes", call.args[1] if len(call.args) > 1 else -1)


def one_hot(flow: Flow, node: Node, call: Call) -> None:
    """Numbers compared with all numbers: a new dimension of those positions."""
    numbers, shape = node.args[0], flow.out_shape(node)
    axis = flow.sized(node, shape[-1], classes(call))
    if not flow.look_up(node, axis, numbers):
        flow.pin(node, [axis], "positions are looked up by number")
    flow.set(node, [*flow.dims(numbers)[:-1], axis])


@rule("prelu", "_prelu_kernel")
def prelu(flow: Flow, node: Node) -> None:
    """One slope a channel, or one for all."""
    dims = flow.dims(node.args[0])
    slope = flow.dims(node.args[1])
    if slope and len(slope[0]) > 1 and len(slope) == 1:
        flow.unify(node, dims[min(1, len(dims) - 1)], slope[0])
        flow.set(node, dims)
    else:
        pointwise(flow, node)


@rule("convolution", "convolution_overrideable", "_convolution", "mkldnn_convolution")
def convolution(flow: Flow, node: Node) -> None:
    """Contract the input channels of each group of channels; spatial dimensions stay.

    Grouped, C = G x C/G on both sides: the groups are one axis, the channels within a
    group another, which all groups share. A depthwise convolution contracts nothing.
    A spatial dimension that the kernel meets position by position passes; one that it
    covers is contracted, as a text's embedding is by kernels of its width.
    """
    x, weight, bias = node.args[:3]
    flow.kernels.add(weight.key)
    transposed, groups = node.argument("transposed", False), node.argument("groups")
    dims, w = list(flow.dims(x)), flow.dims(weight)
    batched = len(dims) == len(w)
    start = 2 if batched else 1
    channel = dims[start - 1]
    kernel = flow.shape(weight)[2:]
    passing, covered = _passing(node, kernel), _covered(flow, node, start, kernel)
    for d, axis in enumerate(dims[start:]):
        if d in covered:
            flow.unify(node, axis, w[2 + d])
            flow.consume(node, (0, start + d), (1, 2 + d), axis)
            continue
        flow.pin(node, w[2 + d : 3 + d], "the kernel's extent")
        if not passing[d]:
            flow.pin(node, [axis], "a convolution slides over it")
    taps = math.prod(n for d, n in enumerate(kernel) if d not in covered)
    if groups == 1:
        inner, outer = (0, 1) if transposed else (1, 0)
        flow.unify(node, channel, w[inner])
        flow.consume(node, (0, 1 if batched else 0), (1, inner), channel)
        contracted, out_axis = w[inner], w[outer]
    else:
        contracted, out_axis = _grouped(flow, node, channel, w, int(groups), bool(transposed))
    if bias is not None:
        flow.unify(node, out_axis, flow.dims(bias)[0])
    sizes = flow.out_shape(node)[start:]
    spatial = [
        axis if passes else flow.pinned(n, "a spatial dimension")
        for axis, passes, n in zip(dims[start:], passing, sizes, strict=True)
    ]
    lead = dims[: start - 1]
    flow.set(node, [*lead, out_axis, *spatial])
    counted = flow.shape(x)[start:] if transposed else sizes
    area = math.prod(n for n, passes in zip(counted, passing, strict=True) if not passes)
    through = [axis for axis, passes in zip(spatial, passing, strict=True) if passes]
    within = [w[2 + d] for d in covered]
    flow.count(taps * area, [*lead, out_axis, contracted, *through, *within])


def _covered(flow: Flow, node: Node, start: int, kernel: Sequence[int]) -> list[int]:
    """List the spatial dimensions, free so far, of which a kernel that is a weight takes all."""
    x, weight = node.args[:2]
    if node.argument("transposed", False) or not flow.is_weight(weight):
        return []
    sizes, padding = flow.shape(x)[start:], node.argument("padding", (0,))
    free = [flow.axes.canon(axis).shape[1] > 0 for axis in flow.dims(x)[start:]]
    return [
        d
        for d, n in enumerate(kernel)
        if free[d] and n == sizes[d] > 1 and not padding[min(d, len(padding) - 1)]
    ]


def _passing(node: Node, kernel: Sequence[int]) -> list[bool]:
    """Tell for each spatial dimension whether every position is met by itself."""
    options = (("stride", 1), ("padding", 0), ("output_padding", 0))
    found = [n == 1 for n in kernel]
    for name, idle in options:
        given = node.argument(name, (idle,))
        each = given if len(given) == len(kernel) else given * len(kernel)
        found = [passes and n == idle for passes, n in zip(found, each, strict=True)]
    return found


def _grouped(
    flow: Flow, node: Node, channel: Axis, w: list[Axis], groups: int, transposed: bool
) -> tuple[Axis, Axis]:
    where = flow.where(node)
    if flow.whole_groups and len(channel) > groups < len(w[0]):
        g_in = fixed(groups)
        within, rest = (_alike(flow, node, axis, groups) for axis in (channel, w[0]))
    else:
        g_in, within = flow.axes.split(channel, [groups, len(channel) // groups], where)
        g_w, rest = flow.axes.split(w[0], [groups, len(w[0]) // groups], where)
        flow.unify(node, g_in, g_w)
    stated = node.call and node.call.kwargs.get("groups", _positional_groups(node))
    flow.require(node, g_in, groups if stated is None else stated)
    if transposed:
        flow.unify(node, within, rest)
        flow.consume(node, (0, 1), (1, 0), channel)
        return within, merge([g_in, w[1]])
    flow.unify(node, within, w[1])
    if len(w[1]) > 1:
        flow.consume(node, (0, 1), (1, 1), channel)
    return w[1], w[0]


def has_grouped_convolutions(program: Program) -> bool:
    """Tell whether a convolution has several groups of several channels each."""
    return any(
        node.op == "aten.convolution" and node.args[8] > 1 and program.shape(node.args[1])[1] > 1
        for node in program.nodes
    )


def _alike(flow: Flow, node: Node, axis: Axis, groups: int) -> Axis:
    """Couple the channels that have the same place in every group; return those of the first."""
    first, *others = np.split(axis, groups)
    for other in others:
        flow.unify(node, other, first)
    return first


def _positional_groups(node: Node) -> int | None:
    call = node.call
    if call is None or not call.name.startswith("conv"):
        return None
    place = 7 if "transpose" in call.name else 6
    if call.name.startswith("conv_transpose"):
        place = 6
        order = ["stride", "padding", "output_padding", "groups"]
        place = 3 + order.index("groups")
    return call.args[place] if len(call.args) > place else None


_RECURRENT = frozenset({"lstm", "gru", "rnn_tanh", "rnn_relu"})


@rule("mm", "bmm", "mv", "dot", "vdot")
def product(flow: Flow, node: Node) -> None:
    """Contract the last axis of the left with the second last (or only) of the right."""
    left, right = flow.dims(node.args[0]), flow.dims(node.args[1])
    batch = len(left) - 2 if node.op == "aten.bmm" else 0
    for a, b in zip(left[:batch], right[:batch], strict=False):
        flow.unify(node, a, b)
    place = batch if len(right) > 1 else 0
    flow.contract(node, (0, len(left) - 1), (1, place))
    rest = [axis for d, axis in enumerate(right) if d > place]
    out = [*left[:-1], *rest]
    flow.set(node, out)
    flow.count(1, [*left, *rest])
    weight = any(flow.is_weight(ref) for ref in node.args[:2])
    if batch and not weight and node.call is not None and node.call.name not in _RECURRENT:
        flow.attentions.append((left[0], (left[-1], *rest)))


@rule("addmm", "baddbmm", "addmv", "addbmm_")
def add_product(flow: Flow, node: Node) -> None:
    """A product plus a broadcast addend."""
    left, right = flow.dims(node.args[1]), flow.dims(node.args[2])
    batch = len(left) - 2
    for a, b in zip(left[:batch], right[:batch], strict=True):
        flow.unify(node, a, b)
    place = batch if len(right) > 1 else 0
    flow.contract(node, (1, len(left) - 1), (2, place))
    rest = [axis for d, axis in enumerate(right) if d > place]
    out = [*left[:-1], *rest]
    addend = flow.dims(node.args[0])
    for a, b in zip(reversed(addend), reversed(out), strict=False):
        if len(a) == len(b):
            flow.unify(node, a, b)
    flow.set(node, out)
    flow.count(1, [*left, *rest])


@rule("_native_batch_norm_legit_no_training", "native_batch_norm", "_native_batch_norm_legit",
      "cudnn_batch_norm", "_batch_norm_with_update", "batch_norm",
      "_batch_norm_no_update")  # fmt: skip
def batch_norm(flow: Flow, node: Node) -> None:
    """One statistic a channel: the channel axis passes.

    Statistics taken from the input itself (training=True, as standardised weights do in
    eval mode too) run over the kept positions of the other dimensions.
    """
    dims = flow.dims(node.args[0])
    if node.op in ("aten.native_batch_norm", "aten.cudnn_batch_norm") and node.args[5]:
        for d in range(len(dims)):
            if d != 1:
                flow.read(node, 0, d, dims[d], "gather")
    for ref in node.args[1:5]:
        if isinstance(ref, Ref):
            flow.unify(node, dims[1], flow.dims(ref)[0])
    flow.set(node, dims)


@rule("_weight_norm_interface", "_weight_norm")
def weight_norm(flow: Flow, node: Node) -> None:
    """W = g v / |v|, a length for each position of one dimension; a cut keeps w as it was."""
    v, g, dim = node.args[0], node.args[1], int(node.args[2]) if len(node.args) > 2 else 0
    dims, lengths = flow.dims(v), flow.dims(g)
    names = flow.name(v), flow.name(g)
    if names[0] is None or names[1] is None:
        flow.give_up(node, "its direction or length is no parameter")
        return
    if len(lengths[dim]) == len(dims[dim]):
        flow.unify(node, lengths[dim], dims[dim])
    flow.lengths.append((names[1], names[0], dim))
    flow.set(node, dims)


@rule("native_group_norm")
def group_norm(flow: Flow, node: Node) -> None:
    """C = G x C/G: normalised over the channels within a group and all positions."""
    x, weight, bias = node.args[:3]
    groups = node.args[6]
    dims = flow.dims(x)
    g, within = flow.axes.split(dims[1], [groups, len(dims[1]) // groups], flow.where(node))
    flow.group_norms.append(dims[1])
    for ref in (weight, bias):
        if isinstance(ref, Ref):
            flow.unify(node, dims[1], flow.dims(ref)[0])
    call = node.call
    stated = groups
    if call is not None and call.name == "group_norm" and len(call.args) > 1:
        stated = call.args[1]
    flow.require(node, g, stated)
    flow.state(6, g)
    if flow.axes.canon(within).shape[1]:
        flow.read(node, 0, 1, dims[1], "gather")
    flow.set(node, dims)


@rule("native_layer_norm", "_fused_rms_norm", "rms_norm")
def layer_norm(flow: Flow, node: Node) -> None:
    """Normalised over the last dimensions, whose sizes the code states."""
    x, shape = node.args[0], node.args[1]
    dims = flow.dims(x)
    call = node.call
    stated = shape
    if call is not None and call.name in ("layer_norm", "rms_norm") and len(call.args) > 1:
        stated = call.args[1]
    elif call is not None and "normalized_shape" in call.kwargs:
        stated = call.kwargs["normalized_shape"]
    for k in range(len(shape)):
        place = len(dims) - len(shape) + k
        for ref in node.args[2:4]:
            if isinstance(ref, Ref):
                flow.unify(node, dims[place], flow.dims(ref)[k])
        flow.require(node, dims[place], stated[k])
        flow.read(node, 0, place, dims[place], "gather")
    flow.set(node, dims)


@rule("channel_shuffle", "native_channel_shuffle")
def channel_shuffle(flow: Flow, node: Node) -> None:
    """G x C/G channels become C/G x G; G is fixed."""
    dims, groups = list(flow.dims(node.args[0])), int(node.args[1])
    parts = flow.axes.split(dims[1], [groups, len(dims[1]) // groups], flow.where(node))
    flow.pin(node, parts[:1], "the groups of a channel shuffle")
    dims[1] = merge([parts[1], parts[0]])
    flow.set(node, dims)


@rule("glu")
def glu(flow: Flow, node: Node) -> None:
    """The first half times the sigmoid of the second: the halves are one axis."""
    dims = list(flow.dims(node.args[0]))
    dim = (node.args[1] if len(node.args) > 1 else -1) % len(dims)
    half = len(dims[dim]) // 2
    flow.unify(node, dims[dim][:half], dims[dim][half:])
    dims[dim] = dims[dim][:half]
    flow.set(node, dims)


@rule("_softmax", "_log_softmax", "_safe_softmax", "softmax", "log_softmax")
def softmax(flow: Flow, node: Node) -> None:
    """Normalised over one dimension: over the kept positions where it is cut."""
    dims = flow.dims(node.args[0])
    dim = int(node.args[1]) % max(1, len(dims))
    flow.read(node, 0, dim, dims[dim], "gather")
    flow.set(node, dims)


def _sizes_of_input(flow: Flow, call: Call, shape: Sequence[int]) -> tuple[object, ...]:
    """Return what a function says of its new tensor: as its input where it does not differ."""
    x = call.args[0] if call.args else call.kwargs["input"]
    alike = zip(shape, flow.shape(x), strict=False)
    sizes = [Sized(n, Dim(x.key, d)) if n == m else n for d, (n, m) in enumerate(alike)]
    return (*sizes, *shape[len(sizes) :])


@rule("zeros", "ones", "empty", "full", "rand", "randn", "new_zeros", "new_ones", "new_empty",
      "new_full", "empty_strided", "new_empty_strided")  # fmt: skip
def create(flow: Flow, node: Node) -> None:
    """A new tensor: every size is what the code states."""
    call, shape = node.call, flow.out_shape(node)
    sizes: tuple[object, ...] = tuple(shape)
    if call is not None:
        given = call.args[1:] if call.name == "new" or call.name.startswith("new_") else call.args
        found = given[0] if given and isinstance(given[0], tuple) else given
        named = call.kwargs.get("size")
        found = named if isinstance(named, tuple) else found
        known = [n if isinstance(v, Ref) else v for n, v in zip(shape, found, strict=False)]
        if known == list(shape):  # a tensor of one element is a number that comes from data
            sizes = tuple(known)
        if call.name == "one_hot":
            sizes = (*shape[:-1], classes(call))
        if call.name == "_pad_packed_sequence":
            sizes = padded_sizes(call, shape)
        if call.name == "pad":
            sizes = _sizes_of_input(flow, call, shape)
    flow.set(node, [flow.sized(node, n, s) for n, s in zip(shape, sizes, strict=True)])
