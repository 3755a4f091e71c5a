"""Dense and pruned side by side: images, classes, sparse bytes, memory and layers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from rich.progress import Progress
from torch import Tensor, nn

from secateur.calibration import device_of
from secateur.footprint import peak_memory
from secateur.latency import batched, layer_times
from secateur.measure import Answers, answers, sparse_bytes
from secateur.pairing import by_class, confusion, mcnemar
from secateur.results import Facts, LayerTime


def facts_of(
    dense: nn.Module,
    pruned: nn.Module,
    loader: Iterable[tuple[Tensor, Tensor]],
    split: str,
    classes: Sequence[str],
    example: Tensor,
    *,
    batch: int = 1,
    threads: int = 1,
    repeats: int = 20,
    progress: Progress | None = None,
) -> Facts:
    """Measure what tells two networks apart beyond accuracy, size and speed.

    Args:
        dense: before pruning.
        pruned: after.
        loader: batches of (inputs, labels) of ``split``, in an order that stays; read twice.
        split: its name, for the record.
        classes: names, in the order of the labels.
        example: an input; its first sample fills the batch of ``memory`` and ``layers``.
        batch: samples in such a pass.
        threads: that PyTorch may use for ``layers``.
        repeats: passes whose median counts.
        progress: where to show how far it is.

    Raises:
        InputError: outputs, labels and classes do not fit each other.
        SecateurError: outputs are NaN or infinite.
    """
    before = answers(dense, loader, split, progress=progress)
    after = answers(pruned, loader, split, progress=progress)
    return facts_from(
        dense, pruned, (before, after), classes, example,
        batch=batch, threads=threads, repeats=repeats,
    )  # fmt: skip


def facts_from(
    dense: nn.Module,
    pruned: nn.Module,
    answered: tuple[Answers, Answers],
    classes: Sequence[str],
    example: Tensor,
    *,
    batch: int = 1,
    threads: int = 1,
    repeats: int = 20,
) -> Facts:
    """As :func:`facts_of`, from answers that are there already."""
    before, after = answered
    inputs = batched(example, batch, device_of(dense))
    times = [
        layer_times(network, example, batch=batch, threads=threads, repeats=repeats)
        for network in (dense, pruned)
    ]
    return Facts(
        split=before.split,
        paired=mcnemar(before, after),
        dense_classes=by_class(before, classes),
        pruned_classes=by_class(after, classes),
        confusion=_pairs(before, after, len(classes)),
        sparse=(sparse_bytes(dense), sparse_bytes(pruned)),
        memory=(peak_memory(dense, inputs), peak_memory(pruned, inputs)),
        batch=batch,
        threads=threads,
        layers=tuple(
            LayerTime(name, seconds, times[1][name])
            for name, seconds in times[0].items()
            if name in times[1]
        ),
    )


def _pairs(before: Answers, after: Answers, classes: int) -> tuple[tuple[int, ...], ...]:
    first, second = confusion(before, classes), confusion(after, classes)
    rows, columns = np.nonzero(first + second)
    return tuple(
        (int(row), int(column), int(first[row, column]), int(second[row, column]))
        for row, column in zip(rows, columns, strict=True)
    )
