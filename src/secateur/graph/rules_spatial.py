"""Op rules of space: pooling, resizing, sampling, patches, spectra; channels pass."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

from secateur.graph.axes import Axis, fixed, merge
from secateur.graph.flow import Flow, rule
from secateur.graph.program import Node, Ref


@rule("max_pool2d_with_indices", "max_pool3d_with_indices", "avg_pool2d", "avg_pool3d",
      "avg_pool1d", "max_pool2d", "max_pool3d", "_adaptive_avg_pool2d", "_adaptive_avg_pool3d",
      "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "adaptive_max_pool2d",
      "adaptive_max_pool3d", "fractional_max_pool2d", "fractional_max_pool3d",
      "reflection_pad1d", "reflection_pad2d",
      "reflection_pad3d", "replication_pad1d", "replication_pad2d", "replication_pad3d",
      "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "upsample_linear1d",
      "upsample_bilinear2d", "upsample_bicubic2d", "upsample_trilinear3d",
      "_upsample_nearest_exact1d", "_upsample_nearest_exact2d", "_upsample_nearest_exact3d",
      "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa", "mkldnn_max_pool2d",
      "max_unpool2d", "max_unpool3d")  # fmt: skip
def spatial(flow: Flow, node: Node) -> None:
    """Pooling, resizing and padding act on the last dimensions; the others pass.

    Positions that pooling returns are numbers in space, one a channel: unpooling takes
    them with the channels that they belong to. A dimension pooled to a single position,
    whatever its size, is reduced over the kept ones.
    """
    found = re.search(r"([123])d", node.op)
    rank = int(found.group(1)) if found else 2
    x, others = node.args[0], node.refs[1:]
    dims = flow.dims(x)
    passing = _passing(node, rank)
    reduced = [n == 1 and "adaptive" in node.op for n in flow.out_shape(node)[-rank:]]
    if any(key in flow.used for key in node.outs[1:]):
        passing = reduced = [False] * rank  # the numbers count along all spatial dimensions
    for d, axis in enumerate(dims[-rank:], len(dims) - rank):
        if reduced[d - len(dims)]:
            flow.read(node, 0, d, axis, "gather")
        elif not passing[d - len(dims)]:
            flow.pin(node, [axis], "a spatial operation acts on it")
    for ref in others:
        same = flow.dims(ref)
        if "unpool" in node.op:
            flow.pin(node, same[-rank:], "a spatial operation acts on it")
            for left, right in zip(dims[:-rank], same[:-rank], strict=True):
                flow.unify(node, left, right)
        else:  # a random sample for each channel, [N, C, rank]
            flow.unify(node, dims[-rank - 1], same[1])
    for index, key in enumerate(node.outs):
        if key >= 0:
            sizes = flow.out_shape(node, index)[-rank:]
            spatial_dims = [
                axis if passes else flow.pinned(n, "a spatial dimension")
                for axis, passes, n in zip(dims[-rank:], passing, sizes, strict=True)
            ]
            flow.set(node, [*dims[:-rank], *spatial_dims], index)


_POOLS = re.compile(r"aten\.(mkldnn_)?(max|avg)_pool\dd")


def _passing(node: Node, rank: int) -> list[bool]:
    """Tell for each spatial dimension whether the operation leaves it as it is."""
    if "reflection_pad" in node.op or "replication_pad" in node.op:
        amounts = node.argument("padding")
        return [not any(amounts[2 * k : 2 * k + 2]) for k in reversed(range(rank))]
    if not _POOLS.match(node.op):
        return [False] * rank
    kernel = _each(node.argument("kernel_size"), rank)
    stride = _each(node.argument("stride") or kernel, rank)
    padding = _each(node.argument("padding", 0), rank)
    return [
        size == 1 and step == 1 and pad == 0
        for size, step, pad in zip(kernel, stride, padding, strict=True)
    ]


def _each(given: Any, rank: int) -> Sequence[int]:
    values = tuple(given) if isinstance(given, (tuple, list)) else (given,)
    return values if len(values) == rank else values * rank


def _spatial(flow: Flow, sizes: Sequence[int]) -> list[Axis]:
    return [flow.pinned(n, "a spatial dimension") for n in sizes]


@rule("pixel_shuffle")
def pixel_shuffle(flow: Flow, node: Node) -> None:
    """C x r x r channels become C channels of r x r positions: r is fixed."""
    dims, r = flow.dims(node.args[0]), int(node.args[1])
    channel, *fine = flow.axes.split(dims[-3], [len(dims[-3]) // (r * r), r, r], flow.where(node))
    flow.pin(node, [*fine, *dims[-2:]], "positions of a pixel shuffle")
    flow.set(node, [*dims[:-3], channel, *_spatial(flow, flow.out_shape(node)[-2:])])


@rule("pixel_unshuffle")
def pixel_unshuffle(flow: Flow, node: Node) -> None:
    """Space becomes channels: each channel becomes r x r."""
    dims, r = flow.dims(node.args[0]), int(node.args[1])
    flow.pin(node, dims[-2:], "positions of a pixel shuffle")
    channel = merge([dims[-3], fixed(r * r)])
    flow.set(node, [*dims[:-3], channel, *_spatial(flow, flow.out_shape(node)[-2:])])


@rule("im2col")
def im2col(flow: Flow, node: Node) -> None:
    """Patches of space become channels: each channel becomes kernel positions."""
    dims, kernel = flow.dims(node.args[0]), node.argument("kernel_size")
    flow.pin(node, dims[-2:], "patches are taken from it")
    patch = merge([dims[-3], fixed(math.prod(kernel))])
    flow.set(node, [*dims[:-3], patch, *_spatial(flow, flow.out_shape(node)[-1:])])


@rule("col2im")
def col2im(flow: Flow, node: Node) -> None:
    """C x kernel positions become C channels of space, patches summed: the kernel is fixed."""
    dims, taps = flow.dims(node.args[0]), math.prod(node.argument("kernel_size"))
    channel, patch = flow.axes.split(dims[-2], [len(dims[-2]) // taps, taps], flow.where(node))
    flow.pin(node, [patch, dims[-1]], "patches are put together along it")
    flow.set(node, [*dims[:-2], channel, *_spatial(flow, flow.out_shape(node)[-2:])])


@rule("unfold")
def unfold(flow: Flow, node: Node) -> None:
    """Windows of one dimension become a new last one; both are pinned."""
    dims = list(flow.dims(node.args[0]))
    dim, shape = node.argument("dimension") % max(1, len(dims)), flow.out_shape(node)
    if dims:
        flow.pin(node, [dims[dim]], "windows are taken from it")
        dims[dim] = flow.pinned(shape[dim], f"{flow.where(node)}: windows")
    flow.set(node, [*dims, flow.pinned(shape[-1], f"{flow.where(node)}: a window")])


@rule("rot90")
def rot90(flow: Flow, node: Node) -> None:
    """Two dimensions turn about each other and are pinned; the others pass."""
    dims = list(flow.dims(node.args[0]))
    for d in (d % len(dims) for d in node.argument("dims")):
        flow.pin(node, [dims[d]], "its positions are reordered")
        dims[d] = flow.pinned(flow.out_shape(node)[d], "a spatial dimension")
    flow.set(node, dims)


@rule("grid_sampler_2d", "grid_sampler_3d", "cudnn_grid_sampler")
def grid_sampler(flow: Flow, node: Node) -> None:
    """Space is read at the places that a grid [N, ..., coordinates] gives; channels pass."""
    dims, grid = flow.dims(node.args[0]), flow.dims(node.args[1])
    flow.pin(node, [*dims[2:], grid[-1]], "it is sampled at places")
    flow.unify(node, dims[0], grid[0])
    flow.set(node, [*dims[:2], *grid[1:-1]])


@rule("affine_grid_generator")
def affine_grid(flow: Flow, node: Node) -> None:
    """A grid of places from matrices [N, 2, 3]; its sizes are those that the code states."""
    theta = flow.dims(node.args[0])
    flow.pin(node, theta[1:], "an affine map")
    flow.set(node, [theta[0], *_spatial(flow, flow.out_shape(node)[1:])])


@rule("roi_align", "roi_pool", namespace="torchvision")
def regions(flow: Flow, node: Node) -> None:
    """Regions [K, 5] of a map [N, C, H, W] are read at their places; channels pass."""
    dims, boxes = flow.dims(node.args[0]), flow.dims(node.args[1])
    flow.pin(node, [dims[0], *dims[2:], boxes[1]], "regions are read at places")
    for index in range(len(node.outs)):
        sizes = flow.out_shape(node, index)[2:]
        flow.set(node, [boxes[0], dims[1], *_spatial(flow, sizes)], index)


@rule("ps_roi_align", "ps_roi_pool", namespace="torchvision")
def sensitive_regions(flow: Flow, node: Node) -> None:
    """As regions, but each place of the output has channels of its own: C x height x width."""
    dims, boxes = flow.dims(node.args[0]), flow.dims(node.args[1])
    flow.pin(node, [dims[0], *dims[2:], boxes[1]], "regions are read at places")
    shape = flow.out_shape(node)
    channel, *place = flow.axes.split(dims[1], shape[1:], flow.where(node))
    flow.pin(node, place, "each place has its own channels")
    if node.outs[1] in flow.used:
        flow.pin(node, [channel], "numbers of its positions are returned")
    for index in range(len(node.outs)):
        flow.set(node, [boxes[0], channel, *_spatial(flow, shape[2:])], index)


@rule("deform_conv2d", namespace="torchvision")
def deformable_convolution(flow: Flow, node: Node) -> None:
    """A convolution that reads at offsets [N, 2 x kernel, H, W], the same for all channels."""
    x, weight, offset, mask, bias = node.args[:5]
    if node.argument("groups") != 1 or node.argument("offset_groups") != 1:
        raise ValueError("in groups")
    dims, w, shape = flow.dims(x), flow.dims(weight), flow.out_shape(node)
    why = "a convolution slides over it"
    flow.pin(node, [*dims[2:], *w[2:], *flow.dims(offset)[1:], *flow.dims(mask)[1:]], why)
    flow.contract(node, (0, 1), (1, 1))
    flow.unify(node, w[0], flow.dims(bias)[0])
    flow.set(node, [dims[0], w[0], *_spatial(flow, shape[2:])])
    flow.count(math.prod(flow.shape(weight)[2:]) * math.prod(shape[2:]), [dims[0], w[0], w[1]])


@rule("_fft_r2c", "_fft_c2c", "_fft_c2r")
def spectrum(flow: Flow, node: Node) -> None:
    """Dimensions that are transformed are pinned; the others pass."""
    dims, shape = list(flow.dims(node.args[0])), flow.out_shape(node)
    for d in (d % len(dims) for d in node.argument("dim")):
        flow.pin(node, [dims[d]], "it is transformed to a spectrum")
        dims[d] = flow.pinned(shape[d], "a spectrum")
    flow.set(node, dims)


@rule("view_as_real", "view_as_complex")
def complex_pairs(flow: Flow, node: Node) -> None:
    """Real and imaginary parts are a last dimension of two."""
    source = node.args[0]
    dims = flow.dims(source)
    if node.op == "aten.view_as_real":
        flow.moved(node, source, [*range(len(dims)), -1])
        flow.set(node, [*dims, flow.pinned(2, "real and imaginary parts")])
    else:
        flow.pin(node, dims[-1:], "real and imaginary parts")
        flow.moved(node, source, range(len(dims) - 1))
        flow.set(node, dims[:-1])


@rule("fake_quantize_per_channel_affine_cachemask", "fake_quantize_per_channel_affine")
def quantised_channels(flow: Flow, node: Node) -> None:
    """A scale and a zero point for each position of one dimension."""
    dims, axis = flow.dims(node.args[0]), node.argument("axis")
    for ref in node.args[1:3]:
        if isinstance(ref, Ref):
            flow.unify(node, dims[axis], flow.dims(ref)[0])
    for index in range(len(node.outs)):
        flow.set(node, dims, index)
