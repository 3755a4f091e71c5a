"""Recover a pruned network from its dense one, layer after layer."""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Generic, TypeVar

import torch
from rich.progress import Progress
from torch import Tensor, nn

from secateur.calibration import Batches, device_of, to_device
from secateur.cutting import check_fit
from secateur.errors import InputError, PlanError, unknown_name
from secateur.graph import Graph, trace
from secateur.graph.copies import clone_model, named_tensors, stand_in
from secateur.graph.hooks import shared_variables_put_back
from secateur.graph.normal_mode import normal_mode
from secateur.graph.process_settings import plain_operations
from secateur.graph.program import tensor_leaves
from secateur.graph.tracing import run_model
from secateur.plan import Plan
from secateur.progress import track
from secateur.recovery.least_squares import solve_site
from secateur.recovery.lockstep import entries
from secateur.recovery.norms import batch_norms, recalibrate
from secateur.recovery.records import LayerRecord
from secateur.recovery.running import inputs_of
from secateur.recovery.sites import Site, find_sites

M = TypeVar("M", bound=nn.Module)

METHODS = ("bias", "least_squares", "recalibrate")
# Tensors that a waiting forward pass holds at a time, counted in its largest one.
_HELD = 3


@dataclass(frozen=True)
class Recovered(Generic[M]):
    """A recovered network.

    Attributes:
        model: the network.
        layers: what was done to each layer, in forward order.
        left: parameters and operations that read removed units and were not solved for,
            with the reason.
    """

    model: M
    layers: tuple[LayerRecord, ...]
    left: dict[str, str]


@normal_mode()
def recover(
    dense: nn.Module,
    pruned: M,
    plan: Plan,
    calibration: Batches,
    method: str = "least_squares",
    *,
    every_layer: bool = False,
    ridge: float = 1e-6,
    memory: int = 2**31,
    inplace: bool = False,
    progress: Progress | None = None,
) -> Recovered[M]:
    """Bring a pruned network nearer to its dense one, without training.

    No step raises a layer's squared error against the dense network on the calibration
    data: what would is left undone, and the record says so.

    Args:
        dense: the network before the cut; it is left as it was.
        pruned: what ``cut`` made of it.
        plan: what was removed.
        calibration: (inputs, labels) batches from training data, read once and kept in memory;
            labels are not used.
        method: "least_squares" solves the weights and biases of every layer that reads
            removed units, front to back; "bias" shifts the same layers' means alone;
            "recalibrate" recomputes the statistics of batch norms (judged by the network's
            outputs, as giving channels their variance back raises a layer's squared error).
        every_layer: solve all convolutions and dense layers behind the first cut too.
        ridge: pull towards the weights that the cut left, relative to the mean square
            of a layer's inputs.
        memory: bytes that waiting forward passes may hold; beyond, every layer is
            reached anew from the inputs, which is slower and gives the same.
        inplace: change ``pruned`` itself instead of a copy.
        progress: where to show how far it is.

    Raises:
        InputError: an unknown method, a value out of range, no calibration, or
            batches of another form.
        PlanError: the plan does not fit the two networks.
        TraceError: the dense network fails on the calibration data.
    """
    if method not in METHODS:
        raise unknown_name("method", method, METHODS)
    if not (ridge >= 0 and math.isfinite(ridge)):
        raise InputError(f"ridge must be at least 0 and finite, but got {ridge}")
    if memory < 0:
        raise InputError(f"memory must be at least 0 bytes, but got {memory}")
    _check_pair(dense, pruned, plan)
    # Read once and kept: a loader that shuffles would give the two networks different batches.
    inputs = list(inputs_of(calibration))
    if not inputs:
        raise InputError("calibration must hold at least one batch, but it is empty")
    model: M = pruned if inplace else clone_model(pruned)
    dense, running = stand_in(dense).eval(), stand_in(model, buffers=True).eval()
    with shared_variables_put_back(dense), torch.no_grad(), plain_operations():
        if method == "recalibrate":
            return Recovered(model, (_recalibrated(dense, running, inputs, progress),), {})
        graph = trace(dense, to_device(inputs[0], device_of(dense)))
        sites, left = find_sites(graph, plan, every=every_layer)
        both = (dense, running)
        waiting = _waiting_bytes(graph, len(inputs)) <= memory
        found = _solve(both, plan, inputs, sites, ridge, method, waiting, progress)
        layers = []
        with closing(found):
            for site, record in found:
                if isinstance(record, str):
                    left[f"{site.name}.weight"] = record
                else:
                    layers.append(record)
    return Recovered(model, tuple(layers), left)


