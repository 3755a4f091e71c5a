"""Where the samples of a batch are in every tensor of a recording.

A dimension may hold the samples merged with others (batch and tokens, or heads):
sizes outer x samples x inner. Reshaping keeps the order of elements, so the number of
elements from one sample to the next stays what it was.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from secateur.relevance.recording import Recording, Step


class Span(NamedTuple):
    """The samples are in dimension ``dim``, whose size is outer x samples x ``inner``."""

    dim: int
    inner: int


_REORDERED = ("aten.permute", "aten.transpose", "aten.t")
_RESHAPED = ("aten.view", "aten._unsafe_view", "aten.reshape", "aten.squeeze", "aten.unsqueeze",
             "aten.clone", "aten.alias", "aten.detach")  # fmt: skip
_REDUCED = ("aten.mean", "aten.sum", "aten.amax", "aten.amin", "aten.max", "aten.min")


def spans(recording: Recording) -> dict[int, Span | None]:
    """Return the span of every tensor that depends on the inputs; None where not known."""
    found: dict[int, Span | None] = {}
    samples = recording.samples
    for key in recording.inputs:
        shape = recording.shapes[key][0]
        found[key] = Span(0, 1) if shape and shape[0] == samples else None
    for step in recording.steps:
        source = next((key for key in step.refs() if found.get(key) is not None), None)
        for key in step.outs:
            if key < 0:
                continue
            out = recording.shapes[key][0]
            span = None
            if source is not None:
                before = found[source]
                assert before is not None
                span = _after(step, before, recording.shapes[source][0], out, samples)
            if span is not None and (
                span.dim >= len(out) or out[span.dim] % (samples * span.inner)
            ):
                span = None
            found[key] = span
    return found


def _after(
    step: Step, span: Span, shape: tuple[int, ...], out: tuple[int, ...], samples: int
) -> Span | None:
    rank = len(shape)
    if step.name in _REORDERED:
        order = _order(step, rank)
        return Span(order.index(span.dim), span.inner)
    if step.name in _RESHAPED:
        return _reshaped(span, shape, out, samples)
    if step.name == "aten.expand":
        return Span(span.dim + len(out) - rank, span.inner)
    if step.name in ("aten.select", "aten.unbind"):
        gone = (int(step.args[1]) if len(step.args) > 1 else 0) % rank
        return None if gone == span.dim else Span(span.dim - (gone < span.dim), span.inner)
    if step.name in _REDUCED and len(out) != rank:
        dims = step.args[1] if len(step.args) > 1 else ()
        gone_dims = {
            d % rank for d in (dims if isinstance(dims, tuple) else (dims,)) or range(rank)
        }
        if span.dim in gone_dims:
            return None
        return Span(span.dim - sum(d < span.dim for d in gone_dims), span.inner)
    if step.name == "aten.embedding":
        return span
    # Broadcasting aligns at the end; everything else that has a rule keeps its dimensions.
    dim = span.dim + len(out) - rank
    if dim < 0 or out[dim] != shape[span.dim]:
        return None
    return Span(dim, span.inner)


def _order(step: Step, rank: int) -> list[int]:
    order = list(range(rank))
    if step.name == "aten.permute":
        return [int(d) % rank for d in step.args[1]]
    one, other = (0, rank - 1) if step.name == "aten.t" else step.args[1:3]
    order[one], order[other] = order[other], order[one]
    return order


def _reshaped(
    span: Span, shape: tuple[int, ...], out: tuple[int, ...], samples: int
) -> Span | None:
    stride = span.inner * math.prod(shape[span.dim + 1 :])
    after = 1
    for dim in reversed(range(len(out))):
        whole = after * out[dim]
        if stride % after == 0 and whole % (stride * samples) == 0 and stride < whole:
            return Span(dim, stride // after)
        after = whole
    if samples == 1:
        return Span(0, 1) if out else None
    return None
