"""Limits and protected names hold whatever the target; what matches nothing is told."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import NETWORKS
from torch import nn

import secateur
from secateur.errors import InputError, PlanError


def build() -> secateur.Graph:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(),
        nn.Conv2d(12, 9, 3, stride=2), nn.ReLU(),
        nn.Conv2d(9, 10, 1), nn.ReLU(), nn.Flatten(), nn.Linear(90, 7), nn.ReLU(), nn.Linear(7, 4),
    )  # fmt: skip
    return secateur.trace(model.eval(), torch.zeros(1, 3, 8, 8))


GRAPH = build()
SIZES = {"0": 12, "3": 9, "5": 10, "8": 7}


def test_the_groups_are_these() -> None:
    assert {group.name: group.size for group in GRAPH.groups} == SIZES


def number(plan: secateur.Plan) -> dict[str, int]:
    return {name: len(plan.removed.get(name, ())) for name in SIZES}


limit = st.one_of(st.integers(0, 100).map(lambda n: Fraction(n, 100)), st.integers(1, 15))


def most(size: int, value: Fraction | int) -> int:
    """At most this share, or all but so many; the last unit stays."""
    free = size - value if isinstance(value, int) else math.floor(size * value)
    return max(0, min(free, size - 1))


@settings(max_examples=120, deadline=None)
@given(
    limits=st.dictionaries(st.sampled_from(sorted(SIZES)), limit, max_size=4),
    default=st.none() | st.integers(0, 100).map(lambda n: Fraction(n, 100)),
    spared=st.sets(st.sampled_from(sorted(SIZES)), max_size=3),
    scope=st.sampled_from(["local", "global", "isomorphic"]),
    target=st.sampled_from(["sparsity", "macs", "params"]),
    round_to=st.sampled_from([1, 2, 4]),
    share=st.sampled_from([0.3, 0.5, 0.8]),
)
def test_no_group_gives_up_more_than_it_may(
    limits: dict[str, Fraction | int],
    default: Fraction | None,
    spared: set[str],
    scope: str,
    target: str,
    round_to: int,
    share: float,
) -> None:
    plain = {n: v if isinstance(v, int) else float(v) for n, v in limits.items()}
    arguments: dict[str, Any] = {
        "limits": {f"group:{n}": v for n, v in plain.items()},
        "protect": [f"group:{n}" for n in spared],
        "max_sparsity": None if default is None else float(default),
        "scope": scope,
        "round_to": round_to,
        target: share,
    }
    scores = secateur.score(GRAPH, "random", seed=1)
    try:
        plan = secateur.allocate(GRAPH, scores, **arguments)
    except PlanError as error:
        assert "cannot be met" in str(error)  # noqa: PT017
        assert (scope, target) != ("local", "sparsity")  # limits only cap it
        return
    found = number(plan)
    for name, size in SIZES.items():
        cap = most(size, limits.get(name, Fraction(1) if default is None else default))
        assert found[name] <= (0 if name in spared else cap)
        assert found[name] == 0 or (size - found[name]) % round_to == 0
        if scope == "local" and target == "sparsity" and round_to == 1:
            wanted = min(cap, math.floor(Fraction(str(share)) * size))
            assert found[name] == (0 if name in spared else wanted)
    if target != "sparsity":
        assert getattr(plan.pruned, target) <= share * getattr(plan.dense, target)


def test_others_make_up_for_a_limited_group() -> None:
    scores = {name: torch.arange(1.0, size + 1) for name, size in SIZES.items()}
    scores["0"] /= 1000
    free = secateur.allocate(GRAPH, scores, sparsity=0.5, scope="global", normalisation="none")
    held = secateur.allocate(
        GRAPH, scores, sparsity=0.5, scope="global", normalisation="none", limits={"0": 0.25}
    )
    assert number(free)["0"] == 11
    assert number(held)["0"] == 3
    assert sum(number(held).values()) == sum(number(free).values()) == 19


def test_a_share_that_the_limits_do_not_allow_is_refused() -> None:
    scores = secateur.score(GRAPH, "l1")
    with pytest.raises(PlanError, match=r"sparsity=0.8 cannot be met: the limits let 18 of 38 "):
        secateur.allocate(GRAPH, scores, sparsity=0.8, scope="global", max_sparsity=0.5)
    with pytest.raises(PlanError, match="cannot be met: with as few units in every group as may"):
        secateur.allocate(GRAPH, scores, macs=0.1, max_sparsity=0.5)
    secateur.allocate(GRAPH, scores, sparsity=18 / 38, scope="global", max_sparsity=0.5)


def test_the_strictest_of_several_limits_holds_and_takes_the_place_of_the_default() -> None:
    scores = secateur.score(GRAPH, "l1")
    plan = secateur.allocate(
        GRAPH, scores, sparsity=0.9, max_sparsity=0.1,
        limits={"[035]": 0.5, "kind:channel": 8, "8": 1.0},
    )  # fmt: skip
    assert number(plan) == {"0": 4, "3": 1, "5": 2, "8": 6}


def test_protected_groups_do_not_count() -> None:
    """Sparsity is the share of what competes."""
    scores = secateur.score(GRAPH, "l1")
    plan = secateur.allocate(GRAPH, scores, sparsity=0.5, scope="global", protect=["group:0"])
    left_out = {name: values for name, values in scores.items() if name != "0"}
    assert plan == secateur.allocate(GRAPH, left_out, sparsity=0.5, scope="global")


@pytest.mark.parametrize(
    ("patterns", "spared"),
    [
        (["group:5"], {"5"}),
        (["5"], {"5"}),
        (["5.weight"], {"3", "5"}),  # what makes its rows and what makes its columns
        (["param:5.bias"], {"5"}),
        (["1.running_mean"], {"0"}),
        (["kind:neuron"], {"8"}),
        (["kind:chan*", "group:8"], {"0", "3", "5", "8"}),
        (["10.weight"], {"8"}),
        (["[35]"], {"3", "5"}),
    ],
)
def test_what_is_protected(patterns: list[str], spared: set[str]) -> None:
    scores = secateur.score(GRAPH, "l1")
    if spared == set(SIZES):
        with pytest.raises(PlanError, match="protect covers all 4 groups with scores"):
            secateur.allocate(GRAPH, scores, sparsity=0.5, protect=patterns)
        return
    plan = secateur.allocate(GRAPH, scores, sparsity=0.5, protect=patterns)
    assert set(plan.removed) == set(SIZES) - spared


@pytest.mark.parametrize("kind", ["head", "head_dim", "neuron", "channel"])
def test_kinds_of_a_transformer(kind: str) -> None:
    network = NETWORKS["vit"]
    graph = secateur.trace(network.factory().double().eval(), network.inputs(2))
    scores = secateur.score(graph, "random")
    plan = secateur.allocate(graph, scores, sparsity=0.5, protect=[f"kind:{kind}"])
    assert set(plan.removed) == {group.name for group in graph.groups if group.kind != kind}


def test_protected_tensors_keep_their_shapes() -> None:
    network = NETWORKS["resnet_basic"]
    model = network.factory().double().eval()
    graph = secateur.trace(model, network.inputs(2))
    plan = secateur.allocate(
        graph, secateur.score(graph, "l1"), sparsity=0.5, protect=["layer2.0.*"]
    )
    pruned = dict(secateur.cut(model, plan).named_parameters())
    same = {n for n, p in model.named_parameters() if p.shape == pruned[n].shape}
    assert {n for n in pruned if n.startswith("layer2.0.")} <= same
    assert plan.removed


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            {"protect": ["8.wight"]},
            "'8.wight' matches nothing; the nearest are 8.weight",
        ),
        (
            {"protect": ["kind:head"]},
            "'kind:head' matches nothing; the nearest are neuron",
        ),
        ({"protect": ["group:0.weight"]}, "'group:0.weight' matches nothing"),
        ({"protect": "8"}, "protect must be a list of patterns, but got the text '8'"),
        ({"protect": [8]}, "protect must hold patterns, but got 8"),
        ({"limits": {"80": 0.5}}, "limits must match something, but '80' matches nothing"),
        ({"limits": {"8.weight": 0.5}}, "'8.weight' matches nothing"),
        ({"limits": {"8": 1.5}}, r"limits of '8' must be a share in \[0.0, 1.0\] .*, but got 1.5"),
        ({"limits": {"8": -1}}, "limits of '8' must keep 0 units or more, but got -1"),
        ({"limits": {"8": math.nan}}, "limits of '8' must be a share .* but got nan"),
        ({"limits": {"8": "half"}}, "limits of '8' must be a number, but got 'half'"),
        ({"limits": {"8": True}}, "limits of '8' must be a number, but got True"),
        ({"max_sparsity": 1.5}, "max_sparsity must satisfy 0 <= max_sparsity <= 1, but got 1.5"),
        ({"max_sparsity": math.nan}, "max_sparsity must satisfy"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        secateur.allocate(GRAPH, secateur.score(GRAPH, "l1"), sparsity=0.5, **arguments)
