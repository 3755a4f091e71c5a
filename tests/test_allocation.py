"""Who goes and how many: floors, targets met within one unit, rounding, scopes, bad input."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import pytest
import torch
from exactness import count
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import secateur
from secateur.errors import InputError, PlanError
from secateur.models import animals_cnn


def chain(*widths: int) -> secateur.Graph:
    """Dense layers 3 -> widths -> 2; the group of the k-th width is "2k"."""
    layers: list[nn.Module] = []
    for inputs, outputs in zip((3, *widths), (*widths, 2), strict=True):
        layers += [nn.Linear(inputs, outputs), nn.Tanh()]
    return secateur.trace(nn.Sequential(*layers[:-1]).eval(), torch.zeros(1, 3))


SIZES = (2, 3, 7, 10, 16, 30, 64, 100)
GRAPH = chain(*SIZES)


def scored(graph: secateur.Graph, seed: int = 0) -> dict[str, Tensor]:
    return secateur.score(graph, "random", seed=seed)


def removed(plan: secateur.Plan) -> dict[str, int]:
    return {name: len(units) for name, units in plan.removed.items()}


# --- sparsity, local scope ---


@pytest.mark.parametrize("hundredths", [0, 1, 10, 29, 30, 50, 57, 58, 70, 90, 95, 99])
def test_local_removes_the_floor_and_never_the_last(hundredths: int) -> None:
    """Counted in fractions: 0.29 x 100 and 0.7 x 10 fall short as floats."""
    plan = secateur.allocate(GRAPH, scored(GRAPH), sparsity=hundredths / 100)
    for group in GRAPH.groups:
        wanted = min(group.size * hundredths // 100, group.size - 1)
        assert len(plan.removed.get(group.name, ())) == wanted, group


@settings(max_examples=60, deadline=None)
@given(size=st.integers(2, 200), hundredths=st.integers(0, 99))
def test_the_floor_is_that_of_the_exact_fraction(size: int, hundredths: int) -> None:
    graph = chain(size)
    plan = secateur.allocate(graph, scored(graph), sparsity=hundredths / 100)
    exact = math.floor(Fraction(hundredths, 100) * size)
    assert removed(plan) == ({"0": exact} if exact else {})


@pytest.mark.parametrize("scope", ["local", "global"])
def test_the_last_unit_stays_however_close_to_one(scope: str) -> None:
    for sparsity in (1 - 1e-12, math.nextafter(1.0, 0.0)):
        plan = secateur.allocate(GRAPH, scored(GRAPH), sparsity=sparsity, scope=scope)
        assert all(len(plan.removed[g.name]) == g.size - 1 for g in GRAPH.groups)


def test_the_lowest_scores_go_and_the_earlier_of_equals() -> None:
    graph = chain(6)
    plan = secateur.allocate(graph, {"0": torch.tensor([3.0, 1, 2, 1, 9, 1])}, sparsity=0.5)
    assert plan.removed == {"0": (1, 3, 5)}
    plan = secateur.allocate(graph, {"0": torch.tensor([3.0, 1, 2, 1, 9, 1])}, sparsity=0.7)
    assert plan.removed == {"0": (1, 3, 5, 2)}


def test_groups_without_scores_stay_whole() -> None:
    scores = scored(GRAPH)
    name = GRAPH.groups[3].name
    plan = secateur.allocate(GRAPH, {name: scores[name]}, sparsity=0.5)
    assert removed(plan) == {name: 5}


# --- the published counts ---


@pytest.fixture(scope="module")
def animals() -> tuple[nn.Module, secateur.Graph]:
    torch.manual_seed(0)
    model = animals_cnn().eval()
    return model, secateur.trace(model, torch.randn(2, 3, 100, 100))


@pytest.mark.parametrize(
    ("sparsity", "wanted"),
    [(0.0, 5_011_242), (0.3, 3_465_462), (0.5, 2_436_122), (0.7, 1_469_515), (0.9, 486_607)],
)
def test_the_animals_network_has_the_published_counts(
    animals: tuple[nn.Module, secateur.Graph], sparsity: float, wanted: int
) -> None:
    """Published with 4 parameters a batch-norm channel: both running statistics count."""
    model, graph = animals
    scores = secateur.score(graph, "l2")
    channels = {group.name for group in graph.groups if group.kind == "channel"}
    assert len(channels) == 6
    plan = secateur.allocate(graph, {n: scores[n] for n in channels}, sparsity=sparsity)
    pruned = secateur.cut(model, plan)
    statistics = sum(buffer.numel() for name, buffer in pruned.named_buffers() if "running" in name)
    assert count(pruned) + statistics == wanted


# --- macs and params ---


def conv_chain() -> secateur.Graph:
    model = nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(),
        nn.Conv2d(12, 9, 3, stride=2), nn.ReLU(),
        nn.Conv2d(9, 10, 1), nn.ReLU(), nn.Flatten(), nn.Linear(90, 7), nn.ReLU(), nn.Linear(7, 4),
    )  # fmt: skip
    return secateur.trace(model.eval(), torch.zeros(1, 3, 8, 8))


CONVS = conv_chain()


@pytest.mark.parametrize("scope", ["local", "global"])
@pytest.mark.parametrize("target", ["macs", "params"])
@pytest.mark.parametrize("share", [0.999, 0.9, 0.75, 0.5, 0.25, 0.1])
def test_targets_are_met_from_below_within_one_unit(scope: str, target: str, share: float) -> None:
    """The unit that went last, of some group, would exceed the target if it came back."""
    for seed in range(5):
        plan = secateur.allocate(CONVS, scored(CONVS, seed), scope=scope, **{target: share})
        limit = share * getattr(plan.dense, target)
        assert getattr(plan.pruned, target) <= limit
        back = [
            getattr(CONVS.cost({**plan.removed, name: units[:-1]}), target)
            for name, units in plan.removed.items()
        ]
        assert max(back) > limit


@pytest.mark.parametrize("scope", ["local", "global"])
@pytest.mark.parametrize("target", ["macs", "params"])
def test_the_limit_is_sharp(scope: str, target: str) -> None:
    """A quarter of a parameter above a reachable cost is met by it, a quarter below is not."""
    for share in (0.8, 0.5, 0.2):
        plan = secateur.allocate(CONVS, scored(CONVS), scope=scope, **{target: share})
        reached, dense = getattr(plan.pruned, target), getattr(plan.dense, target)
        above, below = (reached + 0.25) / dense, (reached - 0.25) / dense
        again = secateur.allocate(CONVS, scored(CONVS), scope=scope, **{target: above})
        assert again == plan
        less = secateur.allocate(CONVS, scored(CONVS), scope=scope, **{target: below})
        assert getattr(less.pruned, target) < reached


@pytest.mark.parametrize("target", ["macs", "params"])
def test_the_whole_share_removes_nothing(target: str) -> None:
    plan = secateur.allocate(CONVS, scored(CONVS), **{target: 1.0})
    assert plan.removed == {}
    assert plan.pruned == plan.dense


@pytest.mark.parametrize("target", ["macs", "params"])
def test_local_targets_cut_all_groups_at_one_pace(target: str) -> None:
    plan = secateur.allocate(CONVS, scored(CONVS), **{target: 0.3})
    shares = [
        (len(plan.removed[group.name]) / group.size, 1 / group.size) for group in CONVS.groups
    ]
    pace = max(share for share, _ in shares)
    assert all(share + step >= pace - 1e-9 for share, step in shares)


@pytest.mark.parametrize("target", ["macs", "params"])
def test_a_target_out_of_reach_says_what_remains(target: str) -> None:
    least = CONVS.cost({g.name: tuple(range(g.size - 1)) for g in CONVS.groups})
    share = getattr(least, target) / getattr(CONVS.cost(), target)
    secateur.allocate(CONVS, scored(CONVS), **{target: share * 1.0001})
    with pytest.raises(PlanError, match=rf"{target}=.* cannot be met.*{share:.3f} of the {target}"):
        secateur.allocate(CONVS, scored(CONVS), **{target: share * 0.9})


# --- global scope ---


def greedy(graph: secateur.Graph, scores: dict[str, Tensor], units: int) -> dict[str, set[int]]:
    """Take the lowest score relative to its group's mean, again and again; the slow way."""
    left = {name: dict(enumerate(values.tolist())) for name, values in scores.items()}
    means = {name: sum(map(abs, values.tolist())) / len(values) for name, values in scores.items()}
    gone: dict[str, set[int]] = {}
    for _ in range(units):
        open_ = {name: values for name, values in left.items() if len(values) > 1}
        name = min(open_, key=lambda n: min(open_[n].values()) / means[n])
        unit = min(left[name], key=lambda u: left[name][u])
        del left[name][unit]
        gone.setdefault(name, set()).add(unit)
    return gone


