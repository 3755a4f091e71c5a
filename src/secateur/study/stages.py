"""The steps that runs are made of; each takes plain arguments and gives plain data."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from rich.progress import Progress
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from secateur.cutting import cut
from secateur.data import ImageData, batches
from secateur.errors import PlanError
from secateur.graph import Graph, trace
from secateur.latency import paired
from secateur.measure import answers, weight_bytes
from secateur.models import load_model, load_weights
from secateur.plan import Plan
from secateur.pruning import proved_cut, unproved
from secateur.results import (
    CheckRecord,
    LayerZeros,
    Measured,
    PinnedDim,
    Quality,
    Size,
    Speed,
    Width,
    build_record,
)
from secateur.sparse_training import Absent
from secateur.verification import Check, verify
from secateur.weight_masks import Masks

EXAMPLES = 2
"""Images in the example input: more than one, so that no batch dimension looks like a size 1."""


@dataclass(frozen=True)
class Subject:
    """A network on its device, its data, and what the trace says about both."""

    model: nn.Module
    data: ImageData
    example: Tensor
    graph: Graph


def build(
    reference: str, arguments: Mapping[str, Any], weights: str | None, seed: int
) -> nn.Module:
    """Build a network with weights from a file, or drawn by ``seed``; the caller's stay."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = load_model(reference, dict(arguments))
    if weights is not None:
        load_weights(model, weights)
    return model


def from_file(reference: str) -> bool:
    """Tell ``file.py:callable`` from ``package.module:callable``."""
    where = reference.rpartition(":")[0]
    return where.endswith(".py") or "/" in where


def inspect_subject(model: nn.Module, data: ImageData) -> Subject:
    """Put the network on the GPU, if there is one, trace it, and try one batch of the data on it.

    Raises:
        TraceError: the model fails on its example input.
        PlanError: nothing can be cut; the message says what pins it.
        InputError: the model's outputs do not fit the data's classes.
    """
    # The proof needs float64, which Apple's accelerator lacks: only training goes there.
    device = Accelerator().device
    device = device if device.type == "cuda" else torch.device("cpu")
    model.to(device)
    few = next(iter(batches(data.calibration, min(EXAMPLES, len(data.calibration)))))
    example = few[0].to(device)
    graph = trace(model, example)
    check_cuttable(graph)
    answers(model, [next(iter(batches(data.validation, 32)))], "validation")
    return Subject(model, data, example, graph)


def check_cuttable(graph: Graph) -> None:
    """Refuse a network without a single group.

    Raises:
        PlanError: says what pins the network.
    """
    if graph.groups:
        return
    reasons = list(dict.fromkeys(f"{pin.name} ({pin.reason})" for pin in graph.pinned))
    shown = "; ".join(reasons[:4]) + (f"; and {len(reasons) - 4} more" if len(reasons) > 4 else "")
    raise PlanError(
        f"nothing can be cut in the model; pinned are {shown or 'no parameters at all'}"
    )


def cut_and_verify(subject: Subject, plan: Plan) -> tuple[nn.Module, CheckRecord]:
    """Cut exactly what a plan says, and prove that the cut is right.

    Raises:
        VerificationError: the cut network differs from its masked reference.
    """
    pruned = cut(subject.model, plan)
    check = verify(subject.model, pruned, plan, subject.example)
    if not check.ok:
        raise unproved(check.reason, plan)
    return pruned, _recorded(check)


def _recorded(check: Check) -> CheckRecord:
    return build_record(CheckRecord, dataclasses.asdict(check))


def provable_cut(
    subject: Subject,
    plan: Plan,
    choose: Callable[[Sequence[str]], Plan] | None = None,
    progress: Progress | None = None,
) -> tuple[nn.Module, Plan, CheckRecord]:
    """Cut what can be proved; see :func:`secateur.pruning.proved_cut`.

    Raises:
        VerificationError: nothing can be proved.
    """
    graph = dataclasses.replace(subject.graph, model=subject.model)
    found = proved_cut(graph, plan, choose, progress=progress)
    return found.model, found.plan, _recorded(found.check)


def size(model: nn.Module, macs: int) -> Size:
    """Count parameters and the bytes of the weight file; ``macs`` come from the plan."""
    raw, gzipped = weight_bytes(model)
    params = sum(parameter.numel() for parameter in model.parameters())
    return Size(params=params, macs=macs, bytes_raw=raw, bytes_gzip=gzipped)


def speeds(
    dense: nn.Module,
    pruned: nn.Module,
    example: Tensor,
    *,
    sizes: Sequence[int],
    repeats: int,
    seconds: float,
    threads: int,
    progress: Progress | None,
) -> tuple[tuple[Speed, ...], tuple[Speed, ...]]:
    """Measure both networks in turns, at every batch size."""
    turns = [
        paired(
            {"dense": dense, "pruned": pruned},
            example,
            batch=batch,
            repeats=repeats,
            threads=threads,
            seconds=seconds,
            progress=progress,
        )
        for batch in sizes
    ]
    return tuple(turn["dense"] for turn in turns), tuple(turn["pruned"] for turn in turns)


def measured(model: nn.Module, macs: int, found: Quality, speed: Sequence[Speed]) -> Measured:
    """Put together what is known of one network."""
    return Measured(quality=found, size=size(model, macs), speeds=tuple(speed))


def widths(dense: nn.Module, pruned: nn.Module) -> tuple[Width, ...]:
    """List the output width of every convolution and dense layer before and after."""
    after = dict(pruned.named_modules())
    return tuple(
        Width(name, _width(module), _width(after[name]) if name in after else 0)
        for name, module in dense.named_modules()
        if isinstance(module, _ConvNd | nn.Linear)
    )


def zeros(masks: Masks) -> tuple[LayerZeros, ...]:
    """Count by layer; a layer's only weight goes by the layer's name."""
    return tuple(
        LayerZeros(name.removesuffix(".weight"), mask.numel(), int((~mask).sum()))
        for name, mask in masks.items()
    )


def pinned(graph: Graph) -> tuple[PinnedDim, ...]:
    """List what could not be cut, and why."""
    return tuple(PinnedDim(pin.name, pin.dim, pin.reason) for pin in graph.pinned)


@contextlib.contextmanager
def threads_set(count: int | None) -> Iterator[None]:
    """Let PyTorch use ``count`` threads inside; None leaves its choice."""
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def share(plan: Plan) -> str:
    """Say what is left of parameters and MACs."""
    params = plan.pruned.params / plan.dense.params
    macs = plan.pruned.macs / plan.dense.macs
    return f"{params:.1%} of the parameters and {macs:.1%} of the MACs left"


def _width(module: Any) -> int:
    if isinstance(module, Absent):
        return 0
    weight: Tensor = module.weight
    if isinstance(module, _ConvTransposeNd):
        return int(weight.shape[1]) * module.groups
    return int(weight.shape[0])
