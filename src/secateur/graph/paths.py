"""The paths of a network: its passes recorded, equal ones once, and joined into one program.

A pass that runs operation for operation as another adds nothing and is dropped. The others
share the parameters and buffers of one program, so that whatever one of them couples, pins or
demands of a size holds for all.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from secateur.errors import TraceError
from secateur.graph.alignment import runs_alike
from secateur.graph.input_sizes import views_differ
from secateur.graph.mode_reads import reads_mode
from secateur.graph.passes import Pass, list_passes
from secateur.graph.program import Call, Node, Program, Ref, tensor_leaves
from secateur.graph.sizes import Expr, Sized, rename
from secateur.graph.tracing import record, retrace


@dataclass(frozen=True)
class Paths:
    """What the passes of a network run.

    Attributes:
        programs: the distinct ones; the first is the example input's in eval mode.
        passes: every pass that could be traced, with the number of its program.
        notes: how passes were traced, and which could not be.
        reads_mode: whether the network's code may tell train mode from eval mode.
    """

    programs: tuple[Program, ...]
    passes: tuple[tuple[Pass, int], ...]
    notes: tuple[str, ...]
    reads_mode: bool

    def joined(self) -> Program:
        """Return one program that runs all of them, one after the other."""
        first, *others = self.programs
        if not others:
            return first
        joined = Program(
            tensors=self.programs[-1].tensors,
            attributes=dict(first.attributes),
            batch=first.batch,
            way=first.way,
        )
        for number, program in enumerate(self.programs):
            joined.nodes += program.nodes
            joined.inputs += program.inputs
            joined.outputs += program.outputs
            joined.numbers.update(program.numbers)
            joined.read += program.read
            joined.strides.update(program.strides)
            joined.ends.append(len(joined.nodes))
            for key, value in program.attributes.items():
                joined.attributes.setdefault(key, value)
            for compared, module in program.comparisons.items():
                joined.comparisons.setdefault(compared, module)
            label = next(one.label for one, path in self.passes if path == number)
            joined.labels.append(label)
        return joined


def record_paths(model: nn.Module, example_inputs: Any, also: Sequence[Any] = ()) -> Paths:
    """Record every pass of ``model``: each example in eval mode and in neutral train mode.

    Raises:
        InputError: an argument is of the wrong kind.
        TraceError: the model fails on an example in eval mode.
    """
    programs: list[Program] = []
    passes: list[tuple[Pass, int]] = []
    notes: dict[str, None] = {}
    asked = reads_mode(model)
    for one in list_passes(model, example_inputs, also):
        if one.training:
            path = next(path for other, path in passes if other.example == one.example)
            if not asked or _runs_alike(model, one, programs[path]):
                passes.append((one, path))
                continue
        try:
            program = record(
                model,
                one.inputs,
                method=one.method,
                training=one.training,
                after=programs[-1] if programs else None,
            )
        except TraceError as error:
            if not one.training:
                raise TraceError(f"{one.label}: {error}" if one.label else str(error)) from error
            notes[f"{one.label} could not be traced: {error}"] = None
            continue
        path = next(
            (number for number, known in enumerate(programs) if same_path(known, program)),
            len(programs),
        )
        if path == len(programs):
            programs.append(program)
            notes.update(dict.fromkeys(program.notes))
        passes.append((one, path))
    programs[0].caches = {path: unused for p in programs for path, unused in p.caches.items()}
    return Paths(tuple(programs), tuple(passes), tuple(notes), asked)


def _runs_alike(model: nn.Module, one: Pass, program: Program) -> bool:
    again, stopped = retrace(model, one, program)
    return not stopped and runs_alike(program, again)


def record_another_size(model: nn.Module, paths: Paths, examples: Iterable[Any]) -> Paths | None:
    """Record the first of ``examples`` that is of another size inside; None where none is."""
    for inputs in examples:
        try:
            program = record(model, inputs, after=paths.programs[-1], only=paths.programs[0].way)
        except TraceError:
            continue
        if not views_differ(paths.programs[0], program):
            continue
        shapes = tuple(tuple(tensor.shape) for tensor in tensor_leaves(inputs))
        one = Pass(inputs, shapes=shapes), len(paths.programs)
        paths.programs[0].caches |= program.caches
        notes = tuple(dict.fromkeys((*paths.notes, *program.notes)))
        programs, passes = (*paths.programs, program), (*paths.passes, one)
        return Paths(programs, passes, notes, paths.reads_mode)
    return None


def same_path(one: Program, other: Program) -> bool:
    """Tell whether two passes run the same operations on the same tensors."""
    if (len(one.nodes), len(one.inputs)) != (len(other.nodes), len(other.inputs)):
        return False
    match = _Match(one, other)
    return (
        all(match.tensors(a, b) for a, b in zip(one.inputs, other.inputs, strict=True))
        and all(match.nodes(a, b) for a, b in zip(one.nodes, other.nodes, strict=True))
        and len(one.outputs) == len(other.outputs)
        and all(match.tensors(a, b) for a, b in zip(one.outputs, other.outputs, strict=True))
        and match.comparisons()
        and {match.key(key): value for key, value in other.numbers.items()} == one.numbers
    )


class _Match:
    """Pairs the tensors of two programs as their operations are walked through."""

    def __init__(self, one: Program, other: Program) -> None:
        self._one, self._other = one, other
        self._pairs: dict[int, int] = {}
        self._named = set(one.named().values())

    def key(self, other: int) -> int:
        """Return the tensor of the first program for one of the second; -1 for none."""
        return other if other in self._named else self._pairs.get(other, -1)

    def tensors(self, one: int, other: int) -> bool:
        """Pair two tensors, or tell whether they are a pair."""
        if one < 0 or other < 0 or other in self._named:
            return one == other
        found = self._pairs.get(other)
        if found is None:
            mine, theirs = self._one.tensors[one], self._other.tensors[other]
            if one in self._named or mine != theirs:
                return False
            self._pairs[other] = one
            return True
        return found == one

    def nodes(self, one: Node, other: Node) -> bool:
        """Tell whether two operations are one; pairs what they return."""
        return (
            (one.op, one.overload, one.module, one.turn)
            == (other.op, other.overload, other.module, other.turn)
            and self.values(one.args, other.args)
            and self.values(tuple(one.kwargs.items()), tuple(other.kwargs.items()))
            and self.calls(one.call, other.call)
            and len(one.outs) == len(other.outs)
            and all(self.tensors(a, b) for a, b in zip(one.outs, other.outs, strict=True))
        )

    def calls(self, one: Call | None, other: Call | None) -> bool:
        """Tell whether the model's code called the same function in the same way."""
        if one is None or other is None:
            return one is other
        return (
            one.name == other.name
            and self.values(one.args, other.args)
            and self.values(tuple(one.kwargs.items()), tuple(other.kwargs.items()))
        )

    def values(self, one: Any, other: Any) -> bool:
        """Tell whether two arguments are the same, sizes by what they were made from."""
        if isinstance(one, Ref):
            return isinstance(other, Ref) and self.tensors(one.key, other.key)
        if isinstance(one, tuple):
            return (
                isinstance(other, tuple)
                and len(one) == len(other)
                and all(self.values(a, b) for a, b in zip(one, other, strict=True))
            )
        if isinstance(one, slice) and isinstance(other, slice):
            return self.values(
                (one.start, one.stop, one.step), (other.start, other.stop, other.step)
            )
        if isinstance(one, Sized) or isinstance(other, Sized):
            return (
                isinstance(one, Sized)
                and isinstance(other, Sized)
                and int.__index__(one) == int.__index__(other)
                and one.expr == self.expression(other.expr)
            )
        if type(one) is not type(other):
            return False
        if isinstance(one, float):
            return one == other or (one != one and other != other)
        return bool(one == other) if isinstance(one, _COMPARED) else True

    def expression(self, expr: Expr) -> Expr:
        """Return a size of the second program in the tensors of the first."""
        return rename(expr, lambda dim: type(dim)(self.key(dim.tensor), dim.dim))

    def comparisons(self) -> bool:
        """Tell whether the model's code compared the same sizes."""
        found = [
            (op, self.expression(left), self.expression(right), outcome)
            for op, left, right, outcome in self._other.comparisons
        ]
        return set(found) == set(self._one.comparisons)


# Anything else (a generator, an object of the model) has no equal in another copy of the model.
_COMPARED = (int, str, torch.dtype, torch.device, torch.layout, torch.memory_format)
