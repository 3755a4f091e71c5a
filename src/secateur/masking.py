"""The masked reference: same shapes, removed units contribute nothing to whoever reads them.

A removed unit is zero where it is consumed, not where it is produced: the
columns of the weights that read it are zero. Where no weight reads it
(attention scores, a norm or a mean over the units) the operation itself is
changed while the network runs: contractions see zeros, norms and means run over
the kept units alone.
"""

from __future__ import annotations

import contextlib
import inspect
import operator
from collections import defaultdict
from collections.abc import Iterator, Sequence, Set
from contextvars import ContextVar
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from secateur.cutting import check_fit
from secateur.errors import PlanError
from secateur.graph.copies import clone_model, every_tensor, map_tensors
from secateur.graph.dispatch import DispatchMode
from secateur.graph.module_caches import empty_caches
from secateur.graph.modules import Address, Turns, where_is
from secateur.graph.normal_mode import in_normal_mode, normal_mode
from secateur.graph.passes import FORWARD
from secateur.graph.process_settings import plain_operations
from secateur.graph.program import PRODUCTS, family, tensor_leaves
from secateur.plan import MaskPoint, Plan

M = TypeVar("M", bound=nn.Module)

_KEEPS_SHAPE = frozenset(
    f"aten.{name}"
    for name in (
        "_softmax", "_log_softmax", "_safe_softmax", "native_layer_norm",
        "native_group_norm", "_fused_rms_norm", "native_batch_norm", "cudnn_batch_norm",
        "cumsum", "cumprod", "logcumsumexp", "cummax", "cummin", "renorm",
    )
)  # fmt: skip

# Operations that return positions: alone, or behind the values that stand there.
_POSITIONS = ("aten.argmax", "aten.argmin")
_WITH_POSITIONS = frozenset(
    f"aten.{name}"
    for name in ("topk", "max", "min", "median", "nanmedian", "kthvalue", "mode", "cummax",
                 "cummin")
)  # fmt: skip


@normal_mode()
def mask(model: M, plan: Plan, *, inplace: bool = False) -> M:
    """Return the network with the units of ``plan`` masked, in every pass that was traced.

    Args:
        model: the network that the plan was made for.
        plan: what to mask.
        inplace: change ``model`` itself instead of a copy.

    Raises:
        PlanError: the plan does not fit the model.
    """
    check_fit(model, plan)
    masked: M = model if inplace else clone_model(model)
    empty_caches(masked, plan.caches)
    mask_weights(masked, plan)
    if plan.masks:
        running = _Running(masked, plan)
        for method in dict.fromkeys((FORWARD, *(one.method for one in plan.passes))):
            owner, _, name = method.rpartition(".")
            holder = operator.attrgetter(owner)(masked) if owner else masked
            setattr(holder, name, _MaskedMethod(running, method, getattr(holder, name)))
    return masked


def mask_weights(model: nn.Module, plan: Plan) -> None:
    """Zero, in place, what the weights of ``model`` read of removed units."""
    weights = dict(every_tensor(model))
    with torch.no_grad():
        for name, dim in plan.consumers:
            weight = weights[name]
            weight.index_fill_(dim, _index(plan.cuts[name][dim], weight.device), 0.0)


@contextlib.contextmanager
def mask_operations(
    model: nn.Module, points: Sequence[MaskPoint], paths: Set[int]
) -> Iterator[_MaskMode]:
    """Apply mask points to the operations of a pass of ``model`` that runs inside, on ``paths``."""
    turns = Turns(model)
    mode = _MaskMode(points, turns, paths)
    with plain_operations(), turns.follow(), mode:
        yield mode


@contextlib.contextmanager
def on_path(path: int | None) -> Iterator[None]:
    """Say which of the traced paths masked networks run meanwhile; None to go by the mode."""
    token = _path.set(path)
    try:
        yield
    finally:
        _path.reset(token)


_path: ContextVar[int | None] = ContextVar("_path", default=None)


def _index(positions: Sequence[int], device: torch.device) -> Tensor:
    return torch.tensor(list(positions), dtype=torch.long, device=device)


class _Running:
    """A masked network: its mask points, and whether they act already in the running thread."""

    def __init__(self, module: nn.Module, plan: Plan) -> None:
        self.module = module
        self.points = tuple(plan.masks)
        self.passes = plan.passes

    @property
    def active(self) -> bool:
        return any(one is self for one in _active.get())

    @contextlib.contextmanager
    def activate(self) -> Iterator[None]:
        token = _active.set((*_active.get(), self))
        try:
            yield
        finally:
            _active.reset(token)

    def paths(self, method: str) -> set[int]:
        """Return the paths that a call of ``method`` may take now."""
        told = _path.get()
        if told is not None:
            return {told}
        sized = [one for one in self.passes if not one.shapes]
        mine = [one for one in sized if one.method == method] or sized
        alike = [one for one in mine if one.training == self.module.training] or mine
        return {one.path for one in alike}


_active: ContextVar[tuple[_Running, ...]] = ContextVar("_active", default=())


class _MaskedMethod:
    """A method of a masked network: the network's own, inside a :class:`_MaskMode`.

    Hooks would not do: PyTorch calls none after an interrupt or an error of an exporter, and
    the mode would go on changing whatever runs next.
    """

    def __init__(self, running: _Running, method: str, function: Any) -> None:
        self._running = running
        self._method = method
        self._function = function
        self.__signature__ = inspect.signature(function)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        running = self._running
        if running.active:  # another masked method called it
            return self._function(*args, **kwargs)
        paths = running.paths(self._method)
        with running.activate(), mask_operations(running.module, running.points, paths) as mode:
            result = self._function(*args, **kwargs)
        mode.check_met()
        if not any(tensor.requires_grad for tensor in tensor_leaves(result)):
            return result
        return map_tensors(result, lambda t: _ForwardOnly.apply(t) if t.requires_grad else t)


