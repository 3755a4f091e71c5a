"""What training needs to go on after a stop: one checkpoint per epoch, no pickle.

Each epoch leaves ``epoch-0003.safetensors`` (weights), ``epoch-0003.optimizer.safetensors``
(the optimiser's tensors), where masks change while training ``epoch-0003.masks.safetensors``,
and ``epoch-0003.json`` (numbers, and the checksums of the others). The JSON is written last, by
rename, so a checkpoint without it was never finished. Kept are the last two epochs and the best
one; a damaged newest checkpoint therefore has one before it.
"""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor, nn

from secateur.checked import read_checked, read_document, same_settings, write_checked
from secateur.errors import CheckpointError, InputError
from secateur.files import make_folder
from secateur.results import Epoch

FORMAT = 2


@dataclass(frozen=True)
class TrainState:
    """Where training stands after the last epoch of ``history``.

    ``weights`` and ``best_weights`` are CPU copies of the state dict after the last and the
    best epoch; ``optimizer`` is the optimiser's own state dict, ``scaler`` that of the gradient
    scaler of fp16. ``steps`` counts optimiser steps; ``masks`` are those in force, where they
    change while training (or what else moves beside the weights, such as factors), and
    ``settled`` is the first epoch after their last change (0: none yet).
    """

    history: tuple[Epoch, ...]
    best: int
    weights: dict[str, Tensor]
    best_weights: dict[str, Tensor]
    optimizer: dict[str, Any]
    steps: int = 0
    settled: int = 0
    masks: dict[str, Tensor] = field(default_factory=dict)
    scaler: dict[str, Any] = field(default_factory=dict)


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    """Return a CPU copy of every tensor of the model's state dict."""
    return {
        name: value.detach().to("cpu", copy=True).contiguous()
        for name, value in model.state_dict().items()
        if isinstance(value, Tensor)
    }


def prepare_folder(folder: Path) -> None:
    """Make ``folder`` and prove that it can be written, before hours are spent.

    Raises:
        InputError: the folder cannot be made or written.
    """
    try:
        make_folder(folder)
        probe = folder / f".probe-{os.getpid()}"
        probe.write_bytes(b"secateur")
        probe.unlink()
    except OSError as error:
        raise InputError(f"folder must be writable, but got {folder}: {error}") from error


def check_space(folder: Path, model: nn.Module, moments: int) -> None:
    """Refuse a disk that the checkpoints of a training would fill.

    There are three at most at one time, the one that is being written included, and two best
    epochs. What the folder holds already counts as space.

    Args:
        folder: an existing folder for checkpoints.
        model: what is trained.
        moments: tensors that the optimiser keeps for each parameter.

    Raises:
        InputError: names the bytes needed and the bytes there are.
    """
    weights = sum(v.nbytes for v in model.state_dict().values() if isinstance(v, Tensor))
    trained = sum(p.nbytes for p in model.parameters() if p.requires_grad)
    needed = 3 * (weights + moments * trained) + 2 * weights
    held = sum(path.stat().st_size for path in folder.glob("epoch-*"))
    free = shutil.disk_usage(folder).free
    if needed > free + held:
        raise InputError(
            f"folder must have {needed / 1e6:.1f} MB free for checkpoints, "
            f"but {folder} has {(free + held) / 1e6:.1f} MB"
        )


def has_checkpoint(folder: Path) -> bool:
    """Tell whether ``folder`` holds any finished checkpoint."""
    return bool(_epochs(folder))


def write_state(folder: Path, state: TrainState, asked: Mapping[str, Any]) -> None:
    """Add the checkpoint of the newest epoch and drop those no longer needed.

    Args:
        folder: an existing folder that holds this training and nothing else.
        state: what to keep.
        asked: the settings (JSON-ready); a later resume must ask the same.
    """
    epoch = state.history[-1].epoch
    tensors, numbers = _split_optimizer(state.optimizer)
    parts = {_weights(epoch): state.weights, _optimizer(epoch): tensors}
    if state.masks:
        parts[_masks(epoch)] = state.masks
    document = {
        "format": FORMAT,
        "best": state.best,
        "history": [dataclasses.asdict(entry) for entry in state.history],
        "asked": dict(asked),
        "optimizer": numbers,
        "steps": state.steps,
        "settled": state.settled,
        "scaler": state.scaler,
    }
    write_checked(folder / _numbers(epoch), document, parts, (_weights(state.best),))
    _drop_old(folder)


