"""A plan is held against a trace of the network that it describes, before anything is cut.

The algebra predicts the shape of every tensor, the bounds of every slice and every number in
the planned network. Code can compute sizes in ways that no tagged integer sees (``range(C)``,
``math.gcd(C, n)``), so the planned network is traced again, shapes only, and whatever departs
from the prediction is reported with the units that it depends on.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from secateur.cutting import cut, planned_model
from secateur.graph import Graph
from secateur.graph.alignment import Step, alike, same_origin, same_values, steps_of
from secateur.graph.copies import clone_model
from secateur.graph.cost import alive_units
from secateur.graph.module_caches import empty_caches
from secateur.graph.modules import where_is
from secateur.graph.passes import Pass
from secateur.graph.prediction import PlannedAxes, Prediction
from secateur.graph.program import Node, Program, Ref
from secateur.graph.rules_windows import window_steps
from secateur.graph.tracing import retrace
from secateur.masking import mask_operations, mask_weights
from secateur.plan import Plan

# Numbers that a plan can make up for in the weights; see :mod:`secateur.drift`.
FACTORS = {"aten.mul": 1, "aten.mul_": 1, "aten.div": -1, "aten.div_": -1}
CONSTANTS = ("aten.full", "aten.scalar_tensor")

_ALL = None
# Arguments that follow from the shapes of tensors, which are compared themselves.
_SHAPED: dict[str, tuple[int, ...] | None] = {
    **{
        f"aten.{name}": _ALL
        for name in (
            "view", "_unsafe_view", "reshape", "_reshape_alias", "_reshape_copy", "view_copy",
            "expand", "expand_copy", "broadcast_to", "repeat", "tile", "zeros", "ones", "empty",
            "rand", "randn", "new_zeros", "new_ones", "new_empty", "empty_strided",
            "new_empty_strided",
        )
    },
    "aten.eye": _ALL,
    "aten.as_strided": (1,),
    "aten.as_strided_copy": (1,),
    "aten.affine_grid_generator": (1,),
    "aten.full": (0,),
    "aten.new_full": (1,),
    "aten.arange": (),
    "aten.split": (1,),
    "aten.split_with_sizes": (1,),
    "aten.unsafe_split": (1,),
    "aten.unsafe_split_with_sizes": (1,),
    "aten.native_layer_norm": (1,),
    "aten._fused_rms_norm": (1,),
    "aten.native_group_norm": (3, 4, 5),
    "aten.convolution": (8,),
}  # fmt: skip


@dataclass(frozen=True)
class Departure:
    """Where a planned network departs from what was predicted.

    Attributes:
        node: number of the operation in the dense network's passes, one after the other.
        module: path of the module that runs it.
        reason: what differs there, for a person.
        units: removed units that the operation's tensors depend on.
    """

    node: int
    module: str
    reason: str
    units: NDArray[np.int64]


@dataclass(frozen=True)
class Retraced:
    """The planned network's trace beside the dense one's, in one pass.

    Attributes:
        before: the dense network's.
        after: the planned network's.
        pairs: their operations, as far as they are alike.
        stopped: what ended the planned one, or "".
        first: number of this pass's first operation, counted over all passes.
    """

    before: Program
    after: Program
    pairs: tuple[tuple[Step, Step], ...]
    stopped: str
    first: int


def check_trace(graph: Graph, plan: Plan) -> list[Retraced] | Departure:
    """Trace the planned network in every distinct pass and hold it against the prediction.

    Returns the two traces of each pass beside each other, or where the planned one departs. A pass
    is left out where the network takes its way by its data, and another one once it is masked, or
    where it never runs alike: the proof decides.
    """
    planned = graph.prediction.under(alive_units(graph.layout, plan.removed))
    traced: list[Retraced] = []
    first = 0
    for number, program in enumerate(graph.programs):
        for one in _forms(graph, number):
            found = _check_pass(graph, plan, planned, one, number, first)
            if isinstance(found, Departure):
                return found
            if found is not None:
                traced.append(found)
        first += len(program.nodes)
    return traced


def _forms(graph: Graph, number: int) -> list[Pass]:
    """Return the passes that ran alike on a path, which a cut may part: one of each mode."""
    mine = [one for one, path in graph.passes if path == number]
    forms = list({one.training: one for one in reversed(mine)}.values())
    return forms if graph.reads_mode else forms[-1:]


def _check_pass(
    graph: Graph,
    plan: Plan,
    planned: PlannedAxes,
    one: Pass,
    number: int,
    first: int,
) -> Retraced | Departure | None:
    program = graph.programs[number]
    found = _trace_planned(graph.model, plan, one, number, program)
    fault: Departure | None = None
    for pair in _alignments(*found, first) if found else ():
        departs = _departure(graph.prediction, planned, pair)
        if departs is None:
            return pair
        fault = fault or departs
    if fault is not None and _runs_alike(graph, one, program, first):
        return fault
    return None


def _runs_alike(graph: Graph, one: Pass, program: Program, first: int) -> bool:
    """Tell whether the dense network runs as it was traced: one that reads a clock does not."""
    whole = graph.prediction.under(alive_units(graph.layout, {}))
    again, stopped = retrace(graph.model, one, program)
    return any(
        _departure(graph.prediction, whole, pair) is None
        for pair in _alignments(program, again, stopped, first)
    )


def _trace_planned(
    model: nn.Module, plan: Plan, one: Pass, number: int, dense: Program
) -> tuple[Program, Program, str] | None:
    """Return the dense program, the planned one, and what stopped it, if anything."""
    if dense.way != "real":
        twin = planned_model(model, plan)
        after, stopped = retrace(twin, one, dense)
        if stopped and dense.way == "meta" and after.met_values:
            # The code keeps a tensor from a later pass, which none on meta goes with.
            after, stopped = retrace(twin, one, dataclasses.replace(dense, way="fake"))
        return dense, after, stopped
    # Numbers may come from data here. Those of the masked network do so alike, while those that
    # come from sizes are still the dense network's.
    masked = clone_model(model)
    empty_caches(masked, plan.caches)
    mask_weights(masked, plan)
    before, failed = retrace(
        masked, one, dense, inside=lambda twin: mask_operations(twin, plan.masks, {number})
    )
    if failed or [node.op for node in before.nodes] != [node.op for node in dense.nodes]:
        return None
    return _with_numbers(dense, before), *retrace(cut(model, plan), one, dense)


def _with_numbers(dense: Program, masked: Program) -> Program:
    """Return the dense program with the sizes and numbers that it has once it is masked."""
    tensors = list(dense.tensors)
    nodes = []
    for old, new in zip(dense.nodes, masked.nodes, strict=True):
        args = _tensors_of(old.args, new.args)
        nodes.append(dataclasses.replace(old, args=args))
        for one, other in zip(old.outs, new.outs, strict=True):
            if one >= 0 and other >= 0:
                tensors[one] = dataclasses.replace(tensors[one], shape=masked.tensors[other].shape)
    numbers = dict(zip(dense.numbers, masked.numbers.values(), strict=False))
    return dataclasses.replace(dense, nodes=nodes, tensors=tensors, numbers=numbers)


def _tensors_of(one: Any, other: Any) -> Any:
    """Return ``other`` with the tensors of ``one``, which has the same form."""
    if isinstance(one, tuple) and isinstance(other, tuple) and len(one) == len(other):
        return tuple(map(_tensors_of, one, other))
    return one if isinstance(one, Ref) else other


def _alignments(before: Program, after: Program, stopped: str, first: int) -> Iterator[Retraced]:
    """Pair the operations of two traces, leaving out what may run in one of them alone.

    That are operations that only lay memory out; and those that compute a constant, where code
    keeps one from an earlier pass: those that run again must then be the same.
    """
    for layout, constants in ((True, True), (False, True), (False, False)):
        (olds, known, _), (news, again, _) = (
            steps_of(program, layout, constants) for program in (before, after)
        )
        same = alike(olds, news)
        pairs = tuple(zip(olds[:same], news[:same], strict=True))
        if same == len(news) and (same == len(olds) or stopped):
            if again <= known:
                yield Retraced(before, after, pairs, stopped, first)
        elif layout:
            there = olds[min(same, len(olds) - 1)].node.op
            now = news[same].node.op if same < len(news) else "nothing"
            why = stopped or f"the code takes another path: {now} runs in place of {there}"
            yield Retraced(before, after, pairs, why, first)


def _departure(prediction: Prediction, planned: PlannedAxes, traced: Retraced) -> Departure | None:
    """Return the first place where the planned network departs from the prediction, if any."""
    for old, new in traced.pairs:
        reason = _argument_difference(prediction, planned, traced, old, new)
        axes = []
        for one, other in zip(old.node.outs, new.node.outs, strict=False):
            if reason or one < 0 or other < 0 or not prediction.described(one):
                continue
            wanted = planned.shape(one, traced.before.tensors[one].shape)
            found = traced.after.tensors[other].shape
            if wanted != found:
                reason = f"it gives a tensor {list(found)} where {list(wanted)} was predicted"
                if len(wanted) == len(found):
                    axes = [
                        axis
                        for axis, a, b in zip(prediction.axes(one), wanted, found, strict=True)
                        if a != b
                    ]
        if reason:
            return _at(prediction, planned, traced, old, reason, axes)
    if traced.stopped:
        steps = steps_of(traced.before, True, True)[0]
        last = traced.pairs[-1][0].index if traced.pairs else -1
        there = next((step for step in steps if step.index > last), steps[-1])
        return _at(prediction, planned, traced, there, traced.stopped, [])
    return None


def _at(
    prediction: Prediction,
    planned: PlannedAxes,
    traced: Retraced,
    step: Step,
    reason: str,
    axes: Sequence[Any],
) -> Departure:
    """Return the departure at a step, with the removed units that ``axes`` or its own depend on."""
    node = step.node
    if not any(len(planned.removed(axis)) for axis in axes):
        keys = [*(ref.key for ref in node.refs), *(key for key in node.outs if key >= 0)]
        axes = [axis for key in keys for axis in prediction.axes(key)]
    units = np.unique(np.concatenate([np.zeros(0, np.int64), *map(planned.removed, axes)]))
    number = traced.first + step.index
    return Departure(number, node.module, f"{where_is(node.op, node.module)}: {reason}", units)


def _argument_difference(
    prediction: Prediction, planned: PlannedAxes, traced: Retraced, old: Step, new: Step
) -> str:
    """Say which argument of an operation is not what was predicted; "" where all are.

    What an operation computes that reaches no output may differ: it only checks something.
    """
    if not any(prediction.used(key) for key in old.node.outs):
        return ""
    if len(old.sources) != len(new.sources) or not all(map(same_origin, old.sources, new.sources)):
        return "it reads other tensors, or constants of other values"
    if old.node.op in _POSITIONS and _as_traced(prediction, traced.before, old.node):
        return _POSITIONS[old.node.op](prediction, planned, old.node, new.node)
    steps = _steps_of_windows(prediction, planned, traced.before, old.node)
    if steps is not None and (fault := _step_difference(steps, new.node)):
        return fault
    stated = prediction.stated(traced.first + old.index)
    for number, (axis, less) in stated.items():
        wanted = planned.size(axis) - less
        if new.node.args[number] != wanted:
            return f"argument {number} is {new.node.args[number]} where {wanted} was predicted"
    if old.node.op != new.node.op:  # one family; their shapes are compared
        return ""
    given = _SHAPED.get(old.node.op, ())
    if given is _ALL:
        return ""
    for place, (one, other) in _arguments(old.node, new.node):
        if (
            place in given
            or place in stated
            or (place == 2 and steps is not None)
            or (old.node.op == "aten.arange" and _end_of_range(old.node, place))
        ):
            continue
        if made_up_for(old.node, place, one):
            continue
        if not same_number(traced.before, one, other):
            return f"{_called(place)} is {_shown(other)} where it was {_shown(one)}"
    return ""


def _steps_of_windows(
    prediction: Prediction, planned: PlannedAxes, program: Program, node: Node
) -> list[int] | None:
    """Return the steps in memory that windows will have; None for another operation."""
    if not node.op.startswith("aten.as_strided") or not _as_traced(prediction, program, node):
        return None
    key = node.args[0].key
    shape = program.tensors[key].shape
    return window_steps(node, shape, program.strides[key], planned.shape(key, shape))


def _step_difference(wanted: list[int], node: Node) -> str:
    sizes, found = node.args[1:3]
    if all(size == 1 or one == step for size, one, step in zip(sizes, found, wanted, strict=True)):
        return ""
    return f"its steps in memory are {tuple(found)} where {tuple(wanted)} was predicted"


def _as_traced(prediction: Prediction, program: Program, node: Node) -> bool:
    """Tell whether what an operation reads and gives has the sizes that the algebra knows."""
    return all(
        tuple(map(len, prediction.axes(key))) == program.tensors[key].shape
        for key in (node.args[0].key, node.outs[0])
    )


def _arguments(old: Node, new: Node) -> Iterator[tuple[int | str, tuple[Any, Any]]]:
    yield from enumerate(zip(old.args, new.args, strict=False))
    for name in dict.fromkeys((*old.kwargs, *new.kwargs)):
        yield name, (old.kwargs.get(name), new.kwargs.get(name))
    if len(old.args) != len(new.args):
        yield "the number of arguments", (len(old.args), len(new.args))


def made_up_for(node: Node, place: int | str, value: object) -> bool:
    """Tell whether a plan can make up for another value of a plain number."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and isinstance(place, int) and (node.op in FACTORS or node.op in CONSTANTS)


