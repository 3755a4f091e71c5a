"""Writes down the operations of a pass, and what the model's code asked of sizes on the way."""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.overrides import TorchFunctionMode

from secateur.errors import TraceError
from secateur.graph.attention import attention_equalities, norm_equalities
from secateur.graph.copies import every_tensor
from secateur.graph.dispatch import DispatchMode
from secateur.graph.meta_kernels import plain_result
from secateur.graph.meta_results import MetaResults
from secateur.graph.modules import Turns
from secateur.graph.normal_mode import in_normal_mode
from secateur.graph.program import (
    Call,
    Node,
    Program,
    Ref,
    TensorInfo,
    inner_dims,
    tensor_leaves,
)
from secateur.graph.sizes import (
    Apply,
    Dim,
    Expr,
    Sized,
    is_current,
)

_RESHAPED_IN_PLACE = frozenset(
    f"aten.{name}_" for name in ("transpose", "t", "squeeze", "unsqueeze", "swapaxes", "swapdims")
)


_TO_NUMBERS = ("tolist", "numpy", "__array__")
_FROM_NUMBER = ("tensor", "as_tensor", "scalar_tensor")


def _run(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return func(*args, **kwargs)


def _compute(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run an operation on tensors without values."""
    result = plain_result(str(func.overloadpacket), args, kwargs)
    return func(*args, **kwargs) if result is None else result


@lru_cache(maxsize=1024)
def _is_pointwise(func: Any) -> bool:
    """Tell whether PyTorch tags an operation, or its twin that does not write, as such."""
    twin = getattr(torch.ops.aten, func.overloadpacket.__name__.removesuffix("_"), None)
    twins = [getattr(twin, name) for name in twin.overloads()] if twin is not None else []
    return any(torch.Tag.pointwise in one.tags for one in (func, *twins))


class Recorder(DispatchMode):
    """Writes down every ATen operation that runs while it is active.

    Args:
        model: the copy that runs.
        inputs: what it runs on.
        program: where to; it may hold tensors of the passes before.
    """

    def __init__(self, model: nn.Module, inputs: Any, program: Program) -> None:
        super().__init__()
        self.program = program
        if program.results is None:
            program.results = MetaResults(_compute)
        compute = {"meta": program.results.run, "fake": _compute, "real": _run}
        self._run = compute[program.way]
        self.call: Call | None = None
        self._keys: dict[int, int] = {}
        self._kept: list[Tensor] = []
        self._made: list[weakref.ref[Tensor]] = []
        self.running = Turns(model)
        leaves = tensor_leaves(inputs)
        for tensor in leaves:
            self.key(tensor, "input")
        self.program.inputs = [self.key(tensor) for tensor in leaves]
        self.program.batch = leaves[0].shape[0] if leaves[0].dim() else 1
        parameters = {id(p) for p in model.parameters()}
        known = program.named()
        for name, tensor in every_tensor(model):
            if name in known:
                self._keys[id(tensor)] = known[name]
                self._kept.append(tensor)
            else:
                self.key(tensor, "parameter" if id(tensor) in parameters else "buffer", name)

    def key(self, tensor: Tensor, kind: str = "constant", name: str = "") -> int:
        """Return the number of ``tensor``; a tensor not seen before gets one."""
        found = self._keys.get(id(tensor))
        if found is None:
            found = len(self.program.tensors)
            self._keys[id(tensor)] = found
            self._kept.append(tensor)  # an id is reused once its object is gone
            self.program.tensors.append(TensorInfo(tuple(tensor.shape), tensor.dtype, kind, name))
            if kind == "value":
                self._made.append(weakref.ref(tensor))
            elif kind == "constant" and (values := _values_of(tensor)) is not None:
                self.program.literals[found] = values
                self.program.met_values = True
        return found

    def literal(
        self, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any
    ) -> None:
        """Note the numbers that the code makes a tensor of: a meta tensor does not show them."""
        given = args[0] if args else kwargs.get("data")
        if name not in _FROM_NUMBER or isinstance(given, Tensor) or not isinstance(result, Tensor):
            return
        if isinstance(given, (int, float)) and not isinstance(given, bool):
            self.program.numbers[self.key(result)] = float(given)
        else:
            self.program.literals[self.key(result)] = repr(_plain_numbers(given)).encode()

    def compared(self, op: str, left: Expr, right: Expr, outcome: bool) -> None:
        """Note how the model's own code, not PyTorch's, found two sizes to compare."""
        if left != right and self.call is None:
            self.program.comparisons.setdefault((op, left, right, outcome), self.running.path)

    def refs(self, value: Any) -> Any:
        """Rebuild an argument with a :class:`Ref` for each tensor."""
        if isinstance(value, Tensor):
            return Ref(self.key(value))
        if isinstance(value, Sized):
            return value if is_current(value) else int.__index__(value)
        if isinstance(value, (list, tuple)):
            return tuple(self.refs(item) for item in value)
        if isinstance(value, slice):
            return slice(self.refs(value.start), self.refs(value.stop), self.refs(value.step))
        return value

    @in_normal_mode
    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        packet = str(func.overloadpacket)
        result = self._run(func, args, kwargs)
        if packet == "prim.device" or (packet == "aten.as_strided_" and self._same_layout(args)):
            return result
        refs = self.refs(args)
        if packet == "aten.as_strided":
            self.program.strides[refs[0].key] = args[0].stride()
        named = {name: self.refs(value) for name, value in kwargs.items()}
        returned = result if isinstance(result, (tuple, list)) else (result,)
        for tensor in returned:
            if packet in _RESHAPED_IN_PLACE or self._resized(tensor):
                self._keys.pop(id(tensor))
        outs = tuple(self.key(t, "value") if isinstance(t, Tensor) else -1 for t in returned)
        _, module, turn = self.running.take(packet)
        node = Node(
            op=packet,
            overload=func._overloadname,
            args=refs,
            kwargs=named,
            outs=outs,
            call=self.call,
            module=module,
            turn=turn,
            pointwise=_is_pointwise(func),
        )
        self.program.nodes.append(node)
        return result

    def _resized(self, tensor: Any) -> bool:
        """Tell whether an operation gave a tensor that was there before another shape."""
        key = self._keys.get(id(tensor)) if isinstance(tensor, Tensor) else None
        return key is not None and self.program.tensors[key].shape != tuple(tensor.shape)

    def _same_layout(self, args: tuple[Any, ...]) -> bool:
        """Tell whether PyTorch itself, as pooling does, gives a tensor the layout that it has."""
        tensor, size, stride = args[:3]
        return (
            (self.call is None or not self.call.name.startswith("as_strided"))
            and tuple(tensor.shape) == tuple(size)
            and len(args) < 4
            and all(a == b for n, a, b in zip(size, tensor.stride(), stride, strict=True) if n != 1)
        )

    def made(self) -> list[weakref.ref[Tensor]]:
        """Return the tensors that operations of the pass gave."""
        return self._made

    def finish(self, outputs: Any) -> Program:
        """Return the program, the model's outputs noted."""
        leaves = tensor_leaves(outputs)
        if not leaves:
            raise TraceError("the model returns no tensor")
        self.program.outputs = [self.key(tensor) for tensor in leaves]
        return self.program


def _plain_numbers(given: Any) -> Any:
    """Return nested numbers without the sizes that they were made from."""
    if isinstance(given, np.ndarray):
        return given.tolist()
    if isinstance(given, (list, tuple)):
        return [_plain_numbers(item) for item in given]
    if isinstance(given, int) and not isinstance(given, bool):
        return int.__index__(given)
    return float(given) if isinstance(given, float) else given


_MOST_VALUES = 1 << 20


def _values_of(tensor: Tensor) -> bytes | None:
    """Return the bytes of a small tensor that has values; None where they cannot differ or be read.

    A large table is taken to come from outside the forward pass.
    """
    if isinstance(tensor, FakeTensor) or tensor.device.type != "cpu" or tensor.is_sparse:
        return None
    if tensor.numel() > _MOST_VALUES or tensor.layout != torch.strided or tensor.is_quantized:
        return None
    with torch.utils._python_dispatch._disable_current_modes():
        return tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes()


class Literals(TorchFunctionMode):
    """Notes the tensors that the model's code makes of plain numbers."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self._recorder = recorder

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        self._recorder.literal(getattr(func, "__name__", ""), args, kwargs or {}, result)
        return result


class Calls(TorchFunctionMode):
    """Notes which torch function the model called, and answers sizes with ``Sized``."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self._recorder = recorder

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", str(func))
        if name == "__get__":
            result = func(*args, **kwargs)
            return self._shape(args[0], result) if isinstance(result, torch.Size) else result
        if name == "size" and isinstance(args[0], Tensor):
            result = func(*args, **kwargs)
            if isinstance(result, torch.Size):
                return self._shape(args[0], result)
            dim = int(args[1] if len(args) > 1 else kwargs["dim"]) % args[0].dim()
            return Sized(result, Dim(self._recorder.key(args[0]), dim))
        if name == "stride" and isinstance(args[0], Tensor):
            return self._strides(args[0], func(*args, **kwargs))
        if name in ("numel", "nelement") and isinstance(args[0], Tensor):
            return self._number(args[0], func(*args, **kwargs))
        recorder = self._recorder
        outer = recorder.call
        recorder.call = Call(
            name,
            tuple(recorder.refs(arg) for arg in args),
            {key: recorder.refs(value) for key, value in kwargs.items()},
        )
        if name == "multi_head_attention_forward":
            recorder.program.comparisons.update(attention_equalities(recorder.call))
        elif name in ("rms_norm", "layer_norm") and args:
            recorder.program.comparisons.update(norm_equalities(recorder.call, args[0].dim()))
        try:
            result = func(*args, **kwargs)
        finally:
            recorder.call = outer
        if name in _TO_NUMBERS and isinstance(args[0], Tensor):
            recorder.program.read.append((recorder.key(args[0]), recorder.running.path))
        recorder.literal(name, args, kwargs, result)
        return result

    def _number(self, tensor: Tensor, number: int) -> int:
        """Return the number of elements as the product of the tensor's sizes."""
        return Sized(number, self._product(tensor, range(tensor.dim())))

    def _product(self, tensor: Tensor, dims: Iterable[int]) -> Expr:
        key = self._recorder.key(tensor)
        product: Expr = 1
        for d in dims:
            product = Dim(key, d) if product == 1 else Apply("*", product, Dim(key, d))
        return product

    def _strides(self, tensor: Tensor, found: int | tuple[int, ...]) -> int | tuple[int, ...]:
        """Return strides as the products of sizes that they are, where memory has no holes."""
        strides = tensor.stride()
        inner = inner_dims(tensor.shape, strides) or []
        known = {
            strides[d]: Sized(strides[d], self._product(tensor, dims))
            for d, dims in enumerate(inner)
            if dims and strides[d] == math.prod(tensor.shape[i] for i in dims)
        }
        if isinstance(found, tuple):
            return tuple(known.get(n, n) for n in found)
        return known.get(found, found)

    def _shape(self, tensor: Tensor, shape: torch.Size) -> torch.Size:
        key = self._recorder.key(tensor)
        return torch.Size([Sized(n, Dim(key, d)) for d, n in enumerate(shape)])
