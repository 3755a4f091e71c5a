"""From elements to units: sums over slots, aggregation and normalisation, by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import secateur
from secateur.criteria.combine import AGGREGATIONS, SlotSums, fold, normalise, places
from secateur.errors import InputError

ROWS = torch.tensor([[1.0, -5.0, 2.0], [3.0, 4.0, -8.0]], dtype=torch.float64)


@pytest.mark.parametrize(
    ("aggregation", "wanted"),
    [
        ("sum", [4.0, -1.0, -6.0]),
        ("mean", [2.0, -0.5, -3.0]),
        ("max", [3.0, 4.0, 2.0]),
        ("first", [1.0, -5.0, 2.0]),
    ],
)
def test_slots_become_one_number(aggregation: str, wanted: list[float]) -> None:
    before = ROWS.clone()
    assert AGGREGATIONS[aggregation](ROWS).tolist() == wanted
    assert fold(iter(ROWS), aggregation).tolist() == wanted
    assert torch.equal(before, ROWS)


def test_folding_the_first_reads_no_other() -> None:
    rows = iter(ROWS)
    fold(rows, "first")
    assert next(rows).tolist() == ROWS[1].tolist()


@pytest.mark.parametrize(
    ("normalisation", "wanted"),
    [
        ("none", [3.0, -4.0, 0.0, 3.0]),
        ("mean", [1.2, -1.6, 0.0, 1.2]),
        ("max", [0.75, -1.0, 0.0, 0.75]),
        ("l2", [3 / 34**0.5, -4 / 34**0.5, 0.0, 3 / 34**0.5]),
        ("rank", [2 / 3, 0.0, 1 / 3, 1.0]),
    ],
)
def test_scores_are_put_on_a_common_scale(normalisation: str, wanted: list[float]) -> None:
    values = torch.tensor([3.0, -4.0, 0.0, 3.0], dtype=torch.float64)
    assert normalise(values, normalisation).tolist() == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize("normalisation", ["none", "mean", "max", "l2"])
def test_zeros_stay_zeros(normalisation: str) -> None:
    assert normalise(torch.zeros(3), normalisation).tolist() == [0, 0, 0]


def test_a_single_unit_has_rank_zero() -> None:
    assert normalise(torch.ones(1), "rank").tolist() == [0]
    assert normalise(torch.ones(0), "rank").tolist() == []


class Joined(nn.Module):
    """One reader of two producers and of the input itself."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 2), nn.Linear(3, 3)
        self.c = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.cat([self.a(x), x, self.b(x)], 1))


@pytest.fixture
def graph() -> secateur.Graph:
    return secateur.trace(Joined(), torch.randn(2, 3))


def test_positions_of_others_do_not_count(graph: secateur.Graph) -> None:
    reader = torch.arange(32.0).view(4, 8)
    found = SlotSums(graph)({"c.weight": reader})
    assert found["a"].tolist() == [0 + 8 + 16 + 24, 1 + 9 + 17 + 25]
    assert found["b"].tolist() == [5 + 13 + 21 + 29, 6 + 14 + 22 + 30, 7 + 15 + 23 + 31]


def test_vectors_count_unless_weights_alone_are_asked_for(graph: secateur.Graph) -> None:
    ones = {name: torch.ones_like(p) for name, p in graph.model.named_parameters()}
    assert SlotSums(graph)(ones)["a"].tolist() == [3 + 1 + 4] * 2
    assert SlotSums(graph, weights_only=True)(ones)["a"].tolist() == [3 + 4] * 2
    assert SlotSums(graph, aggregation="mean")(ones)["a"].tolist() == [8 / 3] * 2


def test_groups_without_any_of_the_wanted_parameters_are_left_out(graph: secateur.Graph) -> None:
    found = places(graph, among={"a.bias"})
    assert {name: [slot.parameter for slot in slots] for name, slots in found.items()} == {
        "a": ["a.bias"]
    }


def test_half_precision_is_summed_in_single() -> None:
    graph = secateur.trace(nn.Sequential(nn.Linear(4096, 2), nn.Linear(2, 2)), torch.randn(1, 4096))
    found = SlotSums(graph)({"0.weight": torch.full((2, 4096), 100.0, dtype=torch.float16)})
    assert found["0"].tolist() == [409600.0] * 2


@pytest.mark.parametrize(("argument", "word"), [("aggregation", "median"), ("normalisation", "z")])
def test_unknown_names_list_the_choices(graph: secateur.Graph, argument: str, word: str) -> None:
    with pytest.raises(InputError, match=rf"{argument} must be one of .*max.*, but got '{word}'"):
        secateur.score(graph, "l2", **{argument: word})
