"""Weight criteria against slow loops over index sets that a person wrote down."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import secateur
from secateur.criteria import Context, Criterion
from secateur.criteria.weights import squared_distances
from secateur.errors import InputError

# (parameter, one index per dimension; ":" for all)
Places = list[tuple[str, tuple[int | slice, ...]]]
ALL = slice(None)


class Joined(nn.Module):
    """Convolutions, a depthwise one, a norm, a join and a flattened reader."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.deep = nn.Conv2d(4, 4, 3, padding=1, groups=4)
        self.b = nn.Conv2d(3, 2, 1)
        self.head = nn.Linear(6 * 4, 5)

    def forward(self, x: Tensor) -> Tensor:
        left = self.deep(F.relu(self.norm(self.a(x))))
        return self.head(torch.cat([left, self.b(x)], 1).flatten(1))


def weights_of(group: str, unit: int) -> Places:
    """Return the weights of a unit: tensors of two or more dimensions in the group's slots."""
    if group == "a":
        columns = range(unit * 4, unit * 4 + 4)
        return [
            ("a.weight", (unit, ALL, ALL, ALL)),
            ("deep.weight", (unit, ALL, ALL, ALL)),
            *(("head.weight", (ALL, column)) for column in columns),
        ]
    columns = range(16 + unit * 4, 16 + unit * 4 + 4)
    return [
        ("b.weight", (unit, ALL, ALL, ALL)),
        *(("head.weight", (ALL, column)) for column in columns),
    ]


def elements(model: nn.Module, places: Places) -> Iterator[float]:
    """Yield every element of the places, one by one."""
    parameters = dict(model.named_parameters())
    for name, index in places:
        yield from parameters[name].detach()[index].reshape(-1).tolist()


@pytest.fixture
def graph() -> secateur.Graph:
    torch.manual_seed(0)
    model = Joined().double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    return secateur.trace(model, torch.randn(2, 3, 2, 2, dtype=torch.float64))


SLOW: dict[str, Callable[[list[float]], float]] = {
    "l1": lambda values: math.fsum(abs(v) for v in values),
    "l2": lambda values: math.sqrt(math.fsum(v * v for v in values)),
}


@pytest.mark.parametrize("name", SLOW)
def test_scores_are_those_of_a_slow_loop(graph: secateur.Graph, name: str) -> None:
    scores = secateur.score(graph, name)
    assert {key: len(value) for key, value in scores.items()} == {"a": 4, "b": 2}
    for group, values in scores.items():
        assert values.dtype == torch.float64
        assert values.device.type == "cpu"
        assert not values.requires_grad
        for unit, found in enumerate(values.tolist()):
            wanted = SLOW[name](list(elements(graph.model, weights_of(group, unit))))
            assert found == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize("name", SLOW)
def test_vectors_do_not_count_where_there_are_matrices(graph: secateur.Graph, name: str) -> None:
    before = secateur.score(graph, name)
    with torch.no_grad():
        for vector in (graph.model.a.bias, graph.model.norm.weight, graph.model.norm.bias):
            vector.mul_(100)
    after = secateur.score(graph, name)
    assert all(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize("name", SLOW)
def test_a_larger_unit_scores_higher(graph: secateur.Graph, name: str) -> None:
    before = secateur.score(graph, name)["a"]
    with torch.no_grad():
        graph.model.a.weight[2] *= 10
    after = secateur.score(graph, name)["a"]
    assert after[2] > before[2]
    assert torch.equal(after[[0, 1, 3]], before[[0, 1, 3]])


def test_a_zero_unit_scores_zero(graph: secateur.Graph) -> None:
    with torch.no_grad():
        graph.model.b.weight[1] = 0
        graph.model.head.weight[:, 20:24] = 0
    for name in SLOW:
        assert secateur.score(graph, name)["b"][1] == 0
        assert secateur.score(graph, name)["b"][0] > 0


def test_float32_weights_give_float64_scores() -> None:
    graph = secateur.trace(Joined().eval(), torch.randn(2, 3, 2, 2))
    assert all(v.dtype == torch.float64 for v in secateur.score(graph, "l2").values())


def test_a_grouped_convolution_sums_over_all_positions_of_a_unit() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 6, 1, groups=2), nn.Conv2d(6, 2, 1))
    model = model.double().eval()
    graph = secateur.trace(model, torch.randn(1, 3, 2, 2, dtype=torch.float64))
    first, grouped, last = (model[i].weight.detach() for i in range(3))
    scores = secateur.score(graph, "l1")
    found = {group.size: scores[group.name].tolist() for group in graph.groups if group.size == 3}
    wanted = [
        sum(
            float(grouped[g * 3 + unit].abs().sum() + last[:, g * 3 + unit].abs().sum())
            for g in range(2)
        )
        for unit in range(3)
    ]
    assert found[3] == pytest.approx(wanted)
    assert first.numel() == 12


