"""Shapes that are answered without PyTorch are PyTorch's, in every layout of the arguments."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from secateur.graph.meta_kernels import KERNELS, plain_result

aten = torch.ops.aten
F32, F64 = torch.float32, torch.float64


def made(*shape: int, dtype: torch.dtype = F32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def layouts(x: Tensor) -> Iterator[Tensor]:
    """Yield meta tensors of the same shape: plain, turned, with holes, repeated, channels last."""
    yield x
    if x.dim() > 1:
        yield x.transpose(0, -1).contiguous().transpose(0, -1)
        yield x.transpose(-1, -2).contiguous().transpose(-1, -2)
        wide = x.new_empty((*x.shape[:-1], 2 * x.shape[-1]))
        yield wide[..., : x.shape[-1]]
        yield x[:1].expand(x.shape)
    if x.dim() == 4:
        yield x.contiguous(memory_format=torch.channels_last)


def every_layout(op: Any, *args: Any, **kwargs: Any) -> list[tuple[Any, tuple[Any, ...], Any]]:
    choices = [list(layouts(arg)) if isinstance(arg, Tensor) else [arg] for arg in args]
    return [(op, chosen, kwargs) for chosen in itertools.product(*choices)]


X4, X3, X2, ROW = made(2, 6, 5, 7), made(2, 5, 6), made(4, 6), made(6)
CONVOLUTION = aten.convolution.default
NORM = aten.native_layer_norm.default
POOL = aten.max_pool2d_with_indices.default


def convolution(x: Tensor, weight: Tensor, **changed: Any) -> tuple[Any, ...]:
    rank = x.dim() - 2
    given = {
        "bias": None, "stride": [1] * rank, "padding": [0] * rank, "dilation": [1] * rank,
        "transposed": False, "output_padding": [0] * rank, "groups": 1, **changed,
    }  # fmt: skip
    return (CONVOLUTION, x, weight, *given.values())


CALLS: dict[str, tuple[Any, ...]] = {
    "relu": (aten.relu.default, X4),
    "relu of nothing": (aten.relu.default, made(0, 4)),
    "gelu": (aten.gelu.default, X3),
    "exp in double": (aten.exp.default, made(2, 3, dtype=F64)),
    "a sum": (aten.add.Tensor, X3, X3),
    "a sum of four": (aten.add.Tensor, X4, made(2, 6, 5, 7)),
    "a sum of two types": (aten.add.Tensor, X2, made(4, 6, dtype=F64)),
    "a sum with whole numbers": (aten.add.Tensor, X2, made(4, 6, dtype=torch.int64)),
    "a bias": (aten.add.Tensor, X3, ROW),
    "a bias first": (aten.mul.Tensor, ROW, X3),
    "channels": (aten.mul.Tensor, X4, made(6, 1, 1)),
    "an outer sum": (aten.add.Tensor, made(4, 1), made(1, 6)),
    "a number": (aten.mul.Tensor, X3, 2.0),
    "a scalar": (aten.mul.Scalar, X3, 2),
    "whole numbers halved": (aten.div.Tensor, made(3, 2, dtype=torch.int64), 2),
    "no dimension": (aten.add.Tensor, made(), X2),
    "compared": (aten.gt.Scalar, X4, 0),
    "mm": (aten.mm.default, X2, made(6, 3)),
    "bmm": (aten.bmm.default, X3, made(2, 6, 4)),
    "addmm": (aten.addmm.default, made(3), X2, made(6, 3)),
    "baddbmm": (aten.baddbmm.default, made(2, 1, 4), X3, made(2, 6, 4)),
    "mean": (aten.mean.dim, X4, [2, 3]),
    "mean kept": (aten.mean.dim, X4, [-1, -2], True),
    "sum": (aten.sum.dim_IntList, X3, [1]),
    "sum of whole numbers": (aten.sum.dim_IntList, made(3, 2, dtype=torch.int64), [1]),
    "softmax": (aten._softmax.default, X3, -1, False),
    "log softmax": (aten._log_softmax.default, X2, 1, False),
    "layer norm": (NORM, X3, [6], ROW, made(6), 1e-5),
    "layer norm of two": (NORM, X3, [5, 6], None, None, 1e-5),
    "embedding": (aten.embedding.default, X2, made(2, 3, dtype=torch.int64)),
    "filled": (aten.masked_fill.Scalar, X3, made(5, 1, dtype=torch.bool), 0.0),
    "triangle": (aten.triu.default, X2, 1),
    "pool": (POOL, X4, [2, 2]),
    "pool with steps": (POOL, X4, [3, 3], [2, 1], [1, 1], [1, 1], False),
    "pool rounded up": (POOL, X4, [2, 2], [2, 2], [0, 0], [1, 1], True),
    "convolution": convolution(X4, made(8, 6, 3, 3), bias=made(8)),
    "strided": convolution(X4, made(8, 6, 3, 2), stride=[2, 3], padding=[1, 0]),
    "dilated": convolution(X4, made(8, 6, 2, 3), dilation=[2, 2], padding=[1, 2]),
    "grouped": convolution(X4, made(9, 2, 3, 3), groups=3),
    "sequence": convolution(X3.transpose(1, 2).contiguous(), made(4, 6, 3)),
    "transposed": convolution(
        X4, made(6, 4, 3, 3), transposed=True, stride=[2, 2], output_padding=[1, 0]
    ),
    "transposed in groups": convolution(
        X4, made(6, 4, 3, 3), transposed=True, groups=2, dilation=[2, 1], padding=[1, 1]
    ),
}  # fmt: skip
ANSWERED = set(CALLS) - {
    "relu of nothing", "a sum of two types", "a sum with whole numbers", "an outer sum",
    "whole numbers halved", "sum of whole numbers", "pool rounded up",
}  # fmt: skip


def described(result: Any) -> list[tuple[Any, ...]]:
    parts = result if isinstance(result, (tuple, list)) else (result,)
    return [(tuple(t.shape), t.stride(), t.dtype, t.device.type) for t in parts]


@pytest.mark.parametrize("name", CALLS)
def test_the_answer_is_that_of_pytorch(name: str) -> None:
    answered = 0
    for op, args, kwargs in every_layout(*CALLS[name]):
        found = plain_result(str(op.overloadpacket), args, kwargs)
        if found is not None:
            answered += 1
            assert described(found) == described(op(*args, **kwargs))
    assert (answered > 0) == (name in ANSWERED)


HALF, ENDS = torch.bfloat16, made(3, dtype=torch.int32)


@pytest.mark.parametrize("dtype", [HALF, F32], ids=str)
def test_grouped_products(dtype: torch.dtype) -> None:
    """PyTorch answers in half precision alone."""
    for left, right, ends in (((9, 8), (3, 8, 16), ENDS), ((3, 9, 8), (3, 8, 16), None)):
        args = made(*left, dtype=dtype), made(*right, dtype=dtype), ends
        wanted = aten._grouped_mm.default(args[0].to(HALF), args[1].to(HALF), ends)
        found = plain_result("aten._grouped_mm", args, {})
        assert described(found) == described(wanted.to(dtype))
    assert plain_result("aten._grouped_mm", (made(8, 9), made(9, 8), ENDS), {}) is None


@pytest.mark.parametrize("dim", [0, 1, -1])
@pytest.mark.parametrize("x", [X2, X3, X4])
def test_tensors_side_by_side(x: Tensor, dim: int) -> None:
    for parts in itertools.product(layouts(x), layouts(x.clone())):
        found = plain_result("aten.cat", (list(parts), dim), {})
        if found is not None:
            assert described(found) == described(aten.cat.default(list(parts), dim))
    assert plain_result("aten.cat", ([x, x.clone()], dim), {}) is not None


WRONG: dict[str, tuple[Any, ...]] = {
    "mm": (aten.mm.default, X2, X2),
    "addmm": (aten.addmm.default, made(4), X2, made(6, 3)),
    "channels": convolution(X4, made(8, 5, 3, 3)),
    "kernel": convolution(X4, made(8, 6, 9, 3)),
    "bias": convolution(X4, made(8, 6, 3, 3), bias=made(7)),
    "types": convolution(X4, made(8, 6, 3, 3, dtype=F64)),
    "layer norm": (NORM, X3, [5], made(5), made(5), 1e-5),
    "softmax": (aten._softmax.default, X3, 3, False),
    "padding": (POOL, X4, [2, 2], [1, 1], [2, 2]),
    "sum": (aten.add.Tensor, X2, made(5)),
    "in place": (aten.add_.Tensor, ROW, X2),
    "mean": (aten.mean.dim, X2, [2]),
}


@pytest.mark.parametrize("name", WRONG)
def test_mistakes_are_left_to_pytorch(name: str) -> None:
    op, *args = WRONG[name]
    assert plain_result(str(op.overloadpacket), tuple(args), {}) is None


def test_in_place_gives_the_tensor_itself() -> None:
    for op, args in ((aten.add_, (X3, ROW)), (aten.relu_, (X4,)), (aten.mul_, (X3, 2.0))):
        assert plain_result(str(op), args, {}) is args[0]


def test_every_operation_that_is_answered_is_tested() -> None:
    tested = {str(call[0].overloadpacket) for call in CALLS.values()}
    tested |= {"aten.cat", "aten._grouped_mm"}
    kinds: dict[Callable[..., Any], set[str]] = {}
    for op, kernel in KERNELS.items():
        kinds.setdefault(kernel, set()).add(op)
    untested = [ops for ops in kinds.values() if not ops & tested]
    assert all(op.endswith("_") or "batch_norm" in op for ops in untested for op in ops)


SCRIPT = """
import sys, torch, secateur
from torch import nn
from secateur.models import cifar_resnet
secateur.trace(cifar_resnet(20).eval(), torch.randn(1, 3, 32, 32))
secateur.trace(nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
                             nn.Linear(16 * 9, 5)).eval(), torch.randn(2, 3, 8, 8))
print(sorted({"torch._dynamo", "sympy"} & set(sys.modules)))
"""


def test_a_trace_imports_no_compiler() -> None:
    """It takes a second of processor time, and a process may have no other use for it."""
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True, timeout=120
    )
    assert run.stdout.strip() == "[]"
