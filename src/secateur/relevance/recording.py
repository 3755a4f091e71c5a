"""The operations of one real forward pass, in a form that can be run again on other batches.

Unlike ``graph.tracing`` this keeps the values that depend on no input (weights, masks,
positions, constants in the model's code), and gives a tensor that is written in place a
new number, so that the steps can be run again as pure functions.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from secateur.errors import InputError
from secateur.graph.dispatch import DispatchMode
from secateur.graph.modules import Address, Turns, where_is
from secateur.graph.normal_mode import in_normal_mode
from secateur.graph.process_settings import plain_operations
from secateur.graph.program import Ref, family, tensor_leaves
from secateur.graph.tracing import run_model

# Their results steer the model's own code, so that another batch may take another way.
_LOOKS_AT_VALUES = frozenset(
    f"aten.{name}"
    for name in ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select")
)


@dataclass(frozen=True)
class Step:
    """One operation as a function: in-place forms are recorded as the plain ones.

    Attributes:
        op: name without overload, as the model ran it, such as ``aten.relu_``.
        function: what to call.
        args: positional arguments, tensors as :class:`Ref`.
        kwargs: keyword arguments, likewise.
        outs: numbers of the tensors that it returns (-1 for what is no tensor).
        module: path of the module whose forward ran it.
        turn: how many operations of the same family that module ran before it.
        pointwise: whether PyTorch tags the operation as element by element.
    """

    op: str
    function: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outs: tuple[int, ...]
    module: str
    turn: int
    pointwise: bool

    def refs(self) -> list[int]:
        """Return the number of every tensor it reads, in order."""
        found: list[int] = []
        _visit(self.args, found)
        _visit(tuple(self.kwargs.values()), found)
        return found

    @property
    def name(self) -> str:
        """The operation's name without the mark of in-place forms."""
        return self.op.removesuffix("_")

    def where(self) -> str:
        """Say which operation this is, for a person."""
        return where_is(self.op, self.module)

    @property
    def address(self) -> Address:
        """Family, module and turn, as in ``graph.layout.consumers``."""
        return family(self.op), self.module, self.turn


def _visit(value: Any, found: list[int]) -> None:
    if isinstance(value, Ref):
        found.append(value.key)
    elif isinstance(value, tuple):
        for item in value:
            _visit(item, found)


@dataclass
class Recording:
    """The steps of one forward pass.

    Attributes:
        steps: the operations that depend on the inputs, in order.
        fixed: value of every tensor that the steps read and that depends on no input.
        inputs: numbers of the input tensors, in the order of ``tensor_leaves``.
        outputs: numbers of the output tensors.
        shapes: shape and dtype of every tensor.
        samples: size of the first dimension of the first input.
        repeatable: whether the steps hold for every batch of these shapes.
    """

    steps: list[Step] = field(default_factory=list)
    fixed: dict[int, Tensor] = field(default_factory=dict)
    inputs: list[int] = field(default_factory=list)
    outputs: list[int] = field(default_factory=list)
    shapes: list[tuple[tuple[int, ...], torch.dtype]] = field(default_factory=list)
    samples: int = 1
    repeatable: bool = True


def record_steps(model: nn.Module, inputs: Any) -> Recording:
    """Run ``model`` once, in the mode it is in, and write down its operations.

    Raises:
        InputError: it writes in place to what it reads later through another view,
            or it returns no tensor.
    """
    recorder = _Recorder(model, inputs)
    with torch.no_grad(), plain_operations(), recorder.turns.follow(), recorder:
        outputs = run_model(model, inputs)
    return recorder.finish(outputs)


def _as_function(step: Step, written: list[str]) -> Step:
    """Put the plain form in place of one that writes into its first argument."""
    if not written:
        return step
    twin = getattr(torch.ops.aten, step.name.removeprefix("aten."), None)
    first = step.function._schema.arguments[0].name
    if twin is None or not step.op.endswith("_") or written != [first]:
        raise InputError(f"relevance has no rule for {step.where()}: it writes in place")
    form = getattr(twin, step.function._overloadname, None) or twin.default
    return dataclasses.replace(step, function=form)


