"""Sizes compare with floats as plain ints do."""

import pytest

from secateur.graph.sizes import Dim, Sized


@pytest.mark.parametrize("other", [1.5, 2.0, 2.5])
def test_comparisons_with_floats_are_those_of_ints(other: float) -> None:
    size = Sized(2, Dim(0, 0))
    assert (
        size >= other,
        size > other,
        size <= other,
        size < other,
        size == other,
        size != other,
    ) == (other <= 2, other < 2, other >= 2, other > 2, other == 2, other != 2)
    assert (other >= size, other > size, other <= size, other < size) == (
        other >= 2,
        other > 2,
        other <= 2,
        other < 2,
    )


def test_comparisons_with_text_raise() -> None:
    for compare in (lambda s: s > "a", lambda s: s >= "a", lambda s: s < "a", lambda s: s <= "a"):
        with pytest.raises(TypeError):
            compare(Sized(2, Dim(0, 0)))
