"""One setting on one network: trained from the same weights, measured after every epoch."""

from __future__ import annotations

import copy
import dataclasses
import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.progress import Progress
from torch import Tensor, nn

from secateur.data import Augment, ImageData, batches
from secateur.errors import InputError, SecateurError
from secateur.files import make_folder
from secateur.finetune import StepHook, TrainSettings, finetune, steps_per_epoch
from secateur.measure import quality
from secateur.results import Epoch, Quality
from secateur.study import store
from secateur.tuning.space import Value, settings_with

CURVE = "curve.json"
Tell = Callable[[int, Quality], None]
"""Told of each epoch, from 1, and the quality after it; may raise to end the training."""


@dataclass(frozen=True)
class Bench:
    """What all trainings of a run share."""

    data: ImageData
    base: TrainSettings
    batch_size: int
    augment: Augment | None
    progress: Progress | None


@dataclass(frozen=True)
class Attempt:
    """A training that is over: a curve of qualities on validation, or why there is no number."""

    curve: tuple[Quality, ...]
    history: tuple[Epoch, ...]
    seconds: float
    note: str = ""


class Stopped(Exception):
    """Raised by who is told of an epoch, to end a hopeless training."""


def attempt(
    bench: Bench,
    network: nn.Module,
    values: Mapping[str, Value],
    folder: Path,
    phase: str,
    *,
    finished: Callable[[TrainSettings], TrainSettings] = lambda settings: settings,
    tell: Tell = lambda epoch, found: None,
) -> tuple[Attempt, nn.Module]:
    """Train a copy of ``network`` with a setting, on from where an earlier worker stopped.

    Args:
        bench: data and settings that all share.
        network: what to start from; it stays as it is.
        values: the setting.
        folder: of this training alone; a checkpoint is left there each epoch.
        phase: the word for progress and records.
        finished: what becomes of the settings once the values are in.
        tell: see :data:`Tell`; after a resume it is told of past epochs again.

    Returns:
        What came of it, and the copy with the weights of its best epoch on validation. A loss
        that is no number, or values that do not go together, end it with a note.

    Raises:
        Stopped: ``tell`` did.
    """
    model = copy.deepcopy(network)
    try:
        settings, size = settings_with(bench.base, values, bench.batch_size)
    except InputError as error:
        return Attempt((), (), 0.0, str(error)), model
    settings = finished(settings)
    train = batches(bench.data.train, size, shuffle=True, seed=settings.seed, augment=bench.augment)
    checks = batches(bench.data.validation, bench.batch_size)
    make_folder(folder)
    curve = _Curve(folder / CURVE, lambda now: quality(now, checks, "validation"), tell)
    steps = steps_per_epoch(train, settings)
    hook = StepHook(lambda now, step, masks: curve.step(now, step, steps), asked={"curve": True})
    try:
        history = finetune(
            model, train, checks, settings, phase=phase, folder=folder, resume=True,
            hook=hook, progress=bench.progress,
        )  # fmt: skip
    except SecateurError as error:
        # Its children are errors of input, files and proofs; only the bare one is about numbers.
        if type(error) is not SecateurError:
            raise
        return Attempt(curve.found, (), curve.seconds, str(error)), model
    # An epoch counts as its training and its checks; the curve's own measuring comes on top.
    spent = sum(one.seconds for one in history)
    return Attempt(curve.found[: len(history)], history, spent), model


def clear(folder: Path) -> None:
    """Drop what only a stopped training would need."""
    shutil.rmtree(folder, ignore_errors=True)


class _Curve:
    """The qualities after each epoch, kept in a file so that a resume need not measure again."""

    def __init__(self, path: Path, judge: Callable[[nn.Module], Quality], tell: Tell) -> None:
        self._path = path
        self._judge = judge
        self._tell = tell
        self._began = time.perf_counter()
        self._found: list[Quality] = []
        if path.is_file():
            self._found = list(store.read_records(path, Quality))
            for place, one in enumerate(self._found, start=1):
                tell(place, one)

    @property
    def found(self) -> tuple[Quality, ...]:
        return tuple(self._found)

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._began

    def step(self, model: nn.Module, step: int, steps: int) -> Mapping[str, Tensor] | None:
        """Judge the network where an epoch ends; masks never change."""
        epoch, rest = divmod(step, steps)
        if step == 0 or rest:
            return None
        found = self._judge(model)
        # A killed worker may have measured an epoch that it left no checkpoint of.
        self._found = [*self._found[: epoch - 1], found]
        store.write_records(self._path, self._found)
        self._tell(epoch, found)
        return None


def plain(record: Any) -> str:
    """Return a record as one line of JSON."""
    return json.dumps(dataclasses.asdict(record))
