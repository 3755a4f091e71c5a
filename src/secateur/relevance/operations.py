"""The relevance rule of every operation: run it, and say how relevance comes back.

A rule takes a :class:`Call` and returns the operation's results and a function from
the relevance of these to the relevance of the tensors asked for, by their place.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from secateur.relevance.calls import Call, Pull, Relevances
from secateur.relevance.contraction import Layer, run_layer, stabilise
from secateur.relevance.folds import fold
from secateur.relevance.layers import (
    CONVOLUTIONS,
    batched_layer,
    convolution_layer,
    matrix_layer,
)

Result = tuple[tuple[Any, ...], Pull]
OpRule = Callable[[Call], Result]

OP_RULES: dict[str, OpRule] = {}

# Scale statistics, held constant: a norm written out passes relevance as a norm does.
DETACHED = frozenset(
    f"aten.{name}"
    for name in ("rsqrt", "sqrt", "reciprocal", "std", "var", "linalg_vector_norm", "norm")
)


def _rule(*names: str) -> Callable[[OpRule], OpRule]:
    def add(function: OpRule) -> OpRule:
        for name in names:
            OP_RULES[f"aten.{name}"] = function
        return function

    return add


def run_call(call: Call) -> Result:
    """Run an operation by its rule.

    Raises:
        InputError: it has none; names the operation and the module.
    """
    rule = OP_RULES.get(call.step.name)
    if rule is None and call.step.pointwise:
        rule = unchanged
    if rule is None:
        raise call.refuse("no way is known to pass relevance through it")
    return rule(call)


def _first(relevances: Relevances) -> Tensor:
    found = relevances[0]
    assert found is not None
    return found


def _to_shape(value: Tensor, like: Tensor) -> Tensor:
    """Sum over what broadcasting repeated."""
    return value if value.shape == like.shape else value.sum_to_size(like.shape)


def _only(call: Call) -> int:
    """Return the place of the one tensor that carries relevance."""
    if len(call.active) != 1:
        raise call.refuse("several of its tensors carry relevance")
    return next(iter(call.active))


@_rule(
    "relu", "hardtanh", "gelu", "silu", "mish", "elu", "celu", "selu", "hardswish", "hardsigmoid",
    "leaky_relu", "prelu", "_prelu_kernel", "threshold", "softplus", "native_dropout", "dropout",
    "native_layer_norm", "_fused_rms_norm", "native_group_norm", "native_batch_norm",
    "cudnn_batch_norm", "miopen_batch_norm", "_to_copy", "clone", "detach", "alias",
    "lift_fresh", "contiguous", "log_sigmoid_forward",
)  # fmt: skip
def unchanged(call: Call) -> Result:
    """Activations, norms and copies: relevance passes as it is (AttnLRP's identity rule)."""
    place = _only(call)
    shape = call.tensors[place].shape
    if call.overwrite and call.step.name == "aten.relu":
        outs: tuple[Any, ...] = (call.tensors[0].relu_(),)
    else:
        outs = call.run()

    def pull(relevances: Relevances) -> dict[int, Tensor]:
        found = _first(relevances)
        return {place: found if found.shape == shape else found.sum_to_size(shape)}

    return outs, pull


@_rule(*(name.removeprefix("aten.") for name in CONVOLUTIONS))
def convolution(call: Call) -> Result:
    """A convolution by the rule asked for."""
    if call.active != {0}:
        raise call.refuse("its weight depends on the input")
    args, _ = call.arguments()
    return _layer(call, convolution_layer(tuple(args)), 0)


def _layer(call: Call, layer: Layer, place: int) -> Result:
    if call.fold is not None:
        layer = fold(layer, call.fold)
    y, pull_x = run_layer(layer, call.tensors[place], call.settings)
    return (y,), lambda relevances: {place: pull_x(_first(relevances))}


@_rule("mm", "bmm", "addmm", "baddbmm")
def product(call: Call) -> Result:
    """A product with fixed weights by the rule asked for; of two activations by halves."""
    addend = 1 if call.step.name in ("aten.addmm", "aten.baddbmm") else 0
    sides = call.active - {0} if addend else call.active
    if addend and (0 in call.active or any(v != 1 for v in call.step.kwargs.values())):
        raise call.refuse("its addend carries relevance or is scaled")
    left, right = call.tensors[addend], call.tensors[addend + 1]
    bias = call.tensors[0] if addend else None
    if len(sides) == 2:
        if bias is not None:
            raise call.refuse("it adds to a product of two activations")
        return _uniform(call, left, right)
    place = next(iter(sides))
    turned = place == addend + 1
    weight = left if turned else right.mT
    if bias is not None and (bias.numel() != weight.shape[-2] or bias.shape[-1] != bias.numel()):
        raise call.refuse("its addend is not one number an output")
    if bias is not None and turned:
        raise call.refuse("its addend is not one number an output")
    bias = None if bias is None else bias.reshape(-1)
    layer = (matrix_layer if weight.dim() == 2 else batched_layer)(weight, bias)
    if not turned:
        return _layer(call, layer, place)
    y, pull_x = run_layer(layer, right.mT.contiguous(), call.settings)
    return (y.mT,), lambda relevances: {place: pull_x(_first(relevances).mT.contiguous()).mT}


def _uniform(call: Call, left: Tensor, right: Tensor) -> Result:
    """Half to each factor (Achtibat et al. 2024, proposition 3.3)."""
    y = torch.matmul(left, right)

    def pull(relevances: Relevances) -> dict[int, Tensor]:
        share = _first(relevances) / (2 * stabilise(y, call.settings.epsilon))
        found = {}
        if 0 in call.want:
            found[0] = left * torch.matmul(share, right.mT)
        if 1 in call.want:
            found[1] = right * torch.matmul(left.mT, share)
        return found

    return (y,), pull


@_rule("add", "sub", "rsub")
def addition(call: Call) -> Result:
    """Each summand gets its share of the sum; what is constant keeps its own, as a bias does."""
    outs = call.run()
    args, kwargs = call.arguments()
    alpha = kwargs.get("alpha", args[2] if len(args) > 2 else 1)
    name = call.step.name
    signs = {"aten.add": (1, alpha), "aten.sub": (1, -alpha), "aten.rsub": (-alpha, 1)}[name]
    first, second = args[0], args[1]
    places = [i for i, value in enumerate((first, second)) if isinstance(value, Tensor)]
    wanted = [place for place, i in enumerate(places) if place in call.want]

    def pull(relevances: Relevances) -> dict[int, Tensor]:
        total = signs[0] * first + signs[1] * second if signs != (1, 1) else first + second
        share = _first(relevances) / stabilise(total, call.settings.epsilon)
        found = {}
        for place in wanted:
            value, sign = (first, second)[places[place]], signs[places[place]]
            part = share * value if sign == 1 else share * (value * sign)
            if value.shape != share.shape:  # a mask may hold infinities: nothing of nothing
                part = part.masked_fill(share == 0, 0)
            found[place] = _to_shape(part, value)
        return found

    return outs, pull


@_rule("mul")
def multiplication(call: Call) -> Result:
    """A constant factor changes nothing; two activations get half each (AttnLRP)."""
    shares = 1 / len(call.active)
    shapes = {place: call.tensors[place].shape for place in call.want}

    def pull(relevances: Relevances) -> dict[int, Tensor]:
        found = _first(relevances)
        part = found if shares == 1 else found * shares
        return {
            place: part if part.shape == shape else part.sum_to_size(shape)
            for place, shape in shapes.items()
        }

    return call.run(), pull


@_rule("div")
def division(call: Call) -> Result:
    """The numerator gets all: a denominator is a scale, which is held constant."""
    shape, wanted = call.tensors[0].shape, 0 in call.want

    def pull(relevances: Relevances) -> dict[int, Tensor]:
        return {0: _first(relevances).sum_to_size(shape)} if wanted else {}

    return call.run(), pull


@_rule("_softmax", "_safe_softmax", "softmax")
def softmax(call: Call) -> Result:
    """Relevance x (R - a sum R): first order at x (Achtibat et al. 2024, proposition 3.1)."""
    x = call.tensors[0]
    outs = call.run()
    dim = int(call.step.args[1])

    def pull(relevances: Relevances) -> dict[int, Tensor]:
        found, a = _first(relevances), outs[0]
        values = x.masked_fill(a == 0, 0)  # minus infinity where attention is masked
        return {0: values * (found - a * found.sum(dim, keepdim=True))}

    return outs, pull


@_rule("glu")
def glu(call: Call) -> Result:
    """A half times the gate of the other: half each."""
    dim = int(call.step.args[1]) if len(call.step.args) > 1 else -1

    def pull(relevances: Relevances) -> dict[int, Tensor]:
        half = _first(relevances) / 2
        return {0: torch.cat([half, half], dim)}

    return call.run(), pull


@_rule("mean", "sum", "avg_pool1d", "avg_pool2d", "avg_pool3d", "_adaptive_avg_pool2d",
       "_adaptive_avg_pool3d", "upsample_linear1d", "upsample_bilinear2d", "upsample_bicubic2d",
       "upsample_trilinear3d", "_upsample_bilinear2d_aa", "cumsum", "grid_sampler_2d",
       "grid_sampler_3d")  # fmt: skip
def average(call: Call) -> Result:
    """Weighted sums without weights of their own: each element gets its share."""
    place = _only(call)
    tensors, outs = call.tensors, call.run()

    def pull(relevances: Relevances) -> dict[int, Tensor]:
        share = _first(relevances) / stabilise(outs[0], call.settings.epsilon)
        return {place: _transposed(call, [place], tensors, [share])[0].mul(tensors[place])}

    return outs, pull


@_rule("max_pool2d_with_indices")
def max_pool(call: Call) -> Result:
    """The winner takes all."""
    outs = call.run()
    x, indices = call.tensors[0], outs[1]
    shape, stride, dtype, device = x.shape, x.stride(), x.dtype, x.device
    given, _ = call.arguments()
    options = [*given[1:], *([], 0, 1, False)[len(given) - 2 :]]
    del x, given

    def pull(relevances: Relevances) -> dict[int, Tensor]:
        like = torch.empty_strided(shape, stride, dtype=dtype, device=device)
        found = torch.ops.aten.max_pool2d_with_indices_backward.default(
            _first(relevances).contiguous(), like, *options, indices
        )
        return {0: found}

    return outs, pull


MOVES = (
    "view", "_unsafe_view", "reshape", "permute", "transpose", "t", "slice", "select", "split",
    "split_with_sizes", "chunk", "unbind", "expand", "squeeze", "unsqueeze", "roll", "flip",
    "repeat", "constant_pad_nd", "reflection_pad1d", "reflection_pad2d", "reflection_pad3d",
    "replication_pad1d", "replication_pad2d", "replication_pad3d", "pixel_shuffle",
    "pixel_unshuffle", "channel_shuffle", "native_channel_shuffle", "cat", "stack", "unfold",
    "im2col", "col2im", "as_strided", "narrow", "movedim", "diagonal", "tril", "triu", "rot90",
    "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d",
    "_upsample_nearest_exact1d", "_upsample_nearest_exact2d", "_upsample_nearest_exact3d",
)  # fmt: skip


@_rule(*MOVES)
def moved(call: Call) -> Result:
    """What only moves elements moves their relevance back; copies are summed."""
    outs = call.run()
    shells = [(t.shape, t.stride(), t.dtype, t.device) for t in call.tensors]
    plain = {i: t for i, t in enumerate(call.tensors) if i not in call.active}
    slim = Call(call.step, [], call.active, call.want, call.settings)

    def pull(relevances: Relevances) -> dict[int, Tensor]:
        if slim.step.name in _RESHAPES:
            return {0: _first(relevances).reshape(shells[0][0])}
        tensors = [
            plain[i] if i in plain else torch.empty_strided(*s[:2], dtype=s[2], device=s[3])
            for i, s in enumerate(shells)
        ]
        return _by_gradient(slim, tensors, relevances)

    return outs, pull


_RESHAPES = frozenset({"aten.view", "aten._unsafe_view", "aten.reshape", "aten.squeeze",
                       "aten.unsqueeze"})  # fmt: skip


@_rule("where", "masked_fill", "maximum", "minimum", "max", "min", "amax", "amin", "index",
       "index_select", "gather", "copy", "max_pool3d_with_indices", "adaptive_max_pool2d",
       "adaptive_max_pool3d", "topk", "sort", "take_along_dim", "slice_scatter",
       "select_scatter", "scatter", "index_put", "median", "nanmedian", "kthvalue", "mode",
       "cummax", "cummin", "max_unpool2d", "max_unpool3d", "index_fill", "diag_embed",
       "masked_scatter")  # fmt: skip
def selected(call: Call) -> Result:
    """What picks elements by value gives the relevance to those it picked."""
    tensors = call.tensors
    return call.run(), lambda relevances: _by_gradient(call, tensors, relevances)


def _by_gradient(call: Call, tensors: list[Tensor], relevances: Relevances) -> dict[int, Tensor]:
    places = sorted(call.want)
    found = _transposed(call, places, tensors, relevances)
    return dict(zip(places, found, strict=True))


def _transposed(
    call: Call, places: list[int], tensors: list[Tensor], shares: Relevances
) -> list[Tensor]:
    """Return the vector-Jacobian products with ``shares`` for the tensors at ``places``."""
    with torch.enable_grad():
        leaves = {place: tensors[place].detach().requires_grad_() for place in places}
        given = [leaves.get(place, tensor) for place, tensor in enumerate(tensors)]
        outs = call.run(given)
        pairs = [(out, r) for out, r in zip(outs, shares, strict=False) if r is not None]
        return list(
            torch.autograd.grad([o for o, _ in pairs], list(leaves.values()), [r for _, r in pairs])
        )
