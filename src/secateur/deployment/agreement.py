"""What exports have in common: one input for several batch sizes, and the comparison of outputs."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress
from torch import Tensor, nn

from secateur.errors import ExportError, InputError
from secateur.graph.copies import map_tensors
from secateur.graph.program import tensor_leaves
from secateur.graph.tracing import check_inputs, run_model
from secateur.latency import Timing, batched, paired
from secateur.results import Speed

TOLERANCE = 1e-4
"""The most that an output may differ, relative to its largest magnitude."""
CHECKED = (1, 3)
"""Batch sizes of the comparison; neither is that of the export, so a fixed one is found."""
EXPORTED = 2
"""Batch size of the export: at 1, exporters take the batch dimension for a constant."""


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
    """

    kind: str
    path: Path
    size: int
    max_error: float
    batches: tuple[int, ...]
    runtime: str
    varied: bool
    speeds: tuple[Mapping[str, Speed], ...] = ()


def prepared(model: nn.Module, example: Any, path: str | Path) -> tuple[nn.Module, Any]:
    """Copy the network to the CPU in eval mode, and make the input that it is exported with.

    Raises:
        InputError: ``model`` or ``example`` is of the wrong kind, or the folder is not there.
    """
    check_inputs(model, example)
    path = Path(path)
    if path.is_dir():
        raise InputError(f"path must be a file, but {path} is a folder")
    if not path.parent.is_dir():
        raise InputError(f"path must lie in an existing folder, but {path.parent} does not exist")
    if any(tensor.is_meta for tensor in model.parameters()):
        raise InputError("model must have its weights, but they are on the meta device")
    network = copy.deepcopy(model).to("cpu").eval()
    return network, drawn(example, EXPORTED)


def drawn(example: Any, size: int) -> Any:
    """Make an input of ``size`` samples, the same one each time.

    Real numbers are from a normal distribution; other numbers are as the example has them.
    """
    generator = torch.Generator().manual_seed(size)

    def draw(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        return torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)

    return map_tensors(batched(example, size, torch.device("cpu")), draw)


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
        with torch.no_grad():
            wanted = tensor_leaves(run_model(model, map_tensors(inputs, torch.clone)))
        try:
            with torch.no_grad():
                found = runner(inputs)
        except Exception as error:
            raise ExportError(f"{what} fails at batch size {size}: {first_line(error)}") from error
        worst = max(worst, _error(found, wanted, f"{what} at batch size {size}"))
        varied = varied or any(one.ndim and bool((one != one[:1]).any()) for one in wanted)
    if worst > TOLERANCE:
        raise ExportError(
            f"{what} computes something else: relative error {worst:.3g} "
            f"(tolerance {TOLERANCE:.0e}); nothing was written"
        )
    return worst, varied


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


def dynamic(example: Any, batch: Any) -> Any:
    """Mirror ``example``: the first dimension of every tensor is ``batch``."""
    if isinstance(example, Tensor):
        return {0: batch}
    if isinstance(example, Mapping):
        return {name: dynamic(value, batch) for name, value in example.items()}
    if isinstance(example, tuple | list):
        return type(example)(dynamic(value, batch) for value in example)
    return None


def arguments(example: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return positional and keyword arguments of the network's call."""
    if isinstance(example, Mapping):
        return (), dict(example)
    return (tuple(example) if isinstance(example, tuple | list) else (example,)), {}


def first_line(error: BaseException) -> str:
    """The first line of an error that says anything, with its kind."""
    text = next((line for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {text.strip()[:300]}"


@contextmanager
def exporters_quiet() -> Iterator[None]:
    """Keep what exporters say about their own future from the user, who cannot mend it."""
    with warnings.catch_warnings():
        for category in (FutureWarning, DeprecationWarning, UserWarning):
            warnings.simplefilter("ignore", category)
        yield
