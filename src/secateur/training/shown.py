"""What a training shows: one bar for all of it, or a line now and then where there is no screen."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeAlias

from rich.progress import Progress

from secateur.results import Epoch

LINE_EVERY = 10.0
"""Seconds between two lines where no bar is drawn."""

Tell: TypeAlias = Callable[[str, int], None]


@contextmanager
def training_bar(progress: Progress | None, phase: str, total: int, done: int) -> Iterator[Tell]:
    """Show a bar over all batches of all epochs; what it gives takes (words, batches more)."""
    if progress is None:
        yield lambda words, count: None
        return
    task = progress.add_task(phase, total=total, completed=done)
    try:
        yield lambda words, count: progress.update(
            task, description=f"{phase}: {words}", advance=count
        )
    finally:
        progress.remove_task(task)


def told(history: Sequence[Epoch], epochs: int) -> str:
    """Say how the last epoch went and how long the rest may take."""
    last = history[-1]
    left = (epochs - last.epoch) * sum(entry.seconds for entry in history) / len(history)
    return (
        f"{last.phase}: epoch {last.epoch}/{epochs}, loss {last.train_loss:.3f}, on validation "
        f"loss {last.val_loss:.3f} and accuracy {last.val_accuracy:.1%}, "
        f"{last.seconds:.0f} s, at most {left:.0f} s left"
    )


def line_teller(progress: Progress | None) -> Callable[[Sequence[Epoch], int], None]:
    """Return what prints :func:`told` at most every ten seconds, where no bars are drawn."""
    if progress is None or not progress.disable:
        return lambda history, epochs: None
    console, last = progress.console, time.monotonic()

    def tell(history: Sequence[Epoch], epochs: int) -> None:
        nonlocal last
        if time.monotonic() - last >= LINE_EVERY:
            last = time.monotonic()
            console.print(told(history, epochs), highlight=False, markup=False, soft_wrap=True)

    return tell