def _solve(
    models: tuple[nn.Module, nn.Module],
    plan: Plan,
    inputs: Sequence[Any],
    sites: Sequence[Site],
    ridge: float,
    method: str,
    waiting: bool,
    progress: Progress | None,
) -> Generator[tuple[Site, LayerRecord | str]]:
    dense, pruned = models
    scopes = [(scope, list(inside)) for scope, inside in groupby(sites, lambda s: s.scope)]
    stops = [scope for scope, _ in scopes]
    bars = track(scopes, "Recovering layers", progress, len(scopes))
    # Closed at once where something fails between two layers: they have threads and hooks.
    with (
        closing(entries(dense, inputs, stops, waiting=waiting)) as in_dense,
        closing(entries(pruned, inputs, stops, waiting=waiting)) as in_pruned,
    ):
        for (_, inside), for_dense, for_pruned in zip(bars, in_dense, in_pruned, strict=False):
            for site in inside:
                pairs: Any = zip(for_dense(), for_pruned(), strict=False)
                weights = method != "bias"
                yield (
                    site,
                    solve_site(dense, pruned, plan, site, pairs, ridge=ridge, weights=weights),
                )


def _recalibrated(
    dense: nn.Module, pruned: nn.Module, inputs: Sequence[Any], progress: Progress | None
) -> LayerRecord:
    """Recalibrate in place; put everything back where the outputs come no nearer."""
    if not batch_norms(pruned):
        raise InputError("method recalibrate needs batch norms with statistics, but got none")
    norms = batch_norms(pruned).values()
    old = [(t, t.clone()) for n in norms for t in (n.running_mean, n.running_var) if t is not None]
    before = _output_error(dense, pruned, inputs)
    batches = track(inputs, "Recalibrating", progress, len(inputs))
    recalibrate(pruned, ((batch, None) for batch in batches))
    after = _output_error(dense, pruned, inputs)
    if after < before:
        return LayerRecord("outputs", before, after, True)
    for tensor, value in old:
        tensor.copy_(value)
    return LayerRecord("outputs", before, before, False)


def _output_error(dense: nn.Module, pruned: nn.Module, inputs: Sequence[Any]) -> float:
    """Return the squared error of the outputs as a share of the dense outputs' spread."""
    error, total, squares, count = 0.0, 0.0, 0.0, 0
    for batch in inputs:
        wanted = _outputs(dense, batch)
        for a, b in zip(_outputs(pruned, batch), wanted, strict=True):
            error += float((a - b).square().sum())
            total, squares = total + float(b.sum()), squares + float(b.square().sum())
            count += b.numel()
    spread = squares - total * total / max(count, 1)
    return error / spread if spread > 0 else error


def _outputs(model: nn.Module, inputs: Any) -> list[Tensor]:
    found = tensor_leaves(run_model(model, to_device(inputs, device_of(model))))
    return [t.cpu().double() for t in found if t.is_floating_point()]


def _waiting_bytes(graph: Graph, batches: int) -> int:
    """Estimate what all forward passes of both networks hold while they wait."""
    infos = [i for i in graph.program.tensors if i.kind == "value"]
    largest = max((math.prod(i.shape) * i.dtype.itemsize for i in infos), default=0)
    return 2 * _HELD * largest * batches


def _check_pair(dense: nn.Module, pruned: nn.Module, plan: Plan) -> None:
    """Refuse a pruned network that is not what the plan makes of the dense one.

    Raises:
        PlanError: names the first tensor that differs.
    """
    check_fit(dense, plan)
    found = {name: tuple(tensor.shape) for name, tensor in named_tensors(pruned)}
    for name, tensor in named_tensors(dense):
        wanted = list(tensor.shape)
        for dim, positions in plan.cuts.get(name, {}).items():
            wanted[dim] -= len(positions)
        if found.get(name) != tuple(wanted):
            raise PlanError(
                f"pruned must be what the plan makes of dense: {name} should have shape "
                f"{tuple(wanted)}, but has {found.get(name)}"
            )
