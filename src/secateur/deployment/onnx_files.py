"""Export to ONNX with a dynamic batch; checked and timed in ONNX Runtime."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress
from torch import Tensor, nn

from secateur.deployment.agreement import (
    CHECKED,
    EXPORTED,
    Exported,
    Ready,
    agreement,
    exporters_quiet,
    first_line,
    in_turns,
    prepared,
    reason,
)
from secateur.deployment.calls import arguments, bound, drawn, dynamic
from secateur.errors import ExportError, InputError
from secateur.files import atomic_file
from secateur.graph.program import tensor_leaves
from secateur.latency import Timing

NEEDED = ("onnx", "onnxruntime", "onnxscript")
MOST_BYTES = 2**31 - 2**20
"""An ONNX file is one protobuf message, which ends at 2 GiB."""
BATCH = "batch"
"""The name of the free dimension in the file."""


def export_onnx(
    model: nn.Module,
    example_inputs: Any,
    path: str | Path,
    *,
    batches: Sequence[int] = (),
    timing: Timing = Timing(),  # noqa: B008 (frozen)
    progress: Progress | None = None,
) -> Exported:
    """Write a network as an ONNX file whose batch dimension is free.

    The file is run in ONNX Runtime (on the CPU) at batch sizes 1 and 3 and compared with PyTorch;
    only a file that agrees within 1e-4 of each output's largest magnitude is put in place. A
    file that was there before is replaced or left as it was. Inputs have the names of the forward
    pass's arguments, outputs those of their fields or keys.

    Args:
        model: any network, pruned, masked or neither; left as it is.
        example_inputs: a tensor, a tuple of arguments or a dict of keyword arguments; the first
            dimension of every tensor is the batch.
        path: of the file, in a folder that exists.
        batches: batch sizes at which PyTorch and ONNX Runtime are timed in turns (A B A B), with
            the same threads; none for no clock.
        timing: threads, repeats and seconds of each such comparison.
        progress: where to show how far it is.

    Raises:
        InputError: onnx, onnxruntime or onnxscript is missing (says what to install), or an
            argument is wrong.
        ExportError: the network cannot be exported, or the file computes something else.
    """
    _require()
    path = Path(path)
    ready = prepared(model, example_inputs, path)
    network, example = ready.network, ready.example
    _check_size(network)
    with atomic_file(path) as written:
        _write(ready, written)
        session = Session(written, timing.threads)
        error, varied = agreement(network, example, session.outputs, "the ONNX file")
        speeds = in_turns(network, session, example, batches, timing, progress)
        size = written.stat().st_size
    runtime = f"onnxruntime {importlib.import_module('onnxruntime').__version__}"
    return Exported("onnx", path, size, error, CHECKED, runtime, varied, speeds, ready.left_out)


class Session(nn.Module):
    """An ONNX file as a module without parameters, so that it is timed as PyTorch networks are."""

    def __init__(self, path: Path, threads: int) -> None:
        super().__init__()
        runtime = importlib.import_module("onnxruntime")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        try:
            self._session = runtime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            raise ExportError(f"ONNX Runtime refuses the file: {first_line(error)}") from error
        self._names = [one.name for one in self._session.get_inputs()]

    def forward(self, *args: Any, **kwargs: Any) -> list[Any]:
        """Run the file; what PyTorch takes is taken in the same way, the outputs are arrays."""
        leaves = tensor_leaves((args, kwargs))
        feed = {n: leaf.numpy() for n, leaf in zip(self._names, leaves, strict=True)}
        found: list[Any] = self._session.run(None, feed)
        return found

    def outputs(self, inputs: Any) -> list[Tensor]:
        """The outputs as tensors."""
        positional, named = arguments(inputs)
        return [torch.from_numpy(one) for one in self.forward(*positional, **named)]


def _require() -> None:
    missing = []
    for name in NEEDED:
        try:
            importlib.import_module(name)
        except ImportError:
            missing.append(name)
    if missing:
        raise InputError(
            f"export to ONNX needs {', '.join(missing)}: install them with "
            "pip install 'secateur[onnx]'"
        )


def _check_size(network: nn.Module) -> None:
    tensors = {id(t): t.numel() * t.element_size() for t in network.state_dict().values()}
    total = sum(tensors.values())
    if total > MOST_BYTES:
        raise InputError(
            f"model must be smaller than 2 GiB, which an ONNX file can hold, but has {total} "
            "bytes of weights; export_program has no such limit"
        )


def _write(ready: Ready, path: Path) -> None:
    example = drawn(ready.example, EXPORTED)
    positional, named = arguments(example)
    # Not a named dimension: where PyTorch cannot prove it free, its ONNX exporter fixes it at the
    # size of the example and says nothing.
    shapes = dynamic(bound(ready.network, example), torch.export.Dim.DYNAMIC)
    try:
        with exporters_quiet(), torch.no_grad():
            program: Any = torch.onnx.export(
                ready.network,
                positional,
                kwargs=named or None,
                dynamo=True,
                dynamic_shapes=shapes,
                verbose=False,
            )
            _rename(program, ready)
            program.save(path, external_data=False)
    except Exception as error:
        raise ExportError(
            f"the network cannot be exported to ONNX with a free batch dimension: "
            f"{reason(ready.network, error)}"
        ) from error


def _rename(program: Any, ready: Ready) -> None:
    """Give inputs and outputs the names that the network's code has for them, and the batch its.

    A name that something inside the file has already gets ".out" behind it.
    """
    graph = program.model.graph
    faces = [*graph.inputs, *graph.outputs]
    own = {id(value) for value in faces}
    inside = [*graph.initializers.values(), *(value for node in graph for value in node.outputs)]
    taken = {value.name for value in inside if id(value) not in own}
    for value, name in zip(faces, (*ready.inputs, *ready.outputs), strict=True):
        while name in taken:
            name = f"{name}.out"
        taken.add(name)
        value.name = name
    firsts = [value.shape[0] for value in graph.inputs]
    own_names = {str(first.value) for first in firsts if not isinstance(first, int)}
    # Older versions of PyTorch cannot be asked to; there the batch has a name of theirs.
    if hasattr(program, "rename_axes"):
        program.rename_axes(dict.fromkeys(own_names, BATCH))
