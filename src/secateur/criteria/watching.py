"""What is read where: activations, and their gradients, at the places where units are consumed.

A place is an operation of the traced network that reads units, after norm and activation: a
contraction with a weight, or of two activations (as queries with keys, where the left one is
taken). While calibration batches run, a weight's readings are met by the weight, all its uses
together (the steps of a recurrent layer, say), and other operations by family, module and turn.

Values come as [observations, positions, within]: for a convolution an observation is an image
and ``within`` are its pixels; everywhere else an observation is a row of the contraction (an
image in a classifier, a token in a transformer) and ``within`` is 1. Neither an image nor a row
depends on how samples were put into batches, so nothing computed from them does.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from secateur.calibration import Batches, Loss, gradients, passes
from secateur.criteria.contractions import CONVOLUTION, Weight, Weights, contracted, wide
from secateur.errors import InputError
from secateur.graph import Graph
from secateur.graph.dispatch import DispatchMode
from secateur.graph.groups import Consumer
from secateur.graph.modules import Address, Turns, where_is
from secateur.graph.normal_mode import in_normal_mode
from secateur.graph.process_settings import plain_operations
from secateur.graph.program import PRODUCTS, tensor_leaves


@dataclass(frozen=True)
class Place:
    """Where units are read.

    Attributes:
        number: among the places of the graph.
        consumer: the operation, argument and dimension.
        size: positions of that dimension.
        columns: by group, (positions, units) of every column of the dimension's axis.
    """

    number: int
    consumer: Consumer
    size: int
    columns: dict[str, list[tuple[Tensor, Tensor]]]

    def to_units(self, values: Tensor, group: str, size: int) -> Tensor:
        """Sum ``values`` [..., positions] over the positions of each unit: [..., size]."""
        total = values.new_zeros(*values.shape[:-1], size)
        for positions, units in self.columns[group]:
            found = values.index_select(-1, positions.to(values.device))
            total.index_add_(-1, units.to(values.device), found)
        return total


@dataclass(frozen=True)
class Reading:
    """What one place read in one batch.

    Attributes:
        values: activations [observations, positions, within], float64 (float32 on a device
            without that).
        gradient: of each sample's own loss by the values as this place reads them, shaped like
            them; None where it was not asked for.
        weight: what the values are contracted with, where that is a parameter.
        other: what they are contracted with, [(batch,) positions, n], where that is an
            activation too.
    """

    values: Tensor
    gradient: Tensor | None
    weight: Weight | None
    other: Tensor | None = None


See = Callable[[Place, Reading], None]


def places(graph: Graph) -> list[Place]:
    """List the places where units of the graph's groups are read.

    A group is watched where it is contracted; only a group that never is gets watched where a
    norm or a mean runs over its units. One that is read in train mode only has no place.
    """
    owner: dict[int, tuple[str, int]] = {}
    for group in graph.groups:
        first = graph.layout.offsets[group.name]
        owner.update({first + unit: (group.name, unit) for unit in range(group.size)})
    multiplied = {
        owner[atom][0]
        for read in graph.layout.met()
        if read.how == "mask"
        for atom in np.unique(graph.layout.axes[read.axis]).tolist()
        if atom
    }
    found: list[Place] = []
    known: set[tuple[tuple[str, int], int]] = set()
    for read in graph.layout.met():
        if read.parameter is not None:
            if (read.parameter, read.axis) in known:
                continue
            known.add((read.parameter, read.axis))
        axis = graph.layout.axes[read.axis]
        columns: dict[str, list[tuple[Tensor, Tensor]]] = {}
        for column in axis.T:
            pairs: dict[str, list[tuple[int, int]]] = {}
            for position, atom in enumerate(column.tolist()):
                if atom and (read.how == "mask" or owner[atom][0] not in multiplied):
                    pairs.setdefault(owner[atom][0], []).append((position, owner[atom][1]))
            for name, mine in pairs.items():
                positions, units = torch.tensor(mine).unbind(1)
                columns.setdefault(name, []).append((positions, units))
        if columns:
            found.append(Place(len(found), read, len(axis), columns))
    return found


def watch(
    graph: Graph,
    found: Sequence[Place],
    see: See,
    calibration: Batches,
    loss: Loss | None = None,
) -> None:
    """Run the calibration batches and show every reading of every place to ``see``.

    Args:
        graph: of the model; the model is left as it was.
        found: from :func:`places`.
        see: called once a place and batch; nothing is kept after it returns.
        calibration: (inputs, labels) batches.
        loss: where gradients are wanted: from outputs and labels to the mean over samples.

    Raises:
        InputError: no batch, a loss that is not finite, or a batch on which the network takes
            another path than the traced one.
    """
    runs: Any = (
        passes(graph.model, calibration)
        if loss is None
        else gradients(graph.model, calibration, loss)
    )
    watcher = _Watcher(graph, found, see, backward=loss is not None)
    with watching(graph.model, watcher), closing(runs):
        for number, _ in enumerate(runs):
            watcher.finish()
            for place in found:
                if place.number not in watcher.met:
                    raise InputError(
                        f"calibration batch {number} takes another path than the traced one: "
                        f"{_words(place)} does not run"
                    )
            watcher.met.clear()


class Operations(DispatchMode):
    """Tells where each operation of a forward pass stands and hands it to ``meet``."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.samples = 1
        self.turns = Turns(model)

    def begin(self, inputs: Sequence[Tensor]) -> None:
        """Start another pass, over ``inputs``."""
        self.samples = len(inputs[0]) if inputs and inputs[0].dim() else 1
        self.turns.restart()

    def meet(self, packet: str, address: Address, args: tuple[Any, ...], result: Any) -> None:
        """Take note of an operation that has just run."""
        raise NotImplementedError

    def settle(self) -> None:
        """Use what autograd added to the last result after ``meet`` saw it."""

    @in_normal_mode
    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        self.settle()
        packet = str(func.overloadpacket)
        result = func(*args, **(kwargs or {}))
        self.meet(packet, self.turns.take(packet), args, result)
        return result


