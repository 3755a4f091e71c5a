"""What a training shows: one bar for all of it, or a line of :func:`told` now and then."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeAlias

from rich.progress import Progress

from secateur.results import Epoch

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
