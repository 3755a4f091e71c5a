"""Names and errors: an unknown name lists the choices, a second one of a name is refused."""

from __future__ import annotations

import pytest

from secateur import errors
from secateur.errors import InputError, SecateurError, unknown_name
from secateur.registry import Registry


@pytest.fixture
def fruit() -> Registry[int]:
    registry: Registry[int] = Registry("fruit")
    registry.register("pear")(2)
    registry.register("apple")(1)
    return registry


def test_entries_are_found_and_listed_in_order(fruit: Registry[int]) -> None:
    assert fruit["apple"] == 1
    assert list(fruit) == ["apple", "pear"]
    assert "pear" in fruit
    assert "plum" not in fruit
    assert 3 not in fruit


def test_the_decorator_returns_what_it_files() -> None:
    registry: Registry[object] = Registry("verb")

    @registry.register("double")
    def double(x: int) -> int:
        return 2 * x

    assert double(3) == 6
    assert registry["double"] is double


def test_a_name_is_taken_once(fruit: Registry[int]) -> None:
    with pytest.raises(ValueError, match="fruit 'apple' is registered twice") as caught:
        fruit.register("apple")(3)
    assert not isinstance(caught.value, SecateurError)
    assert fruit["apple"] == 1


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("aple", "fruit must be one of apple, pear, but got 'aple'; did you mean 'apple'?"),
        ("zzz", "fruit must be one of apple, pear, but got 'zzz'"),
        ("", "fruit must be one of apple, pear, but got ''"),
    ],
)
def test_an_unknown_name_lists_the_choices(fruit: Registry[int], name: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        fruit[name]
    assert str(caught.value) == message
    assert str(unknown_name("fruit", name, ["pear", "apple"])) == message


def test_every_error_can_be_caught_as_ours() -> None:
    found = [v for v in vars(errors).values() if isinstance(v, type)]
    kinds = [v for v in found if v.__module__ == errors.__name__ and v is not SecateurError]
    assert len(kinds) >= 5
    assert all(issubclass(kind, SecateurError) for kind in kinds)
    assert issubclass(InputError, ValueError)
