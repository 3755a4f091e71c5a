"""Costs of plans, against the network that is really cut and PyTorch's own counter."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from exactness import count
from networks import NETWORKS, build
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import secateur
from secateur.errors import InputError

BATCH = 3


def counted(model: nn.Module, inputs: Any) -> float:
    """Return the multiply-accumulates of one sample, as PyTorch counts them."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with (
            FlopCounterMode(display=False) as counter,
            torch.no_grad(),
            sdpa_kernel(SDPBackend.MATH),
        ):
            model(**inputs) if isinstance(inputs, dict) else model(*inputs)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return counter.get_total_flops() / 2 / BATCH


@pytest.mark.parametrize("name", NETWORKS)
def test_parameters_and_macs_are_those_of_the_cut_network(name: str) -> None:
    model, inputs = build(name), NETWORKS[name].inputs(BATCH)
    graph = secateur.trace(model, inputs)
    scores = secateur.score(graph, "random", seed=3)
    assert graph.cost() == graph.cost({})
    assert (graph.cost().params, graph.cost().macs) == (count(model), counted(model, inputs))
    for sparsity in (0.3, 0.7):
        plan = secateur.allocate(graph, scores, sparsity=sparsity)
        pruned = secateur.cut(model, plan)
        cost = graph.cost(plan.removed)
        assert (cost.params, cost.macs) == (count(pruned), counted(pruned, inputs))
        assert cost == plan.pruned


def two_layers() -> secateur.Graph:
    return secateur.trace(
        nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3)), torch.zeros(2, 5)
    )


def test_costs_by_hand() -> None:
    graph = two_layers()
    (group,) = graph.groups
    assert (graph.cost().params, graph.cost().macs) == (5 * 8 + 8 + 8 * 3 + 3, 5 * 8 + 8 * 3)
    cost = graph.cost({group.name: (0, 7, 0)})
    assert (cost.params, cost.macs) == (5 * 6 + 6 + 6 * 3 + 3, 5 * 6 + 6 * 3)


def test_stride_padding_dilation_and_groups_count() -> None:
    model = nn.Sequential(
        nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=1, dilation=(2, 1), groups=2),
        nn.ConvTranspose2d(6, 8, 3, stride=2, groups=2),
    )
    x = torch.zeros(1, 4, 9, 7)
    rows = (9 + 2 - 2 * 2 - 1) // 2 + 1
    columns = 7 + 2 - 1
    macs = rows * columns * 6 * 2 * 6 + rows * columns * 6 * 4 * 9
    assert secateur.trace(model, x).cost().macs == macs


def test_shared_weights_count_once_and_work_twice() -> None:
    layer = nn.Linear(5, 5, bias=False)
    cost = secateur.trace(nn.Sequential(layer, nn.ReLU(), layer), torch.zeros(2, 5)).cost()
    assert (cost.params, cost.macs) == (25, 50)


@pytest.mark.parametrize(
    ("removed", "words"),
    [
        ({"nobody": (0,)}, "removed names the group 'nobody', which the graph does not have"),
        ({"0": (8,)}, "units of group '0' must be in 0..7, but got 8"),
        ({"0": (-1,)}, "units of group '0' must be in 0..7, but got -1"),
        ({"0": tuple(range(8))}, "removed must leave a unit of group '0', but takes all 8"),
    ],
)
def test_units_that_do_not_exist_are_refused(
    removed: dict[str, tuple[int, ...]], words: str
) -> None:
    graph = two_layers()
    for verb in (graph.cost, graph.mend):
        with pytest.raises(InputError, match=words):
            verb(removed)
