"""What rounds leave on disk: one checked set of files per round, the last two of them.

While a round trains, its checkpoints lie in ``round-0002/``; once ``round-0002.json`` is written,
they are removed.
"""

from __future__ import annotations

import dataclasses
import logging
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from secateur.checked import read_checked, same_settings, write_checked
from secateur.errors import CheckpointError, InputError
from secateur.results import Epoch
from secateur.training_state import prepare_folder

FORMAT = 1

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Round:
    """One prune-and-finetune cycle.

    Attributes:
        number: 1 for the first.
        asked: the share removed, or kept, that was asked for its end.
        removed: the share of the weights that may be masked, or of the dense parameters, that
            is gone at its end, counted.
        history: its epochs.
    """

    number: int
    asked: float
    removed: float
    history: tuple[Epoch, ...]


def all_epochs(rounds: Iterable[Round]) -> tuple[Epoch, ...]:
    """Return the epochs of all rounds, in order."""
    return tuple(epoch for one in rounds for epoch in one.history)


@dataclass(frozen=True)
class Standing:
    """What is kept of all rounds so far; ``plans`` are of structures, ``masks`` of weights."""

    rounds: tuple[Round, ...]
    weights: dict[str, Tensor]
    masks: dict[str, Tensor] = field(default_factory=dict)
    plans: tuple[str, ...] = ()


def training_folder(folder: Path | None, number: int) -> Path | None:
    """Return where the training of one round leaves its checkpoints."""
    return None if folder is None else folder / _stem(number)


def begin(folder: Path | None, resume: bool, asked: Mapping[str, Any]) -> Standing | None:
    """Prepare the folder of the rounds and read the newest whole one.

    Raises:
        InputError: the folder cannot be written, is used and ``resume`` is False, or was
            begun with other settings.
        CheckpointError: there are finished rounds, and what is kept of them is damaged.
    """
    if folder is None:
        if resume:
            raise InputError("resume needs a folder to resume from, but got None")
        return None
    prepare_folder(folder)
    if not resume:
        if any(folder.glob("round-*")):
            raise InputError(f"folder must be empty, but {folder} holds rounds; resume goes on")
        return None
    damaged = ""
    for number in reversed(_numbers(folder)):
        path = folder / f"{_stem(number)}.json"
        try:
            document = read_checked(path, FORMAT)
        except CheckpointError as error:
            damaged = str(error)
            _LOG.warning("%s; the round before it is used", error)
            continue
        same_settings(folder, document["asked"], asked)
        return _standing(folder, number, document)
    if damaged:
        raise CheckpointError(f"every round kept in {folder} is damaged: {damaged}")
    return None


def keep(folder: Path | None, standing: Standing, asked: Mapping[str, Any]) -> None:
    """Add the newest round, and drop its checkpoints and all rounds but the last two."""
    if folder is None:
        return
    number = standing.rounds[-1].number
    stem = _stem(number)
    parts: dict[str, Mapping[str, Tensor]] = {f"{stem}.safetensors": standing.weights}
    if standing.masks:
        parts[f"{stem}.masks.safetensors"] = standing.masks
    document = {
        "format": FORMAT,
        "asked": dict(asked),
        "rounds": [dataclasses.asdict(entry) for entry in standing.rounds],
        "plans": list(standing.plans),
    }
    write_checked(folder / f"{stem}.json", document, parts)
    for old in _numbers(folder)[:-2]:
        for path in folder.glob(f"{_stem(old)}.*"):
            path.unlink()
    shutil.rmtree(folder / stem, ignore_errors=True)


def _standing(folder: Path, number: int, document: Mapping[str, Any]) -> Standing:
    masks = folder / f"{_stem(number)}.masks.safetensors"
    return Standing(
        rounds=tuple(_round(entry) for entry in document["rounds"]),
        weights=load_file(folder / f"{_stem(number)}.safetensors"),
        masks=load_file(masks) if masks.is_file() else {},
        plans=tuple(document["plans"]),
    )


def _round(entry: Mapping[str, Any]) -> Round:
    return Round(**{**entry, "history": tuple(Epoch(**epoch) for epoch in entry["history"])})


def _stem(number: int) -> str:
    return f"round-{number:04d}"


def _numbers(folder: Path) -> list[int]:
    found = (re.fullmatch(r"round-(\d+)\.json", path.name) for path in folder.glob("round-*.json"))
    return sorted(int(match.group(1)) for match in found if match)


def each_settings(settings: Any, total: int) -> Sequence[Any]:
    """Return one settings a round: the same for all, or as many as there are rounds.

    Raises:
        InputError: their number is another one.
    """
    if not isinstance(settings, Sequence):
        return (settings,) * total
    if len(settings) != total:
        raise InputError(
            f"settings must be one, or {total} (a round each), but got {len(settings)}"
        )
    return settings
