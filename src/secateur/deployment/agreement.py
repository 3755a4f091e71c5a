"""What exports have in common: one input for several batch sizes, and the comparison of outputs."""

from __future__ import annotations

import contextlib
import copy
import io
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress
from torch import Tensor, nn

from secateur.deployment.calls import (
    check_batch,
    drawn,
    input_names,
    leaf_names,
    ordered,
    spell_out,
)
from secateur.deployment.outputs import left_out, plain
from secateur.errors import ExportError, InputError
from secateur.graph.copies import map_tensors
from secateur.graph.program import tensor_leaves
from secateur.graph.tracing import check_inputs, run_model
from secateur.latency import Timing, paired
from secateur.results import Speed

TOLERANCE = 1e-4
"""The most that an output may differ, relative to its largest magnitude."""
CHECKED = (1, 3)
"""Batch sizes of the comparison; neither is that of the export, so a fixed one is found."""
EXPORTED = 2
"""Batch size of the export: at 1, exporters take the batch dimension for a constant."""

MASKING = "secateur.masking"
COLOURS = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True)
class Exported:
    """One exported network that computes what the PyTorch network computes.

    Attributes:
        kind: "onnx" or "torch.export".
        path: the file.
        size: its bytes.
        max_error: largest difference between an output and PyTorch's, relative to that output's
            largest magnitude, over all checked batch sizes; float32.
        batches: the batch sizes of the comparison.
        runtime: what ran the file, with its version.
        varied: whether an output differs from sample to sample; where none does (a head that is
            all zeros, say), agreeing proves nothing.
        speeds: inferences per second of PyTorch ("pytorch") and of the file ("exported"), in
            turns; empty where they were not measured.
        left_out: outputs of the network that the file does not have, each with its type: what is
            no tensor in dicts, tuples, lists or data classes (a cache, a number).
    """

    kind: str
    path: Path
    size: int
    max_error: float
    batches: tuple[int, ...]
    runtime: str
    varied: bool
    speeds: tuple[Mapping[str, Speed], ...] = ()
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True)
class Ready:
    """A network that is ready for an exporter.

    Attributes:
        network: a copy on the CPU, in eval mode, whose outputs are tensors in dicts, tuples and
            lists.
        example: the input that others are made from, its arguments in the order of the call.
        inputs: the names of its tensors.
        outputs: the names of the outputs' tensors.
        left_out: as :class:`Exported` has it.
    """

    network: nn.Module
    example: Any
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    left_out: tuple[str, ...]


def prepared(model: nn.Module, example: Any, path: str | Path) -> Ready:
    """Copy the network, run it once and find out what goes in and what comes out.

    Raises:
        InputError: ``model`` or ``example`` is of the wrong kind, the folder is not there, or no
            output is a tensor.
        ExportError: the network fails at the export's batch size.
    """
    check_inputs(model, example)
    path = Path(path)
    if path.is_dir():
        raise InputError(f"path must be a file, but {path} is a folder")
    if not path.parent.is_dir():
        raise InputError(f"path must lie in an existing folder, but {path.parent} does not exist")
    if any(tensor.is_meta for tensor in model.parameters()):
        raise InputError("model must have its weights, but they are on the meta device")
    example = ordered(model, example)
    check_batch(model, example)
    network = copy.deepcopy(model).to("cpu").eval()
    spell_out(network, example)
    found = _run(network, drawn(example, EXPORTED), EXPORTED)
    names = leaf_names(plain(found))
    if not names:
        raise InputError(
            "model must return tensors, or dicts, tuples, lists or data classes of them, but "
            f"got {type(found).__name__}"
        )
    network.register_forward_hook(lambda module, args, output: plain(output))
    outputs = tuple(name if name and not name[0].isdigit() else _numbered(name) for name in names)
    return Ready(network, example, input_names(model, example), outputs, left_out(found))


def _numbered(name: str) -> str:
    return f"output.{name}" if name else "output"


def _run(network: nn.Module, inputs: Any, size: int) -> Any:
    try:
        with torch.no_grad():
            return run_model(network, map_tensors(inputs, torch.clone))
    except Exception as error:
        raise ExportError(
            f"the network itself fails at batch size {size}, on inputs that were made from "
            f"example_inputs: {first_line(error)}"
        ) from error


