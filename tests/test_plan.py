"""Plans: plain data that says everything, and reads back as it was written."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from networks import NETWORKS, build
from torch import nn

import secateur
from secateur.errors import CheckpointError, InputError
from secateur.graph import Cost
from secateur.plan import MaskPoint, Plan, sealed
from secateur.planning import make_plan


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 5)
    ).eval()


def graph() -> secateur.Graph:
    return secateur.trace(network(), torch.zeros(2, 3, 4, 4))


def test_a_plan_says_what_goes_from_every_tensor() -> None:
    """Written out by hand for channels 1 and 3 of the convolution."""
    plan = make_plan(graph(), {"0": (3, 1)})
    assert plan.removed == {"0": (3, 1)}
    assert plan.sizes == {"0": 4}
    gone = (1, 3)
    assert plan.cuts == {
        "0.weight": {0: gone},
        "0.bias": {0: gone},
        "1.weight": {0: gone},
        "1.bias": {0: gone},
        "1.running_mean": {0: gone},
        "1.running_var": {0: gone},
        "4.weight": {1: (4, 5, 6, 7, 12, 13, 14, 15)},
    }
    assert plan.consumers == (("4.weight", 1),)
    assert plan.masks == ()
    assert plan.given_back == {}
    assert plan.dense == Cost(4 * 27 + 4 + 8 + 80 + 5, 4 * 27 * 4 + 80)
    assert plan.pruned == Cost(2 * 27 + 2 + 4 + 40 + 5, 2 * 27 * 4 + 40)


def test_an_operation_over_units_is_a_point_of_its_own() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2)).eval()
    plan = make_plan(secateur.trace(model, torch.zeros(2, 3)), {"0": (2,)})
    assert plan.masks == (MaskPoint("aten.native_layer_norm", "1", 0, 0, 1, 4, (2,), "gather"),)
    assert plan.attributes == {"1.normalized_shape[0]": 3}


@pytest.mark.parametrize("name", NETWORKS)
def test_json_reads_back_as_it_was(name: str) -> None:
    model, inputs = build(name), NETWORKS[name].inputs(2)
    traced = secateur.trace(model, inputs)
    plan = secateur.allocate(traced, secateur.score(traced, "random"), sparsity=0.5)
    text = plan.to_json()
    again = Plan.from_json(text)
    assert again == plan
    for field in dataclasses.fields(Plan):
        assert type(getattr(again, field.name)) is type(getattr(plan, field.name))
    assert again.to_json() == text


def test_a_plan_that_was_read_back_cuts_the_same() -> None:
    model, x = network(), torch.randn(2, 3, 4, 4)
    plan = make_plan(graph(), {"0": (3, 1)})
    again = Plan.from_json(plan.to_json())
    assert torch.equal(secateur.cut(model, again)(x), secateur.cut(model, plan)(x))
    assert torch.equal(secateur.mask(model, again)(x), secateur.mask(model, plan)(x))


def plan_of(positions: tuple[int, ...]) -> Plan:
    return sealed(Plan({}, {}, {"w": {1: positions}}, {}, (), (), {}, Cost(1, 1), Cost(1, 1)))


@given(st.sets(st.integers(0, 300), min_size=1))
def test_positions_survive_as_ranges(positions: set[int]) -> None:
    plan = plan_of(tuple(sorted(positions)))
    assert Plan.from_json(plan.to_json()) == plan


def test_ranges_keep_the_file_small() -> None:
    plan = plan_of(tuple(range(1000)))
    assert json.loads(plan.to_json())["cuts"]["w"]["1"] == "0-999"


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "",
        lambda text: "[]",
        lambda text: "3",
        lambda text: "{}",
        lambda text: text.replace('"format": 3', '"format": 99'),
        lambda text: text.replace('"removed"', '"gone"', 1),
        lambda text: text.replace('"consumers"', '"consumer"'),
        lambda text: text.replace('"1,3"', '"1,x"'),
    ],
)
def test_what_is_no_whole_plan_is_refused(damage: object) -> None:
    text = make_plan(graph(), {"0": (3, 1)}).to_json()
    damaged = damage(text)  # type: ignore[operator]
    assert damaged != text
    with pytest.raises(CheckpointError, match="plan"):
        Plan.from_json(damaged)


def test_units_that_do_not_exist_are_refused() -> None:
    with pytest.raises(InputError, match=r"units of group '0' must be in 0\.\.3, but got 4"):
        make_plan(graph(), {"0": (4,)})
    with pytest.raises(InputError, match="must leave a unit of group '0', but takes all 4"):
        make_plan(graph(), {"0": (0, 1, 2, 3)})
