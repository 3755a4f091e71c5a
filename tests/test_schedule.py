"""Sparsity over progress: formulas written out again, ends to the bit, nothing ever comes back."""

from __future__ import annotations

import itertools
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secateur.errors import InputError
from secateur.schedule import SCHEDULES, Cubic, cubic, kept, sparsities

SHARES = st.floats(0, 0.999)


def test_linear_removes_the_same_number_each_round() -> None:
    assert sparsities("linear", 0.8, 4) == pytest.approx((0.2, 0.4, 0.6, 0.8))
    assert sparsities("linear", 0.9, 2, initial=0.5) == pytest.approx((0.7, 0.9))


def test_geometric_removes_the_same_share_of_what_is_left() -> None:
    found = sparsities("geometric", 1 - 0.8**5, 5)
    left = 1.0
    for share in found:
        left *= 0.8  # 20 % of the survivors go, as in the lottery ticket experiments
        assert 1 - share == pytest.approx(left)
    assert sparsities("geometric", 0.96, 2, initial=0.84) == pytest.approx((0.92, 0.96))


def test_one_shot_is_one_round() -> None:
    assert sparsities("one-shot", 0.7) == (0.7,)
    with pytest.raises(InputError, match="rounds must be 1 with the schedule 'one-shot'"):
        sparsities("one-shot", 0.7, 3)


def test_kept_is_the_rest() -> None:
    assert kept((0.25, 0.5)) == (0.75, 0.5)


def test_the_cubic_schedule_equals_its_formula() -> None:
    # Zhu and Gupta (2017), equation 1, with exact numbers: s_i, s_f, t_0, n, Delta t.
    initial, final, begin, number, every = Fraction(1, 10), Fraction(9, 10), 7, 12, 5
    rule = Cubic(0.9, begin=begin, end=begin + number * every, frequency=every, initial=0.1)
    for place in range(number + 1):
        step = begin + place * every
        exact = final + (initial - final) * (1 - Fraction(step - begin, number * every)) ** 3
        for later in range(every if place < number else 50):
            assert cubic(rule, step + later) == pytest.approx(float(exact), abs=1e-15)
    assert [cubic(rule, step) for step in range(begin)] == [0.0] * begin
    assert rule.updates == tuple(range(7, 68, 5))


def test_a_frequency_that_does_not_divide_still_ends_at_the_end() -> None:
    rule = Cubic(0.5, begin=0, end=10, frequency=4)
    assert rule.updates == (0, 4, 8, 10)
    values = [cubic(rule, step) for step in range(12)]
    assert values[9] == values[8] < values[10] == values[11] == 0.5
    changes = {step for step in range(1, 12) if values[step] != values[step - 1]}
    assert changes == {4, 8, 10}


@given(final=SHARES, start=st.floats(0, 1), begin=st.integers(0, 50), length=st.integers(1, 200),
       every=st.integers(1, 60))  # fmt: skip
def test_gradual_pruning_never_gives_back_and_ends_exactly(
    final: float, start: float, begin: int, length: int, every: int
) -> None:
    rule = Cubic(final, begin, begin + length, every, initial=final * start)
    values = [cubic(rule, step) for step in range(begin + length + 2)]
    assert all(a <= b for a, b in itertools.pairwise(values))
    assert values[-2] == values[-1] == final
    assert len(set(values)) <= len(rule.updates) + 1


@pytest.mark.parametrize("name", ["linear", "geometric", "cubic"])
@given(final=SHARES, start=st.floats(0, 1), rounds=st.integers(1, 40))
def test_rounds_never_give_back_and_end_exactly(
    name: str, final: float, start: float, rounds: int
) -> None:
    initial = final * start
    found = sparsities(name, final, rounds, initial)
    assert len(found) == rounds
    assert found[-1] == final
    assert all(a <= b for a, b in itertools.pairwise(found))
    assert found[0] >= initial - 1e-12


def test_cubic_rounds_are_the_cubic_schedule() -> None:
    assert sparsities("cubic", 0.8, 2) == pytest.approx((0.8 - 0.8 * 0.5**3, 0.8))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("linear", 1.0, 2), "final must satisfy 0 <= final < 1, but got 1.0"),
        (("linear", 0.5, 2, 0.6), "initial must satisfy 0 <= initial <= 0.5"),
        (("linear", 0.5, 0), "rounds must be at least 1"),
        (("cubical", 0.5, 1), "schedule must be one of cubic, geometric.*did you mean 'cubic'"),
    ],
)
def test_bad_rounds(arguments: tuple, message: str) -> None:
    with pytest.raises(InputError, match=message):
        sparsities(*arguments)


@pytest.mark.parametrize(
    ("over", "message"),
    [
        ({"begin": -1}, "begin must be at least 0"),
        ({"end": 0}, r"end must be above begin \(0\)"),
        ({"frequency": 0}, "frequency must be at least 1"),
        ({"final": float("nan")}, "final must satisfy"),
    ],
)
def test_bad_gradual_pruning(over: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Cubic(**{"final": 0.5, "begin": 0, "end": 10, **over})


def test_the_choices_are_listed() -> None:
    assert list(SCHEDULES) == ["cubic", "geometric", "linear", "one-shot"]
