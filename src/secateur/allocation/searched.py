"""How much goes from each group, found by search: accuracy against MACs.

Each trial gives every group its own share to lose, lowest scores first; the plan is judged by the
caller. Optuna proposes the shares, by NSGA-II (Deb et al. 2002, "A fast and elitist multiobjective
genetic algorithm") or the multi-objective tree-structured Parzen estimator (Ozaki et al. 2020).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.progress import Progress
from torch import Tensor

from secateur.allocation.limits import SLACK
from secateur.errors import CheckpointError, InputError, PlanError, unknown_name
from secateur.files import read_json, write_json
from secateur.graph import Graph
from secateur.optuna_logging import quiet_optuna
from secateur.pareto import frontier
from secateur.plan import Plan
from secateur.planning import make_plan
from secateur.progress import track

SAMPLERS = ("nsga2", "tpe")
STEP = 0.05
"""Shares are multiples of this: finer ones differ by less than a unit in most groups."""
FIRST = (0.1, 0.25, 0.5)
"""The first trials give all groups one share, so that the search starts from something known."""


_Removed = tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Candidate:
    """One division on the frontier.

    Attributes:
        removed: units by group.
        accuracy: what the judge said.
        macs: share of the dense network's that is left.
    """

    removed: Mapping[str, int]
    accuracy: float
    macs: float


@quiet_optuna()
def search_allocation(
    graph: Graph,
    scores: Mapping[str, Tensor],
    judge: Callable[[Plan], float],
    *,
    trials: int = 100,
    sampler: str = "nsga2",
    most: float = 0.9,
    begin: Sequence[Mapping[str, int]] = (),
    seed: int = 0,
    record: str | Path | None = None,
    progress: Progress | None = None,
) -> tuple[Candidate, ...]:
    """Search how many units each group gives up.

    Args:
        graph: from ``trace``.
        scores: from ``score``; groups left out stay whole.
        judge: returns the accuracy of a plan's network, on validation and never on test; called
            once for each division.
        trials: divisions to try, those that the record holds included.
        sampler: "nsga2" or "tpe".
        most: the largest share of a group that may go.
        begin: divisions to try first, as units to remove of each group; taken up to the next
            share that is searched.
        seed: of what is drawn.
        record: a JSON file that keeps what was judged. A search that was stopped proposes the same
            again and takes from there what it knows, so it ends like one that was not.
        progress: where to show how far it is.

    Returns:
        The divisions that no other beats in accuracy and MACs, by falling MACs;
        ``plan_of(graph, scores, candidate.removed)`` makes the plan of one.

    Raises:
        InputError: an argument is out of its range.
        CheckpointError: the record is damaged.
    """
    import optuna

    _check(scores, trials, sampler, most)
    known = _read(record)
    study: Any = optuna.create_study(directions=["maximize", "minimize"])
    study.sampler = {
        "nsga2": lambda: optuna.samplers.NSGAIISampler(
            population_size=max(4, min(50, trials // 4)), seed=seed
        ),
        "tpe": lambda: optuna.samplers.TPESampler(seed=seed),
    }[sampler]()
    tried = dict[_Removed, tuple[float, ...]]()
    for counts in begin:
        gone = {name: counts.get(name, 0) / graph.by_name[name].size for name in scores}
        study.enqueue_trial({name: _above(share, most) for name, share in gone.items()})
    for share in FIRST:
        study.enqueue_trial({name: _stepped(min(share, most)) for name in scores})
    for _ in track(range(trials), "Searching shares", progress):
        trial = study.ask()
        shares = {
            name: trial.suggest_float(name, 0.0, _stepped(most), step=STEP) for name in scores
        }
        removed = _counts(graph, shares)
        key = _key(removed)
        if key not in known:
            plan = plan_of(graph, scores, removed)
            macs = 1.0 if plan is None else plan.pruned.macs / plan.dense.macs
            known[key] = (judge(plan or make_plan(graph, {})), macs)
            _write(record, known)
        tried[key] = known[key]
        study.tell(trial, list(known[key]))
    return _front(tried)


def plan_of(graph: Graph, scores: Mapping[str, Tensor], removed: Mapping[str, int]) -> Plan | None:
    """Make the plan that takes so many units of each group, lowest scores first.

    Returns:
        None where the model's own code lets none of them go.
    """
    orders = {name: scores[name].detach().to("cpu").double() for name in removed}
    try:
        return make_plan(
            graph,
            {
                name: orders[name].argsort(stable=True).tolist()[:count]
                for name, count in removed.items()
                if count
            },
        )
    except PlanError:
        return None


def _counts(graph: Graph, shares: Mapping[str, float]) -> dict[str, int]:
    sizes = {name: graph.by_name[name].size for name in shares}
    return {
        name: min(math.floor(share * sizes[name] + SLACK), sizes[name] - 1)
        for name, share in shares.items()
    }


def _read(record: str | Path | None) -> dict[_Removed, tuple[float, ...]]:
    if record is None or not Path(record).is_file():
        return {}
    try:
        judged = read_json(Path(record))["judged"]
        return {_key(removed): tuple(values) for removed, values in judged}
    except (CheckpointError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{error}; delete {record} to judge its divisions again") from error


def _write(record: str | Path | None, known: Mapping[_Removed, tuple[float, ...]]) -> None:
    if record is not None:
        judged = [[dict(removed), list(values)] for removed, values in known.items()]
        write_json(Path(record), {"judged": judged})


def _front(known: Mapping[_Removed, tuple[float, ...]]) -> tuple[Candidate, ...]:
    every = [Candidate(dict(key), values[0], values[1]) for key, values in known.items()]
    best = frontier([(one.accuracy, one.macs) for one in every])
    kept = [one for one, good in zip(every, best, strict=True) if good]
    return tuple(sorted(kept, key=lambda one: -one.macs))


def _key(removed: Mapping[str, int]) -> _Removed:
    return tuple(sorted(removed.items()))


def _stepped(share: float) -> float:
    return round(math.floor(share / STEP + SLACK) * STEP, 10)


def _above(share: float, most: float) -> float:
    """Return the next multiple of the step, so that no unit less goes."""
    return min(round(math.ceil(share / STEP - SLACK) * STEP, 10), _stepped(most))


def _check(scores: Mapping[str, Tensor], trials: int, sampler: str, most: float) -> None:
    if not scores:
        raise InputError("scores must hold at least one group, but got none")
    if trials < 1:
        raise InputError(f"trials must be at least 1, but got {trials}")
    if sampler not in SAMPLERS:
        raise unknown_name("sampler", sampler, SAMPLERS)
    if not STEP <= most < 1:
        raise InputError(f"most must satisfy {STEP} <= most < 1, but got {most}")