def agreement(
    model: nn.Module, example: Any, runner: Callable[[Any], list[Tensor]], what: str
) -> tuple[float, bool]:
    """Run both on the same inputs.

    Returns:
        The largest relative error, and whether PyTorch's outputs differ from sample to sample.

    Raises:
        ExportError: the export fails at a batch size or computes something else.
    """
    worst, varied = 0.0, False
    for size in CHECKED:
        inputs = drawn(example, size)
        wanted = tensor_leaves(_run(model, inputs, size))
        try:
            with torch.no_grad():
                found = runner(inputs)
        except Exception as error:
            raise ExportError(f"{what} fails at batch size {size}: {first_line(error)}") from error
        worst = max(worst, _error(found, wanted, f"{what} at batch size {size}"))
        varied = varied or any(_varies(one, size) for one in wanted)
    if worst > TOLERANCE:
        raise ExportError(
            f"{what} computes something else: relative error {worst:.3g} "
            f"(tolerance {TOLERANCE:.0e}); nothing was written"
        )
    return worst, varied


def _varies(output: Tensor, size: int) -> bool:
    """Tell whether samples differ by more than the comparison itself lets pass."""
    if output.ndim == 0 or len(output) != size or output.numel() == 0:
        return False
    if not output.is_floating_point():
        return bool((output != output[:1]).any())
    gap = float((output - output[:1]).abs().max())
    return gap > TOLERANCE * float(output.abs().max())


def _error(found: list[Tensor], wanted: list[Tensor], what: str) -> float:
    if len(found) != len(wanted):
        raise ExportError(f"{what} gives {len(found)} outputs where PyTorch gives {len(wanted)}")
    worst = 0.0
    for one, other in zip(found, wanted, strict=True):
        if one.shape != other.shape:
            raise ExportError(
                f"{what} gives an output of shape {tuple(one.shape)} where PyTorch gives "
                f"{tuple(other.shape)}"
            )
        if not other.is_floating_point():
            worst = max(worst, 0.0 if torch.equal(one.to(other.dtype), other) else float("inf"))
            continue
        if not bool(torch.isfinite(other).all()):
            raise ExportError("the network's own outputs are NaN or infinite: nothing to compare")
        gap = float((one.double() - other.double()).abs().max()) if one.numel() else 0.0
        scale = float(other.double().abs().max()) if other.numel() else 1.0
        # A NaN would pass every comparison.
        relative = gap / scale if scale else (0.0 if gap == 0 else float("inf"))
        worst = max(worst, relative if relative == relative else float("inf"))
    return worst


def in_turns(
    network: nn.Module,
    exported: nn.Module,
    example: Any,
    batches: Sequence[int],
    timing: Timing,
    progress: Progress | None,
) -> tuple[Mapping[str, Speed], ...]:
    """Time PyTorch and the export in turns, at each batch size."""
    return tuple(
        paired(
            {"pytorch": network, "exported": exported},
            example,
            batch=batch,
            repeats=timing.repeats,
            threads=timing.threads,
            seconds=timing.seconds,
            progress=progress,
        )
        for batch in batches
    )


def first_line(error: BaseException) -> str:
    """The first line of an error that says anything, with its kind.

    PyTorch's ONNX exporter wraps the reason in a report of its own; the reason is told.
    """
    while error.__cause__ is not None and type(error).__module__.startswith("torch.onnx"):
        error = error.__cause__
    text = COLOURS.sub("", str(error))
    line = next((line for line in text.splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {line.strip()[:300]}"


def reason(network: nn.Module, error: BaseException) -> str:
    """Say why an exporter failed, and what to do where the network is a masked reference."""
    if type(network.forward).__module__ != MASKING:
        return first_line(error)
    return (
        "secateur.mask changes operations while this network runs (norms over the kept units), "
        f"so export the cut network instead, which computes the same ({first_line(error)})"
    )


@contextlib.contextmanager
def exporters_quiet() -> Iterator[None]:
    """Keep what exporters say about their own future from the user, who cannot mend it.

    Nor the whole graph, which PyTorch prints where it fails; the error says why.
    """
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        for category in (FutureWarning, DeprecationWarning, UserWarning):
            warnings.simplefilter("ignore", category)
        yield
