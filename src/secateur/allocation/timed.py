"""Latency targets: how many steps make the network as fast as was asked, by measuring.

A model of time against MACs proposes a number of steps, the cut network is measured in turns with
the dense one, and the answer narrows the range; so a handful of measurements is enough.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial

from rich.progress import Progress
from torch import nn

from secateur.allocation.budget import first, share_left
from secateur.allocation.order import Queue
from secateur.cutting import cut
from secateur.errors import PlanError
from secateur.graph import Graph
from secateur.latency import Timing, relative_time
from secateur.plan import Plan
from secateur.planning import make_plan
from secateur.progress import track

Measure = Callable[[nn.Module, nn.Module], float]
"""(dense, pruned) -> time of the pruned network / time of the dense one."""

MOST_MEASUREMENTS = 24
REOPENED = 2
CANDIDATES = 3
CONFIRMATIONS = 3
ANEW = 5


def meet_latency(
    graph: Graph,
    queue: Queue,
    share: float,
    timing: Timing,
    measure: Measure | None = None,
    progress: Progress | None = None,
) -> Plan:
    """Take steps until the network needs ``share`` of the dense network's time.

    Raises:
        PlanError: it is out of reach, or no number of steps comes within the tolerance; says
            what was measured nearest.
    """
    steps = queue.merged()
    take = measure or partial(
        relative_time, example=graph.example_inputs, timing=timing, progress=progress
    )

    @cache
    def work(count: int) -> float:
        return share_left(graph, queue, steps[:count], "macs")

    def time(count: int) -> float:
        taken = queue.taken(steps[:count])
        if not graph.mend(taken).removed:
            return 1.0
        return take(graph.model, cut(graph.model, make_plan(graph, taken)))

    count = search(work, time, len(steps), share, timing.tolerance, progress)
    return make_plan(graph, queue.taken(steps[:count]))


@dataclass(frozen=True)
class _Point:
    """What is known of a number of steps: the shares of MACs and of time that are left."""

    count: int
    work: float
    time: float


def search(
    work: Callable[[int], float],
    time: Callable[[int], float],
    top: int,
    share: float,
    tolerance: float,
    progress: Progress | None = None,
) -> int:
    """Return a number of steps in 0..top whose time is within ``tolerance`` of ``share``.

    A number is taken when it looks right and the median of three more measurements is within half
    the tolerance.
    When none is, the nearest that are within the whole of it are measured anew, and what they were
    found by does not count: the best of many noisy measurements is the luckiest one.

    Args:
        work: number of steps -> share of MACs left; falls.
        time: number of steps -> share of time left, measured; falls but for noise.
        top: how many steps there are.
        share: the wished share of time.
        tolerance: relative to ``share``.
        progress: where to show how far it is.

    Raises:
        PlanError: see :func:`meet_latency`.
    """
    if share == 1:
        return 0
    slows, fasts, found = [_Point(0, 1.0, 1.0)], list[_Point](), list[_Point]()
    halve, reopened = False, 0
    for _ in track(range(MOST_MEASUREMENTS), f"Meeting latency {share:g}", progress):
        if _end(fasts, top) - slows[-1].count < 2:
            # Noise may have put an end of the range on the wrong side: back to those before.
            if reopened == REOPENED or not fasts:
                break
            reopened, halve = reopened + 1, True
            slows, fasts = slows[:1] + slows[1:-2], fasts[:-2]
        slow, end = slows[-1], _end(fasts, top)
        count = (slow.count + end) // 2
        if not halve:
            wanted = _wanted_work(slow, fasts[-1] if fasts else None, share)
            count = _first_below(work, wanted, slow.count + 1, end - 1)
        point = _Point(count, work(count), _measured(time, count, share, tolerance))
        found.append(point)
        if _error(point, share) <= tolerance / 2:
            return point.count
        (slows if point.time > share else fasts).append(point)
        halve = 2 * (_end(fasts, top) - slows[-1].count) > end - slow.count
    near = {p.count: p for p in found if _error(p, share) <= tolerance}
    for point in sorted(near.values(), key=lambda p: _error(p, share))[:CANDIDATES]:
        anew = statistics.median(time(point.count) for _ in range(ANEW))
        found.append(_Point(point.count, point.work, anew))
        if _error(found[-1], share) <= tolerance:
            return point.count
    refuted = [p for p in found if p.count not in near] + found[len(found) - len(near) :]
    raise PlanError(_unmet(refuted, top, share, tolerance))


def _end(fasts: Sequence[_Point], top: int) -> int:
    """Return the least number of steps that is known to be too many."""
    return fasts[-1].count if fasts else top + 1


def _wanted_work(slow: _Point, fast: _Point | None, share: float) -> float:
    """Return the MACs at which a line through what is known has the wished time."""
    if slow.count == 0 and fast is None:
        return share
    other = fast or _Point(0, 1.0, 1.0)
    if slow.time == other.time:
        return (slow.work + other.work) / 2 if fast else 0.0
    slope = (slow.work - other.work) / (slow.time - other.time)
    return slow.work + (share - slow.time) * slope


def _first_below(work: Callable[[int], float], wanted: float, low: int, high: int) -> int:
    """Return the least number of steps in low..high that leaves at most ``wanted``, else high."""
    return min(high, low + first(high - low, lambda n: work(low + n) <= wanted))


def _measured(time: Callable[[int], float], count: int, share: float, tolerance: float) -> float:
    """Measure once, and where that may be the answer anew: what was chosen for luck is biased."""
    once = time(count)
    if abs(once / share - 1) > tolerance:
        return once
    return statistics.median(time(count) for _ in range(CONFIRMATIONS))


def _error(point: _Point, share: float) -> float:
    return abs(point.time / share - 1)


def _unmet(found: Sequence[_Point], top: int, share: float, tolerance: float) -> str:
    if not found:
        return f"latency={share} cannot be met: there is nothing to remove"
    fastest = min(found, key=lambda point: point.time)
    if fastest.time > share and any(point.count == top for point in found):
        return (
            f"latency={share} cannot be met: with as few units in every group as may stay the "
            f"network takes {fastest.time:.3f} of the dense network's time"
        )
    near = sorted(found, key=lambda point: _error(point, share))[:2]
    seen = " and ".join(f"{point.time:.3f}" for point in near)
    return (
        f"latency={share} cannot be met within {tolerance:.0%}: of {len(found)} cut networks the "
        f"nearest take {seen} of the dense network's time; timing may allow more time or tolerance"
    )
