"""Residual sums in a traced network, and the branches that may go from them.

A block is x + f(x), or g(x) + f(x) with a projection g: a sum of two tensors of one shape, one
of which would leave nothing but the other behind if it were zero. The branch f is all that runs
for that sum alone. Its factor sits on the weight and bias of the layer that f ends with, where it
is the factor of f itself as long as nothing but linear steps (views, dropout, a layer scale) comes
between that layer and the sum.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch

from secateur.errors import unknown_name
from secateur.graph import Graph
from secateur.graph.program import Node, Program, Ref, refs_in
from secateur.sparse_training.factors import Reader

Value = tuple[int, int]
"""A tensor and how often it had been written in place."""

# Where the weight and the bias of an operation stand: its result is linear in both together.
_ENDS = {
    "aten.convolution": (1, 2),
    "aten.addmm": (2, 0),
    "aten.mm": (1,),
    "aten.native_batch_norm": (1, 2),
    "aten.cudnn_batch_norm": (1, 2),
    "aten.native_layer_norm": (2, 3),
    "aten.native_group_norm": (1, 2),
}
_VIEWS = frozenset(
    f"aten.{name}"
    for name in (
        "view", "_unsafe_view", "reshape", "permute", "transpose", "t", "squeeze", "unsqueeze",
        "expand", "alias", "slice", "select", "detach",
    )
)  # fmt: skip
_LINEAR = _VIEWS | {
    f"aten.{name}"
    for name in (
        "clone", "contiguous", "_to_copy", "native_dropout", "mul", "div", "neg", "roll", "flip",
        "avg_pool2d", "mean",
    )
}  # fmt: skip
_SUMS = ("aten.add", "aten.add_")


@dataclass(frozen=True)
class Block:
    """A residual block.

    Attributes:
        name: the module that holds the sum; where it holds several, what ends the branch.
        end: weight and bias of the branch's last layer.
        modules: the largest modules that run for the branch alone and have weights.
        params: parameters in them.
    """

    name: str
    end: tuple[str, ...]
    modules: tuple[str, ...]
    params: int


@dataclass(frozen=True)
class Blocks:
    """What a network has of residual blocks.

    Attributes:
        found: those that can have a factor and can go.
        left: the other residual sums, by the module that holds them, with the reason.
    """

    found: tuple[Block, ...]
    left: dict[str, str]

    def named(self, names: Iterable[str]) -> tuple[Block, ...]:
        """Return the blocks of these names.

        Raises:
            InputError: a name is none of a block; says why, where a sum has that name.
        """
        known = {block.name: block for block in self.found}
        wanted = list(names)
        for name in wanted:
            if name in self.left:
                raise unknown_name("blocks", f"{name} ({self.left[name]})", known)
            if name not in known:
                raise unknown_name("blocks", name, known)
        return tuple(known[name] for name in wanted)


def residual_blocks(graph: Graph) -> Blocks:
    """Find the residual blocks of a traced network."""
    steps = _Steps(graph.program)
    sizes = {name: p.numel() for name, p in graph.model.named_parameters()}
    raw: list[tuple[str, Block]] = []
    left: dict[str, str] = {}
    for place, node in enumerate(graph.program.nodes):
        found = _block(steps, place, sizes)
        if isinstance(found, Block):
            raw.append((node.module, found))
        elif found:
            left.setdefault(node.module or "(the model)", found)
    owners = [module for module, _ in raw]
    blocks = tuple(
        Block(module, block.end, block.modules, block.params)
        if module and owners.count(module) == 1
        else block
        for module, block in raw
    )
    return Blocks(blocks, left)


def block_readers(graph: Graph, block: Block) -> tuple[Reader, ...]:
    """Return where the one factor of a block sits: on all of its last layer."""
    parameters = dict(graph.model.named_parameters())
    return tuple(
        Reader(name, 0, torch.zeros(parameters[name].shape[0], dtype=torch.int64))
        for name in block.end
    )


class _Steps:
    """The program with a new value for each write in place, and who makes and reads each."""

    def __init__(self, program: Program) -> None:
        self.program = program
        written: dict[int, int] = defaultdict(int)
        self.reads: list[tuple[Value, ...]] = []
        self.makes: list[tuple[Value, ...]] = []
        self.maker: dict[Value, int] = {}
        self.readers: dict[Value, list[int]] = defaultdict(list)
        self.must: set[int] = set()
        for place, node in enumerate(program.nodes):
            reads = [(key, written[key]) for key in _keys(node)]
            target = node.args[0].key if node.args and isinstance(node.args[0], Ref) else -1
            if target in node.outs:
                made = self.maker.get((target, written[target]))
                seen = program.nodes[made].op in _VIEWS if made is not None else True
                if seen:
                    self.must.add(place)  # what it writes to may be read under another name
                written[target] += 1
            makes = [(key, written[key]) for key in node.outs if key >= 0]
            for value in reads:
                self.readers[value].append(place)
            for value in makes:
                self.maker.setdefault(value, place)
            self.reads.append(tuple(reads))
            self.makes.append(tuple(makes))
        self.outputs = {(key, written[key]) for key in program.outputs}
        self.needed = self.alive(None)

    def alive(self, without: tuple[int, Value] | None) -> set[int]:
        """Return the nodes that the outputs need; ``without`` one value at one node."""
        wanted, found = set(self.outputs), set[int]()
        for place in range(len(self.reads) - 1, -1, -1):
            if place in self.must or any(value in wanted for value in self.makes[place]):
                found.add(place)
                wanted.update(v for v in self.reads[place] if (place, v) != without)
        return found

    def parameters(self, places: Iterable[int]) -> set[str]:
        """Return the names of the parameters that nodes read."""
        tensors = self.program.tensors
        keys = {key for place in places for key, _ in self.reads[place]}
        return {tensors[key].name for key in keys if tensors[key].kind == "parameter"}

    def parameter(self, value: Value) -> tuple[str, int]:
        """Return the parameter that a value shows, and how many nodes read it; else ("", 0)."""
        count = len(self.readers[value])
        while self.program.tensors[value[0]].kind != "parameter":
            made = self.maker.get(value)
            if made is None or self.program.nodes[made].op not in _VIEWS:
                return "", 0
            value = self.reads[made][0]
            count = max(count, len(self.readers[value]))
        return self.program.tensors[value[0]].name, count


def _keys(node: Node) -> Iterator[int]:
    yield from refs_in(node.args)
    yield from refs_in(tuple(node.kwargs.values()))


def _block(steps: _Steps, place: int, sizes: dict[str, int]) -> Block | str:
    """Return the block that ends with a sum, why there is none, or "" where it is no such sum."""
    node = steps.program.nodes[place]
    reads = steps.reads[place]
    if node.op not in _SUMS or place not in steps.needed or len(reads) != 2 or reads[0] == reads[1]:
        return ""
    tensors = steps.program.tensors
    out = tensors[node.outs[0]]
    if any(tensors[key].kind not in ("value", "input") for key, _ in reads):
        return ""
    if any(tensors[key].shape != out.shape for key, _ in reads) or len(out.shape) < 2:
        return ""
    pasts = [_past(steps, value) for value in reads]
    if not pasts[0] & pasts[1]:
        return ""
    candidates = []
    for value in reads:
        only = steps.needed - steps.alive((place, value))
        weights = steps.parameters(only) - steps.parameters(steps.needed - only)
        candidates.append((sum(sizes[name] for name in weights), value, only))
    params, value, only = max(candidates, key=lambda entry: entry[0])
    if not params:
        shared = sorted(name for _, _, only in candidates for name in steps.parameters(only))
        return f"{shared[0]} is used more than once" if shared else ""
    end = _end(steps, value, place)
    if isinstance(end, str):
        return end
    modules = _inside(steps, only, sizes)
    if not any(end[0].startswith(f"{module}.") for module in modules):
        return f"{end[0]} is read by more than the branch"
    params = sum(n for name, n in sizes.items() if name.startswith(tuple(f"{m}." for m in modules)))
    owner = end[0].rpartition(".")[0]
    name = next(module for module in modules if f"{owner}.".startswith(f"{module}."))
    return Block(name, end, modules, params)


def _past(steps: _Steps, value: Value) -> set[Value]:
    """Return the values of the network's own that a value comes from, itself included."""
    found: set[Value] = set()
    waiting = [value]
    while waiting:
        now = waiting.pop()
        if now in found or steps.program.tensors[now[0]].kind not in ("value", "input"):
            continue
        found.add(now)
        made = steps.maker.get(now)
        if made is not None:
            waiting.extend(steps.reads[made])
    return found


