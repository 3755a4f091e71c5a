"""Frontiers, areas, scores and choices, against brute force."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secateur.errors import InputError
from secateur.pareto import SCORES, course_score, frontier, hypervolume, smallest_within

GRID = 6
SMALL = st.lists(st.tuples(st.integers(0, GRID), st.integers(0, GRID)), max_size=12)


def dominates(a: tuple[float, float], b: tuple[float, float]) -> bool:
    return a[0] >= b[0] and a[1] <= b[1] and a != b


@given(SMALL)
def test_the_frontier_is_what_nothing_dominates(points: list[tuple[int, int]]) -> None:
    wanted = tuple(not any(dominates(other, point) for other in points) for point in points)
    assert frontier(points) == wanted


@given(SMALL)
def test_the_area_is_the_number_of_dominated_cells(points: list[tuple[int, int]]) -> None:
    cells = sum(
        any(gain >= row + 1 and cost <= column for gain, cost in points)
        for row in range(GRID)
        for column in range(GRID)
    )
    assert hypervolume(points, (0, GRID)) == cells


def test_points_beyond_the_reference_add_nothing() -> None:
    inside = [(0.9, 0.5), (0.7, 0.2)]
    beyond = [*inside, (0.05, 0.1), (1.0, 1.5)]
    area = (0.7 - 0.1) * (1 - 0.2) + (0.9 - 0.7) * (1 - 0.5)
    assert hypervolume(inside, (0.1, 1.0)) == pytest.approx(area)
    assert hypervolume(beyond, (0.1, 1.0)) == hypervolume(inside, (0.1, 1.0))
    assert hypervolume([], (0.1, 1.0)) == 0


def test_the_course_project_has_its_published_best() -> None:
    assert course_score(0.7264, 0.985) == pytest.approx(0.856, abs=5e-4)
    assert course_score(0.6, 0.99) == 0
    assert course_score(0.61, 0.0) == pytest.approx(0.305)
    assert SCORES["course-project"] is course_score


def test_the_smallest_within_a_margin() -> None:
    points = [(0.90, 5.0), (0.89, 3.0), (0.88, 1.0), (0.895, 3.0)]
    assert smallest_within(points, 0.90, 0.01) == 3
    assert smallest_within(points, 0.90, 0.02) == 2
    assert smallest_within(points, 0.99, 0.01) is None
    assert smallest_within([(0.3 - 0.1, 1.0)], 0.3, 0.1) == 0


@pytest.mark.parametrize("ask", [frontier, lambda p: hypervolume(p, (0, 1))])
def test_nan_is_refused(ask) -> None:
    with pytest.raises(InputError, match="points must be numbers, but point 1"):
        ask([(0.1, 0.2), (math.nan, 0.2)])


def test_bad_arguments_are_named() -> None:
    with pytest.raises(InputError, match="margin must be at least 0"):
        smallest_within([(0.5, 1.0)], 0.5, -0.1)
    with pytest.raises(InputError, match="reference must be finite"):
        hypervolume([(0.5, 1.0)], (0.0, math.inf))
