"""Prove that a cut network computes what the masked network computes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from secateur.cutting import cut
from secateur.errors import InputError
from secateur.graph.copies import copy_model, every_tensor, map_tensors
from secateur.graph.dispatch import DispatchMode
from secateur.graph.grouped_product import GROUPED, grouped_product
from secateur.graph.normal_mode import normal_mode
from secateur.graph.process_settings import plain_operations
from secateur.graph.program import tensor_leaves
from secateur.graph.tracing import check_inputs, run_model
from secateur.masking import mask
from secateur.plan import Plan

TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-4}


@dataclass(frozen=True)
class Check:
    """The proof.

    Attributes:
        max_error: largest difference between an output of the cut network and
            the reference's, relative to that output's largest magnitude.
        tolerance: the most that counts as equal.
        ok: whether all outputs are equal within the tolerance.
        changed: whether the reference differs from the dense network at all; where
            it does not (a zero output layer, say) the check proves nothing.
        dtype: precision of the computation.
    """

    max_error: float
    tolerance: float
    ok: bool
    changed: bool
    dtype: str


@normal_mode()
def verify(
    model: nn.Module,
    pruned: nn.Module,
    plan: Plan,
    example_inputs: Any,
    *,
    dtype: torch.dtype = torch.float64,
) -> Check:
    """Compare ``pruned`` with the masked reference of ``model``, in eval mode.

    Args:
        model: the dense network.
        pruned: what ``cut`` made of it.
        plan: what was removed.
        example_inputs: a tensor, a tuple of arguments or a dict of keyword arguments.
        dtype: float64 (tolerance 1e-10) or float32 (1e-4).

    Raises:
        InputError: arguments of the wrong kind.
        PlanError: the plan does not fit the model.
    """
    check_inputs(model, example_inputs)
    if dtype not in TOLERANCES:
        raise InputError(f"dtype must be torch.float64 or torch.float32, but got {dtype}")
    if any(t.is_meta for t in (*model.parameters(), *tensor_leaves(example_inputs))):
        raise InputError("verify computes outputs, so model and inputs must not be on meta")
    inputs = map_tensors(example_inputs, lambda t: in_precision(t, dtype))
    dense = copy_model(model, lambda _, t: in_precision(t, dtype)).eval()
    exact = _unrounded(dense, plan)
    small = copy_model(pruned, lambda name, t: _prefer(exact.get(name), t, dtype)).eval()
    result = _outputs(small, inputs, dtype)
    reference = _outputs(mask(dense, plan, inplace=True), inputs, dtype)
    del small, dense
    # A copy of its own: a network may change its buffers as it runs.
    before = _outputs(copy_model(model, lambda _, t: in_precision(t, dtype)).eval(), inputs, dtype)
    error = largest_error(result, reference)
    tolerance = TOLERANCES[dtype]
    return Check(
        max_error=error,
        tolerance=tolerance,
        ok=error <= tolerance,
        changed=largest_error(before, reference) > tolerance,
        dtype=str(dtype).removeprefix("torch."),
    )


def _unrounded(dense: nn.Module, plan: Plan) -> dict[str, Tensor]:
    """Return the weights that the cut scaled, in the precision of the proof."""
    names = {scale.name for scale in plan.scales} | {length for length, _, _ in plan.lengths}
    if not names:
        return {}
    return {name: t.detach() for name, t in every_tensor(cut(dense, plan)) if name in names}


def _prefer(exact: Tensor | None, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Take a scaled weight as it was before it was rounded, if rounding is all that differs."""
    rounded = in_precision(tensor, dtype)
    if exact is None or exact.shape != rounded.shape:
        return rounded
    slack = 4 * torch.finfo(tensor.dtype).eps
    if not torch.allclose(rounded, exact, rtol=slack, atol=0.0):
        return rounded
    return nn.Parameter(exact.clone(), requires_grad=False)


def _outputs(network: nn.Module, inputs: Any, dtype: torch.dtype) -> list[Tensor]:
    fresh = map_tensors(inputs, torch.clone)
    with torch.no_grad(), plain_operations(), _Precision(dtype):
        return [tensor.detach() for tensor in tensor_leaves(run_model(network, fresh))]


def in_precision(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Copy a tensor, floating ones in ``dtype`` and complex ones to match."""
    data = tensor.detach()
    if data.is_floating_point():
        data = data.to(dtype, copy=True)
    elif data.is_complex():
        data = data.to(torch.complex128 if dtype == torch.float64 else torch.complex64, copy=True)
    else:
        data = data.clone()
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(data, requires_grad=False)
    return data


def largest_error(result: list[Tensor], reference: list[Tensor]) -> float:
    """Return the largest relative difference; infinite where shapes or NaNs differ."""
    if len(result) != len(reference):
        return float("inf")
    worst = 0.0
    for a, b in zip(result, reference, strict=True):
        if a.shape != b.shape:
            return float("inf")
        if not (a.is_floating_point() or a.is_complex()):
            worst = worst if torch.equal(a, b) else float("inf")
            continue
        if a.numel() == 0:
            continue
        infinite = a.isinf()
        if not torch.equal(a.isnan(), b.isnan()) or not torch.equal(infinite, b.isinf()):
            return float("inf")
        if not torch.equal(a[infinite], b[infinite]):
            return float("inf")
        a, b = a[a.isfinite()], b[b.isfinite()]
        if a.numel():
            scale = b.abs().max().clamp_min(torch.finfo(torch.float64).tiny)
            worst = max(worst, float((a - b).abs().max() / scale))
    return worst


class _Precision(DispatchMode):
    """Keeps a network in ``dtype`` where its own code casts to a narrower one."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self._dtype = dtype

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = {key: self._wide(value) for key, value in (kwargs or {}).items()}
        if str(func.overloadpacket) == GROUPED and self._dtype == torch.float64:
            return grouped_product(*args[:3])  # PyTorch's takes no float64
        return func(*(self._wide(arg) for arg in args), **kwargs)

    def _wide(self, value: Any) -> Any:
        if isinstance(value, torch.dtype) and value.is_floating_point:
            return self._dtype
        return value