def _end_of_range(node: Node, place: int | str) -> bool:
    """Tell whether an argument of ``arange`` is where it ends, which its shape tells."""
    return place == (0 if node.overload == "default" else 1)


SLACK = 1e-5


def same_number(program: Program, one: Any, other: Any) -> bool:
    """Tell whether two arguments are the same; with real tensors, data may have rounded them."""
    numbers = isinstance(one, (int, float)) and isinstance(other, (int, float))
    rounded = program.way == "real" and numbers and not isinstance(one, bool)
    return same_values(one, other) or (rounded and math.isclose(one, other, rel_tol=SLACK))


def _called(place: int | str) -> str:
    return f"argument {place}" if isinstance(place, int) else place


def _shown(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _slice(prediction: Prediction, planned: PlannedAxes, old: Node, new: Node) -> str:
    """The bounds must fall between the same kept positions."""
    (source, dim, *bounds), (_, _, *now) = (_slice_arguments(node) for node in (old, new))
    axis = _axis(prediction, source, dim)
    if bounds[2] != now[2]:
        return f"step is {now[2]} where it was {bounds[2]}"
    ends = slice(bounds[0], bounds[1]).indices(len(axis))[:2]
    wanted = [planned.position(axis, end) for end in ends]
    found = list(slice(now[0], now[1]).indices(planned.size(axis))[:2])
    if ends[0] < ends[1] and wanted != found:
        return f"its bounds are {found} where {wanted} was predicted"
    return ""


def _slice_arguments(node: Node) -> list[Any]:
    args = [*node.args, *[None] * (5 - len(node.args))]
    return [args[0], args[1] or 0, args[2], args[3], args[4] or 1]


def _select(prediction: Prediction, planned: PlannedAxes, old: Node, new: Node) -> str:
    """The same position must be taken."""
    axis = _axis(prediction, old.args[0], old.args[1])
    wanted = planned.position(axis, old.args[2] % len(axis))
    found = new.args[2] % max(1, planned.size(axis))
    return "" if wanted == found else f"position {found} is taken where {wanted} was predicted"


def _pad(prediction: Prediction, planned: PlannedAxes, old: Node, new: Node) -> str:
    """What is added before must be what was predicted; what is added after follows."""
    axes = prediction.axes(old.outs[0])
    for place, (one, other) in enumerate(zip(old.args[1], new.args[1], strict=True)):
        axis = axes[len(axes) - 1 - place // 2]
        if one < 0 or other < 0:
            wanted = one
        elif place % 2:
            wanted = planned.size(axis) - planned.position(axis, len(axis) - one)
        else:
            wanted = planned.position(axis, one)
        if wanted != other:
            return f"it pads by {other} where {wanted} was predicted"
    if not same_values(old.args[2:], new.args[2:]):
        return f"it pads with {new.args[2:]} where it was {old.args[2:]}"
    return ""


def _axis(prediction: Prediction, source: Ref, dim: int) -> Any:
    axes = prediction.axes(source.key)
    return axes[dim % len(axes)]


_POSITIONS = {
    "aten.slice": _slice,
    "aten.slice_copy": _slice,
    "aten.select": _select,
    "aten.select_copy": _select,
    "aten.constant_pad_nd": _pad,
}
