from __future__ import annotations

from rich.progress import Progress

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
