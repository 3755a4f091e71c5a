"""Precision, recall and F1 over all classes, with intervals by the bootstrap.

No formula fits an average over classes, so its interval is the percentile bootstrap (Efron 1979):
images are drawn anew with replacement, and the middle 95 % of the figures count. Drawing n images
is drawing the cells of the confusion matrix n times (one multinomial), which needs no loop over
images.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from secateur.errors import InputError

DRAWS = 1000
MIDDLE = (2.5, 97.5)
_AT_ONCE = 2_000_000
"""Numbers that are drawn at a time."""

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Averages:
    """Figures of all classes; intervals are (low, high), 95 %.

    Macro averages are over the classes that occur among labels or predictions; weighted ones
    count each class by its labels, where recall is the accuracy.
    """

    precision: float
    recall: float
    f1: float
    weighted_precision: float
    weighted_f1: float
    precision_span: tuple[float, float]
    recall_span: tuple[float, float]
    f1_span: tuple[float, float]


def averages(labels: Ints, predicted: Ints, *, draws: int = DRAWS, seed: int = 0) -> Averages:
    """Average precision, recall and F1 over classes.

    Args:
        labels: int64 [n].
        predicted: int64 [n].
        draws: of the bootstrap.
        seed: of what is drawn; the same seed gives the same intervals.

    Raises:
        InputError: no images, or as many predictions as labels are not there.
    """
    if len(labels) == 0 or len(labels) != len(predicted):
        raise InputError(
            "labels and predicted must be as many, at least one, but got "
            f"{len(labels)} and {len(predicted)}"
        )
    # scikit-learn takes a second to import; whoever only asks for sizes need not wait.
    from sklearn.metrics import precision_recall_fscore_support

    def over_classes(average: str) -> tuple[float, float, float]:
        found = precision_recall_fscore_support(labels, predicted, average=average, zero_division=0)
        precision, recall, f1, _ = found
        return float(precision), float(recall), float(f1)

    precision, recall, f1 = over_classes("macro")
    weighted_precision, _, weighted_f1 = over_classes("weighted")
    spans = _spans(labels, predicted, draws, seed)
    return Averages(precision, recall, f1, weighted_precision, weighted_f1, *spans)


def _spans(
    labels: Ints, predicted: Ints, draws: int, seed: int
) -> tuple[tuple[float, float], tuple[float, float], tuple[float, float]]:
    classes = int(max(labels.max(), predicted.max())) + 1
    cells, counts = np.unique(labels * classes + predicted, return_counts=True)
    rows, columns = cells // classes, cells % classes
    rng = np.random.default_rng(seed)
    step = max(1, _AT_ONCE // max(len(cells), classes))
    found = [
        _macro(rng.multinomial(len(labels), counts / len(labels), size=size), rows, columns)
        for size in (min(step, draws - begun) for begun in range(0, draws, step))
    ]
    low, high = np.percentile(np.concatenate(found), MIDDLE, axis=0)
    first, second, third = ((float(a), float(b)) for a, b in zip(low, high, strict=True))
    return first, second, third


def _macro(drawn: Ints, rows: Ints, columns: Ints) -> Floats:
    """Return precision, recall and F1 [draws, 3] of drawn cell counts [draws, cells]."""
    classes = int(max(rows.max(), columns.max())) + 1
    of_label, of_answer = (_summed(drawn, place, classes) for place in (rows, columns))
    right = _summed(drawn[:, rows == columns], rows[rows == columns], classes)
    occurs = (of_label + of_answer) > 0
    number = occurs.sum(axis=1)
    figures = (
        right / np.maximum(of_answer, 1),
        right / np.maximum(of_label, 1),
        2 * right / np.maximum(of_label + of_answer, 1),
    )
    return np.stack([one.sum(axis=1) / number for one in figures], axis=1)


def _summed(drawn: Ints, place: Ints, classes: int) -> Ints:
    """Add up the columns of ``drawn`` by their class: [draws, classes]."""
    summed = np.zeros((len(drawn), classes), dtype=np.int64)
    if not len(place):
        return summed
    order = np.argsort(place, kind="stable")
    there, begins = np.unique(place[order], return_index=True)
    summed[:, there] = np.add.reduceat(drawn[:, order], begins, axis=1)
    return summed
