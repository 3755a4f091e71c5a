from __future__ import annotations

import io

import pytest
from rich.console import Console
from rich.progress import Progress

from secateur import progress as room
from secateur.progress import track


def test_nothing_is_shown_without_a_display() -> None:
    assert list(track(iter("abc"), "Letters", None)) == ["a", "b", "c"]


def test_a_bar_counts_and_leaves() -> None:
    with Progress(disable=True) as progress:
        counted = []
        for _ in track("abc", "Letters", progress):
            task = progress.tasks[0]
            counted.append((task.description, task.total, task.completed))
        assert counted == [("Letters", 3, 0), ("Letters", 3, 1), ("Letters", 3, 2)]
        assert not progress.tasks


def test_a_total_may_be_given_or_unknown() -> None:
    with Progress(disable=True) as progress:
        for _ in track(iter("ab"), "Known", progress, 2):
            assert progress.tasks[0].total == 2
        for _ in track(iter("ab"), "Unknown", progress):
            assert progress.tasks[0].total is None


def test_a_bar_leaves_when_the_loop_breaks() -> None:
    with Progress(disable=True) as progress:
        loop = track("abc", "Letters", progress)
        next(loop)
        assert progress.tasks
        loop.close()
        assert not progress.tasks


@pytest.mark.parametrize(("total", "said"), [(4, "Letters: 3 of 4\n"), (None, "Letters: 3\n")])
def test_a_line_now_and_then_without_a_screen(
    monkeypatch: pytest.MonkeyPatch, total: int | None, said: str
) -> None:
    clock = iter((0.0, 4.0, 8.0, 12.0, 12.0, 16.0))
    monkeypatch.setattr(room.time, "monotonic", lambda: next(clock))
    out = io.StringIO()
    with Progress(console=Console(file=out), disable=True) as progress:
        assert list(track(iter("abcd"), "Letters", progress, total)) == list("abcd")
    assert out.getvalue() == said


def test_no_line_beside_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "LINE_EVERY", 0.0)
    out = io.StringIO()
    console = Console(file=out, force_terminal=True)
    with Progress(console=console, auto_refresh=False, transient=True) as progress:
        for _ in track("abc", "Letters", progress):
            pass
    assert " of 3" not in out.getvalue()