@contextmanager
def watching(model: nn.Module, mode: Operations) -> Iterator[None]:
    """Have ``mode`` meet the operations of every forward pass of ``model``, and no others."""
    stack = ExitStack()
    recurrent = any(isinstance(module, nn.RNNBase) for module in model.modules())

    def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
        mode.begin(tensor_leaves((args, kwargs)))
        stack.enter_context(plain_operations())
        if recurrent:
            stack.enter_context(_plain_recurrence())
        stack.enter_context(mode.turns.follow())
        stack.enter_context(mode)

    def leave(module: nn.Module, args: Any, result: Any) -> None:
        stack.close()
        mode.settle()

    hooks = (
        model.register_forward_pre_hook(enter, with_kwargs=True),
        model.register_forward_hook(leave, always_call=True),
    )
    try:
        yield
    finally:
        stack.close()  # PyTorch calls no hook after an interrupt
        for hook in hooks:
            hook.remove()


@contextmanager
def _plain_recurrence() -> Iterator[None]:
    """Switch fused recurrent kernels off: they hide their products."""
    backends: Any = torch.backends.mkldnn  # its ``flags`` warns on machines without TF32
    before = backends.enabled
    with torch.backends.cudnn.flags(enabled=False):
        backends.enabled = False
        try:
            yield
        finally:
            backends.enabled = before


@dataclass(frozen=True)
class _Use:
    """A reading that waits for its gradient."""

    place: Place
    activation: Tensor
    arg: int
    dim: int
    weight: Weight | None
    samples: int


