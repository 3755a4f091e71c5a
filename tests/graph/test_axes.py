"""The axis algebra against brute force: what must live together does, whatever is removed."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from secateur.graph.axes import Axes, Axis, fixed, merge, stack

Bools = NDArray[np.bool_]
Alive = Callable[[Axis], Bools]


def alive_under(axes: Axes, removed: set[int]) -> Alive:
    """Return a function that tells, position by position, what survives the removal."""

    def alive(axis: Axis) -> Bools:
        rows = axes.canon(axis).tolist()
        return np.array([not any(atom in removed for atom in row) for row in rows], dtype=bool)

    return alive


def free_atoms(axes: Axes, known: list[Axis]) -> list[int]:
    """Return the roots that a plan could remove."""
    return sorted({int(atom) for axis in known for atom in axes.canon(axis).flat} - {0})


class Story:
    """A random sequence of operations, with what each of them promised, in plain Python.

    Every promise is a function that is true of a removal; it knows nothing of
    atoms, only of which positions survive.
    """

    def __init__(self, seed: int, length: int) -> None:
        self.draw = random.Random(seed)
        self.axes = Axes()
        self.known: list[Axis] = [self.axes.fresh(n) for n in (2, 3, 4, 6, 6, 12)]
        self.promises: list[tuple[str, Callable[[Alive], bool]]] = []
        steps = [self.unify, self.unify, self.split, self.merge, self.stack, self.slice, self.pin]
        for _ in range(length):
            self.draw.choice(steps)()

    def _one(self) -> Axis:
        return self.draw.choice(self.known)

    def unify(self) -> None:
        left = self._one()
        right = self.draw.choice([a for a in self.known if len(a) == len(left)])
        self.axes.unify(left, right, "a test")
        self.promises.append(("unify", lambda alive: bool((alive(left) == alive(right)).all())))

    def split(self) -> None:
        whole = self.draw.choice([a for a in self.known if len(a) > 3])
        size = len(whole)
        ways = [
            sizes
            for rank in (2, 3)
            for sizes in itertools.product(range(1, size + 1), repeat=rank)
            if math.prod(sizes) == size
        ]
        sizes = self.draw.choice(ways)
        parts = self.axes.split(whole, sizes, "a test")
        assert [len(part) for part in parts] == list(sizes)
        self.known += [part for part in parts if len(part) > 1]
        self.promises.append(("split", lambda alive: outer(whole, parts, alive)))

    def merge(self) -> None:
        parts = [self._one() for _ in range(self.draw.choice((2, 2, 3)))]
        if math.prod(len(part) for part in parts) > 24:
            return
        whole = merge(parts)
        assert len(whole) == math.prod(len(part) for part in parts)
        self.known.append(whole)
        self.promises.append(("merge", lambda alive: outer(whole, parts, alive)))

    def stack(self) -> None:
        parts = [self._one(), self._one()]
        if sum(map(len, parts)) > 16:
            return
        whole = stack(parts)
        self.known.append(whole)

        def holds(alive: Alive) -> bool:
            return [*alive(whole)] == [flag for part in parts for flag in alive(part)]

        self.promises.append(("stack", holds))

    def slice(self) -> None:
        whole = self.draw.choice([a for a in self.known if len(a) > 2])
        start = self.draw.randrange(len(whole) - 1)
        stop = self.draw.randrange(start + 1, len(whole) + 1)
        part = whole[start:stop]
        self.known.append(part)
        self.promises.append(("slice", lambda alive: [*alive(part)] == [*alive(whole)][start:stop]))

    def pin(self) -> None:
        if self.draw.random() < 0.6:
            return
        axis = self._one()
        self.axes.pin(axis, "pinned by a test")
        self.promises.append(("pin", lambda alive: bool(alive(axis).all())))


def outer(whole: Axis, parts: list[Axis], alive: Alive) -> bool:
    """Tell whether a position of ``whole`` survives exactly when all its coordinates do."""
    flags = [alive(part).tolist() for part in parts]
    wanted = [all(combination) for combination in itertools.product(*flags)]
    return bool(alive(whole).tolist() == wanted)


def broken(story: Story, removed: set[int]) -> list[str]:
    """Return the promises that a removal breaks."""
    alive = alive_under(story.axes, removed)
    return [f"{n}: {what}" for n, (what, holds) in enumerate(story.promises) if not holds(alive)]


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 2**32), length=st.integers(1, 14))
def test_no_removal_breaks_a_promise(seed: int, length: int) -> None:
    story = Story(seed, length)
    atoms = free_atoms(story.axes, story.known)
    draw = random.Random(seed + 1)
    for atom in atoms[:40]:
        assert broken(story, {atom}) == []
    for share in (0.2, 0.5, 0.9, 1.0):
        assert broken(story, {a for a in atoms if draw.random() < share}) == []


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), length=st.integers(1, 14))
def test_a_frozen_algebra_says_the_same(seed: int, length: int) -> None:
    story = Story(seed, length)
    before = [story.axes.canon(axis) for axis in story.known]
    story.axes.freeze()
    for _ in range(2):
        for axis, wanted in zip(story.known, before, strict=True):
            assert np.array_equal(story.axes.canon(axis), wanted)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), length=st.integers(1, 14))
def test_everything_pinned_has_a_reason_and_nothing_else_has(seed: int, length: int) -> None:
    story = Story(seed, length)
    for axis in story.known:
        if not story.axes.reasons(axis):
            expanded = story.axes.expand(axis)
            assert set(np.unique(story.axes.canon(axis))) >= set(np.unique(expanded)) - {0}


def test_the_stories_are_not_vacuous() -> None:
    """Most random stories keep atoms free, and a broken algebra would be seen."""
    stories = [Story(seed, 10) for seed in range(60)]
    free = [len(free_atoms(story.axes, story.known)) for story in stories]
    assert sum(count > 5 for count in free) > 40
    told = {what for story in stories for what, _ in story.promises}
    assert told == {"unify", "split", "merge", "stack", "slice", "pin"}


def test_fresh_axes_are_free_and_separate() -> None:
    axes = Axes()
    left, right = axes.fresh(3), axes.fresh(3)
    assert len(set(axes.canon(left).flat) | set(axes.canon(right).flat)) == 6


def test_fresh_grows_beyond_any_first_size() -> None:
    axes = Axes()
    first = axes.fresh(5)
    rest = axes.fresh(5000)
    axes.unify(first, rest[-5:], "a test")
    assert np.array_equal(axes.canon(first), axes.canon(rest[-5:]))
    assert len(np.unique(axes.canon(rest))) == 5000


def test_unify_is_transitive_and_keeps_all_free() -> None:
    axes = Axes()
    chain = [axes.fresh(4) for _ in range(6)]
    for left, right in itertools.pairwise(chain):
        axes.unify(left, right, "a test")
    assert all(np.array_equal(axes.canon(chain[0]), axes.canon(axis)) for axis in chain)
    assert len(free_atoms(axes, chain)) == 4


def test_unify_refuses_two_sizes() -> None:
    axes = Axes()
    with pytest.raises(ValueError, match="3 and 4 positions"):
        axes.unify(axes.fresh(3), axes.fresh(4), "a test")


def test_unify_with_nothing_pins_and_says_why() -> None:
    axes = Axes()
    axis = axes.fresh(4)
    axes.unify(axis, fixed(4), "meets a constant")
    assert axes.canon(axis).shape[1] == 0
    assert axes.reasons(axis) == ("meets a constant",)


def test_a_pin_reaches_all_that_is_unified_before_and_after() -> None:
    axes = Axes()
    before, middle, after, other = (axes.fresh(2) for _ in range(4))
    axes.unify(before, middle, "a test")
    axes.pin(middle, "stays")
    axes.unify(middle, after, "a test")
    assert all(axes.canon(axis).shape[1] == 0 for axis in (before, middle, after))
    assert all(axes.reasons(axis) == ("stays",) for axis in (before, middle, after))
    assert axes.canon(other).shape[1] == 1
    assert axes.reasons(other) == ()


def test_some_positions_pinned_leave_the_others_free() -> None:
    axes = Axes()
    axis = axes.fresh(5)
    axes.pin(axis[1:3], "the middle")
    assert (axes.canon(axis)[:, 0] > 0).tolist() == [True, False, False, True, True]


def test_reasons_come_with_the_commonest_first() -> None:
    axes = Axes()
    axis = axes.fresh(5)
    axes.pin(axis[:1], "rare")
    axes.pin(axis[1:], "common")
    assert axes.reasons(axis) == ("common", "rare")


def test_split_gives_heads_and_head_dimensions() -> None:
    axes = Axes()
    channels = axes.fresh(12)
    heads, width = axes.split(channels, [3, 4], "a test")
    assert len(free_atoms(axes, [heads])) == 3
    assert len(free_atoms(axes, [width])) == 4
    assert len(free_atoms(axes, [channels])) == 7
    alive = alive_under(axes, {int(axes.canon(heads)[1, 0]), int(axes.canon(width)[0, 0])})
    assert alive(channels).nonzero()[0].tolist() == [1, 2, 3, 9, 10, 11]


def test_split_undoes_merge() -> None:
    axes = Axes()
    parts = [axes.fresh(2), axes.fresh(3), axes.fresh(2)]
    again = axes.split(merge(parts), [2, 3, 2], "a test")
    for part, found in zip(parts, again, strict=True):
        assert np.array_equal(axes.canon(part), axes.canon(found))


def test_channels_and_pixels_stay_apart_when_flattened_and_split() -> None:
    axes = Axes()
    channels = axes.fresh(4)
    flat = merge([channels, fixed(9)])
    back, pixels = axes.split(flat, [4, 9], "a test")
    assert np.array_equal(axes.canon(back), axes.canon(channels))
    assert axes.canon(pixels).shape[1] == 0


def test_a_shuffle_keeps_both_factors_free() -> None:
    """C = G x C/G read as C/G x G and added to the plain channels of another layer."""
    axes = Axes()
    channels = axes.fresh(6)
    groups, within = axes.split(channels, [2, 3], "a test")
    shuffled = merge([within, groups])
    axes.unify(shuffled, axes.fresh(6), "a test")
    alive = alive_under(axes, {int(axes.canon(within)[0, 0])})
    assert alive(channels).tolist() == [False, True, True, False, True, True]
    assert alive(shuffled).tolist() == [False, False, True, True, True, True]


def test_products_of_many_against_one_name_define_it() -> None:
    axes = Axes()
    left, right, whole = axes.fresh(2), axes.fresh(3), axes.fresh(6)
    axes.unify(whole, merge([left, right]), "a test")
    assert len(free_atoms(axes, [whole])) == 5
    assert len(free_atoms(axes, [left, right])) == 5


def test_three_factors_against_two_pin_all_of_them() -> None:
    axes = Axes()
    three = [axes.fresh(2), axes.fresh(3), axes.fresh(2)]
    two = [axes.fresh(3), axes.fresh(4)]
    axes.unify(merge(three), merge(two), "cannot be matched")
    for part in three + two:
        assert axes.canon(part).shape[1] == 0
        assert axes.reasons(part) == ("cannot be matched",)


def test_an_axis_that_meets_its_own_reversal_pairs_up() -> None:
    axes = Axes()
    axis = axes.fresh(4)
    axes.unify(axis, axis[::-1], "a test")
    found = axes.canon(axis)[:, 0].tolist()
    assert found[0] == found[3] != found[1] == found[2]
    assert len(set(found)) == 2


def test_a_circle_is_pinned_rather_than_followed_for_ever() -> None:
    axes = Axes()
    axis = axes.fresh(4)
    one, two = axes.split(axis, [2, 2], "a test")
    axes.unify(axis, merge([two, one]), "a test")
    alive = alive_under(axes, set(free_atoms(axes, [axis, one, two])[:1]))
    assert np.array_equal(alive(axis), alive(merge([two, one])))


def test_merge_of_nothing_is_one_fixed_position() -> None:
    assert merge([]).shape == (1, 0)


def test_stack_pads_to_the_wider_one() -> None:
    axes = Axes()
    narrow, wide = axes.fresh(2), merge([axes.fresh(2), axes.fresh(2)])
    both = stack([narrow, wide])
    assert both.shape == (6, 2)
    assert np.array_equal(axes.canon(both)[2:], axes.canon(wide))
    assert np.array_equal(axes.canon(both)[:2, :1], axes.canon(narrow))
