"""Sizes that remember: they count as ints everywhere and recompute what made them."""

from __future__ import annotations

import copy
import operator
import pickle
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from secateur.graph.sizes import (
    Apply,
    Attr,
    Dim,
    Expr,
    Sized,
    ceil_div,
    evaluate,
    expr_of,
    leaves,
    rename,
    show,
    watch_comparisons,
)

C, H = Dim(7, 1), Attr("block.heads")
OPERATIONS = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "floordiv": operator.floordiv,
    "mod": operator.mod,
}


def compute(expr: Expr, c: int, h: int) -> int | None:
    """Evaluate with dimension C and attribute H at new values."""
    return evaluate(expr, lambda dim: {C: c}[dim], {H: h})


@given(
    name=st.sampled_from(sorted(OPERATIONS)),
    values=st.tuples(st.integers(1, 50), st.integers(1, 50)),
    later=st.tuples(st.integers(1, 50), st.integers(1, 50)),
    right_plain=st.booleans(),
    left_plain=st.booleans(),
)
def test_arithmetic_is_that_of_ints_now_and_later(
    name: str,
    values: tuple[int, int],
    later: tuple[int, int],
    right_plain: bool,
    left_plain: bool,
) -> None:
    operation = OPERATIONS[name]
    (a, b), (c, h) = values, later
    left = a if left_plain else Sized(a, C)
    right = b if right_plain else Sized(b, H)
    result = operation(left, right)
    assert result == operation(a, b)
    if left_plain and right_plain:
        return
    assert isinstance(result, Sized)
    wanted = operation(a if left_plain else c, b if right_plain else h)
    assert compute(result.expr, c, h) == wanted


