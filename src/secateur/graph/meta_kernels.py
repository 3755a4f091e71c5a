"""Shapes of the commonest operations, without PyTorch's own arithmetic on shapes.

PyTorch computes them in Python, which takes up to 10 ms for one operation, and imports its
compiler for the first: a second of processor time in a process that has no other use for it.
Only plain cases are answered: floating-point tensors of one type, contiguous, with arguments that
fit. All else, and every mistake, is PyTorch's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from secateur.graph.grouped_product import GROUPED

Kernel: TypeAlias = Callable[[tuple[Any, ...], dict[str, Any]], Any]


def plain_result(packet: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return what the operation ``packet`` returns for tensors without values, None if unknown."""
    kernel = KERNELS.get(packet)
    return None if kernel is None else kernel(args, kwargs)


def _plain(*tensors: Any) -> bool:
    """Tell whether all are contiguous floating-point tensors of one type."""
    return all(
        isinstance(t, Tensor)
        and t.is_floating_point()
        and t.dtype == tensors[0].dtype
        and t.is_contiguous()
        for t in tensors
    )


def _alike(x: Tensor, dtype: torch.dtype | None = None) -> Tensor | None:
    """Return a tensor of the same layout, None where ``x`` has holes or overlaps."""
    expected = 1
    for stride, size in sorted(zip(x.stride(), x.shape, strict=True)):
        if size != 1 and stride != expected:
            return None
        expected *= size
    return x.new_empty_strided(x.shape, x.stride(), dtype=dtype or x.dtype) if expected else None


def _fits(part: Sequence[int], whole: Sequence[int]) -> bool:
    """Tell whether a tensor of shape ``part`` is repeated to ``whole``, or has that shape."""
    lead = len(whole) - len(part)
    return lead >= 0 and all(n in (1, m) for n, m in zip(part, whole[lead:], strict=True))


