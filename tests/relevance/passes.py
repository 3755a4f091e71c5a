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

    A module that runs several contractions (attention) shows the last one's left factor.
    """
    with untouched(model):
        plan = schedule(record_steps(model, inputs), None, overwrite=settings.rule != "epsilon")
    modules = {
        (task.step.op if i == j else "product", task.step.ordinal): task.step.module
        for task in plan.tasks
        for i, j in ((0, 0), (0, 1))
        if task.step.op.split(".")[1] in ("convolution", "mm", "addmm", "bmm")
    }
    found: dict[str, Tensor] = {}

    def visit(captured: Captured) -> None:
        op, ordinal, arg = captured.place
        if arg == 0 and (op, ordinal) in modules:
            found[modules[op, ordinal]] = captured.relevance.clone()

    started = propagate(plan, tensor_leaves(inputs), labels, settings, visit)
    return found, started


def worst(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Return the largest relative error (in norm) over the layers of ``expected``."""
    assert expected
    return max(
        float((found[name] - value).norm() / value.norm()) for name, value in expected.items()
    )