class _ForwardOnly(torch.autograd.Function):
    """Refuses gradients: the operations were changed below autograd, which would not know."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        raise PlanError(
            "this masked network has no gradients: its norms or products run over the kept units "
            "below autograd; cut it and train that"
        )


class _MaskMode(DispatchMode):
    """Applies the mask points as their operations come by."""

    def __init__(self, points: Sequence[MaskPoint], turns: Turns, paths: Set[int]) -> None:
        super().__init__()
        self._turns = turns
        self._paths = paths
        self._points: dict[Address, list[MaskPoint]] = defaultdict(list)
        for point in points:
            self._points[point.op, point.module, point.turn].append(point)
        self._watched = {point.op for point in points}
        self._met: set[tuple[str, str]] = set()
        self._ran: set[str] = set()

    def check_met(self) -> None:
        """Insist that a module which ran also ran the operations that the plan masks there.

        Raises:
            PlanError: it computes the same by others, a fused kernel say, which nothing masked.
        """
        for (op, module, _), points in self._points.items():
            known = [p for p in points if not p.paths or self._paths <= set(p.paths)]
            if known and module in self._ran and (op, module) not in self._met:
                raise PlanError(
                    f"the masked network takes another path than the traced one: "
                    f"{where_is(op, module)} does not run, where the plan masks what it reads"
                )

    @in_normal_mode
    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        packet = str(func.overloadpacket)
        name = family(packet)
        self._ran.add(self._turns.path)
        if name not in self._watched:
            return func(*args, **kwargs)
        points = self._acting(self._turns.take(packet))
        if not points:
            return func(*args, **kwargs)
        self._met.add((name, points[0].module))
        changed = list(args)
        for point in points:
            place = PRODUCTS.get(packet, point.arg)
            size = changed[place].shape[point.dim]
            if size != point.size:
                raise PlanError(
                    "the masked network takes another path than the traced one: "
                    f"{where_is(name, point.module)} meets size {size} where the plan has "
                    f"{point.size}"
                )
            if point.how == "mask":
                x = changed[place]
                gone = _index(point.removed, x.device)
                changed[place] = x.index_fill(point.dim, gone, 0.0)
        gathered = [point for point in points if point.how == "gather"]
        if not gathered:
            return func(*changed, **kwargs)
        return _gather(func, name, changed, kwargs, gathered)

    def _acting(self, where: Address) -> Sequence[MaskPoint]:
        """Return the points that act on an operation on the path that the network runs."""
        points = self._points.get(where, ())
        acting = [point for point in points if point.everywhere or self._paths & set(point.paths)]
        if any(not point.everywhere and not self._paths <= set(point.paths) for point in acting):
            op, module, _ = where
            raise PlanError(
                f"the masked network cannot tell which traced pass this is: {where_is(op, module)} "
                "is masked in some of those with this method and mode and not in others; "
                "secateur.verify compares them pass by pass"
            )
        return acting


def _gather(func: Any, name: str, args: list[Any], kwargs: Any, points: Sequence[MaskPoint]) -> Any:
    """Run an operation over the kept positions; put its result back in place."""
    whole = args[0]
    taken: dict[int, dict[int, Tensor]] = defaultdict(dict)
    for point in points:
        alive = torch.ones(point.size, dtype=torch.bool, device=whole.device)
        alive[list(point.removed)] = False
        taken[point.arg][point.dim] = alive.nonzero().squeeze(1)
    for place, stay in taken.items():
        args[place] = _select(args[place], stay)
    kept = taken[0]
    if name in ("aten.native_layer_norm", "aten._fused_rms_norm"):
        lead = whole.dim() - len(args[1])
        args[1] = list(args[0].shape[lead:])
        inner = {dim - lead: index for dim, index in kept.items()}
        for i in (2, 3):
            if len(args) > i and isinstance(args[i], Tensor):
                args[i] = _select(args[i], inner)
    elif name == "aten.native_group_norm":
        channels, groups = args[4], args[6]
        index = kept[1]
        for i in (1, 2):
            if isinstance(args[i], Tensor):
                args[i] = args[i].index_select(0, index)
        args[0] = args[0].contiguous()
        args[4] = len(index)
        args[6] = len(torch.unique(index // (channels // groups)))
    result = func(*args, **kwargs)
    parts = list(result) if isinstance(result, tuple) else [result]
    if name in _POSITIONS or (name in _WITH_POSITIONS and len(parts) > 1):
        parts[-1] = kept[points[0].dim][parts[-1]]
    if name in _KEEPS_SHAPE:
        small = parts[0].shape
        parts = [_put_back(part, whole, kept) if part.shape == small else part for part in parts]
    return tuple(parts) if isinstance(result, tuple) else parts[0]


def _put_back(part: Tensor, whole: Tensor, kept: dict[int, Tensor]) -> Tensor:
    """Return a tensor of the shape of ``whole`` with ``part`` at the kept positions."""
    full = whole.new_zeros(whole.shape, dtype=part.dtype)
    grid = [torch.arange(n, device=whole.device) for n in whole.shape]
    for dim, index in kept.items():
        grid[dim] = index
    full[torch.meshgrid(*grid, indexing="ij")] = part
    return full


def _select(tensor: Tensor, kept: dict[int, Tensor]) -> Tensor:
    for dim, index in kept.items():
        tensor = tensor.index_select(dim, index)
    return tensor
