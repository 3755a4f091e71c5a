"""One operation of a pass: its tensors, and what it must give back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from secateur.errors import InputError
from secateur.graph.program import Ref
from secateur.relevance.folds import Fold
from secateur.relevance.recording import Step
from secateur.relevance.settings import Settings

Relevances = Sequence[Tensor | None]
Pull = Callable[[Relevances], dict[int, Tensor]]


@dataclass(frozen=True)
class Call:
    """A step with its tensors.

    Attributes:
        step: the operation.
        tensors: what it reads, in the order of ``step.refs()``.
        active: the places in ``tensors`` of those that carry relevance.
        want: the places whose relevance is asked for.
        settings: of the pass.
        fold: what the layer takes in from the operations behind it, or None.
        overwrite: whether its first tensor may be written to.
    """

    step: Step
    tensors: list[Tensor]
    active: frozenset[int]
    want: frozenset[int]
    settings: Settings
    fold: Fold | None = None
    overwrite: bool = False

    def arguments(
        self, tensors: Sequence[Tensor] | None = None
    ) -> tuple[list[Any], dict[str, Any]]:
        """Return the arguments with ``tensors`` (or its own) in their places."""
        return fill(self.step, self.tensors if tensors is None else tensors)

    def run(self, tensors: Sequence[Tensor] | None = None) -> tuple[Any, ...]:
        """Run the operation; return all it returns."""
        args, kwargs = fill(self.step, self.tensors if tensors is None else tensors)
        result = self.step.function(*args, **kwargs)
        return tuple(result) if isinstance(result, (tuple, list)) else (result,)

    def refuse(self, why: str) -> InputError:
        """Return the error that says what relevance cannot pass."""
        return InputError(f"relevance has no rule for {self.step.where()}: {why}")


def fill(step: Step, tensors: Sequence[Tensor]) -> tuple[list[Any], dict[str, Any]]:
    """Return the arguments of a step with ``tensors`` in the places of its refs, in order."""
    rest = iter(tensors)

    def visit(value: Any) -> Any:
        if isinstance(value, Ref):
            return next(rest)
        return [visit(item) for item in value] if isinstance(value, tuple) else value

    args = [visit(value) for value in step.args]
    return args, {key: visit(value) for key, value in step.kwargs.items()}