def test_nested_arithmetic_follows() -> None:
    c, h = Sized(48, C), Sized(6, H)
    width = 3 * (c // h) - c % h + 1
    assert width == 25
    assert compute(expr_of(width), 40, 8) == 3 * 5 - 0 + 1
    assert compute(expr_of(-c), 40, 8) == -40


def test_division_by_zero_has_no_value() -> None:
    assert compute(expr_of(Sized(48, C) // Sized(6, H)), 48, 0) is None
    assert compute(expr_of(Sized(48, C) % Sized(6, H)), 48, 0) is None
    assert compute(Apply("+", expr_of(Sized(48, C) // Sized(6, H)), 1), 48, 0) is None
    assert compute(ceil_div(C, H), 48, 0) is None


@pytest.mark.parametrize(("size", "parts"), [(10, 3), (9, 3), (1, 4), (7, 2)])
def test_ceil_div_is_what_chunk_does(size: int, parts: int) -> None:
    assert compute(ceil_div(C, parts), size, 1) == torch.zeros(size).chunk(parts)[0].numel()


@pytest.mark.parametrize(
    "leave", [int, float, lambda n: n / 2, lambda n: n * 0.5, lambda n: 2.0 + n, lambda n: n**-1]
)
def test_what_leaves_the_integers_forgets(leave: Callable[[int], object]) -> None:
    assert not isinstance(leave(Sized(6, C)), Sized)
    assert leave(Sized(6, C)) == leave(6)


def test_floats_and_other_kinds_are_answered_as_by_an_int() -> None:
    size = Sized(6, C)
    assert size * 0.5 == 3.0
    assert 0.5 * size == 3.0
    assert size + 0.25 == 6.25
    assert "ab" * Sized(2, C) == "abab"
    assert [1] * Sized(2, C) == [1, 1]
    with pytest.raises(TypeError):
        size + "a"  # type: ignore[operator]


def test_true_counts_as_a_plain_one() -> None:
    assert compute(expr_of(Sized(6, C) + True), 9, 1) == 10


def test_hash_order_and_truth_are_those_of_the_int() -> None:
    size = Sized(6, C)
    assert {size: 1}[6] == 1
    assert sorted([7, size, 5]) == [5, 6, 7]
    assert f"{size}" == "6"
    assert list(range(Sized(2, C))) == [0, 1]
    assert [0, 1, 2][Sized(1, C)] == 1


def test_copies_keep_and_pickles_drop_the_expression() -> None:
    size = Sized(6, C)
    assert copy.deepcopy([size])[0].expr == C
    again = pickle.loads(pickle.dumps(size))
    assert type(again) is int
    assert again == 6


def test_torch_takes_them_wherever_it_takes_an_int() -> None:
    x = torch.randn(2, 12, 8, 8)
    c, h, one, two = Sized(12, C), Sized(3, H), Sized(1, H), Sized(2, H)
    assert x.view(Sized(2, C), h, c // h, 8, 8).shape == (2, 3, 4, 8, 8)
    assert x.reshape(two, -1).shape == (2, 768)
    weight = torch.randn(6, 4, 3, 3)
    plain = F.conv2d(x, weight, None, 2, 1, 1, 3)
    assert torch.equal(F.conv2d(x, weight, None, (two, two), (one, one), one, h), plain)
    assert torch.equal(x[:, :h], x[:, :3])
    assert torch.equal(x[:, h : c - h], x[:, 3:9])
    assert torch.equal(x[:, h], x[:, 3])
    assert torch.equal(x.narrow(1, h, two), x.narrow(1, 3, 2))
    assert [t.shape[1] for t in x.split([h, c - h], dim=one)] == [3, 9]
    assert [t.shape[1] for t in x.split(h, dim=1)] == [3, 3, 3, 3]
    assert torch.zeros(h, c).shape == (3, 12)
    assert F.pad(x, (0, 0, 0, 0, h, one)).shape[1] == 16
    assert F.layer_norm(x.permute(0, 2, 3, 1), (c,)).shape == (2, 8, 8, 12)
    assert F.group_norm(x, h).shape == x.shape
    assert x.permute(0, two, h, one).shape == (2, 8, 8, 12)
    assert x[:, :1].expand(-1, c, -1, -1).shape == x.shape
    assert F.max_pool2d(x, two).shape == (2, 12, 4, 4)
    assert F.interpolate(x, size=(c, c)).shape == (2, 12, 12, 12)


def test_a_shape_keeps_them() -> None:
    shape = torch.Size([Sized(2, C), Sized(3, H)])
    assert expr_of(shape[0]) == C
    assert expr_of(shape[1]) == H


def test_comparisons_are_noted_with_their_outcome() -> None:
    noted: list[tuple[str, Expr, Expr, bool]] = []
    c, h = Sized(6, C), Sized(6, H)
    with watch_comparisons(lambda *found: noted.append(found)):
        assert c == h
        assert (c != h) is False
        assert c != 7
        assert c < 7
        assert c >= h
        assert c <= 6
        assert (c > 6) is False
        assert c
        assert c != "six"
    assert noted == [
        ("==", C, H, True),
        ("==", C, H, True),
        ("==", C, 7, False),
        ("<", C, 7, True),
        ("<", C, H, False),
        ("<=", C, 6, True),
        ("<=", C, 6, True),
        ("==", C, 0, False),
    ]
    assert c == h
    assert len(noted) == 8


def test_a_plain_int_is_its_own_expression() -> None:
    assert expr_of(5) == 5
    assert expr_of(Sized(5, H)) == H
    assert evaluate(5, lambda dim: 0, {}) == 5


def test_leaves_names_every_dimension_and_attribute() -> None:
    assert leaves(Apply("*", Apply("+", C, 3), H)) == (C, H)
    assert leaves(3) == ()


def test_rename_changes_dimensions_only() -> None:
    expr = Apply("*", Apply("+", C, 3), H)
    assert rename(expr, lambda dim: Dim(dim.tensor + 1, 0)) == Apply(
        "*", Apply("+", Dim(8, 0), 3), H
    )


def test_show_is_readable() -> None:
    assert show(Apply("//", C, H)) == "(t7.size(1) // block.heads)"
    assert show(Attr("pads[2]")) == "pads[2]"