STATISTICS: dict[str, Callable[[list[float]], float]] = {
    "mean": lambda values: math.fsum(values) / len(values),
    "mean_abs": lambda values: math.fsum(abs(v) for v in values) / len(values),
    "max": max,
    "max_abs": lambda values: max(abs(v) for v in values),
    "min": min,
    "min_abs": lambda values: min(abs(v) for v in values),
}
OVER_SLOTS: dict[str, Callable[[list[float]], float]] = {
    "sum": math.fsum,
    "mean": lambda values: math.fsum(values) / len(values),
    "max": max,
    "first": lambda values: values[0],
}


@pytest.mark.parametrize("aggregation", OVER_SLOTS)
@pytest.mark.parametrize("statistic", STATISTICS)
def test_statistics_are_taken_in_each_slot(
    graph: secateur.Graph, statistic: str, aggregation: str
) -> None:
    scores = secateur.score(
        graph, "weight_statistic", aggregation=aggregation, options={"statistic": statistic}
    )
    for group, values in scores.items():
        for unit, found in enumerate(values.tolist()):
            slots: dict[str, list[float]] = {}
            for place in weights_of(group, unit):
                slots.setdefault(place[0], []).extend(elements(graph.model, [place]))
            each = [STATISTICS[statistic](slot) for slot in slots.values()]
            assert found == pytest.approx(OVER_SLOTS[aggregation](each), rel=1e-12)


def test_an_unknown_statistic_lists_the_choices(graph: secateur.Graph) -> None:
    with pytest.raises(InputError, match=r"max_abs, mean, .*got 'median'"):
        secateur.score(graph, "weight_statistic", options={"statistic": "median"})


def test_distances_to_the_other_units_are_those_of_a_slow_loop(graph: secateur.Graph) -> None:
    scores = secateur.score(graph, "fpgm")
    for group, values in scores.items():
        rows = [list(elements(graph.model, weights_of(group, u))) for u in range(len(values))]
        wanted = [math.fsum(math.dist(row, other) for other in rows) for row in rows]
        assert values.tolist() == pytest.approx(wanted, rel=1e-12)


def test_distances_may_be_of_one_slot_alone(graph: secateur.Graph) -> None:
    scores = secateur.score(graph, "fpgm", aggregation="first")
    rows = [graph.model.a.weight[u].reshape(-1).tolist() for u in range(4)]
    wanted = [math.fsum(math.dist(row, other) for other in rows) for row in rows]
    assert scores["a"].tolist() == pytest.approx(wanted, rel=1e-12)


def test_the_unit_between_the_others_goes_first() -> None:
    """Not the smallest: the nearest to the geometric median."""
    model = nn.Sequential(nn.Linear(1, 3, bias=False), nn.Linear(3, 1, bias=False)).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0], [5.0], [8.0]]))
        model[1].weight.fill_(1)
    graph = secateur.trace(model, torch.randn(1, 1, dtype=torch.float64))
    assert secateur.score(graph, "fpgm")["0"].tolist() == [4 + 7, 4 + 3, 7 + 3]
    assert secateur.score(graph, "l2")["0"].argmin() == 0


