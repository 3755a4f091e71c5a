import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secateur.data.splits import divide, stratified
from secateur.errors import InputError

NAMES = ("cat", "dog", "owl", "pig", "rat")


@settings(max_examples=200, deadline=None)
@given(
    sizes=st.lists(st.integers(2, 40), min_size=1, max_size=5),
    share=st.floats(0, 1),
    least=st.integers(0, 1),
)
def test_shares_are_kept_within_one(sizes: list[int], share: float, least: int) -> None:
    labels = np.repeat(np.arange(len(sizes)), sizes)
    count = round(share * len(labels))
    chosen = stratified(labels, count, seed=(0,), least=least)
    assert len(set(chosen.tolist())) == len(chosen)
    assert (np.diff(chosen) > 0).all()
    taken = np.bincount(labels[chosen], minlength=len(sizes))
    if least == 0:
        assert len(chosen) == count
        assert (abs(taken - np.array(sizes) * count / len(labels)) < 1 + 1e-9).all()
    else:
        assert len(chosen) == max(count, len(sizes))
        assert (taken >= 1).all()


def test_a_seed_decides_the_choice() -> None:
    labels = np.repeat(np.arange(3), 30)
    first = stratified(labels, 20, seed=(0, 1))
    assert np.array_equal(first, stratified(labels, 20, seed=(0, 1)))
    assert not np.array_equal(first, stratified(labels, 20, seed=(1, 1)))


def test_a_single_split_is_divided_in_three() -> None:
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(2), (100, 50)))
    parts = divide(labels, {"train": np.arange(150)}, NAMES, validation=0.1, limit=None, seed=0)
    assert [len(parts[name]) for name in ("train", "validation", "test")] == [108, 12, 30]
    assert sorted(np.concatenate(list(parts.values())).tolist()) == list(range(150))
    for rows in parts.values():
        assert labels[rows].mean() == pytest.approx(1 / 3, abs=0.02)


def test_splits_that_exist_are_kept() -> None:
    labels = np.tile([0, 1], 30)
    splits = {
        "train": np.arange(20),
        "validation": np.arange(20, 40),
        "test": np.arange(40, 60),
    }
    parts = divide(labels, splits, NAMES, validation=0.5, limit=None, seed=0)
    assert all(np.array_equal(parts[name], splits[name]) for name in splits)


def test_limit_is_per_split_and_keeps_every_class() -> None:
    labels = np.repeat(np.arange(3), (200, 50, 3))
    parts = divide(labels, {"train": np.arange(253)}, NAMES, validation=0.1, limit=12, seed=0)
    assert {name: len(rows) for name, rows in parts.items()} == {
        "train": 12,
        "validation": 12,
        "test": 12,
    }
    assert all(set(labels[rows].tolist()) == {0, 1, 2} for rows in parts.values())


@pytest.mark.parametrize(
    ("labels", "splits", "limit", "message"),
    [
        ([0, 1, 0], {"train": [0, 1], "test": [2]}, None, "'dog' is in train and not in test"),
        ([0, 0, 1], {"train": [0], "test": [1, 2]}, None, "'dog' is in test and not in train"),
        (
            [0, 1, 2, 3, 4, 0],
            {"train": range(5), "test": [5]},
            None,
            "'dog', 'owl', 'pig' and 1 more are in train and not in test",
        ),
        ([0, 0, 0], {"train": range(3)}, None, "at least two classes, but has only 'cat'"),
        ([0, 1], {"test": range(2)}, None, "split named train, but has test"),
        ([0, 0, 0, 1], {"train": range(4)}, None, "hold out a test split, but 'dog' has 1"),
        ([0, 0, 0, 1, 1], {"train": range(5)}, None, "hold out a validation split, but 'dog'"),
        ([0, 1] * 9, {"train": range(18)}, 1, "limit must be at least 2"),
    ],
)
def test_what_cannot_be_divided_is_refused(
    labels: list[int], splits: dict[str, list[int]], limit: int | None, message: str
) -> None:
    rows = {name: np.array(list(places)) for name, places in splits.items()}
    with pytest.raises(InputError, match=message):
        divide(np.array(labels), rows, NAMES, validation=0.1, limit=limit, seed=0)
