"""Mixed orders against lists that were worked out by hand, turn by turn."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

import pytest
import torch
from torch import Tensor, nn

import secateur
from secateur.criteria import Context, Criterion, delta, interleave, weighted
from secateur.criteria.orders import delta_lists, interleave_lists, weighted_lists
from secateur.errors import InputError

RELEVANCE = [4, 0, 3, 1, 2]
PARAMETERS = [1, 4, 2, 3, 0]


def test_interleaved_by_hand() -> None:
    """Turns: 4 1 | 0 4 | 3 2 | 1 3 | 2 0; the second 4, 1, 3, 2 and 0 are dropped."""
    assert interleave_lists([RELEVANCE, PARAMETERS]) == [4, 1, 0, 3, 2]


def test_three_orders_take_turns_by_hand() -> None:
    """Turns: a c b | b c a | c a b."""
    assert interleave_lists(["abc", "cba", "bca"]) == ["a", "c", "b"]
    # Turns: 1 2 4 | 2 ...: the repeated 2 is dropped, then 3.
    assert interleave_lists([[1, 2, 3, 4], [2, 3, 1, 4], [4, 3, 2, 1]]) == [1, 2, 4, 3]


def test_delta_a_quarter_by_hand() -> None:
    """Accumulators (3/4, 1/4 a turn), parameters first.

    turn 1: 3/4, 1/4
    turn 2: 6/4 -> parameters emit 1, left 2/4; 2/4
    turn 3: 5/4 -> 4, left 1/4; 3/4
    turn 4: 4/4 -> 2, left 0; 4/4 -> relevance: 4 is out, so 0; left 0
    turn 5: 3/4, 1/4
    turn 6: 6/4 -> 3
    """
    assert delta_lists(PARAMETERS, RELEVANCE, 0.25) == [1, 4, 2, 0, 3]


def test_delta_a_half_by_hand() -> None:
    """Both reach 1 in turns 2, 4, 6: 1, 4 | (4 is out) 2, 0 | 3."""
    assert delta_lists(PARAMETERS, RELEVANCE, 0.5) == [1, 4, 2, 0, 3]


def test_delta_seven_tenths_by_hand() -> None:
    """Accumulators (3/10, 7/10 a turn).

    turn 1: 3, 7
    turn 2: 6, 14 -> relevance 4, left 4
    turn 3: 9, 11 -> 0, left 1
    turn 4: 12 -> parameters 1, left 2; 8
    turn 5: 5, 15 -> relevance 3, left 5
    turn 6: 8, 12 -> 2 (1 is out)
    """
    assert delta_lists(PARAMETERS, RELEVANCE, 0.7) == [4, 0, 1, 3, 2]


@pytest.mark.parametrize("half", [0.5, "0.5", "1/2", Fraction(1, 2), Decimal("0.5")])
def test_delta_takes_any_way_to_write_a_number(half: float) -> None:
    assert delta_lists(PARAMETERS, RELEVANCE, half) == [1, 4, 2, 0, 3]


def test_the_ends_are_one_order_alone() -> None:
    for none, one in ((0, 1), (0.0, 1.0), ("0", "1")):
        assert delta_lists(PARAMETERS, RELEVANCE, none) == PARAMETERS
        assert delta_lists(PARAMETERS, RELEVANCE, one) == RELEVANCE


@pytest.mark.parametrize("tenths", range(11))
def test_tenths_are_exact_over_a_thousand_turns(tenths: int) -> None:
    """Of disjoint prefixes each order has exactly its share after every ten turns.

    Both orders hold 0..3999; the second goes backwards, so that in 1,000 turns they never meet.
    """
    first, second = list(range(4000)), list(range(3999, -1, -1))
    mixed = delta_lists(first, second, tenths / 10)
    for turns in range(10, 1001, 10):
        out = mixed[:turns]
        assert sum(item >= 2000 for item in out) * 10 == turns * tenths
        assert [i for i in out if i < 2000] == first[: turns - turns * tenths // 10]
    # Turn by turn: floor(turn x share) are out, which sums of binary fractions get wrong.
    expected = []
    for turn in range(1, 1001):
        for share, items in ((10 - tenths, first), (tenths, second)):
            before, after = (turn - 1) * share // 10, turn * share // 10
            expected.extend(items[before:after])
    assert mixed[:1000] == expected[:1000]


def test_ten_times_a_tenth_is_one() -> None:
    """A float accumulator holds 0.9999999999999999 after ten turns."""
    assert sum([0.1] * 10) < 1
    mixed = delta_lists(list(range(30)), list(range(29, -1, -1)), 0.1)
    # 0.9 a turn: nothing in turn 1, then 0..8 in turns 2 to 10, and in turn 10 the second's 29.
    assert mixed[:11] == [0, 1, 2, 3, 4, 5, 6, 7, 8, 29, 9]


def test_three_weights_by_hand() -> None:
    """Accumulators (1/2, 1/4, 1/4 a turn).

    turn 2: first emits a, left 0; 2/4; 2/4
    turn 4: first b; second: d; third: c
    """
    assert weighted_lists(["abcd", "dcba", "cdab"], [0.5, 0.25, 0.25]) == ["a", "b", "d", "c"]


def test_thirds_are_exact_as_fractions() -> None:
    third = Fraction(1, 3)
    orders = [[1, 2, 3, 4, 5, 6], [6, 5, 4, 3, 2, 1], [3, 4, 1, 2, 5, 6]]
    assert weighted_lists(orders, [third] * 3) == [1, 6, 3, 2, 5, 4]
    assert weighted_lists(orders, ["1/3"] * 3) == [1, 6, 3, 2, 5, 4]


def test_two_weights_are_delta() -> None:
    for tenths in range(11):
        share = Fraction(tenths, 10)
        found = weighted_lists([PARAMETERS, RELEVANCE], [1 - share, share])
        assert found == delta_lists(PARAMETERS, RELEVANCE, share)


@pytest.mark.parametrize(
    ("delta", "words"),
    [
        (1.1, "delta must satisfy 0 <= delta <= 1, but got 1.1"),
        (-0.1, "delta must satisfy 0 <= delta <= 1, but got -0.1"),
        ("much", "delta must be a number from 0 to 1, but got 'much'"),
        (float("nan"), "delta must be a number from 0 to 1, but got nan"),
    ],
)
def test_a_bad_delta_is_refused(delta: float, words: str) -> None:
    with pytest.raises(InputError, match=words):
        delta_lists(PARAMETERS, RELEVANCE, delta)


def test_bad_lists_and_weights_are_refused() -> None:
    with pytest.raises(InputError, match="at least one order"):
        interleave_lists([])
    with pytest.raises(InputError, match="order 1 repeats one"):
        interleave_lists([[1, 2], [1, 1]])
    with pytest.raises(InputError, match="order 1 lists others"):
        delta_lists([1, 2], [1, 3], 0.5)
    with pytest.raises(InputError, match=r"weights must sum to 1 exactly, but sum to 0\.9"):
        weighted_lists([[1], [1]], [0.5, 0.4])
    with pytest.raises(InputError, match="weights must be one an order, but got 2 for 1"):
        weighted_lists([[1]], [0.5, 0.5])


# A network of two groups: "0" of three units and "2" of two.
def fixed(name: str, first: list[float], second: list[float], data: bool = False) -> Criterion:
    def scores(graph: secateur.Graph, context: Context) -> dict[str, Tensor]:
        return {
            "0": torch.tensor(first, dtype=torch.float64),
            "2": torch.tensor(second, dtype=torch.float64),
        }

    return Criterion(name, scores, data)


@pytest.fixture
def graph() -> secateur.Graph:
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2), nn.Linear(2, 2))
    found = secateur.trace(model.eval(), torch.randn(1, 2))
    assert {group.name: group.size for group in found.groups} == {"0": 3, "2": 2}
    return found


A = fixed("a", [1, 5, 3], [2, 4])  # order: 0.0, 2.0, 0.2, 2.1, 0.1
B = fixed("b", [4, 2, 2], [9, 1])  # order: 2.1, 0.1, 0.2 (a tie), 0.0, 2.0


def places(scores: dict[str, Tensor]) -> dict[str, list[float]]:
    return {name: values.tolist() for name, values in scores.items()}


def test_scores_are_places_in_one_order_of_all_units(graph: secateur.Graph) -> None:
    """Interleaved: 0.0 2.1 | 2.0 0.1 | 0.2."""
    found = secateur.score(graph, interleave(A, B, normalisation="none"))
    assert places(found) == {"0": [0, 3, 4], "2": [2, 1]}
    # Delta 1/4: turn 2 A 0.0; turn 3 A 2.0; turn 4 A 0.2, B 2.1; turn 6 A 0.1.
    found = secateur.score(graph, delta(A, B, 0.25, normalisation="none"))
    assert places(found) == {"0": [0, 4, 2], "2": [1, 3]}


def test_local_scope_mixes_each_group_by_itself(graph: secateur.Graph) -> None:
    """Group "0": A 0 2 1, B 1 2 0 (tie) -> 0 1 2; group "2": A 0 1, B 1 0 -> 0 1."""
    found = secateur.score(graph, interleave(A, B, scope="local"))
    assert places(found) == {"0": [0, 1, 2], "2": [0, 1]}
    turned = secateur.score(graph, interleave(B, A), options={"scope": "local"})
    assert places(turned) == {"0": [1, 0, 2], "2": [1, 0]}


def test_groups_stand_in_one_order_after_normalisation(graph: secateur.Graph) -> None:
    """By means: A has 1/3 5/3 3/3 and 2/3 4/3; a group a hundred times larger changes nothing."""
    larger = fixed("larger", [1, 5, 3], [200, 400])
    found = secateur.score(graph, delta(larger, B, 0))
    assert places(found) == {"0": [0, 4, 2], "2": [1, 3]}
    plain = secateur.score(graph, delta(larger, B, 0, normalisation="none"))
    assert places(plain) == {"0": [0, 2, 1], "2": [3, 4]}


@pytest.mark.parametrize("count", range(4))
def test_global_allocation_follows_the_order(graph: secateur.Graph, count: int) -> None:
    """Removed by the order 0.0 2.1 2.0 0.1 0.2, where a group's last unit stays: 2.0 does."""
    scores = secateur.score(graph, interleave(A, B, normalisation="none"))
    plan = secateur.allocate(
        graph, scores, sparsity=count / 5, scope="global", normalisation="none"
    )
    leaving = [("0", 0), ("2", 1), ("0", 1)][:count]
    assert {(g, u) for g, units in plan.removed.items() for u in units} == set(leaving)


