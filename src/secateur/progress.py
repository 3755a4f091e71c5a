"""One bar for one loop; silence where no progress display is given."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.progress import Progress

T = TypeVar("T")


def track(
    items: Iterable[T], description: str, progress: Progress | None, total: int | None = None
) -> Iterator[T]:
    """Yield ``items`` while a bar counts them; the bar leaves when the loop ends or breaks.

    Args:
        items: what to loop over.
        description: the words beside the bar.
        progress: where to show it; None shows nothing.
        total: how many items there are, where ``len(items)`` does not say it.
    """
    if progress is None:
        yield from items
        return
    size = total if total is not None else getattr(items, "__len__", lambda: None)()
    task = progress.add_task(description, total=size)
    try:
        for item in items:
            yield item
            progress.advance(task)
    finally:
        progress.remove_task(task)
