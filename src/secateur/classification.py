"""Batches and outputs of a classifier; those of anything else are refused by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from secateur.errors import InputError


def pair_of(batch: Any) -> tuple[Any, Tensor]:
    """Return inputs and labels of a batch.

    Raises:
        InputError: it is no pair, or the labels are not one whole number a sample.
    """
    if isinstance(batch, Mapping | Tensor) or not hasattr(batch, "__len__") or len(batch) != 2:
        what = f"{type(batch).__name__} of {len(batch)}" if hasattr(batch, "__len__") else "one"
        raise InputError(f"batches must be pairs of inputs and labels, but got a {what}")
    inputs, labels = batch
    if not isinstance(labels, Tensor):
        raise InputError(f"labels must be a tensor [N], but got {type(labels).__name__}")
    whole = not (labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool)
    if not whole or labels.ndim != 1:
        raise InputError(
            "labels must be whole numbers [N], one class for each sample (this is for classifiers "
            "alone: no regression, segmentation, tokens or several labels), but got "
            f"{str(labels.dtype).removeprefix('torch.')} {tuple(labels.shape)}"
        )
    return inputs, labels


def class_logits(output: Any, labels: Tensor) -> Tensor:
    """Return the logits [N, classes] of a model's output.

    Args:
        output: a tensor, a record with ``logits``, or a tuple that begins with them.
        labels: whole numbers [N].

    Raises:
        InputError: the output has another shape, or a label has no output.
    """
    logits = output if isinstance(output, Tensor) else getattr(output, "logits", None)
    if logits is None and isinstance(output, tuple | list) and output:
        logits = output[0]
    fits = isinstance(logits, Tensor) and logits.ndim == 2 and len(logits) == len(labels)
    if not isinstance(logits, Tensor) or not fits or not logits.is_floating_point():
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(output).__name__
        raise InputError(f"model must return logits [{len(labels)}, classes], but gave {shape}")
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < logits.shape[1]:
        raise InputError(
            f"model must have one output per class, but it has {logits.shape[1]} "
            f"and labels go from {int(labels.min())} to {int(labels.max())}"
        )
    return logits
