"""What competes with what, and who leaves first: against enumeration and lists made by hand."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import NETWORKS
from torch import Tensor, nn

import secateur
from secateur.allocation.order import classes
from secateur.errors import InputError
from secateur.models import cifar_resnet


def chain(*widths: int) -> secateur.Graph:
    layers: list[nn.Module] = []
    for inputs, outputs in zip((3, *widths), (*widths, 2), strict=True):
        layers += [nn.Linear(inputs, outputs), nn.Tanh()]
    return secateur.trace(nn.Sequential(*layers[:-1]).eval(), torch.zeros(1, 3))


SMALL = chain(3, 4, 2)
WIDTHS = {"0": 3, "2": 4, "4": 2}


def gone(plan: secateur.Plan) -> dict[str, set[int]]:
    return {name: set(units) for name, units in plan.removed.items()}


# --- normalisations, against enumeration of everything that could go ---

SCALES = {
    "none": lambda values: [1.0] * len(values),
    "mean": lambda values: [sum(map(abs, values)) / len(values)] * len(values),
    "max": lambda values: [max(map(abs, values))] * len(values),
    "l2": lambda values: [math.sqrt(sum(v * v for v in values))] * len(values),
}


def scaled(values: list[float], how: str) -> list[float]:
    if how == "rank":
        return [sum(v < w for v in values) / (len(values) - 1) for w in values]
    return [v / s for v, s in zip(values, SCALES[how](values), strict=True)]


def cheapest(values: dict[str, list[float]], number: int) -> float:
    """The least sum of ``number`` values that leaves one in every group; all subsets are tried."""
    places = [(name, i) for name, found in values.items() for i in range(len(found))]
    best = math.inf
    for chosen in itertools.combinations(places, number):
        taken = [sum(name == n for n, _ in chosen) for name in values]
        if all(t < len(found) for t, found in zip(taken, values.values(), strict=True)):
            best = min(best, math.fsum(values[name][i] for name, i in chosen))
    return best


@settings(max_examples=40, deadline=None)
@given(
    drawn=st.lists(
        st.integers(1, 10_000).map(lambda n: n / 64), min_size=9, max_size=9, unique=True
    ),
    how=st.sampled_from(["none", "mean", "max", "l2", "rank"]),
    number=st.integers(0, 6),
)
def test_global_takes_the_cheapest_set(drawn: list[float], how: str, number: int) -> None:
    lists = {"0": drawn[:3], "2": drawn[3:7], "4": drawn[7:]}
    plan = secateur.allocate(
        SMALL,
        {name: torch.tensor(v, dtype=torch.float64) for name, v in lists.items()},
        sparsity=number / 9,
        scope="global",
        normalisation=how,
    )
    values = {name: scaled(found, how) for name, found in lists.items()}
    assert sum(map(len, plan.removed.values())) == number
    total = math.fsum(values[name][u] for name, units in plan.removed.items() for u in units)
    assert total == pytest.approx(cheapest(values, number), rel=1e-12, abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(order=st.permutations(range(9)), number=st.integers(0, 6))
def test_one_order_over_all_groups_is_honoured_place_by_place(
    order: list[int], number: int
) -> None:
    """``order`` lists units, the first to leave first; each group's last one is passed over."""
    units = [(name, u) for name, size in WIDTHS.items() for u in range(size)]
    scores = {name: torch.zeros(size, dtype=torch.float64) for name, size in WIDTHS.items()}
    for place, entry in enumerate(order):
        name, unit = units[entry]
        scores[name][unit] = place
    wanted: dict[str, set[int]] = {}
    left = dict(WIDTHS)
    for entry in order:
        name, unit = units[entry]
        if left[name] > 1 and sum(map(len, wanted.values())) < number:
            wanted.setdefault(name, set()).add(unit)
            left[name] -= 1
    plan = secateur.allocate(
        SMALL, scores, sparsity=number / 9, scope="global", normalisation="none"
    )
    assert gone(plan) == wanted


def test_the_mean_is_what_is_taken_when_nothing_is_said() -> None:
    scores = secateur.score(SMALL, "l1")
    for scope in ("global", "isomorphic"):
        said = secateur.allocate(SMALL, scores, sparsity=0.5, scope=scope, normalisation="mean")
        assert secateur.allocate(SMALL, scores, sparsity=0.5, scope=scope) == said


@pytest.mark.parametrize("how", ["none", "mean", "max", "l2", "rank"])
def test_normalisation_is_nothing_to_groups_by_themselves(how: str) -> None:
    scores = secateur.score(SMALL, "l1")
    plan = secateur.allocate(SMALL, scores, sparsity=0.5, normalisation=how)
    assert plan == secateur.allocate(SMALL, scores, sparsity=0.5)


def test_an_unknown_normalisation_is_refused() -> None:
    with pytest.raises(InputError, match=r"normalisation must be one of .*'men'.*'mean'"):
        secateur.allocate(SMALL, secateur.score(SMALL, "l1"), sparsity=0.5, normalisation="men")


