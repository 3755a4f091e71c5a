"""What a layer takes in from the operations behind it: a batch norm, or a bias added apart.

PyTorch runs one linear layer as one product with a bias or as a product, a view and an
addition, as it likes; a rule that weighs the bias must not depend on that.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

from torch import Tensor

from secateur.graph.program import Ref
from secateur.relevance.contraction import Layer
from secateur.relevance.recording import Recording, Step

LAYERS = frozenset({"aten.convolution", "aten.addmm", "aten.mm"})
_NORMS = frozenset({"aten.native_batch_norm", "aten.cudnn_batch_norm", "aten.miopen_batch_norm"})
_VIEWS = frozenset({"aten.view", "aten._unsafe_view"})


@dataclasses.dataclass(frozen=True)
class Fold:
    """The layer's outputs times ``scale`` (None: 1) plus ``shift``, one number an output."""

    scale: Tensor | None
    shift: Tensor


def fold(layer: Layer, behind: Fold) -> Layer:
    """Return the layer with what is behind it taken in."""
    return dataclasses.replace(layer, scale=behind.scale, shift=behind.shift)


def find_folds(
    recording: Recording, steps: list[Step], start: int
) -> tuple[list[Step], dict[int, Fold]]:
    """Take batch norms and biases into the layers before them.

    Args:
        recording: where the steps come from.
        steps: all that the logits need.
        start: number of the logits.

    Returns:
        The steps that are left, and what each layer takes in, by the layer's place among
        them.
    """
    uses = Counter(key for step in steps for key in step.refs())
    reader = {key: n for n, step in enumerate(steps) for key in step.refs()}
    left: list[Step | None] = list(steps)
    found: dict[int, Fold] = {}

    def only_reader(key: int) -> int | None:
        return reader[key] if uses[key] == 1 and key != start else None

    for n, layer in enumerate(steps):
        if layer.op not in LAYERS:
            continue
        last, then = n, only_reader(layer.outs[0])
        norm = None if then is None else _norm(recording, layer, steps[then])
        if norm is None and layer.op == "aten.mm":
            while then is not None and steps[then].op in _VIEWS:
                last, then = then, only_reader(steps[then].outs[0])
            norm = None if then is None else _bias(recording, layer, steps[last], steps[then])
        if norm is not None and then is not None:
            before = left[last]
            assert before is not None
            left[last] = dataclasses.replace(before, outs=steps[then].outs[:1])
            left[then] = None
            found[n] = norm
    places = [n for n, step in enumerate(left) if step is not None]
    renumbered = {places.index(n): value for n, value in found.items()}
    return [step for step in left if step is not None], renumbered


def _norm(recording: Recording, layer: Step, norm: Step) -> Fold | None:
    """Return a batch norm's scale and shift where ``layer`` can take them in."""
    if norm.op not in _NORMS or norm.args[5] or not isinstance(norm.args[0], Ref):
        return None
    grouped = layer.op == "aten.convolution" and layer.args[6] and layer.args[8] != 1
    matrix = layer.op != "aten.convolution" and len(recording.shapes[layer.outs[0]][0]) != 2
    weights = layer.refs()[2:] if layer.op == "aten.addmm" else layer.refs()[1:]
    known = all(key in recording.fixed for key in (*weights, *norm.refs()[1:]))
    if grouped or matrix or not known or norm.args[0].key != layer.outs[0]:
        return None

    def value(item: Any) -> Tensor | None:
        return recording.fixed[item.key].detach() if isinstance(item, Ref) else None

    weight, bias, mean, variance = (value(item) for item in norm.args[1:5])
    assert mean is not None
    assert variance is not None
    scale = (variance + norm.args[7]).rsqrt()
    scale = scale if weight is None else scale * weight
    shift = -mean * scale
    return Fold(scale, shift if bias is None else shift + bias)


def _bias(recording: Recording, layer: Step, last: Step, addition: Step) -> Fold | None:
    """Return the fixed vector that is added to a product with fixed weights."""
    if addition.name != "aten.add" or len(addition.args) != 2 or addition.kwargs:
        return None
    if layer.refs()[1] not in recording.fixed:
        return None
    other = [key for key in addition.refs() if key != last.outs[0]]
    if len(other) != 1 or other[0] not in recording.fixed:
        return None
    bias, outputs = recording.fixed[other[0]], recording.shapes[layer.outs[0]][0][-1]
    same = recording.shapes[last.outs[0]][0] == recording.shapes[addition.outs[0]][0]
    ends = recording.shapes[last.outs[0]][0][-1] == outputs
    return Fold(None, bias.detach()) if same and ends and tuple(bias.shape) == (outputs,) else None