def test_distances_of_rows_that_lie_close_together() -> None:
    torch.manual_seed(0)
    rows = torch.randn(6, 40, dtype=torch.float64) * 1e3
    rows[1] = rows[0]
    rows[2] = rows[0] + 1e-7
    rows[4] = rows[3] * (1 + 1e-9)
    found = squared_distances(rows)
    for unit, row in enumerate(rows.tolist()):
        wanted = [
            math.fsum((a - b) ** 2 for a, b in zip(row, r, strict=True)) for r in rows.tolist()
        ]
        assert found[unit].tolist() == pytest.approx(wanted, rel=1e-7, abs=0)
    assert found[0, 1] == 0 < found[0, 2]


def test_units_that_are_alike_are_at_no_distance() -> None:
    model = nn.Sequential(nn.Linear(50, 4), nn.Linear(4, 3))
    with torch.no_grad():
        model[0].weight.copy_(model[0].weight[:1].clone().expand(4, 50))
        model[1].weight.copy_(model[1].weight[:, :1].clone().expand(3, 4))
    graph = secateur.trace(model, torch.randn(1, 50))
    with pytest.raises(InputError, match="same score"):
        secateur.score(graph, "fpgm")


def test_lamp_is_the_share_of_what_is_not_smaller(graph: secateur.Graph) -> None:
    scores = secateur.score(graph, "lamp")
    for group, values in scores.items():
        squares = [
            math.fsum(v * v for v in elements(graph.model, weights_of(group, u)))
            for u in range(len(values))
        ]
        wanted = [s / math.fsum(other for other in squares if other >= s) for s in squares]
        assert values.tolist() == pytest.approx(wanted, rel=1e-12)
        assert float(values.max()) == 1


def test_lamp_gives_equal_units_the_same() -> None:
    model = nn.Sequential(nn.Linear(1, 4, bias=False), nn.Linear(4, 1, bias=False)).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[2.0], [-2.0], [0.0], [1.0]]))
        model[1].weight.zero_()
    graph = secateur.trace(model, torch.randn(1, 1, dtype=torch.float64))
    assert secateur.score(graph, "lamp")["0"].tolist() == [1 / 2, 1 / 2, 0, 1 / 9]


def test_an_unknown_criterion_lists_the_choices(graph: secateur.Graph) -> None:
    with pytest.raises(
        InputError, match=r"l1, l2.*random.*taylor.*got 'tailor'; did you mean 'taylor'"
    ):
        secateur.score(graph, "tailor")


def test_a_criterion_of_ones_own_is_used(graph: secateur.Graph) -> None:
    def by_number(graph: secateur.Graph, context: Context) -> dict[str, Tensor]:
        return {g.name: torch.arange(g.size) * float(context.seed) for g in graph.groups}

    scores = secateur.score(graph, Criterion("mine", by_number), seed=2)
    assert scores["a"].tolist() == [0, 2, 4, 6]


def test_scores_that_are_not_finite_are_refused(graph: secateur.Graph) -> None:
    with torch.no_grad():
        graph.model.a.weight[0, 0, 0, 0] = math.nan
    with pytest.raises(InputError, match="'l2' gives scores that are not finite in a"):
        secateur.score(graph, "l2")


@pytest.mark.parametrize("name", ["l1", "l2", "lamp"])
@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("size", [1e-4, 1.0, 200.0])
def test_half_precision_neither_underflows_nor_overflows(
    name: str, kind: torch.dtype, size: float
) -> None:
    torch.manual_seed(0)
    wide = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 4)).eval()
    with torch.no_grad():
        for parameter in wide.parameters():
            parameter.copy_((parameter * size / parameter.abs().max()).to(kind))
    half = copy.deepcopy(wide).to(kind)
    wanted = secateur.score(secateur.trace(wide, torch.randn(2, 64)), name)
    found = secateur.score(secateur.trace(half, torch.randn(2, 64, dtype=kind)), name)
    assert found.keys() == wanted.keys()
    for group, values in wanted.items():
        assert bool((values > 0).all())
        torch.testing.assert_close(found[group], values, rtol=1e-6, atol=0)
