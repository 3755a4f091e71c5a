"""What the dense network makes of settings: the retraining with the best, and the measured trust.

Each training is a piece of work that any worker may take; what it leaves is one JSON file (and
the weights of a retraining), so that a stopped run goes on and does nothing twice.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from torch import nn

from secateur.checked import read_tensors, write_tensors
from secateur.data import batches
from secateur.finetune import TrainSettings
from secateur.measure import quality
from secateur.progress import say
from secateur.results import Quality
from secateur.study import store
from secateur.training_state import snapshot
from secateur.tuning.attempts import Bench, attempt, clear
from secateur.tuning.objective import PIR_METRICS, Objective
from secateur.tuning.sharing import share_work
from secateur.tuning.space import Values
from secateur.tuning_results import Pair, Retrained, Tried

R = TypeVar("R")


@dataclass(frozen=True)
class Score:
    """One setting on one network: the last quality of its curve, None if it diverged."""

    curve: tuple[Quality, ...]
    seconds: float
    note: str


def retrain(
    folder: Path,
    bench: Bench,
    network: nn.Module,
    chosen: Sequence[Tried],
    longer: Callable[[TrainSettings], TrainSettings],
) -> tuple[Retrained, ...]:
    """Train ``network`` with each setting; the order is that of ``chosen``."""

    def work(one: Tried) -> Callable[[], None]:
        name = f"retrain-{one.number:04d}"

        def do() -> None:
            say(bench.progress, f"dense network with the setting of trial {one.number}")
            found, model = attempt(
                bench, network, one.values, _stage(folder, name), name, finished=longer
            )
            validation = None
            if not found.note:
                loader = batches(bench.data.validation, bench.batch_size)
                validation = quality(model, loader, "validation")
                write_tensors(_weights(folder, one.number), snapshot(model))
            record = Retrained(one.number, one.values, validation, None, found.history,
                               found.seconds, note=found.note)  # fmt: skip
            _file(folder, name, record)
            clear(_stage(folder, name))

        return do

    jobs = {f"retrain-{one.number:04d}": work(one) for one in chosen}
    share_work(folder, jobs, lambda name: _path(folder, name).is_file())
    return tuple(_read(folder, name, Retrained) for name in jobs)


def with_weights(folder: Path, network: nn.Module, number: int) -> nn.Module:
    """Put the weights of a retraining into ``network``."""
    network.load_state_dict(read_tensors(_weights(folder, number)))
    return network


def pairs(
    folder: Path,
    bench: Bench,
    networks: Mapping[str, nn.Module],
    settings: Sequence[Values],
    objective: Objective,
) -> dict[str, tuple[Pair, ...]]:
    """Train every setting on every network; return the pairs of each proxy with "dense".

    Both sides are judged by the same metric at the same epoch; for a PIR that is the precision,
    whose order the PIR keeps.
    """

    def work(kind: str, place: int, network: nn.Module) -> Callable[[], None]:
        name = f"trust-{kind}-{place:03d}"

        def do() -> None:
            stage = _stage(folder, name)
            found, _ = attempt(bench, network, settings[place], stage, name)
            _file(folder, name, Score(found.curve, found.seconds, found.note))
            clear(stage)
            say(bench.progress, f"trust: setting {place + 1} of {len(settings)} on {kind}")

        return do

    # The dense trainings take the longest, so they are begun first.
    order = sorted(networks, key=lambda kind: kind != "dense")
    jobs = {
        f"trust-{kind}-{place:03d}": work(kind, place, networks[kind])
        for kind in order
        for place in range(len(settings))
    }
    share_work(folder, jobs, lambda name: _path(folder, name).is_file())

    def score(kind: str, place: int) -> tuple[float, float]:
        found = _read(folder, f"trust-{kind}-{place:03d}", Score)
        return _judged(found, objective), found.seconds

    result: dict[str, tuple[Pair, ...]] = {}
    for kind in networks:
        if kind == "dense":
            continue
        result[kind] = tuple(
            Pair(values, proxy, dense, proxy_seconds, dense_seconds)
            for place, values in enumerate(settings)
            for proxy, proxy_seconds in [score(kind, place)]
            for dense, dense_seconds in [score("dense", place)]
        )
    return result


def metric_of(objective: Objective) -> str:
    """Return what both networks are judged by."""
    return "precision" if objective.metric in PIR_METRICS else objective.metric


def _judged(score: Score, objective: Objective) -> float:
    """Return the score, higher is better; a training without a number is the worst."""
    if score.note or not score.curve:
        return float("-inf")
    plain = dataclasses.replace(objective, metric=metric_of(objective))
    # The area begins after the first epoch here: the two networks begin at different heights.
    value = plain.value(score.curve[0], score.curve)
    return -value if objective.metric == "loss" else value


def _stage(folder: Path, name: str) -> Path:
    return folder / store.STAGES / name


def _path(folder: Path, name: str) -> Path:
    return folder / store.STAGES / f"{name}.json"


def _weights(folder: Path, number: int) -> Path:
    return folder / store.STAGES / f"retrain-{number:04d}.safetensors"


def _file(folder: Path, name: str, record: Retrained | Score) -> None:
    store.write_records(_path(folder, name), [record])


def _read(folder: Path, name: str, kind: type[R]) -> R:
    (found,) = store.read_records(_path(folder, name), kind)
    return found
