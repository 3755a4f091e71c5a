"""What a trace leaves: the operations of one forward pass, as plain records."""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any

import torch
from torch import Tensor

from secateur.graph.meta_results import MetaResults
from secateur.graph.sizes import Expr


@dataclass(frozen=True)
class Ref:
    """A tensor inside a node's arguments: its number in ``Program.tensors``."""

    key: int


# PyTorch chooses between these by layout and by whether gradients are wanted; counted as
# one family, they keep their places. The left operand is argument 0, or 1 after an addend.
PRODUCTS = {"aten.mm": 0, "aten.bmm": 0, "aten.mv": 0, "aten.addmm": 1, "aten.baddbmm": 1}


def family(op: str) -> str:
    """Return the name under which operations are counted and found again."""
    return "product" if op in PRODUCTS else op


@dataclass(frozen=True)
class Call:
    """The torch function that the model's own code called.

    Its arguments hold :class:`~secateur.graph.sizes.Sized` integers where the
    model passed such, and a :class:`Ref` for every tensor.
    """

    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@dataclass
class Node:
    """One ATen operation.

    Attributes:
        op: name without the overload, such as ``aten.convolution``.
        overload: the overload's name, such as ``default``.
        args: positional arguments, tensors as :class:`Ref`.
        kwargs: keyword arguments, likewise.
        outs: numbers of the tensors that it returned (-1 for what is no tensor).
        call: what the model's code called, None where it cannot be known.
        module: path of the module whose forward ran it.
        turn: how many operations of the same family that module ran before it; with the two
            it tells the operation in every pass (see :class:`~secateur.graph.modules.Turns`).
        pointwise: whether PyTorch tags the operation as element by element.
    """

    op: str
    overload: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outs: tuple[int, ...]
    call: Call | None
    module: str
    turn: int
    pointwise: bool

    @cached_property
    def refs(self) -> tuple[Ref, ...]:
        """The tensors that it reads, in order."""
        found: list[Ref] = []
        for value in (*self.args, *self.kwargs.values()):
            if isinstance(value, Ref):
                found.append(value)
            elif isinstance(value, tuple):
                found += map(Ref, refs_in(value))
        return tuple(found)

    def argument(self, name: str, default: Any = None) -> Any:
        """Return an argument by its name in the operation's schema, else its default there."""
        for place, (known, value) in enumerate(_arguments(self.op, self.overload)):
            if known == name:
                given = self.args[place] if place < len(self.args) else self.kwargs.get(name)
                return value if given is None else given
        return default


@lru_cache(maxsize=1024)
def _arguments(op: str, overload: str) -> tuple[tuple[str, Any], ...]:
    """Return the names and defaults of an operation's arguments, in order."""
    namespace, _, name = op.partition(".")
    found = getattr(getattr(getattr(torch.ops, namespace), name), overload)
    return tuple((argument.name, argument.default_value) for argument in found._schema.arguments)