@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.3, 0.5, 0.7, 0.9])
def test_global_takes_the_lowest_of_all(sparsity: float) -> None:
    graph = chain(5, 12, 30, 8)
    total = sum(group.size for group in graph.groups)
    for seed in range(4):
        scores = scored(graph, seed)
        plan = secateur.allocate(graph, scores, sparsity=sparsity, scope="global")
        number = min(int(sparsity * total + 1e-9), total - len(graph.groups))
        wanted = greedy(graph, scores, number)
        assert {name: set(units) for name, units in plan.removed.items()} == wanted


def test_global_compares_scores_relative_to_their_group() -> None:
    graph = chain(4, 4)
    small, large = torch.tensor([1.0, 1, 1, 5]), torch.tensor([400.0, 300, 500, 600])
    plan = secateur.allocate(graph, {"0": small, "2": large}, sparsity=0.375, scope="global")
    assert {name: set(units) for name, units in plan.removed.items()} == {"0": {0, 1, 2}}


def test_global_leaves_a_unit_in_every_group() -> None:
    graph = chain(4, 40)
    scores = {"0": torch.full((4,), 1e-9), "2": torch.ones(40)}
    scores["0"][3] = 1.0
    plan = secateur.allocate(graph, scores, sparsity=0.99, scope="global")
    assert removed(plan) == {"0": 3, "2": 39}


