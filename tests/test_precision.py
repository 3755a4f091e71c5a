"""A proof in float64 of networks whose own code names, makes or holds narrower tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import secateur
from secateur.planning import make_plan
from secateur.precision import Precision

GLOBAL = torch.rand(4, 4)


class Middle(nn.Module):
    """Two layers and ``between``, which must keep [4, n] as it is in the eyes of the third."""

    def __init__(self, between: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(8, 16), nn.Linear(16, 12), nn.Linear(12, 5)
        self.between = between
        self.held = [torch.ones(4, 4)]
        self.kept: Any = None

    def forward(self, x: Tensor) -> Tensor:
        h = self.between(self, torch.tanh(self.a(x)))
        return self.c(torch.tanh(self.b(h)))


def remembered(net: Any, h: Tensor) -> Tensor:
    net.kept = torch.ones(4, 4)
    return net.kept @ h


def written(net: Any, h: Tensor) -> Tensor:
    z = torch.zeros(4, 1)
    z[0].add_(h.sum())
    return h + z


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, h: Tensor) -> Tensor:
        return torch.full((4, 4), 0.5) @ h

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return gradient


def autocast(net: Any, h: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return torch.ones(4, 4) @ h


BETWEEN: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "ones": lambda net, h: torch.tril(torch.ones(4, 4)) @ h,
    "eye": lambda net, h: torch.eye(4) @ h,
    "linspace": lambda net, h: torch.linspace(0, 1, 16).view(4, 4) @ h,
    "a list of numbers": lambda net, h: torch.tensor([[1.0, 2, 3, 4]] * 4) @ h,
    "one number": lambda net, h: h * torch.tensor(1e-3),
    "arange": lambda net, h: torch.arange(16, dtype=torch.float32).view(4, 4) @ h,
    "a quotient of integers": lambda net, h: (torch.arange(16) / 3).view(4, 4) @ h,
    "new_zeros": lambda net, h: h + h.new_ones(4, 1),
    "float": lambda net, h: h.float() * 2,
    "half": lambda net, h: h.half().float(),
    "type": lambda net, h: h.type(torch.FloatTensor),
    "complex": lambda net, h: (torch.eye(4, dtype=torch.complex64) @ (h + 0j)).real,
    "NumPy": lambda net, h: torch.from_numpy(np.ones((4, 4), np.float32)) @ h,
    "a global": lambda net, h: GLOBAL @ h,
    "a list": lambda net, h: net.held[0] @ h,
    "kept in forward": remembered,
    "written in place": written,
    "a function with a gradient of its own": lambda net, h: Doubled.apply(h),
    "autocast": autocast,
    "a boolean mask": lambda net, h: h.masked_fill(torch.ones(4, 1, dtype=torch.bool), 0.5),
    "einsum": lambda net, h: torch.einsum("ij,jk->ik", torch.ones(4, 4), h),
    "a convolution": lambda net, h: F.conv1d(h.t()[:, None], torch.ones(1, 1, 3))[:, 0].t(),
}


def example() -> Tensor:
    torch.manual_seed(1)
    return torch.randn(4, 8)


def network(what: str) -> Any:
    torch.manual_seed(0)
    return Middle(BETWEEN[what]).eval()


@pytest.mark.parametrize("what", BETWEEN)
def test_a_right_cut_is_proved_in_float64_and_a_wrong_one_is_found(what: str) -> None:
    model, x = network(what), example()
    plan = make_plan(secateur.trace(model, x), {"b": (1, 5, 7)})
    pruned = secateur.cut(model, plan)
    check = secateur.verify(model, pruned, plan, x)
    assert check.ok
    assert (check.dtype, check.notes) == ("float64", ())
    assert check.max_error < 1e-13
    with torch.no_grad():
        pruned.b.weight[2, 3] += 1e-6
    assert not secateur.verify(model, pruned, plan, x).ok


def test_a_recurrent_network_that_makes_its_first_state() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.hidden = 12
            self.lstm, self.head = nn.LSTM(6, 12, 2, batch_first=True), nn.Linear(12, 3)

        def forward(self, x: Tensor) -> Tensor:
            states = (torch.zeros(2, x.size(0), self.hidden), torch.zeros(2, len(x), self.hidden))
            return self.head(self.lstm(x, states)[0][:, -1])

    torch.manual_seed(0)
    result = secateur.prune(Recurrent().eval(), torch.randn(3, 5, 6), sparsity=0.5)
    assert (result.check.ok, result.check.dtype) == (True, "float64")
    assert result.plan.removed


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_networks_are_proved_in_float64(dtype: torch.dtype) -> None:
    model, x = network("new_zeros").to(dtype), example().to(dtype)
    check = secateur.prune(model, x, sparsity=0.5).check
    assert (check.ok, check.dtype) == (True, "float64")


class Insists(nn.Module):
    """Takes no other type than the one that it was written for."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 16, dtype=dtype), nn.Linear(16, 5, dtype=dtype)
        self.dtype = dtype

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.a(x))
        if h.dtype != self.dtype:
            raise TypeError(f"expected {self.dtype}")
        return self.b(h)


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float32, 1e-4), (torch.float16, 1e-2), (torch.bfloat16, 5e-2)],
)
def test_a_network_that_takes_no_float64_is_proved_in_its_own(
    dtype: torch.dtype, tolerance: float
) -> None:
    torch.manual_seed(0)
    model, x = Insists(dtype).eval(), example().to(dtype)
    plan = make_plan(secateur.trace(model, x), {"a": (1, 5, 7)})
    pruned = secateur.cut(model, plan)
    check = secateur.verify(model, pruned, plan, x)
    assert check.ok
    assert (check.dtype, check.tolerance) == (str(dtype).removeprefix("torch."), tolerance)
    assert "the network fails: TypeError: expected torch" in check.notes[0]
    with torch.no_grad():
        pruned.a.weight[2] += 0.5
    assert not secateur.verify(model, pruned, plan, x).ok


def test_an_operation_may_write_to_a_narrow_tensor_and_return_views_of_it() -> None:
    narrow = torch.zeros(2, 3)
    with Precision(torch.float64):
        narrow[0].add_(torch.ones(3, dtype=torch.float64))
        made = narrow @ torch.ones(3, 2)
    assert narrow.tolist() == [[1, 1, 1], [0, 0, 0]]
    assert made.dtype == torch.float64


def test_reading_bits_is_no_matter_of_precision() -> None:
    x = torch.tensor([1.0, -2.0])
    with Precision(torch.float64):
        bits = x.view(torch.int32)
    assert torch.equal(bits, x.view(torch.int32))


def test_synflow_sees_a_constant_that_forward_makes_in_its_own_precision() -> None:
    """R = sum of the outputs for ones and absolute weights, worked out by hand."""

    class Averages(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 4, bias=False), nn.Linear(4, 2, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(torch.tril(torch.ones(5, 5)) @ self.a(x))

    torch.manual_seed(0)
    model, x = Averages().eval(), torch.randn(2, 5, 3)
    scores = secateur.score(secateur.trace(model, x), "synflow")
    a, b = model.a.weight.detach().double().abs(), model.b.weight.detach().double().abs()
    rows = 2 * sum(range(1, 6))  # samples times the sum of the triangle
    flow = rows * a.sum(1) * b.sum(0)
    (found,) = scores.values()
    torch.testing.assert_close(found, 2 * flow)  # once in each layer