def _end(steps: _Steps, value: Value, reader: int) -> tuple[str, ...] | str:
    """Walk back from a sum to the layer that its branch ends with."""
    while True:
        made = steps.maker.get(value)
        if made is None:
            return "its branch has no layer"
        node = steps.program.nodes[made]
        if steps.readers[value] != [reader] or value in steps.outputs:
            return f"what its branch gives ({node.op}) is read elsewhere, too"
        if node.op in _ENDS:
            return _weights(steps, made)
        inputs = [v for v in steps.reads[made] if not steps.parameter(v)[0]]
        moving = [v for v in inputs if steps.program.tensors[v[0]].kind == "value"]
        if node.op not in _LINEAR or not moving or (node.op == "aten.div" and len(moving) > 1):
            return f"its branch ends with {node.op}, which a factor does not pass"
        value, reader = moving[0], made


def _weights(steps: _Steps, place: int) -> tuple[str, ...] | str:
    node = steps.program.nodes[place]
    values = dict(zip(_keys(node), steps.reads[place], strict=True))
    names = []
    for number in _ENDS[node.op]:
        given = node.args[number] if number < len(node.args) else None
        if given is None:
            continue
        name, count = steps.parameter(values[given.key]) if isinstance(given, Ref) else ("", 0)
        if not name:
            return f"its branch ends with {node.op}, whose weights are no parameters"
        if count > 1:
            return f"{name} is used more than once"
        names.append(name)
    return tuple(names) or f"its branch ends with {node.op} without weights"


def _inside(steps: _Steps, only: set[int], sizes: dict[str, int]) -> tuple[str, ...]:
    """Return the largest modules with weights all of whose operations are among ``only``."""
    runs: dict[str, bool] = {}
    for place in steps.needed:
        path = steps.program.nodes[place].module
        while path:
            runs[path] = runs.get(path, True) and place in only
            path = path.rpartition(".")[0]
    inside = {path for path, alone in runs.items() if alone}
    largest = [path for path in inside if path.rpartition(".")[0] not in inside]
    held = [path for path in largest if any(name.startswith(f"{path}.") for name in sizes)]
    first = {path: min(_places(steps, path), default=math.inf) for path in held}
    return tuple(sorted(held, key=lambda path: (first[path], path)))


def _places(steps: _Steps, path: str) -> Iterator[int]:
    for place, node in enumerate(steps.program.nodes):
        if f"{node.module}.".startswith(f"{path}."):
            yield place
