"""Dense and pruned on the same images: by class, and by what one gets right and the other wrong."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from secateur.errors import InputError
from secateur.measure import Answers, wilson
from secateur.results import ClassQuality, Paired

EXACT = 1000
"""Up to so many discordant images McNemar's test is exact, from the binomial distribution."""


def confusion(found: Answers, classes: int) -> npt.NDArray[np.int64]:
    """Count images [classes, classes] by label (rows) and prediction (columns)."""
    counts = np.zeros((classes, classes), dtype=np.int64)
    np.add.at(counts, (found.labels, found.predicted), 1)
    return counts


def by_class(found: Answers, names: Sequence[str]) -> tuple[ClassQuality, ...]:
    """Say how well each class is recognised, in the order of the labels.

    Raises:
        InputError: a label or a prediction is beyond the names.
    """
    most = int(max(found.labels.max(), found.predicted.max()))
    if most >= len(names):
        raise InputError(f"names must hold one a class, but {len(names)} do not reach {most}")
    counts = confusion(found, len(names))
    return tuple(_class(name, counts, place) for place, name in enumerate(names))


def mcnemar(before: Answers, after: Answers) -> Paired:
    """Compare two networks on the same images (McNemar 1947).

    Two-sided: exact by the binomial distribution up to 1,000 images that one gets right and the
    other wrong, by the normal approximation with continuity correction beyond.

    Raises:
        InputError: the two were not asked about the same images in the same order.
    """
    if before.split != after.split or not np.array_equal(before.labels, after.labels):
        raise InputError(
            "answers must be about the same images in the same order, but got "
            f"{len(before.labels)} of {before.split!r} and {len(after.labels)} of {after.split!r}"
        )
    lost = int((before.right & ~after.right).sum())
    won = int((~before.right & after.right).sum())
    return Paired(len(before.labels), lost, won, _p_value(lost, won))


def _p_value(lost: int, won: int) -> float:
    total = lost + won
    if total == 0:
        return 1.0
    if total <= EXACT:
        tail = sum(math.comb(total, k) for k in range(min(lost, won) + 1))
        # Whole numbers to the end: 2 ** 1000 is beyond what a float division could start from.
        return min(1.0, float(2 * tail / 2**total))
    z = max(abs(lost - won) - 1, 0) / math.sqrt(total)
    return math.erfc(z / math.sqrt(2))


def _class(name: str, counts: npt.NDArray[np.int64], place: int) -> ClassQuality:
    hits, count = int(counts[place, place]), int(counts[place].sum())
    guessed = int(counts[:, place].sum())
    low, high = wilson(hits, count) if count else (None, None)
    # 2PR / (P + R) with both written out; it is 0 where nothing is right.
    f1 = 2 * hits / (count + guessed) if count and guessed else None
    return ClassQuality(
        name=name,
        count=count,
        recall=hits / count if count else None,
        low=low,
        high=high,
        precision=hits / guessed if guessed else None,
        f1=f1,
    )