@pytest.mark.parametrize("hundredths", [29, 57, 58, 70])
def test_global_removes_the_floor_of_all_units(hundredths: int) -> None:
    graph = chain(50, 50)
    plan = secateur.allocate(graph, scored(graph), sparsity=hundredths / 100, scope="global")
    assert sum(removed(plan).values()) == hundredths


# --- round_to ---


@pytest.mark.parametrize("scope", ["local", "global"])
@pytest.mark.parametrize("round_to", [2, 4, 8])
@pytest.mark.parametrize("sparsity", [0.1, 0.5, 0.8])
def test_every_group_that_is_cut_keeps_a_multiple(
    scope: str, round_to: int, sparsity: float
) -> None:
    plan = secateur.allocate(
        GRAPH, scored(GRAPH), sparsity=sparsity, scope=scope, round_to=round_to
    )
    assert plan.removed
    for group in GRAPH.groups:
        gone = len(plan.removed.get(group.name, ()))
        assert gone == 0 or (group.size - gone) % round_to == 0
        if scope == "local":
            allowed = min(math.floor(sparsity * group.size + 1e-9), group.size - 1)
            best = max(
                (n for n in range(1, allowed + 1) if (group.size - n) % round_to == 0), default=0
            )
            assert gone == best


@pytest.mark.parametrize("target", ["macs", "params"])
def test_rounding_and_a_target_go_together(target: str) -> None:
    graph = chain(16, 30, 64)
    plan = secateur.allocate(graph, scored(graph), round_to=8, **{target: 0.5})
    limit = 0.5 * getattr(plan.dense, target)
    assert getattr(plan.pruned, target) <= limit
    back = []
    for group in graph.groups:
        units = plan.removed.get(group.name, ())
        kept = group.size - len(units)
        assert not units or kept % 8 == 0
        if units:
            fewer = max(0, len(units) - 8)
            back.append(getattr(graph.cost({**plan.removed, group.name: units[:fewer]}), target))
    assert max(back) > limit


# --- what the model's code needs ---


class Chunks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(3, 12)
        self.b, self.c = nn.Linear(6, 2), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.a(x).chunk(2, 1)
        return self.b(left) + self.c(right)


def test_what_had_to_stay_is_told() -> None:
    graph = secateur.trace(Chunks(), torch.zeros(2, 3))
    left = next(g.name for g in graph.groups if any(s.name == "b.weight" for s in g.slots))
    (right,) = {g.name for g in graph.groups} - {left}
    low = {left: torch.arange(6) / 100 + 0.01, right: torch.arange(6) + 10.0}
    plan = secateur.allocate(graph, low, sparsity=0.34, scope="global")
    assert sum(plan.given_back.values()) + sum(removed(plan).values()) == 4
    assert plan.given_back
    x = torch.randn(2, 3)
    assert secateur.verify(graph.model, secateur.cut(graph.model, plan), plan, x).ok


# --- bad input ---


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, "exactly one of sparsity, macs, params, latency must be given, but got none"),
        ({"sparsity": 0.5, "macs": 0.5}, "exactly one of .* but got sparsity, macs"),
        ({"sparsity": 1.0}, "sparsity must satisfy 0 <= sparsity < 1, but got 1.0"),
        ({"sparsity": -0.1}, "sparsity must satisfy 0 <= sparsity < 1, but got -0.1"),
        ({"sparsity": math.nan}, "sparsity must satisfy .* but got nan"),
        ({"macs": 0.0}, "macs must satisfy 0 < macs <= 1, but got 0.0"),
        ({"macs": 1.5}, "macs must satisfy 0 < macs <= 1, but got 1.5"),
        ({"params": math.nan}, "params must satisfy .* but got nan"),
        (
            {"sparsity": 0.5, "scope": "layer"},
            "scope must be one of local, global, isomorphic, but got 'layer'",
        ),
        ({"sparsity": 0.5, "round_to": 0}, "round_to must be at least 1, but got 0"),
    ],
)
def test_bad_targets_are_refused(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        secateur.allocate(CONVS, scored(CONVS), **arguments)


@pytest.mark.parametrize(
    ("scores", "words"),
    [
        ({"nobody": torch.zeros(3)}, "scores name the group 'nobody'"),
        ({"0": torch.zeros(3)}, r"scores of group '0' must have shape \(12,\), but got \(3,\)"),
        ({"0": torch.zeros(12, 1)}, r"must have shape \(12,\), but got \(12, 1\)"),
        ({"0": torch.full((12,), math.nan)}, "scores of group '0' must be finite"),
        ({"0": torch.full((12,), -math.inf)}, "scores of group '0' must be finite"),
    ],
)
def test_bad_scores_are_refused(scores: dict[str, Tensor], words: str) -> None:
    with pytest.raises(InputError, match=words):
        secateur.allocate(CONVS, scores, sparsity=0.5)


def test_nothing_to_cut_says_what_pins() -> None:
    graph = secateur.trace(nn.Linear(3, 4), torch.zeros(1, 3))
    with pytest.raises(PlanError, match="nothing can be cut; pinned by: the model's input; the mo"):
        secateur.allocate(graph, {}, sparsity=0.5)
