"""Parameters and buffers that no traced pass reached, and what they could meet.

How the model's code would use them is unknown. The tensors that code beside them handles are
known, though: those of the innermost module around them that ran. A tensor of that module's own
is coupled with the one axis there of its size, if there is one; otherwise the axes that its sizes
could meet are pinned, as they are for whole modules that never ran.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from torch import nn

from secateur.graph.axes import Axis
from secateur.graph.copies import named_tensors
from secateur.graph.flow import Flow
from secateur.graph.mentions import mentioned
from secateur.graph.module_tree import modules_of
from secateur.graph.program import Program, Ref


def hold_unreached(flow: Flow, model: nn.Module) -> list[str]:
    """Couple or pin what no pass reached; return a note for each module that it belongs to."""
    program = flow.program
    missing = _missing(program, _registered(model, volatile=True))
    if not missing:
        return []
    ran = _Ran(program, model)
    known, anything = mentioned(model)
    saved = _registered(model, volatile=False)
    places: dict[str, list[int]] = defaultdict(list)
    for key in missing:
        places[ran.around(program.tensors[key].name.rpartition(".")[0])].append(key)
    notes = []
    for around, keys in places.items():
        seen = [axis for axis in _axes(flow, ran.handled(around)) if axis.shape[1]]
        beside = _axes(flow, ran.held(around))
        names: dict[str, None] = {}
        for key in keys:
            info = program.tensors[key]
            name = ran.outermost(info.name)
            own = info.name.rpartition(".")[0] == around
            settled = own
            # Code that mentions it nowhere cannot run it.
            if anything or _attribute(name, around) in known:
                for dim, size in enumerate(info.shape):
                    if size > 1:
                        axis = flow.dims(Ref(key))[dim]
                        settled &= _hold(flow, axis, seen, beside if own else None, name)
            # What is no part of the state is the code's own copy of something else.
            if not settled or info.name in saved:
                names[name] = None
        if names:
            notes.append(
                f"no example reached {_list(list(names))}, so nothing is proved of code that uses "
                "it; units that it could meet are coupled or pinned. Give an example that reaches "
                "it with also=[...]"
            )
    return notes


def _attribute(name: str, around: str) -> str:
    """Return the attribute of the module ``around`` that leads to ``name``."""
    return name.removeprefix(f"{around}." if around else "").split(".")[0]


def _registered(model: nn.Module, *, volatile: bool) -> set[str]:
    """Return the names of parameters and buffers, with those outside of the state if asked."""
    left_out = {
        f"{path}.{key}" if path else key
        for path, module in modules_of(model)
        for key in (() if volatile else module._non_persistent_buffers_set)
    }
    return {name for name, _ in named_tensors(model)} - left_out


def _missing(program: Program, registered: set[str]) -> list[int]:
    """Return the numbers of the parameters and floating buffers that no operation reads."""
    reached = {ref.key for node in program.nodes for ref in node.refs} | set(program.outputs)
    return [
        key
        for name, key in program.named().items()
        if name in registered
        and key not in reached
        and max(program.tensors[key].shape, default=1) > 1
        and program.tensors[key].dtype.is_floating_point
    ]


def _hold(
    flow: Flow, axis: Axis, seen: Sequence[Axis], beside: Sequence[Axis] | None, name: str
) -> bool:
    """Couple ``axis`` with the only one of its size, or else pin what it could meet: False.

    ``beside`` are the axes of the module's own tensors, where it is one of them: those of its
    size come first. ``seen`` are all that the module handles.
    """
    why = f"{name}, which no example reached (see also=[...]), could meet it"
    alike = [a for a in beside or () if len(a) == len(axis)]
    alike = alike or [a for a in seen if len(a) == len(axis)]
    equal = {flow.axes.expand(a).tobytes(): a for a in alike}
    if beside is not None and len(equal) == 1:
        (only,) = equal.values()
        flow.axes.unify(axis, only, why)
        return True
    sizes = {len(a) for a in seen}
    for other in seen:
        if _could_meet(len(axis), len(other), sizes):
            flow.axes.pin(other, why)
    return False


def _could_meet(size: int, other: int, sizes: set[int]) -> bool:
    """Tell whether a dimension could meet an axis: whole, flattened, in parts, or joined to one."""
    return size % other == 0 or other % size == 0 or size - other in sizes


def _axes(flow: Flow, keys: Sequence[int]) -> list[Axis]:
    """Return the axes of tensors, each once."""
    found = {id(a): a for key in keys for a in flow.dims(Ref(key)) if len(a) > 1}
    return list(found.values())


def _list(names: Sequence[str]) -> str:
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return ", ".join(names[:4]) + more


class _Ran:
    """Which modules of a network ran, and the tensors that each one's own code handled."""

    def __init__(self, program: Program, model: nn.Module) -> None:
        self._program = program
        self._reached = {program.tensors[ref.key].name for n in program.nodes for ref in n.refs}
        self._busy = {""}
        for path in {node.module for node in program.nodes}:
            parts = path.split(".")
            self._busy.update(".".join(parts[:n]) for n in range(1, len(parts) + 1))
        # What has no forward of its own, such as a list of modules, never runs by itself.
        self._entered = {
            name
            for name, module in modules_of(model)
            if name in self._busy and type(module).forward is not nn.Module.forward
        } | {""}

    def around(self, path: str) -> str:
        """Return the innermost module that ran at or above ``path``."""
        while path not in self._entered:
            path = path.rpartition(".")[0]
        return path

    def outermost(self, name: str) -> str:
        """Return the outermost module without a reached tensor, or the tensor if none is."""
        parts = name.split(".")[:-1]
        for n in range(1, len(parts) + 1):
            path = ".".join(parts[:n])
            if path not in self._busy and not any(
                other.startswith(f"{path}.") for other in self._reached
            ):
                return path
        return name

    def held(self, around: str) -> list[int]:
        """Return the parameters and buffers of a module itself that an operation reads."""
        known = self._program.named()
        prefix = f"{around}." if around else ""
        return [
            known[name]
            for name in self._reached
            if name.startswith(prefix) and name and "." not in name.removeprefix(prefix)
        ]

    def handled(self, around: str) -> list[int]:
        """Return the tensors that a module's own code reads, makes or passes between modules."""
        sides: dict[int, set[str]] = defaultdict(set)
        for node in self._program.nodes:
            side = self._side(node.module, around)
            for key in (*(ref.key for ref in node.refs), *(k for k in node.outs if k >= 0)):
                sides[key].add(side)
        for key in (*self._program.inputs, *self._program.outputs):
            sides[key].add("outside")
        return [key for key, met in sides.items() if around in met or len(met) > 1]

    def _side(self, path: str, around: str) -> str:
        """Return the part of a network that an operation belongs to, as seen from a module."""
        if path == around:
            return around
        prefix = f"{around}." if around else ""
        if not path.startswith(prefix):
            return "outside"
        parts = path.removeprefix(prefix).split(".")
        for n in range(1, len(parts) + 1):
            inner = prefix + ".".join(parts[:n])
            if inner in self._entered:
                return inner
        return around