def test_local_allocation_follows_the_order(graph: secateur.Graph) -> None:
    scores = secateur.score(graph, interleave(B, A, scope="local"))
    plan = secateur.allocate(graph, scores, sparsity=0.7, scope="local")
    assert plan.removed == {"0": (1, 0), "2": (1,)}


def test_a_delta_at_its_end_is_the_criterion_itself_in_global_scope(graph: secateur.Graph) -> None:
    alone = secateur.allocate(graph, secateur.score(graph, A), sparsity=0.6, scope="global")
    mixed = secateur.score(graph, delta(A, B, 0))
    plan = secateur.allocate(graph, mixed, sparsity=0.6, scope="global", normalisation="none")
    assert plan.removed == alone.removed


def test_more_than_two_and_mixtures_of_mixtures(graph: secateur.Graph) -> None:
    c = fixed("c", [3, 1, 2], [1, 1])
    found = secateur.score(graph, weighted([A, B, c], [1, 0, 0], normalisation="none"))
    assert places(found) == {"0": [0, 4, 2], "2": [1, 3]}
    inner = interleave(A, B, normalisation="none")
    nested = secateur.score(graph, delta(inner, c, 0, normalisation="none"))
    assert places(nested) == places(secateur.score(graph, inner))


def test_groups_that_one_criterion_leaves_out_are_left_out(graph: secateur.Graph) -> None:
    part = Criterion("part", lambda graph, context: {"0": torch.tensor([3.0, 1.0, 2.0])})
    assert set(secateur.score(graph, interleave(A, part))) == {"0"}


def test_names_and_data_pass_through(graph: secateur.Graph) -> None:
    assert interleave("l1", "taylor").needs_calibration
    assert not interleave("l1", "random").needs_calibration
    with pytest.raises(InputError, match=r"'interleave \(l1, taylor\)' needs calibration"):
        secateur.score(graph, interleave("l1", "taylor"))
    batch = (torch.randn(4, 2), torch.tensor([0, 1, 1, 0]))
    found = secateur.score(graph, interleave("l1", "taylor"), [batch])
    assert sorted(place for values in found.values() for place in values.tolist()) == list(range(5))


def test_bad_mixtures_are_refused_before_any_work() -> None:
    with pytest.raises(InputError, match="at least two criteria, but got 1"):
        interleave("l1")
    with pytest.raises(InputError, match="criterion must be one of"):
        interleave("l1", "l7")
    with pytest.raises(InputError, match="scope must be one of global, local, but got 'all'"):
        interleave("l1", "l2", scope="all")
    with pytest.raises(InputError, match="normalisation must be one of"):
        delta("l1", "l2", 0.5, normalisation="most")
