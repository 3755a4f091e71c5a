"""Trials one after another, here or in several processes; one writer, and no trial ends the study.

A worker builds its own bench once and then answers with one finished trial for each number that
it is sent. Whatever fails in a trial is its error; a worker that dies is its trial's error, too.
"""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

from secateur.compare.bench import Bench, set_up
from secateur.compare.config import CompareConfig
from secateur.compare.making import run_trial
from secateur.compare.trials import Spec, grid
from secateur.comparison import Trial
from secateur.errors import SecateurError, StorageError, is_out_of_memory, told_out_of_memory
from secateur.study.stages import threads_set

WATCH = 1.0
"""Seconds between looks at whether the study is still there."""


def one_by_one(bench: Bench, specs: Sequence[Spec]) -> Iterator[Trial]:
    """Run trials in this process."""
    for spec in specs:
        yield tried(bench, spec)


def tried(bench: Bench, spec: Spec) -> Trial:
    """Run a trial; whatever goes wrong becomes its error.

    Raises:
        StorageError: a file cannot be written (a full disk, say); the study ends.
    """
    started = time.perf_counter()
    try:
        return run_trial(bench, spec)
    except StorageError:
        # Not the trial's: all that follow would fail, too, and a resume does it again.
        raise
    except Exception as error:  # noqa: BLE001 (the other trials go on; the record says what it was)
        return _failed(spec.trial, _said(error), time.perf_counter() - started)


@dataclasses.dataclass
class _Worker:
    process: BaseProcess
    link: Connection
    spec: Spec | None = None
    started: float = 0.0


def side_by_side(
    config: CompareConfig, stage: Path, specs: Sequence[Spec], count: int
) -> Iterator[Trial]:
    """Run trials in ``count`` processes, each result as soon as it is there.

    Raises:
        SecateurError: a worker cannot start.
    """
    waiting = list(reversed(specs))
    workers: list[_Worker] = []
    try:
        while waiting or any(worker.spec for worker in workers):
            while waiting and len(workers) < min(count, len(waiting) + len(workers)):
                workers.append(_start(config, stage))
            for worker in workers:
                if worker.spec is None and waiting:
                    worker.spec, worker.started = waiting.pop(), time.perf_counter()
                    # A worker that died while idle is found dead below, with its trial.
                    with contextlib.suppress(OSError):
                        worker.link.send(worker.spec.trial.number)
            ready = wait([worker.link for worker in workers if worker.spec])
            for worker in [worker for worker in workers if worker.link in ready]:
                answer = _answer(worker)
                worker.spec = None
                if worker.process.exitcode is not None or not worker.process.is_alive():
                    workers.remove(worker)
                yield answer
    finally:
        for worker in workers:
            worker.process.terminate()
        for worker in workers:
            worker.process.join()
            worker.link.close()


def _start(config: CompareConfig, stage: Path) -> _Worker:
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_work, args=(config, stage, there, os.getpid()), daemon=True)
    process.start()
    there.close()
    return _Worker(process, here)


def _answer(worker: _Worker) -> Trial:
    """Read a worker's answer; where it is dead, say so in the trial's name."""
    assert worker.spec is not None
    try:
        answer = worker.link.recv()
    except (EOFError, OSError):
        worker.process.join()
        code = worker.process.exitcode or 0
        how = f"signal {-code}" if code < 0 else f"exit status {code}"
        seconds = time.perf_counter() - worker.started
        return _failed(worker.spec.trial, f"the worker process died ({how})", seconds)
    if isinstance(answer, StorageError):
        raise answer
    if isinstance(answer, str):
        raise SecateurError(f"a worker cannot start: {answer}")
    found: Trial = answer
    return found


def _work(config: CompareConfig, stage: Path, link: Connection, study: int) -> None:
    """Answer each number with its finished trial, until the study goes away."""
    # Ctrl-C reaches every process of a terminal; the study decides for all of them.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_leave_with, args=(study,), daemon=True).start()
    with threads_set(config.threads), contextlib.suppress(EOFError, BrokenPipeError):
        # One thread between operations as well: several processes share the cores.
        torch.set_num_interop_threads(1)
        try:
            bench, _ = set_up(config, stage)
        except Exception as error:  # noqa: BLE001 (told to the study, which ends)
            link.recv()
            link.send(_said(error))
            return
        specs = grid(config)
        while True:
            number = link.recv()
            try:
                link.send(tried(bench, specs[number]))
            except StorageError as error:
                link.send(StorageError(str(error)))


def _leave_with(study: int) -> None:
    """End this process when the study is killed: nobody would read its answer."""
    while os.getppid() == study:
        time.sleep(WATCH)
    os._exit(1)


def _failed(trial: Trial, error: str, seconds: float) -> Trial:
    return dataclasses.replace(trial, state="failed", error=error, seconds=seconds)


def _said(error: Exception) -> str:
    """One line for what users can mend; the place in the code for what they cannot."""
    if is_out_of_memory(error):
        return told_out_of_memory(error)
    text = " ".join(str(error).split())
    if isinstance(error, SecateurError):
        return text
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {text}{place}"