# --- isomorphic classes, listed by hand from the networks' code ---


def found_classes(name: str) -> list[list[str]]:
    network = NETWORKS[name]
    graph = secateur.trace(network.factory().double().eval(), network.inputs(2))
    return classes(graph, "isomorphic", [group.name for group in graph.groups])


def test_classes_of_a_vision_transformer() -> None:
    assert found_classes("vit") == [
        ["patch"],
        ["blocks.0.qkv:head", "blocks.1.qkv:head"],
        ["blocks.0.qkv:head_dim", "blocks.1.qkv:head_dim"],
        ["blocks.0.fc1", "blocks.1.fc1"],
    ]


def test_classes_of_basic_blocks() -> None:
    """The streams differ: by convolutions that join, and by what reads them."""
    inner = [f"layer{stage}.{block}.conv1" for stage in (1, 2, 3) for block in (0, 1)]
    assert found_classes("resnet_basic") == [
        ["conv1"], inner, ["layer2.0.conv2"], ["layer3.0.conv2"],
    ]  # fmt: skip


def test_classes_of_bottlenecks() -> None:
    inner = [
        f"layer{stage}.{block}.{name}.0"
        for stage in (1, 2)
        for block in (0, 1)
        for name in ("reduce", "spatial")
    ]
    streams = [["stem.0.0"], ["layer1.0.expand.0"], ["layer2.0.expand.0"]]
    assert sorted(found_classes("resnet_bottleneck")) == sorted([*streams, inner])


def test_depthwise_is_not_grouped_is_not_dense() -> None:
    def block(groups: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, groups=groups))

    class Three(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList([block(1), block(8), block(8), block(1)])
            self.heads = nn.ModuleList([nn.Conv2d(8, 2, 1) for _ in range(4)])

        def forward(self, x: Tensor) -> Tensor:
            parts = zip(self.blocks, self.heads, strict=True)
            return sum(head(b(x)).mean((2, 3)) for b, head in parts)

    graph = secateur.trace(Three().eval(), torch.zeros(1, 3, 5, 5))
    found = classes(graph, "isomorphic", [group.name for group in graph.groups])
    assert sorted(found) == [
        ["blocks.0.0", "blocks.0.1", "blocks.3.0", "blocks.3.1"],
        ["blocks.1.0", "blocks.2.0"],
    ]


@pytest.fixture(scope="module")
def resnet() -> secateur.Graph:
    torch.manual_seed(0)
    return secateur.trace(cifar_resnet(depth=20).eval(), torch.zeros(1, 3, 16, 16))


@pytest.mark.parametrize("hundredths", [10, 29, 50, 70])
def test_every_class_gives_up_the_same_share(resnet: secateur.Graph, hundredths: int) -> None:
    scores = secateur.score(resnet, "random", seed=1)
    plan = secateur.allocate(resnet, scores, sparsity=hundredths / 100, scope="isomorphic")
    inner = [f"layer{stage}.{block}.conv1" for stage in (1, 2, 3) for block in (0, 1, 2)]
    assert inner in classes(resnet, "isomorphic", [g.name for g in resnet.groups])
    assert not plan.given_back
    sizes = {group.name: group.size for group in resnet.groups}
    total = sum(sizes[name] for name in inner)
    wanted = math.floor(Fraction(hundredths, 100) * total)
    assert sum(len(plan.removed.get(name, ())) for name in inner) == wanted
    # Within the class the lowest go, relative to each group's mean.
    values = {
        (name, unit): float(v) / float(scores[name].mean())
        for name in inner
        for unit, v in enumerate(scores[name])
    }
    lowest = sorted(values, key=values.__getitem__)[:wanted]
    assert {(n, u) for n in inner for u in plan.removed.get(n, ())} == set(lowest)
    for name in ("conv1",):
        alone = math.floor(Fraction(hundredths, 100) * sizes[name])
        assert len(plan.removed.get(name, ())) == alone


@pytest.mark.parametrize("target", ["macs", "params"])
def test_isomorphic_targets_cut_all_classes_at_one_pace(
    resnet: secateur.Graph, target: str
) -> None:
    scores = secateur.score(resnet, "random", seed=1)
    plan = secateur.allocate(resnet, scores, scope="isomorphic", **{target: 0.4})
    assert getattr(plan.pruned, target) <= 0.4 * getattr(plan.dense, target)
    sizes = {group.name: group.size for group in resnet.groups}
    paces = []
    for names in classes(resnet, "isomorphic", list(sizes)):
        total = sum(sizes[name] for name in names)
        paces.append((sum(len(plan.removed.get(n, ())) for n in names) / total, 1 / total))
    fastest = max(share for share, _ in paces)
    assert all(share + step >= fastest - 1e-9 for share, step in paces)
