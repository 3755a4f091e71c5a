"""How fast networks are, measured in turns so that what disturbs one disturbs all.

Each repeat gives every network one turn, in order: A B A B. A turn is as many passes as fill its
share of the time, so that a fast network is not judged by single ticks of the clock. Speeds are
inferences (samples) per second; of the turns, the median and the quartiles are kept.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from rich.progress import Progress
from torch import Tensor, nn

from secateur.errors import InputError
from secateur.measure import device_of, evaluating
from secateur.progress import track
from secateur.results import Speed

Clock = Callable[[], float]

WARM_UP = 3


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
    for name, value in (("batch", batch), ("repeats", repeats), ("threads", threads)):
        if value < 1:
            raise InputError(f"{name} must be at least 1, but got {value}")
    if seconds <= 0:
        raise InputError(f"seconds must be above 0, but got {seconds}")
    if not models:
        raise InputError("models must hold at least one network, but got none")
    share = seconds / (repeats * len(models))
    turns: dict[str, list[float]] = {name: [] for name in models}
    with contextlib.ExitStack() as stack:
        stack.enter_context(_threads(threads))
        runs: dict[str, Callable[[], None]] = {}
        passes: dict[str, int] = {}
        for name, model in models.items():
            stack.enter_context(evaluating(model))
            runs[name] = _run(model, _batch(example, batch, device_of(model)))
            passes[name] = _passes(runs[name], share, clock)
        for _ in track(range(repeats), "Measuring speed", progress):
            for name, run in runs.items():
                taken = _timed(run, passes[name], clock)
                turns[name].append(passes[name] * batch / taken)
    return {name: summary(speeds, batch, threads) for name, speeds in turns.items()}


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


def _batch(example: Any, size: int, device: torch.device) -> Any:
    """Repeat the first sample of every tensor ``size`` times."""
    if isinstance(example, Tensor):
        if example.ndim == 0:
            raise InputError("example must have a leading batch dimension, but a tensor is scalar")
        if len(example) == 0:
            raise InputError("example must hold at least one sample, but a tensor is empty")
        first = example[:1].detach().to(device)
        return first.expand(size, *first.shape[1:]).contiguous()
    if isinstance(example, Mapping):
        return {name: _batch(value, size, device) for name, value in example.items()}
    if isinstance(example, tuple | list):
        return tuple(_batch(value, size, device) for value in example)
    return example


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
