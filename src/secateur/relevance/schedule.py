"""From a recording to what a relevance pass does: which steps, which tensors, what dies when."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch

from secateur.errors import InputError
from secateur.graph.program import PRODUCTS
from secateur.relevance.folds import LAYERS, Fold, find_folds
from secateur.relevance.operations import DETACHED
from secateur.relevance.positions import Span, spans
from secateur.relevance.recording import Recording, Step


class Place(NamedTuple):
    """Where a tensor is consumed: as in ``graph.layout.consumers``."""

    op: str
    module: str
    turn: int
    arg: int


@dataclass(frozen=True)
class Task:
    """A step in a pass.

    Attributes:
        step: the operation.
        active: places among its tensors that carry relevance.
        want: places whose relevance is computed; none where the step only runs.
        captures: (place among its tensors, the :class:`Place` asked for).
        fold: what the layer takes in from the operations behind it, or None.
        overwrite: whether its first tensor may be written to.
        done: tensors that nothing reads after it.
    """

    step: Step
    active: frozenset[int]
    want: frozenset[int]
    captures: tuple[tuple[int, Place], ...]
    fold: Fold | None
    overwrite: bool
    done: tuple[int, ...]


@dataclass(frozen=True)
class Schedule:
    """A pass over batches of one shape.

    Attributes:
        recording: where the steps come from.
        tasks: in order.
        start: number of the logits.
        spans: where the samples are in each tensor that carries relevance.
        right: the places whose left factor is fixed, so that the right one is captured.
    """

    recording: Recording
    tasks: tuple[Task, ...]
    start: int
    spans: dict[int, Span | None]
    right: frozenset[Place]


_Planned = tuple[Step, frozenset[int], frozenset[int], tuple[tuple[int, Place], ...], Fold | None]
_ENDS = frozenset({"aten._softmax", "aten._log_softmax", "aten._safe_softmax"})


def schedule(recording: Recording, places: Iterable[Place] | None, *, overwrite: bool) -> Schedule:
    """Plan a pass that captures relevance at ``places`` (None: where an input arrives, too).

    Args:
        recording: of a batch of the shape.
        places: where relevance is wanted; None wants it at every step.
        overwrite: whether activations may be applied in place to what layers returned.

    Raises:
        InputError: no output can be started from.
    """
    start = _start(recording)
    steps = _needed(recording.steps, start)
    active = _active(recording, steps)
    if start not in active:
        raise InputError("the model's first output has no floating-point input to relate it to")
    steps, folds = find_folds(recording, steps, start)
    right: set[Place] = set()
    asked = None if places is None else set(places)
    useful: set[int] = set()
    planned: list[_Planned] = []
    for number, step in enumerate(steps):
        refs = step.refs()
        mine = frozenset(i for i, key in enumerate(refs) if key in active)
        carries = any(key in active for key in step.outs)
        captures = _captures(step, mine, asked, right) if carries else ()
        caught = {i for i, _ in captures}
        want = frozenset(i for i in mine if carries and (refs[i] in useful or i in caught))
        if want:
            useful.update(key for key in step.outs if key in active)
        planned.append((step, mine, want, captures, folds.get(number)))
    return Schedule(
        recording,
        tuple(_tasks(recording, planned, start, overwrite)),
        start,
        spans(recording),
        frozenset(right),
    )


def _start(recording: Recording) -> int:
    """Return the logits: the first floating output, before a softmax that ends the model."""
    floating = [k for k in recording.outputs if recording.shapes[k][1].is_floating_point]
    if not floating:
        raise InputError("the model returns no floating-point tensor to start relevance from")
    start = floating[0]
    for step in reversed(recording.steps):
        if start in step.outs and step.op in _ENDS:
            start = step.refs()[0]
    return start


def _needed(steps: list[Step], start: int) -> list[Step]:
    needed, kept = {start}, []
    for step in reversed(steps):
        if needed.intersection(step.outs):
            needed.update(step.refs())
            kept.append(step)
    return kept[::-1]


def _active(recording: Recording, steps: list[Step]) -> set[int]:
    """Return the tensors that carry relevance: what floating inputs and embeddings become."""
    shapes = recording.shapes
    active = {key for key in recording.inputs if shapes[key][1].is_floating_point}
    for step in steps:
        refs = step.refs()
        carrying = [i for i, key in enumerate(refs) if key in active]
        if step.op in DETACHED or (step.name == "aten.div" and carrying == [1]):
            continue
        if carrying or step.op == "aten.embedding":
            active.update(k for k in step.outs if k >= 0 and _carries(shapes[k][1]))
    return active


def _carries(dtype: torch.dtype) -> bool:
    return dtype.is_floating_point or dtype.is_complex


def _captures(
    step: Step, active: frozenset[int], asked: set[Place] | None, right: set[Place]
) -> tuple[tuple[int, Place], ...]:
    found = []
    for i in sorted(active):
        arg = i - PRODUCTS[step.op] if step.op in PRODUCTS else i
        place = Place(*step.address, max(arg, 0))
        if step.op in PRODUCTS and arg == 1 and i - 1 not in active:
            place = Place(*step.address, 0)
            if asked is None or place in asked:
                right.add(place)
        if asked is None or place in asked:
            found.append((i, place))
    return tuple(found)


def _tasks(
    recording: Recording, planned: list[_Planned], start: int, overwrite: bool
) -> Iterable[Task]:
    last: dict[int, int] = {}
    uses: Counter[int] = Counter()
    maker: dict[int, Step] = {}
    carrying = {id(step): active for step, active, *_ in planned}
    for number, (step, *_) in enumerate(planned):
        uses.update(step.refs())
        last.update(dict.fromkeys(step.refs(), number))
        maker.update(dict.fromkeys(step.outs, step))
    done: dict[int, list[int]] = {}
    for key, number in last.items():
        if key != start and key not in recording.fixed:
            done.setdefault(number, []).append(key)
    for number, (step, active, want, captures, behind) in enumerate(planned):
        first = step.refs()[0] if step.refs() else -1
        made = maker.get(first)
        fresh = made is not None and (
            made.op in ("aten.convolution", "aten.add", "aten.add_")
            or (made.op in LAYERS and len(carrying[id(made)]) == 1)
        )
        yield Task(
            step,
            active,
            want,
            captures,
            behind,
            overwrite and fresh and uses[first] == 1 and first != start,
            tuple(done.get(number, ())),
        )
