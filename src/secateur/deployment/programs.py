"""Export as a ``torch.export`` program with a dynamic batch; read back, checked and timed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress
from torch import nn

from secateur.deployment.agreement import (
    CHECKED,
    EXPORTED,
    Exported,
    Ready,
    agreement,
    exporters_quiet,
    in_turns,
    prepared,
    reason,
)
from secateur.deployment.calls import arguments, bound, drawn, dynamic
from secateur.errors import ExportError, InputError
from secateur.files import atomic_file
from secateur.graph.program import tensor_leaves
from secateur.graph.tracing import run_model
from secateur.latency import Timing

SUFFIX = ".pt2"


def export_program(
    model: nn.Module,
    example_inputs: Any,
    path: str | Path,
    *,
    batches: Sequence[int] = (),
    timing: Timing = Timing(),  # noqa: B008 (frozen)
    progress: Progress | None = None,
) -> Exported:
    """Write a network as a ``torch.export`` program whose batch dimension is free.

    ``torch.export.load(path).module()`` runs it without the network's Python code; outputs by
    name come as a dict. The file is read back and compared with the network as
    :func:`secateur.deployment.export_onnx` does it.

    Args:
        model: any network, pruned, masked or neither; left as it is.
        example_inputs: a tensor, a tuple of arguments or a dict of keyword arguments; the first
            dimension of every tensor is the batch.
        path: of the file, which must end in ``.pt2``, in a folder that exists.
        batches: batch sizes at which both are timed in turns; none for no clock.
        timing: threads, repeats and seconds of each such comparison.
        progress: where to show how far it is.

    Raises:
        InputError: an argument is wrong.
        ExportError: the network cannot be exported, or the program computes something else.
    """
    path = Path(path)
    if path.suffix != SUFFIX:
        raise InputError(f"path must end in {SUFFIX}, as PyTorch wants it, but got {path}")
    ready = prepared(model, example_inputs, path)
    network, example = ready.network, ready.example
    program = _program(ready)
    with atomic_file(path) as written:
        with exporters_quiet():
            torch.export.save(program, written)
            again = torch.export.load(written).module()
        error, varied = agreement(
            network, example, lambda given: tensor_leaves(run_model(again, given)), "the program"
        )
        speeds = in_turns(network, _Plain(again), example, batches, timing, progress)
        size = written.stat().st_size
    runtime = f"torch {torch.__version__}"
    return Exported(
        "torch.export", path, size, error, CHECKED, runtime, varied, speeds, ready.left_out
    )


class _Plain(nn.Module):
    """A program's module, which refuses ``eval()``, behind one that takes it."""

    def __init__(self, program: nn.Module) -> None:
        super().__init__()
        self._call = [program]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._call[0](*args, **kwargs)


def _program(ready: Ready) -> Any:
    example = drawn(ready.example, EXPORTED)
    positional, named = arguments(example)
    shapes = dynamic(bound(ready.network, example), torch.export.Dim("batch", min=1))
    reasons = []
    for strict in (False, True):
        try:
            with exporters_quiet(), torch.no_grad():
                return torch.export.export(
                    ready.network, positional, named or None, dynamic_shapes=shapes, strict=strict
                )
        except Exception as error:  # noqa: BLE001 (the exporter may raise anything; told below)
            reasons.append(reason(ready.network, error))
    raise ExportError(f"the network cannot be exported with a free batch dimension: {reasons[0]}")
