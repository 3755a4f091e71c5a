"""How fast networks are, measured in turns so that what disturbs one disturbs all.

Each repeat gives every network one turn, in order: A B A B. A turn is as many passes as fill its
share of the time, so that a fast network is not judged by single ticks of the clock. Speeds are
inferences (samples) per second; of the turns, the median and the quartiles are kept.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from rich.progress import Progress
from torch import Tensor, nn

from secateur.calibration import device_of
from secateur.errors import InputError
from secateur.measure import evaluating
from secateur.progress import track
from secateur.results import Speed

Clock = Callable[[], float]

WARM_UP = 3


def _check(batch: int | None, threads: int, repeats: int, seconds: float) -> None:
    for name, value in (("batch", batch), ("repeats", repeats), ("threads", threads)):
        if value is not None and value < 1:
            raise InputError(f"{name} must be at least 1, but got {value}")
    if seconds <= 0:
        raise InputError(f"seconds must be above 0, but got {seconds}")


@dataclass(frozen=True)
class Timing:
    """How the time of a pruned network is compared with the dense network's.

    Attributes:
        batch: samples per pass, the first example repeated; None takes the example inputs as
            they are.
        threads: threads that PyTorch may use on the CPU.
        repeats: turns of each network in one comparison.
        seconds: about how long one comparison takes.
        tolerance: how far a target may be missed, relative to it.

    Raises:
        InputError: a value is out of its range.
    """

    batch: int | None = 1
    threads: int = 1
    repeats: int = 20
    seconds: float = 2.0
    tolerance: float = 0.05

    def __post_init__(self) -> None:
        _check(self.batch, self.threads, self.repeats, self.seconds)
        if not 0 < self.tolerance < 1:
            raise InputError(f"tolerance must satisfy 0 < tolerance < 1, but got {self.tolerance}")


def relative_time(
    dense: nn.Module,
    pruned: nn.Module,
    example: Any,
    timing: Timing = Timing(),
    *,
    progress: Progress | None = None,
    clock: Clock = time.perf_counter,
) -> float:
    """Return the time of ``pruned`` as a share of the time of ``dense``.

    Both run in turns, A B A B; each pair of neighbouring turns gives one share, and their median
    is the result, so that a machine that slows down for a while slows both.
    """
    spent = _turns(
        {"dense": dense, "pruned": pruned},
        example,
        batch=timing.batch,
        repeats=timing.repeats,
        threads=timing.threads,
        seconds=timing.seconds,
        progress=progress,
        clock=clock,
    )
    pairs = zip(spent["dense"], spent["pruned"], strict=True)
    return statistics.median(after / before for before, after in pairs)


def paired(
    models: Mapping[str, nn.Module],
    example: Any,
    *,
    batch: int = 1,
    repeats: int = 20,
    threads: int = 1,
    seconds: float = 10.0,
    progress: Progress | None = None,
    clock: Clock = time.perf_counter,
) -> dict[str, Speed]:
    """Measure how many inferences per second each of ``models`` makes, in turns.

    The networks run in eval mode without gradients, where their parameters are; modes and the
    thread count are put back.

    Args:
        models: name -> network; all take the same input.
        example: an input with a leading batch dimension: a tensor, or a tuple or dict of them. Its
            first sample is repeated to fill the batch.
        batch: samples per pass.
        repeats: turns of each network.
        threads: threads that PyTorch may use on the CPU.
        seconds: about how long all turns together take; at least one pass per turn is made.
        progress: where to show how far it is.
        clock: seconds that pass.

    Raises:
        InputError: an argument is below its least value, or there is nothing to measure.
    """
    _check(batch, threads, repeats, seconds)
    if not models:
        raise InputError("models must hold at least one network, but got none")
    spent = _turns(
        models,
        example,
        batch=batch,
        repeats=repeats,
        threads=threads,
        seconds=seconds,
        progress=progress,
        clock=clock,
    )
    return {
        name: summary([batch / taken for taken in turns], batch, threads)
        for name, turns in spent.items()
    }


def efficiency(speed_up: float, dense_macs: int, pruned_macs: int) -> float:
    """Return the measured speed-up over the reduction of MACs; 1 is the physical ideal.

    Raises:
        InputError: a value is not above 0.
    """
    given = {"speed_up": speed_up, "dense_macs": dense_macs, "pruned_macs": pruned_macs}
    for name, value in given.items():
        if value <= 0:
            raise InputError(f"{name} must be above 0, but got {value}")
    return speed_up * pruned_macs / dense_macs


def layer_times(
    model: nn.Module,
    example: Any,
    *,
    batch: int = 1,
    repeats: int = 20,
    threads: int = 1,
    clock: Clock = time.perf_counter,
) -> dict[str, float]:
    """Measure the seconds of a pass that each innermost module takes: the median of the repeats.

    Operations outside of such modules (additions, attention products) are not in the table, so
    the sum is less than the pass. A module that runs several times counts all its runs.

    Raises:
        InputError: an argument is below its least value.
    """
    _check(batch, threads, repeats, 1)
    spent: dict[str, list[float]] = {}
    started: dict[str, float] = {}
    device = device_of(model)

    def now() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return clock()

    def enter(name: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            started[name] = now()

        return hook

    def leave(name: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            spent[name][-1] += now() - started[name]

        return hook

    with contextlib.ExitStack() as stack:
        stack.enter_context(_threads(threads))
        stack.enter_context(evaluating(model))
        run = _run(model, batched(example, batch, device))
        for _ in range(WARM_UP):
            run()
        for name, module in model.named_modules():
            if next(module.children(), None) is None:
                spent[name] = []
                stack.callback(module.register_forward_pre_hook(enter(name)).remove)
                stack.callback(module.register_forward_hook(leave(name)).remove)
        for _ in range(repeats):
            for times in spent.values():
                times.append(0.0)
            run()
    return {name: statistics.median(times) for name, times in spent.items()}


def summary(speeds: list[float], batch: int, threads: int) -> Speed:
    """Reduce the speeds of all turns to their median and quartiles."""
    low, median, high = np.percentile(speeds, [25, 50, 75])
    return Speed(
        batch=batch,
        threads=threads,
        repeats=len(speeds),
        median=float(median),
        low=float(low),
        high=float(high),
    )


def _turns(
    models: Mapping[str, nn.Module],
    example: Any,
    *,
    batch: int | None,
    repeats: int,
    threads: int,
    seconds: float,
    progress: Progress | None,
    clock: Clock,
) -> dict[str, list[float]]:
    """Measure the seconds that one pass of each network takes, turn by turn."""
    share = seconds / (repeats * len(models))
    spent: dict[str, list[float]] = {name: [] for name in models}
    with contextlib.ExitStack() as stack:
        stack.enter_context(_threads(threads))
        runs: dict[str, Callable[[], None]] = {}
        passes: dict[str, int] = {}
        for name, model in models.items():
            stack.enter_context(evaluating(model))
            runs[name] = _run(model, batched(example, batch, device_of(model)))
            passes[name] = _passes(runs[name], share, clock)
        for _ in track(range(repeats), "Measuring speed", progress):
            for name, run in runs.items():
                spent[name].append(_timed(run, passes[name], clock) / passes[name])
    return spent


def _passes(run: Callable[[], None], share: float, clock: Clock) -> int:
    """Warm up, and find how many passes fill ``share`` seconds."""
    slow = min(_timed(run, 1, clock) for _ in range(WARM_UP))
    return max(1, round(share / slow))


def _timed(run: Callable[[], None], passes: int, clock: Clock) -> float:
    start = clock()
    for _ in range(passes):
        run()
    # A clock too coarse for one pass must not divide by zero.
    return max(clock() - start, 1e-9)


def _run(model: nn.Module, inputs: Any) -> Callable[[], None]:
    """Make one pass a call without arguments; it returns when the pass is done."""
    device = device_of(model)

    def run() -> None:
        if isinstance(inputs, dict):
            model(**inputs)
        elif isinstance(inputs, tuple):
            model(*inputs)
        else:
            model(inputs)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return run


def batched(example: Any, size: int | None, device: torch.device) -> Any:
    """Repeat the first sample of every tensor ``size`` times; None leaves the samples.

    Raises:
        InputError: a tensor has no batch dimension, or holds no sample.
    """
    if isinstance(example, Tensor):
        if size is None:
            return example.detach().to(device)
        if example.ndim == 0:
            raise InputError("example must have a leading batch dimension, but a tensor is scalar")
        if len(example) == 0:
            raise InputError("example must hold at least one sample, but a tensor is empty")
        first = example[:1].detach().to(device)
        return first.expand(size, *first.shape[1:]).contiguous()
    if isinstance(example, Mapping):
        return {name: batched(value, size, device) for name, value in example.items()}
    if isinstance(example, tuple | list):
        return tuple(batched(value, size, device) for value in example)
    return example


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
