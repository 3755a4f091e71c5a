"""Tensors and lists of tensors that modules keep for the next pass, found by a pass without them.

An attribute is such a cache where the network, once it is emptied, fills it again and computes the
same: a table is not made again, and what a state holds changes what is computed.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn

from secateur.graph.copies import cloned, copy_model, map_tensors
from secateur.graph.generators import seeded_generators
from secateur.graph.module_caches import Caches, empty_caches, keeping
from secateur.graph.normal_mode import normal_mode
from secateur.graph.program import tensor_leaves
from secateur.graph.tracing import run_model


def find_caches(model: nn.Module, example_inputs: Any) -> dict[str, str]:
    """Return the attributes that keep what the network computes again without them.

    Where no attribute holds tensors but parameters, buffers and dictionaries, nothing is run.
    """
    alike: dict[str, dict[str, str]] = defaultdict(dict)
    for path, value in keeping(model).items():
        unused = "empty" if isinstance(value, list) else "None"
        alike[path.rpartition(".")[2]][path] = unused
    if not alike:
        return {}
    before = _outputs(model, example_inputs, {})[0]
    if before is None:
        return {}
    every = {path: unused for caches in alike.values() for path, unused in caches.items()}
    found = _refilled(model, example_inputs, every, before)
    if found is not None:
        return found
    found = {}
    for caches in alike.values():
        for trial in (caches, {path: "absent" for path in caches if caches[path] == "None"}):
            refilled = _refilled(model, example_inputs, trial, before) if trial else None
            if refilled is not None:
                found |= refilled
                break
    return found


def _refilled(
    model: nn.Module, example_inputs: Any, caches: dict[str, str], before: list[Tensor]
) -> dict[str, str] | None:
    """Return the attributes that a pass fills again; None where it computes something else."""
    outputs, twin = _outputs(model, example_inputs, caches)
    if outputs is None or not _same(outputs, before):
        return None
    again = keeping(twin)
    return {path: unused for path, unused in caches.items() if path in again}


def _outputs(
    model: nn.Module, example_inputs: Any, caches: Caches
) -> tuple[list[Tensor] | None, nn.Module]:
    """Run a copy whose caches are empty; return its outputs, None where it fails, and it."""

    def own(_: str, tensor: Tensor) -> Tensor:
        # Parameters are read alone; what the pass may write into is the copy's own.
        return tensor if isinstance(tensor, nn.Parameter) else cloned(tensor)

    twin = copy_model(model, own, apart=True).eval()
    empty_caches(twin, caches)
    with normal_mode(), torch.no_grad(), seeded_generators(0):
        try:
            return tensor_leaves(run_model(twin, map_tensors(example_inputs, torch.clone))), twin
        except Exception:  # noqa: BLE001 - user code may raise anything; a trace says what
            return None, twin


def _same(outputs: list[Tensor], before: list[Tensor]) -> bool:
    return len(outputs) == len(before) and all(
        a.shape == b.shape and (a.is_meta or torch.equal(a.nan_to_num(), b.nan_to_num()))
        for a, b in zip(outputs, before, strict=True)
    )