def _activation(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return _alike(args[0]) if args[0].is_floating_point() else None


def _activation_in_place(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return args[0] if args[0].is_floating_point() else None


def _eval_norm(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    result = None if args[5] or not args[0].is_floating_point() else _alike(args[0])
    none = args[0].new_empty(0)
    return None if result is None else (result, none, none)


def _arithmetic(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    a, b = args[:2]
    if len(args) > 2 or kwargs.keys() - {"alpha"}:
        return None
    if type(b) in (int, float):
        return _alike(a) if a.is_floating_point() else None
    if not (isinstance(b, Tensor) and a.is_floating_point() and a.dtype == b.dtype):
        return None
    if a.shape == b.shape and a.stride() == b.stride():
        return _alike(a)
    if not (a.is_contiguous() and b.is_contiguous()):
        return None
    whole = next((w for w, part in ((a, b), (b, a)) if _fits(part.shape, w.shape)), None)
    return None if whole is None else whole.new_empty(whole.shape)


def _arithmetic_in_place(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    result = _arithmetic(args, kwargs)
    return args[0] if result is not None and result.shape == args[0].shape else None


def _comparison(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    a, b = args
    return _alike(a, torch.bool) if type(b) in (int, float) else None


def _masked_fill(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    x, mask, value = args
    if not _plain(x) or type(value) not in (int, float) or mask.dtype != torch.bool:
        return None
    fits = mask.is_contiguous() and _fits(mask.shape, x.shape)
    return x.new_empty(x.shape) if fits else None


def _triangle(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    x = args[0]
    return x.new_empty(x.shape) if x.dim() > 1 and x.is_contiguous() else None


def _product(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """[..., m, k] x [..., k, n]; the layout of neither matters."""
    a, b = args[:2]
    if kwargs or len(args) > 2 or not (a.is_floating_point() and a.dtype == b.dtype):
        return None
    if a.shape[:-2] != b.shape[:-2] or a.shape[-1] != b.shape[-2]:
        return None
    return a.new_empty((*a.shape[:-1], b.shape[-1]))


def _product_and_addend(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    addend = args[0]
    result = _product(args[1:], {})
    if result is None or addend.dtype != result.dtype or kwargs.keys() - {"alpha", "beta"}:
        return None
    return result if _fits(addend.shape, result.shape) else None


def _convolution(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    x, weight, bias, stride, padding, dilation, transposed, output_padding, groups = args
    rank = x.dim() - 2
    sized = all(len(each) == rank for each in (stride, padding, dilation, output_padding))
    tensors = (x, weight) if bias is None else (x, weight, bias)
    if not sized or weight.dim() != x.dim() or any(t.dtype != x.dtype for t in tensors):
        return None
    if not x.is_floating_point() or 0 in (*x.shape, *weight.shape, *stride):
        return None
    inputs = weight.shape[0] if transposed else weight.shape[1] * groups
    outputs = weight.shape[1] * groups if transposed else weight.shape[0]
    if x.shape[1] != inputs or (bias is not None and tuple(bias.shape) != (outputs,)):
        return None
    if weight.shape[0] % groups:
        return None
    sizes = []
    for n, s, p, d, more, k in zip(
        x.shape[2:], stride, padding, dilation, output_padding, weight.shape[2:], strict=True
    ):
        reach = d * (k - 1)
        if transposed:
            sizes.append((n - 1) * s - 2 * p + reach + more + 1)
        else:
            sizes.append((n + 2 * p - reach - 1) // s + 1)
    return x.new_empty((x.shape[0], outputs, *sizes)) if min(sizes, default=1) > 0 else None


def _max_pool(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    x, kernel = args[:2]
    stride, padding, dilation, ceil = (*args[2:], *(None,) * 4)[:4]
    if x.dim() != 4 or not _plain(x) or ceil or _channels_last(x):
        return None
    sizes = []
    for n, k, s, p, d in zip(
        x.shape[2:],
        _pair(kernel),
        _pair(stride or kernel),
        _pair(padding or 0),
        _pair(dilation or 1),
        strict=True,
    ):
        if p > k // 2:
            return None
        sizes.append((n + 2 * p - d * (k - 1) - 1) // s + 1)
    if 0 in x.shape or min(sizes) < 1:
        return None
    shape = (*x.shape[:2], *sizes)
    return x.new_empty(shape), x.new_empty(shape, dtype=torch.int64)


def _channels_last(x: Tensor) -> bool:
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    return x.dim() in formats and x.is_contiguous(memory_format=formats[x.dim()])


def _pair(value: int | Sequence[int]) -> tuple[int, int]:
    sizes = (value,) if isinstance(value, int) else tuple(value)
    return (sizes[0], sizes[-1])


def _reduction(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    x = args[0]
    dims = args[1] if len(args) > 1 else None
    keep = len(args) > 2 and args[2]
    if not _plain(x) or kwargs or not dims or len(args) > 3 or not x.dim():
        return None
    if any(not -x.dim() <= dim < x.dim() for dim in dims):
        return None
    gone = {dim % x.dim() for dim in dims}
    if len(gone) != len(dims):
        return None
    shape = [1 if d in gone else n for d, n in enumerate(x.shape) if keep or d not in gone]
    return x.new_empty(shape)


def _softmax(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    x, dim = args[:2]
    if not _plain(x) or kwargs or (len(args) > 2 and args[2]) or not -x.dim() <= dim < x.dim():
        return None
    return x.new_empty(x.shape)


def _layer_norm(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    x, shape, weight, bias = args[:4]
    given = [t for t in (weight, bias) if t is not None]
    lead = x.dim() - len(shape)
    if x.dtype not in (torch.float32, torch.float64) or not _plain(x, *given):
        return None
    if lead < 0 or any(tuple(t.shape) != tuple(shape) for t in (x[(0,) * lead], *given)):
        return None
    narrow = (*x.shape[:lead], *(1,) * len(shape))
    return x.new_empty(x.shape), x.new_empty(narrow), x.new_empty(narrow)


def _embedding(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    table, index = args[:2]
    if table.dim() != 2 or index.dtype not in (torch.int64, torch.int32):
        return None
    return table.new_empty((*index.shape, table.shape[1]))


def _cat(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    parts = args[0]
    first = parts[0]
    dim = args[1] if len(args) > 1 else 0
    if not all(t.is_floating_point() and t.dtype == first.dtype for t in parts):
        return None
    if not -first.dim() <= dim < first.dim():
        return None
    # With height and width, PyTorch chooses a memory format by those of the parts.
    if first.dim() in (4, 5) and not (_plain(*parts) and not any(map(_channels_last, parts))):
        return None
    dim %= first.dim()
    rest = [[n for d, n in enumerate(t.shape) if d != dim] for t in parts]
    if any(t.dim() != first.dim() for t in parts) or any(sizes != rest[0] for sizes in rest):
        return None
    shape = list(first.shape)
    shape[dim] = sum(t.shape[dim] for t in parts)
    return first.new_empty(shape) if math.prod(shape) else None


_ACTIVATIONS = (
    "elu", "exp", "gelu", "hardsigmoid", "hardswish", "hardtanh", "leaky_relu", "mish", "neg",
    "relu", "rsqrt", "sigmoid", "silu", "softplus", "sqrt", "tanh",
)  # fmt: skip


def _grouped_product(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """PyTorch knows the shape in half precision alone."""
    left, right = args[:2]
    return left.new_empty((*left.shape[:-1], right.shape[2])) if right.dim() == 3 else None


KERNELS: dict[str, Kernel] = {
    **{f"aten.{name}": _activation for name in _ACTIVATIONS},
    **{f"aten.{name}_": _activation_in_place for name in _ACTIVATIONS},
    **{f"aten.{name}": _arithmetic for name in ("add", "sub", "mul", "div")},
    **{f"aten.{name}_": _arithmetic_in_place for name in ("add", "sub", "mul", "div")},
    **{f"aten.{name}": _comparison for name in ("eq", "ne", "lt", "le", "gt", "ge")},
    **{f"aten.{name}": _triangle for name in ("triu", "tril")},
    **{f"aten.{name}": _product for name in ("mm", "bmm")},
    **{f"aten.{name}": _product_and_addend for name in ("addmm", "baddbmm")},
    **{f"aten.{name}": _reduction for name in ("mean", "sum")},
    **{f"aten.{name}": _softmax for name in ("_softmax", "_log_softmax", "_safe_softmax")},
    "aten.native_batch_norm": _eval_norm,
    "aten.cudnn_batch_norm": _eval_norm,
    "aten.convolution": _convolution,
    "aten.max_pool2d_with_indices": _max_pool,
    "aten.native_layer_norm": _layer_norm,
    "aten.masked_fill": _masked_fill,
    "aten.embedding": _embedding,
    GROUPED: _grouped_product,
    "aten.cat": _cat,
}