class _Watcher(Operations):
    """Shows the readings of places."""

    def __init__(self, graph: Graph, found: Sequence[Place], see: See, *, backward: bool) -> None:
        super().__init__(graph.model)
        self._weights = Weights(graph.model)
        self._by_weight: dict[tuple[str, int], list[Place]] = defaultdict(list)
        self._by_address: dict[Address, list[Place]] = defaultdict(list)
        for place in found:
            read = place.consumer
            self._by_address[read.op, read.module, read.turn].append(place)
            if read.parameter is not None:
                self._by_weight[read.parameter].append(place)
        self._see = see
        self._backward = backward
        self._fresh: list[tuple[Tensor, _Use]] = []
        self._waiting: dict[int, _Use] = {}
        self.met: set[int] = set()

    def meet(self, packet: str, address: Address, args: tuple[Any, ...], result: Any) -> None:
        here = self._by_address.get(address, [])
        multiplies = packet in PRODUCTS or packet == CONVOLUTION
        if not here and not (multiplies and self._by_weight):
            return
        weight = None
        if multiplies:
            arg, dim, weight = contracted(packet, args, self._weights)
            if weight is not None and weight.place is not None:
                mine = self._read_with(weight.place[0], weight)
                here = mine + [p for p in here if p.consumer.parameter is None]
        channels, contracts = dim if multiplies else 0, weight
        for place in here:
            if not multiplies:
                arg, dim = place.consumer.arg, place.consumer.dim
            elif contracts is not None:
                dim, weight = _contraction(place, channels, contracts)
            activation = args[arg]
            if activation.shape[dim] != place.size:
                raise InputError(
                    "a calibration batch takes another path than the traced one: "
                    f"{_words(place)} meets size {activation.shape[dim]}, not {place.size}"
                )
            self.met.add(place.number)
            if not self._backward:
                other = args[arg + 1] if multiplies and weight is None else None
                self._show(place, activation, dim, weight, None, other)
                continue
            output = result[0] if isinstance(result, tuple) else result
            self._fresh.append((output, _Use(place, activation, arg, dim, weight, self.samples)))

    def _read_with(self, name: str, weight: Weight) -> list[Place]:
        """List the places of a weight: its contracted dimension, and those its kernel covers."""
        covered = range(2, weight.tensor.dim()) if weight.images else ()
        dims = (weight.place[1] if weight.place else 0, *covered)
        return [place for d in dims for place in self._by_weight.get((name, d), [])]

    def settle(self) -> None:
        for output, use in self._fresh:
            self._waiting[id(use)] = use
            if output.grad_fn is not None:
                output.grad_fn.register_hook(lambda grads, _, use=use: self._arrive(use, grads))
        self._fresh.clear()

    def _arrive(self, use: _Use, grads: tuple[Tensor | None, ...]) -> None:
        del self._waiting[id(use)]
        found = grads[use.arg]
        # The loss is a mean; each sample's own gradient is wanted.
        gradient = torch.zeros_like(use.activation) if found is None else found * use.samples
        self._show(use.place, use.activation, use.dim, use.weight, gradient)

    def finish(self) -> None:
        """Show what the loss did not depend on, with gradients of zero."""
        for use in list(self._waiting.values()):
            self._arrive(use, (None,) * (use.arg + 1))

    def _show(
        self,
        place: Place,
        activation: Tensor,
        dim: int,
        weight: Weight | None,
        gradient: Tensor | None,
        other: Tensor | None = None,
    ) -> None:
        imaged = place.consumer.op == CONVOLUTION
        with torch.no_grad():
            values = arranged(activation, dim, imaged)
            if not bool(values.sum().isfinite()):
                raise InputError(
                    "activations on calibration batches must be finite, but are not where "
                    f"{_words(place)} reads them"
                )
            slopes = None if gradient is None else arranged(gradient, dim, imaged)
            self._see(place, Reading(values, slopes, weight, other))


def _contraction(place: Place, dim: int, weight: Weight) -> tuple[int, Weight]:
    """Return the activation's dimension that a place reads, and the weight as it meets it."""
    mine = place.consumer.parameter
    if mine is None or weight.place is None or mine[1] == weight.place[1] or not weight.images:
        return dim, weight
    return place.consumer.dim, replace(weight, place=mine, dim=mine[1], groups=1)


def arranged(tensor: Tensor, dim: int, imaged: bool) -> Tensor:
    """Return an activation as [observations, positions, within]; ``imaged``: of a convolution."""
    tensor = wide(tensor)
    dim %= tensor.dim()
    if imaged:
        lead, size = tensor.shape[:dim], tensor.shape[dim]
        return tensor.reshape(lead.numel(), size, -1)
    last = tensor.movedim(dim, -1)
    return last.reshape(-1, last.shape[-1], 1)


def _words(place: Place) -> str:
    """Say which operation a place is, for a person."""
    read = place.consumer
    weight = f" with {read.parameter[0]}" if read.parameter else ""
    return where_is(read.op, read.module) + weight
