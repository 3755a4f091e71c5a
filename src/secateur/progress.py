"""One bar for one loop, or a line now and then where there is no screen to draw bars on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from rich.progress import Progress

T = TypeVar("T")

LINE_EVERY = 10.0
"""Seconds between two lines of one loop where no bar is drawn."""


def track(
    items: Iterable[T], description: str, progress: Progress | None, total: int | None = None
) -> Iterator[T]:
    """Yield ``items`` while a bar counts them; the bar leaves when the loop ends or breaks.

    Args:
        items: what to loop over.
        description: the words beside the bar.
        progress: where to show it; None shows nothing, one without a screen gets lines.
        total: how many items there are, where ``len(items)`` does not say it.
    """
    if progress is None:
        yield from items
        return
    size = total if total is not None else getattr(items, "__len__", lambda: None)()
    task = progress.add_task(description, total=size)
    tell = line_teller(progress)
    try:
        for done, item in enumerate(items, start=1):
            yield item
            progress.advance(task)
            tell(counted, description, done, size)
    finally:
        progress.remove_task(task)


def counted(description: str, done: int, size: int | None) -> str:
    """Say how far a loop is."""
    return f"{description}: {done}" if size is None else f"{description}: {done} of {size}"


def line_teller(progress: Progress | None) -> Callable[..., None]:
    """Return what prints a line at most every ten seconds, where no bars are drawn.

    It takes a function and its arguments, and makes the text only when it is due.
    """
    if progress is None or not progress.disable:
        return lambda text, *given: None
    console, last = progress.console, time.monotonic()

    def tell(text: Callable[..., str], *given: Any) -> None:
        nonlocal last
        if time.monotonic() - last >= LINE_EVERY:
            last = time.monotonic()
            console.print(text(*given), highlight=False, markup=False, soft_wrap=True)

    return tell


def say(progress: Progress | None, text: str) -> None:
    """Print a line above the bars, where there is a screen."""
    if progress is not None:
        progress.console.print(text, highlight=False, markup=False, soft_wrap=True)
