"""Run relevance passes in tests, layer by layer."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from secateur.calibration import untouched
from secateur.graph.program import tensor_leaves
from secateur.relevance import Captured, Settings, propagate
from secateur.relevance.recording import record_steps
from secateur.relevance.schedule import schedule


def ours(
    model: nn.Module, inputs: Any, settings: Settings, labels: Tensor | None = None
) -> tuple[dict[str, Tensor], Tensor]:
    """Return relevance at the input of every layer, by module, and what it started from.

    A module that runs several contractions (attention) shows the first one's left factor.
    """
    with untouched(model):
        plan = schedule(record_steps(model, inputs), None, overwrite=settings.rule != "epsilon")
    found: dict[str, Tensor] = {}

    def visit(captured: Captured) -> None:
        place = captured.place
        if place.op in ("aten.convolution", "product") and place.arg == 0:
            found[place.module] = captured.relevance.clone()

    started = propagate(plan, tensor_leaves(inputs), labels, settings, visit)
    return found, started


def worst(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Return the largest relative error (in norm) over the layers of ``expected``."""
    assert expected
    return max(
        float((found[name] - value).norm() / value.norm()) for name, value in expected.items()
    )
