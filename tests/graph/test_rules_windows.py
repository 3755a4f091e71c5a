"""Sliding windows by overlapping views of memory, and sizes that the code makes tensors of.

The oracle zeroes the columns of the head that read removed channels: windows mix no channels.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from exactness import relative_error
from torch import Tensor, nn

import secateur
from secateur.errors import PlanError
from secateur.planning import make_plan

STEPS, CHANNELS, REACH = 8, 6, 2
Windows = Callable[[Tensor], Tensor]


def padded(x: Tensor) -> Tensor:
    return F.pad(x, (0, 0, REACH, REACH))


def by_strides(x: Tensor) -> Tensor:
    """Take [batch, steps, window, channels] of [batch, steps, channels]."""
    x = padded(x)
    batch, row, one = x.stride()
    size = (len(x), STEPS, 2 * REACH + 1, x.shape[2])
    return x.as_strided(size, (batch, row, row, one))


def by_sizes(x: Tensor) -> Tensor:
    x = padded(x)
    row = x.shape[2]
    size = (len(x), STEPS, 2 * REACH + 1, row)
    return torch.as_strided(x, size=size, stride=(x.shape[1] * row, row, row, 1))


def steps_first_in_memory(x: Tensor) -> Tensor:
    x = padded(x).transpose(0, 1).contiguous().transpose(0, 1)
    batch, row, one = x.stride()
    return x.as_strided((len(x), STEPS, 2 * REACH + 1, x.size(2)), (batch, row, row, one))


def two_of_three(x: Tensor) -> Tensor:
    """Overlapping halves of chunks, the dimension behind the windows among them."""
    x = x.view(len(x), 2, STEPS // 2, x.shape[2])
    size, stride = list(x.size()), list(x.stride())
    size[1], stride[1] = size[1] * 2 - 1, stride[1] // 2
    return x.as_strided(size, stride)


def chunks_counted_by_a_tensor(x: Tensor) -> Tensor:
    count = torch.div(x.size(1), 2, rounding_mode="trunc")
    x = x.view(len(x), count, 2, x.size(2))
    size, stride = (len(x), count + 0, 2, x.size(3)), x.stride()
    out = x.new_zeros((len(x), count, 2, x.size(3)))
    out[:, :count] = x.as_strided(size, stride).narrow(1, 0, count)
    return out


FREE: dict[str, Windows] = {
    f.__name__: f
    for f in (
        by_strides, by_sizes, steps_first_in_memory, two_of_three, chunks_counted_by_a_tensor,
    )
}  # fmt: skip


class Net(nn.Module):
    """Channels, the mean of each window of steps, and a head."""

    def __init__(self, windows: Windows) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.windows = windows
        self.front, self.head = nn.Linear(5, CHANNELS), nn.Linear(CHANNELS, 3)
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        found = self.windows(torch.tanh(self.front(x)))
        weights = torch.arange(1.0, found.shape[2] + 1, dtype=x.dtype)[:, None]
        return self.head((found * weights).sum(2))


def inputs(batch: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(batch)
    return torch.randn(batch, STEPS, 5, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("name", FREE)
def test_channels_beside_windows_are_cut(name: str) -> None:
    model, x = Net(FREE[name]), inputs()
    graph = secateur.trace(model, x)
    assert [(group.name, group.size) for group in graph.groups] == [("front", CHANNELS)]
    for units in ((0,), (5,), (1, 2, 4), (0, 1, 2, 3, 4)):
        plan = make_plan(graph, {"front": units})
        assert plan.removed == {"front": units}
        pruned, masked = secateur.cut(model, plan), copy.deepcopy(model)
        assert secateur.verify(model, pruned, plan, x).ok
        for example in (x, inputs(1), inputs(4)):
            with torch.no_grad():
                masked.head.weight[:, list(units)] = 0.0
                wanted = masked(example)
                assert relative_error([pruned(example)], [wanted]) < 1e-12
                assert relative_error([model(example)], [wanted]) > 1e-2


def steps_in_the_code(x: Tensor) -> Tensor:
    x, row = padded(x), CHANNELS
    steps = (len(x[0]) * row, row, row, 1)
    return x.as_strided((len(x), STEPS, 2 * REACH + 1, x.shape[2]), steps)


def sizes_in_the_code(x: Tensor) -> Tensor:
    x = padded(x)
    batch, row, one = x.stride()
    return x.as_strided((len(x), STEPS, 2 * REACH + 1, CHANNELS), (batch, row, row, one))


@pytest.mark.parametrize("windows", [steps_in_the_code, sizes_in_the_code])
def test_numbers_in_the_code_keep_the_channels(windows: Windows) -> None:
    graph = secateur.trace(Net(windows), inputs())
    if graph.groups:
        with pytest.raises(PlanError, match="allows none of these units"):
            make_plan(graph, {"front": (1,)})


def over_channels(x: Tensor) -> Tensor:
    batch, row, one = x.stride()
    return x.as_strided((len(x), STEPS, 2, x.shape[2] - 1), (batch, row, one, one))


def from_the_second_step(x: Tensor) -> Tensor:
    x = padded(x)
    batch, row, one = x.stride()
    size = (len(x), STEPS, REACH, x.shape[2])
    return x.as_strided(size, (batch, row, row, one), x.shape[2])


def every_second_step(x: Tensor) -> Tensor:
    x = padded(x)[:, ::2]
    batch, row, one = x.stride()
    return x.as_strided((len(x), 4, 2, x.shape[2]), (batch, row, row, one))


@pytest.mark.parametrize(
    ("windows", "reason"),
    [
        (over_channels, "windows are taken along it"),
        (from_the_second_step, "memory that is not laid out by the sizes"),
        (every_second_step, "memory that is not laid out by the sizes"),
    ],
)
def test_other_views_of_memory_pin(windows: Windows, reason: str) -> None:
    class Sliced(Net):
        def forward(self, x: Tensor) -> Tensor:
            found = self.windows(torch.tanh(self.front(x))).sum(2)
            return self.head(F.pad(found, (0, CHANNELS - found.shape[2])))

    graph = secateur.trace(Sliced(windows), inputs())
    assert graph.groups == ()
    reasons = [p.reason for p in graph.pinned if (p.name, p.dim) == ("front.weight", 0)]
    assert len(reasons) == 1
    assert reason in reasons[0]
