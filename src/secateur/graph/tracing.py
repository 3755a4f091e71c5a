"""One pass of a network, recorded as ATen operations.

The pass runs on a copy of the model whose tensors are fakes (shapes without
memory) and whose integer attributes are :class:`~secateur.graph.sizes.Sized`;
the caller's model is never touched. Where a model cannot run on fakes (its
code looks at values) the pass is repeated with real tensors, and the program
says so.
"""

from __future__ import annotations

import contextlib
import math
import operator
import weakref
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn.utils.rnn import PackedSequence
from torch.overrides import TorchFunctionMode

from secateur.errors import InputError, TraceError
from secateur.graph.attention import attention_equalities, norm_equalities
from secateur.graph.attributes import held_containers
from secateur.graph.copies import copy_model, every_tensor, map_tensors, meta_like, plant_sizes
from secateur.graph.dispatch import DispatchMode
from secateur.graph.function_caches import KeyedBySize, keyed_by_size, private_caches
from secateur.graph.generators import seeded_generators
from secateur.graph.hooks import shared_variables_put_back
from secateur.graph.leftovers import forget
from secateur.graph.meta_kernels import plain_result
from secateur.graph.meta_results import MetaResults
from secateur.graph.module_caches import ModuleCaches, NotCachesError, filled
from secateur.graph.modules import Turns
from secateur.graph.normal_mode import in_normal_mode, normal_mode
from secateur.graph.passes import FORWARD, pass_mode, set_mode
from secateur.graph.process_settings import plain_operations
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
    SizedFloat,
    is_current,
    sizes_of_one_trace,
    watch_comparisons,
)

Inputs = Any


def run_model(model: nn.Module, example_inputs: Inputs, method: str = FORWARD) -> Any:
    """Call ``model``, or a method of it, on a tensor, a tuple or a dict of arguments.

    A packed sequence, which is a tuple, counts as one argument.
    """
    function = model if method == FORWARD else operator.attrgetter(method)(model)
    if isinstance(example_inputs, Mapping):
        return function(**example_inputs)
    if isinstance(example_inputs, (tuple, list)) and not isinstance(example_inputs, PackedSequence):
        return function(*example_inputs)
    return function(example_inputs)


def check_inputs(model: object, example_inputs: Inputs) -> None:
    """Refuse what cannot be traced, before any work.

    Raises:
        InputError: ``model`` is no module or ``example_inputs`` holds no tensor.
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"model must be a torch.nn.Module, but got {type(model).__name__}")
    _check_code(model)
    if not tensor_leaves(example_inputs):
        raise InputError(
            "example_inputs must be a tensor, or a tuple or dict that holds one, "
            f"but got {type(example_inputs).__name__}"
        )


def _check_code(model: nn.Module) -> None:
    """Refuse a network whose code cannot be followed, or that has no weights yet."""
    for name, module in model.named_modules():
        what = "scripted" if isinstance(module, torch.jit.ScriptModule) else ""
        if "eval" in vars(module):
            what = "exported"
        if what:
            raise InputError(
                f"model must be Python code, but {name or 'it'} is {what}: "
                f"prune the network that was {what}, then do that to the result"
            )
    for name, parameter in model.named_parameters():
        if isinstance(parameter, nn.UninitializedParameter):
            raise InputError(
                f"model must have its weights, but {name} is not initialised: run it once"
            )


@normal_mode()
def record(
    model: nn.Module,
    example_inputs: Inputs,
    *,
    method: str = FORWARD,
    training: bool = False,
    after: Program | None = None,
) -> Program:
    """Trace one pass of ``model``.

    Args:
        model: any network; it is left exactly as it was.
        example_inputs: a tensor, a tuple of arguments or a dict of keyword arguments.
        method: what takes them; "forward" is a call of the network.
        training: trace in neutral train mode (see ``passes``) instead of eval mode.
        after: another pass of the same model: tensors are numbered on from its own, parameters
            and buffers keep their numbers.

    Raises:
        InputError: as :func:`check_inputs`.
        TraceError: the model fails on its example input.
    """
    check_inputs(model, example_inputs)
    ways = ["meta", "fake"] if any(p.is_meta for p in model.parameters()) else WAYS
    reasons: list[str] = []
    for way in ways:
        made: list[weakref.ref[Tensor]] = []
        try:
            with shared_variables_put_back(model):
                program = _isolated(model, (example_inputs, method, training), way, after, made)
        except Exception as error:  # noqa: BLE001 - user code may raise anything; the last way decides
            reasons.append(f"{type(error).__name__}: {first_line(error)}")
            program = None
        if way != "real":
            forget(made, failed=program is None)
        if program is None:
            continue
        program.way = way
        if way == "real":
            program.notes.append(
                f"traced with real tensors, as fakes failed: {reasons[-1]}; where the code "
                "chooses by values, only what the examples choose is proved: add others with "
                "also=[...]"
            )
        return program
    raise TraceError(f"the model fails on its example input: {reasons[-1]}")


# Meta tensors are quickest; fakes bear code that mixes them with real tensors; real
# tensors bear code that looks at values.
WAYS = ("meta", "fake", "real")


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message that says something."""
    return next((line for line in str(error).splitlines() if line.strip()), "")[:300]