def read_state(folder: Path, asked: Mapping[str, Any]) -> tuple[TrainState | None, tuple[str, ...]]:
    """Read the newest whole checkpoint of ``folder``.

    Returns:
        The state (None where there is no checkpoint yet) and one note for each newer
        checkpoint that was damaged and passed over.

    Raises:
        InputError: the checkpoints were made under other settings.
        CheckpointError: there are checkpoints, and every one is damaged.
    """
    notes: list[str] = []
    for epoch in reversed(_epochs(folder)):
        try:
            document = read_checked(folder / _numbers(epoch), FORMAT)
        except CheckpointError as error:
            notes.append(f"{error}; the checkpoint before it is used")
            continue
        same_settings(folder, document["asked"], asked)
        return _build(folder, epoch, document), tuple(notes)
    if notes:
        raise CheckpointError(f"every checkpoint in {folder} is damaged: {notes[0].split(';')[0]}")
    return None, ()


def _weights(epoch: int) -> str:
    return f"epoch-{epoch:04d}.safetensors"


def _optimizer(epoch: int) -> str:
    return f"epoch-{epoch:04d}.optimizer.safetensors"


def _masks(epoch: int) -> str:
    return f"epoch-{epoch:04d}.masks.safetensors"


def _numbers(epoch: int) -> str:
    return f"epoch-{epoch:04d}.json"


def _epochs(folder: Path) -> list[int]:
    found = (re.fullmatch(r"epoch-(\d+)\.json", path.name) for path in folder.glob("epoch-*.json"))
    return sorted(int(match.group(1)) for match in found if match)


def _build(folder: Path, epoch: int, document: Mapping[str, Any]) -> TrainState:
    best = int(document["best"])
    tensors = load_file(folder / _optimizer(epoch))
    masks = folder / _masks(epoch)
    return TrainState(
        history=tuple(Epoch(**entry) for entry in document["history"]),
        best=best,
        weights=load_file(folder / _weights(epoch)),
        best_weights=load_file(folder / _weights(best)),
        optimizer=_join_optimizer(tensors, document["optimizer"]),
        steps=int(document["steps"]),
        settled=int(document["settled"]),
        masks=load_file(masks) if masks.is_file() else {},
        scaler=document["scaler"],
    )


def _split_optimizer(state: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Part an optimiser's state dict into tensors (by ``parameter.key``) and JSON numbers."""
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, dict[str, Any]] = {}
    for index, entry in state["state"].items():
        for key, value in entry.items():
            if isinstance(value, Tensor):
                tensors[f"{index}.{key}"] = value.detach().to("cpu", copy=True).contiguous()
            else:
                numbers.setdefault(str(index), {})[key] = value
    return tensors, {"groups": _plain(state["param_groups"]), "numbers": numbers}


def _join_optimizer(tensors: Mapping[str, Tensor], rest: Mapping[str, Any]) -> dict[str, Any]:
    state: dict[int, dict[str, Any]] = {}
    for name, value in tensors.items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = value
    for index, entry in rest["numbers"].items():
        state.setdefault(int(index), {}).update(entry)
    return {"state": state, "param_groups": rest["groups"]}


def _plain(groups: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [{key: _number(value) for key, value in group.items()} for group in groups]


def _number(value: Any) -> Any:
    return value.item() if isinstance(value, Tensor) else value


def _drop_old(folder: Path) -> None:
    """Keep the last two checkpoints and the weights of the best epoch of each."""
    keep: set[str] = set()
    for epoch in _epochs(folder)[-2:]:
        try:
            document = read_document(folder / _numbers(epoch), FORMAT)
        except CheckpointError:
            continue
        keep |= {_numbers(epoch), *document["files"]}
    for path in folder.glob("epoch-*"):
        if path.name not in keep:
            path.unlink()
