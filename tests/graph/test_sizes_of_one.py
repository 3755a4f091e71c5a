"""Code that does something else to a dimension of size one: at least two units stay."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import secateur


class Net(nn.Module):
    """A convolution, ``middle``, and a dense layer over its four channels."""

    def __init__(self, middle: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.middle = nn.Conv2d(3, 4, 3), nn.Linear(4, 6), middle

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.middle(torch.relu(self.a(x))))


def pool(h: Tensor) -> Tensor:
    return F.adaptive_avg_pool2d(h, 1)


def branch(h: Tensor) -> Tensor:
    return h.mean((2, 3)) * 2 if h.size(1) == 1 else h.mean((2, 3))


def more_than_one(h: Tensor) -> Tensor:
    return h.mean((2, 3)) if h.shape[1] > 1 else h.amax((2, 3))


def squeezed_in_place(h: Tensor) -> Tensor:
    h = pool(h).clone()
    h.squeeze_()
    return h


AT_LEAST_TWO: dict[str, Callable[[Tensor], Tensor]] = {
    "squeeze": lambda h: pool(h).squeeze(),
    "squeeze_function": lambda h: torch.squeeze(pool(h)),
    "squeeze_in_place": squeezed_in_place,
    "squeeze_channels": lambda h: pool(h).flatten(1).squeeze(1),
    "squeeze_last": lambda h: pool(h).flatten(1).squeeze(-1),
    "squeeze_several": lambda h: pool(h).squeeze((1, 2, 3)),
    "squeeze_of_one_picture": lambda h: torch.stack([pool(one).squeeze() for one in h]),
    "branch": branch,
    "more_than_one": more_than_one,
    "std": lambda h: h.mean((2, 3)) / h.mean((2, 3)).std(1, keepdim=True),
    "var": lambda h: h.mean((2, 3)) / torch.var(h.mean((2, 3)), 1, keepdim=True),
    "std_mean": lambda h: h.mean((2, 3)) / torch.std_mean(h.mean((2, 3)), 1, keepdim=True)[0],
    "second_smallest": lambda h: h.mean((2, 3)) - h.mean((2, 3)).kthvalue(2, 1, True)[0],
    "best_two": lambda h: h.mean((2, 3)) * h.mean((2, 3)).topk(2, 1)[0].sum(1, keepdim=True),
}

ONE_IS_ENOUGH: dict[str, Callable[[Tensor], Tensor]] = {
    "named_dimensions": lambda h: pool(h).squeeze(3).squeeze(-1),
    "several_named": lambda h: pool(h).squeeze((2, 3)),
    "flatten": lambda h: pool(h).flatten(1),
    "biased": lambda h: h.mean((2, 3)) + h.mean((2, 3)).var(1, keepdim=True, unbiased=False),
    "std_over_space_too": lambda h: h.mean((2, 3)) / h.std((1, 2, 3))[:, None],
    "max": lambda h: h.mean((2, 3)) - h.mean((2, 3)).max(1, keepdim=True)[0],
}


def pruned(middle: Callable[[Tensor], Tensor]) -> Any:
    torch.manual_seed(0)
    model = Net(middle).double().eval()
    nn.init.uniform_(model.a.bias, 0.5, 1.0)
    return secateur.prune(model, torch.randn(5, 3, 8, 8, dtype=torch.float64), sparsity=0.9)


@pytest.mark.parametrize("name", AT_LEAST_TWO)
def test_two_units_stay(name: str) -> None:
    result = pruned(AT_LEAST_TWO[name])
    assert result.model.a.out_channels == 2
    assert result.plan.given_back == {"a": 1}
    assert result.check.ok
    for batch in (5, 3):
        found = result.model(torch.randn(batch, 3, 8, 8, dtype=torch.float64))
        assert found.shape == (batch, 6)
        assert found.isfinite().all()


@pytest.mark.parametrize("name", ONE_IS_ENOUGH)
def test_one_unit_stays_where_nothing_drops_it(name: str) -> None:
    result = pruned(ONE_IS_ENOUGH[name])
    assert result.model.a.out_channels == 1
    assert result.check.ok


def test_a_count_made_from_the_size_stays_what_it_is() -> None:
    """The C // 2-th smallest of C is another one, where the size changes."""
    graph = secateur.trace(
        Net(lambda h: (m := h.mean((2, 3))) - m.kthvalue(m.shape[1] // 2, 1, True)[0]),
        torch.randn(5, 3, 8, 8),
    )
    with pytest.raises(secateur.SecateurError, match="allows none"):
        secateur.allocate(graph, secateur.score(graph, "l2"), sparsity=0.25)