@dataclass(frozen=True)
class TensorInfo:
    """A traced tensor: ``kind`` is input, parameter, buffer, constant or value."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    kind: str
    name: str = ""


_VIEWS = frozenset(
    f"aten.{name}"
    for name in (
        "alias", "as_strided", "detach", "diagonal", "expand", "narrow", "permute", "select",
        "slice", "split", "squeeze", "t", "transpose", "unbind", "unfold", "unsqueeze", "view",
    )
)  # fmt: skip


@dataclass
class Program:
    """The operations of one pass, in order.

    Attributes:
        nodes: the operations.
        tensors: all tensors that occur, and those of the passes before it, if there were any.
        inputs: numbers of the tensors that the model was given.
        outputs: numbers of the tensors that the model returned.
        attributes: integers in the modules' attributes, by path.
        comparisons: sizes that the model's own code compared, the outcome, and where.
        numbers: single numbers that the code made tensors of, by tensor.
        read: tensors whose values the code took out (``tolist``), with the module that did.
        strides: those of tensors whose memory is looked at.
        literals: the values of other tensors that come from no operation, as bytes.
        notes: what a user should know of the trace.
        caches: dictionaries of modules that the pass filled, by path.
        ends: of a program that joins several passes, the operations up to each one's last.
        labels: of such a program, each pass in words.
        batch: samples in the example input.
        way: "meta", "fake" or "real" tensors.
        met_values: whether tensors with values came from somewhere, a cache of the code, say.
        tables: dictionaries of tensors that are no caches, by path.
        private: whether the model's own caches were kept out of the trace.
        results: what operations return on meta tensors, for the next trace.
    """

    tensors: list[TensorInfo] = field(default_factory=list)
    nodes: list[Node] = field(default_factory=list)
    inputs: list[int] = field(default_factory=list)
    outputs: list[int] = field(default_factory=list)
    attributes: dict[str, int] = field(default_factory=dict)
    comparisons: dict[tuple[str, Expr, Expr, bool], str] = field(default_factory=dict)
    numbers: dict[int, float] = field(default_factory=dict)
    read: list[tuple[int, str]] = field(default_factory=list)
    strides: dict[int, tuple[int, ...]] = field(default_factory=dict)
    literals: dict[int, bytes] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    caches: dict[str, str] = field(default_factory=dict)
    ends: list[int] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    batch: int = 1
    way: str = ""
    met_values: bool = False
    tables: frozenset[str] = frozenset()
    private: bool = False
    results: MetaResults | None = field(default=None, repr=False)

    def path(self, index: int) -> int:
        """Return the number of the pass that operation ``index`` belongs to."""
        return bisect.bisect_right(self.ends, index)

    def named(self) -> dict[str, int]:
        """Return the number of every parameter and buffer by name."""
        return {info.name: key for key, info in enumerate(self.tensors) if info.name}

    def used(self) -> set[int]:
        """Return the tensors whose values reach the outputs, or may: writes in place count."""
        found = set(self.outputs)
        for node in reversed(self.nodes):
            writes = node.op.endswith("_") or "out" in node.kwargs
            if writes or any(key in found for key in node.outs):
                found.update(ref.key for ref in node.refs)
        return found

    def written(self) -> set[str]:
        """Return the parameters and buffers that an operation writes to, or to a view of them."""
        base: dict[int, int] = {}
        found = set()
        for node in self.nodes:
            first = node.args[0] if node.args else None
            if node.op in _VIEWS and isinstance(first, Ref):
                base.update({key: base.get(first.key, first.key) for key in node.outs if key >= 0})
            targets = [node.kwargs.get("out")]
            if node.op.endswith("_"):
                targets.append(first)
            for key in refs_in(tuple(targets)):
                found.add(self.tensors[base.get(key, key)].name)
        return found - {""}

    def shape(self, ref: Ref) -> tuple[int, ...]:
        """Return the shape of the tensor that ``ref`` names."""
        return self.tensors[ref.key].shape


def inner_dims(shape: Sequence[int], strides: Sequence[int]) -> list[tuple[int, ...]] | None:
    """Return for each dimension the ones that vary faster in memory, slowest first.

    None where the tensor has holes or overlaps, so that its strides are no products of sizes.
    """
    order = sorted(range(len(shape)), key=lambda d: (-strides[d], d))
    order = [d for d in order if shape[d] != 1]
    found = {d: tuple(order[place + 1 :]) for place, d in enumerate(order)}
    if any(strides[d] != math.prod(shape[i] for i in inner) for d, inner in found.items()):
        return None
    return [
        found.get(d, tuple(i for i in order if strides[i] < strides[d])) for d in range(len(shape))
    ]


def refs_in(value: Any) -> Iterator[int]:
    """Yield the number of every tensor in a node's arguments, in order."""
    if isinstance(value, Ref):
        yield value.key
    elif isinstance(value, tuple):
        for item in value:
            yield from refs_in(item)


def tensor_leaves(value: Any) -> list[Tensor]:
    """Return every tensor inside nested containers and dataclasses, in order.

    A container that contains itself is entered once.
    """
    found: list[Tensor] = []
    _collect(value, found, set())
    return found


# Not a closure in tensor_leaves: one that calls itself is a cycle, and would keep the tensors
# alive until the garbage collector comes by.
def _collect(item: Any, found: list[Tensor], seen: set[int]) -> None:
    if isinstance(item, Tensor):
        found.append(item)
    elif item is None or isinstance(item, (str, bytes, int, float)) or id(item) in seen:
        return
    else:
        seen.add(id(item))
        if isinstance(item, dict):
            for part in item.values():
                _collect(part, found, seen)
        elif isinstance(item, (list, tuple, set, frozenset)):
            for part in item:
                _collect(part, found, seen)
        elif not isinstance(item, (type, torch.nn.Module)):
            for part in getattr(item, "__dict__", {}).values():
                _collect(part, found, seen)
            for place in getattr(type(item), "__slots__", ()):
                _collect(getattr(item, place, None), found, seen)