def _isolated(
    model: nn.Module,
    what: tuple[Inputs, str, bool],
    way: str,
    after: Program | None,
    made: list[weakref.ref[Tensor]],
) -> Program:
    """Trace one pass; once more, apart from the code's caches, where the code has such.

    Reading all objects for caches takes a tenth of a second, and most networks have none.
    """
    try:
        with sizes_of_one_trace(keyed_by_size):
            return _with_tables(model, what, way, after, made)
    except KeyedBySize:
        pass  # its frames keep tensors, so what follows stands outside
    with private_caches(), sizes_of_one_trace():
        return _with_tables(model, what, way, after, made)


def _with_tables(
    model: nn.Module,
    what: tuple[Inputs, str, bool],
    way: str,
    after: Program | None,
    made: list[weakref.ref[Tensor]],
) -> Program:
    """Trace one pass; again for every table of tensors that the pass took for an empty cache."""
    tables: frozenset[str] = frozenset()
    while True:
        try:
            return _record(model, what, way, after, made, tables)
        except NotCachesError as error:
            tables |= error.paths


def _record(
    model: nn.Module,
    what: tuple[Inputs, str, bool],
    way: str,
    after: Program | None,
    made: list[weakref.ref[Tensor]],
    tables: Collection[str],
) -> Program:
    """Trace one pass; ``made`` is filled with what the trace itself brought into being."""
    example_inputs, method, training = what
    mode = FakeTensorMode(allow_non_fake_inputs=True) if way == "fake" else None
    makers: dict[str, Callable[[Tensor], Tensor]] = {
        "meta": meta_like,
        "fake": lambda t: FakeTensor(mode, meta_like(t), torch.device("cpu")),
        "real": lambda t: t.detach().clone(),
    }
    convert = makers[way]
    twin = copy_model(model, lambda _, tensor: convert(tensor), apart=True)
    set_mode(twin, training)
    caches = ModuleCaches(twin, tables)
    inputs = map_tensors(example_inputs, convert)
    recorder = _Recorder(twin, inputs, way, after, held_containers(model))
    with contextlib.ExitStack() as stack:
        stack.enter_context(seeded_generators(0))  # two traces draw alike
        stack.enter_context(plain_operations())
        if mode is not None:
            stack.enter_context(mode)
        elif way == "meta":
            stack.enter_context(torch.device("meta"))
        stack.enter_context(recorder.running.follow())
        stack.enter_context(recorder)
        stack.enter_context(_Calls(recorder))
        stack.enter_context(pass_mode(training))
        stack.enter_context(watch_comparisons(recorder.compared))
        caches.watch()
        try:
            outputs = run_model(twin, inputs, method)
        except Exception:
            caches.check()
            raise
        finally:
            made += recorder.made()
    caches.check()
    recorder.program.caches = {**caches.filled(), **filled(model, twin)}
    return recorder.finish(outputs)


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


class _Recorder(DispatchMode):
    """Writes down every ATen operation that runs while it is active."""

    def __init__(
        self,
        model: nn.Module,
        inputs: Inputs,
        way: str,
        after: Program | None,
        shared: Iterable[int],
    ) -> None:
        super().__init__()
        self.program = Program(list(after.tensors)) if after else Program()
        compute = {"meta": MetaResults(_compute).run, "fake": _compute, "real": _run}
        self._run = compute[way]
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
        known = after.named() if after else {}
        for name, tensor in every_tensor(model):
            if name in known:
                self._keys[id(tensor)] = known[name]
                self._kept.append(tensor)
            else:
                self.key(tensor, "parameter" if id(tensor) in parameters else "buffer", name)
        self.program.attributes = plant_sizes(model, but=shared)

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
        return found

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


class _Calls(TorchFunctionMode):
    """Notes which torch function the model called, and answers sizes with ``Sized``."""

    def __init__(self, recorder: _Recorder) -> None:
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
        if name in _FROM_NUMBER and args and type(args[0]) in (int, float, Sized, SizedFloat):
            recorder.program.numbers[recorder.key(result)] = float(args[0])
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
