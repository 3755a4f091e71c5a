"""Several workers on one run folder: who holds a lock does the work.

A lock is an open file that the system lets go of when its holder dies, however it dies. So what
a killed worker leaves can be taken up at once, and nothing is ever done by two.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from filelock import FileLock, Timeout

from secateur.files import make_folder

LOCKS = "locks"
WAIT = 0.2


def lock_of(folder: Path, name: str) -> FileLock:
    """Return the lock of a piece of work, not taken yet."""
    make_folder(folder / LOCKS)
    return FileLock(folder / LOCKS / f"{name}.lock")


@contextlib.contextmanager
def alone(folder: Path, name: str) -> Iterator[None]:
    """Wait until nobody else does ``name``, and keep others from it."""
    with lock_of(folder, name):
        yield


def taken(lock: FileLock) -> bool:
    """Take the lock if it is free; return whether it was."""
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return False
    return True


def share_work(
    folder: Path, jobs: Mapping[str, Callable[[], None]], done: Callable[[str], bool]
) -> None:
    """Do every job that nobody else does; return when all are done by somebody.

    Args:
        folder: of the run.
        jobs: name -> what to do; it leaves behind what ``done`` looks for.
        done: whether the job of that name is over.
    """
    left = list(jobs)
    while left:
        before = len(left)
        for name in list(left):
            if not done(name):
                lock = lock_of(folder, name)
                if not taken(lock):
                    continue
                try:
                    if not done(name):
                        jobs[name]()
                finally:
                    lock.release()
            left.remove(name)
        if len(left) == before:
            time.sleep(WAIT)
