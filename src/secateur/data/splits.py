"""Stratified choices: pure functions of labels and a seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from secateur.errors import InputError

Rows = npt.NDArray[np.int64]

TEST_SHARE = 0.2
NAMED_CLASSES = 3


def stratified(labels: Rows, count: int, *, seed: Sequence[int], least: int = 0) -> Rows:
    """Choose about ``count`` places so that every class has its share.

    Shares are rounded by largest remainder; exactly ``count`` are chosen unless ``least`` (at
    least so many of each class, where it has as many) asks for more.

    Args:
        labels: int64 [N].
        count: how many, 0 to N.
        seed: numbers that decide which ones.
        least: smallest number per class.

    Returns:
        int64 places, ascending.
    """
    classes, sizes = np.unique(labels, return_counts=True)
    quota = sizes * (count / max(len(labels), 1))
    take = np.minimum(np.maximum(np.floor(quota).astype(np.int64), least), sizes)
    while take.sum() < count:
        take[np.argmax(np.where(take < sizes, quota - take, -np.inf))] += 1
    while take.sum() > count and (take > least).any():
        take[np.argmax(np.where(take > least, take - quota, -np.inf))] -= 1
    generator = np.random.default_rng(list(seed))
    chosen = [
        generator.permutation(np.flatnonzero(labels == name))[:number]
        for name, number in zip(classes, take, strict=True)
    ]
    return np.sort(np.concatenate([np.empty(0, dtype=np.int64), *chosen]))


def divide(
    labels: Rows,
    splits: Mapping[str, Rows],
    classes: Sequence[str],
    *,
    validation: float,
    limit: int | None,
    seed: int,
) -> dict[str, Rows]:
    """Give every image its part: train, validation or test.

    A missing test split takes 20 % of train, a missing validation split the share ``validation``
    of what is then left; each stratified and decided by ``seed``. ``limit`` then keeps at most so
    many images of each, stratified too.

    Raises:
        InputError: there is no training split, a class is in one split only or too small to
            divide, there is only one class, or ``limit`` is below the number of classes.
    """
    if "train" not in splits:
        raise InputError(f"source must have a split named train, but has {', '.join(splits)}")
    check_classes(labels, splits, classes)
    parts = dict(splits)
    for number, (name, share) in enumerate((("test", TEST_SHARE), ("validation", validation))):
        if name not in parts:
            train = parts["train"]
            _check_divisible(labels[train], classes, name)
            count = max(1, round(share * len(train)))
            held = stratified(labels[train], count, seed=(seed, number), least=1)
            parts[name] = train[held]
            parts["train"] = np.delete(train, held)
    present = len(np.unique(labels))
    if limit is not None and limit < present:
        raise InputError(f"limit must be at least {present} (one per class), but got {limit}")
    for number, name in enumerate(("train", "validation", "test")):
        if limit is not None and len(parts[name]) > limit:
            kept = stratified(labels[parts[name]], limit, seed=(seed, 2 + number), least=1)
            parts[name] = parts[name][kept]
    return {name: parts[name] for name in ("train", "validation", "test")}


def check_classes(labels: Rows, splits: Mapping[str, Rows], classes: Sequence[str]) -> None:
    """Refuse a class that is not in all splits, and a source of one class.

    Raises:
        InputError: it names the classes and the splits.
    """
    present = {split: set(labels[rows].tolist()) for split, rows in splits.items()}
    everywhere = set().union(*present.values())
    for split, found in present.items():
        missing = sorted(everywhere - found)
        if missing:
            holder = next(other for other in present if missing[0] in present[other])
            raise InputError(
                f"every class must be in every split, but {_named(missing, classes)} "
                f"{'is' if len(missing) == 1 else 'are'} in {holder} and not in {split}"
            )
    if len(everywhere) < 2:
        raise InputError(
            f"source must have at least two classes, but has only {_named(everywhere, classes)}"
        )


def _check_divisible(labels: Rows, classes: Sequence[str], split: str) -> None:
    names, sizes = np.unique(labels, return_counts=True)
    small = names[sizes < 2].tolist()
    if small:
        raise InputError(
            f"every class must have two training images or more to hold out a {split} split, "
            f"but {_named(small, classes)} has 1"
        )


def _named(places: Sequence[int] | set[int], classes: Sequence[str]) -> str:
    names = [repr(classes[place]) for place in sorted(places)]
    more = f" and {len(names) - NAMED_CLASSES} more" if len(names) > NAMED_CLASSES else ""
    return ", ".join(names[:NAMED_CLASSES]) + more
