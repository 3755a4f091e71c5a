"""Modules that run in train mode alone, such as auxiliary classifiers.

The eval-mode trace does not see them, yet a cut must not take what they read. Where
the trace leaves parameters untouched, the model is traced in train mode too, and the
positions that such parameters are coupled with there are pinned.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from secateur.errors import TraceError
from secateur.graph.flow import Flow, refs_of
from secateur.graph.program import Program, Ref
from secateur.graph.tracing import record


def train_only_pins(
    model: nn.Module, example_inputs: Any, program: Program
) -> dict[tuple[str, int], NDArray[np.bool_]]:
    """Return the positions, by parameter and dimension, that only train mode needs."""
    names = {info.name for info in program.tensors if info.kind == "parameter"}
    unseen = names - _touched(program)
    if not unseen:
        return {}
    try:
        other = record(model, example_inputs, training=True)
    except TraceError as error:
        program.notes.append(f"train mode could not be traced: {error}")
        return {}
    alone = unseen & _touched(other)
    if not alone:
        return {}
    flow = Flow(other)
    flow.run()
    canon = {
        (info.name, dim): flow.axes.canon(axis)
        for key, info in enumerate(other.tensors)
        if info.kind == "parameter"
        for dim, axis in enumerate(flow.dims(Ref(key)))
    }
    needed = np.zeros(flow.axes.count, dtype=bool)
    for (name, _), axis in canon.items():
        if name in alone:
            needed[axis] = True
    needed[0] = False
    rows = {
        place: np.asarray(needed[axis].any(axis=1), dtype=np.bool_) for place, axis in canon.items()
    }
    return {place: found for place, found in rows.items() if found.any()}


def _touched(program: Program) -> set[str]:
    """Return the parameters that an operation reads."""
    keys = {ref.key for node in program.nodes for ref in refs_of(node)}
    return {program.tensors[key].name for key in keys if program.tensors[key].kind == "parameter"}