class _Recorder(DispatchMode):
    def __init__(self, model: nn.Module, inputs: Any) -> None:
        super().__init__()
        self._recording = Recording()
        self._keys: dict[int, int] = {}
        self._kept: list[Tensor] = []
        self._moving: set[int] = set()
        self._stale: dict[int, str] = {}
        self._read: set[int] = set()
        self._sharing: dict[int, set[int]] = defaultdict(set)
        self.turns = Turns(model)
        for tensor in tensor_leaves(inputs):
            key = self._key(tensor)
            self._recording.inputs.append(key)
            self._moving.add(key)
        first = self._recording.shapes[0][0]
        self._recording.samples = first[0] if first else 1

    def _new(self, tensor: Tensor) -> int:
        key = len(self._kept)
        self._kept.append(tensor)  # an id is reused once its object is gone
        self._keys[id(tensor)] = key
        self._sharing[tensor.untyped_storage()._cdata].add(key)
        self._recording.shapes.append((tuple(tensor.shape), tensor.dtype))
        return key

    def _key(self, tensor: Tensor) -> int:
        found = self._keys.get(id(tensor))
        return self._new(tensor) if found is None else found

    def _refs(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return Ref(self._key(value))
        if isinstance(value, (list, tuple)):
            return tuple(self._refs(item) for item in value)
        return value

    @in_normal_mode
    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        packet = str(func.overloadpacket)
        if packet == "prim.device":
            return func(*args, **kwargs)
        refs, named = self._refs(args), {k: self._refs(v) for k, v in kwargs.items()}
        result = func(*args, **kwargs)
        _, module, turn = self.turns.take(packet)
        step = Step(
            packet,
            func,
            refs,
            named,
            (),
            module,
            turn,
            torch.Tag.pointwise in func.tags,
        )
        moving = any(key in self._moving for key in step.refs())
        written = [a.name for a in func._schema.arguments if a.alias_info and a.alias_info.is_write]
        if moving:
            self._check_fresh(step)
            step = _as_function(step, written)
        if written:
            self._written(step, args[0], moving)
        returned = result if isinstance(result, (tuple, list)) else (result,)
        outs = tuple(self._key(t) if isinstance(t, Tensor) else -1 for t in returned)
        if moving:
            self._recording.repeatable &= packet not in _LOOKS_AT_VALUES
            self._moving.update(key for key in outs if key >= 0)
            self._recording.steps.append(dataclasses.replace(step, outs=outs))
        return result

    def _check_fresh(self, step: Step) -> None:
        for key in step.refs():
            if key in self._stale:
                raise InputError(
                    f"relevance cannot follow {step.where()}: it reads a tensor that "
                    f"{self._stale[key]} has since changed through another view"
                )
            if key not in self._moving:
                self._read.add(key)

    def _written(self, step: Step, target: Tensor, moving: bool) -> None:
        """Note a write: what shares the target's memory is stale, or has a new fixed value."""
        sharing = self._sharing[target.untyped_storage()._cdata]
        if moving:
            self._stale.update(dict.fromkeys(sharing, step.where()))
            self._new(target)
        elif sharing & self._read:
            raise InputError(f"relevance cannot follow {step.where()}: it changes what was read")

    def finish(self, outputs: Any) -> Recording:
        """Return the recording, the values kept that later runs need."""
        found = self._recording
        found.outputs = [self._key(tensor) for tensor in tensor_leaves(outputs)]
        if not found.outputs:
            raise InputError("the model returns no tensor to start relevance from")
        for step in found.steps:
            for key in step.refs():
                if key not in self._moving:
                    found.fixed[key] = self._kept[key]
        return found
