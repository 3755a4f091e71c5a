"""The weights of an early step, for rounds that start from them again.

Frankle and Carbin (2019) rewind the weights that stay to those from before training; Frankle et
al. (2020, "Linear mode connectivity and the lottery ticket hypothesis") to those of an early step
k, which larger networks need.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from secateur.checked import read_tensors, write_tensors
from secateur.errors import CheckpointError, InputError
from secateur.training import Masks, StepHook
from secateur.training_state import prepare_folder, snapshot


def keep_weights(step: int, path: Path) -> StepHook:
    """Return a hook for :func:`secateur.finetune.finetune` that saves the weights of one step.

    Args:
        step: optimiser steps done; 0 for the weights from before training.
        path: a safetensors file; its folder is made.

    Raises:
        InputError: ``step`` is negative, or the folder cannot be written.
    """
    if step < 0:
        raise InputError(f"step must be at least 0, but got {step}")
    prepare_folder(path.parent)

    def keep(model: nn.Module, done: int, masks: Masks) -> None:
        if done == step:
            write_tensors(path, snapshot(model))

    # An end makes finetune refuse a step that never comes.
    return StepHook(keep, until=step, asked={"keep_weights": step})


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read what :func:`keep_weights` saved.

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    try:
        return read_tensors(path)
    except CheckpointError as error:
        raise CheckpointError(f"{path} holds no weights to rewind to: {error}") from error


def check_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Refuse weights of another network.

    Raises:
        InputError: names the first tensor that does not fit.
    """
    own = {k: v for k, v in model.state_dict().items() if isinstance(v, Tensor)}
    for name in sorted({*own, *weights}):
        here = tuple(own[name].shape) if name in own else None
        there = tuple(weights[name].shape) if name in weights else None
        if here != there:
            raise InputError(
                f"rewind must hold the model's tensors: {name!r} is {here} there, but got {there}"
            )
