"""One pass of a network, recorded as ATen operations.

The pass runs on a copy of the model whose tensors are fakes (shapes without
memory) and whose integer attributes are :class:`~secateur.graph.sizes.Sized`;
the caller's model is never touched. Where a model cannot run on fakes (its
code looks at values) the pass is repeated with real tensors, and the program
says so.
"""

from __future__ import annotations

import contextlib
import operator
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn.utils.rnn import PackedSequence

from secateur.errors import InputError, TraceError
from secateur.graph.attributes import held_containers
from secateur.graph.copies import copy_model, map_tensors, meta_like, plant_sizes
from secateur.graph.function_caches import KeyedBySize, keyed_by_size, private_caches
from secateur.graph.generators import seeded_generators
from secateur.graph.hooks import shared_variables_put_back
from secateur.graph.leftovers import forget
from secateur.graph.module_caches import ModuleCaches, NotCachesError, filled
from secateur.graph.module_tree import modules_of
from secateur.graph.normal_mode import normal_mode
from secateur.graph.passes import FORWARD, Pass, pass_mode, set_mode
from secateur.graph.process_settings import plain_operations
from secateur.graph.program import (
    Program,
    tensor_leaves,
)
from secateur.graph.recorder import Calls, Literals, Recorder
from secateur.graph.sizes import (
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
    for name, module in modules_of(model):
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
    only: str = "",
) -> Program:
    """Trace one pass of ``model``.

    Args:
        model: any network; it is left exactly as it was.
        example_inputs: a tensor, a tuple of arguments or a dict of keyword arguments.
        method: what takes them; "forward" is a call of the network.
        training: trace in neutral train mode (see ``passes``) instead of eval mode.
        after: another pass of the same model: tensors are numbered on from its own, parameters
            and buffers keep their numbers.
        only: the one kind of tensors to trace with, "meta", "fake" or "real"; else the first of
            these that the network bears.

    Raises:
        InputError: as :func:`check_inputs`.
        TraceError: the model fails on its example input.
    """
    check_inputs(model, example_inputs)
    ways = ["meta", "fake"] if any(p.is_meta for p in model.parameters()) else WAYS
    reasons: list[str] = []
    for way in [only] if only else ways:
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
        if way == "real" and not only:
            program.notes.append(
                f"traced with real tensors, as fakes failed: {reasons[-1]}; where the code "
                "chooses by values, only what the examples choose is proved: add others with "
                "also=[...]"
            )
        return program
    raise TraceError(f"the model fails on its example input: {reasons[-1]}")


@normal_mode()
def retrace(
    model: nn.Module,
    one: Pass,
    like: Program,
    *,
    inside: Callable[[nn.Module], contextlib.AbstractContextManager[Any]] | None = None,
) -> tuple[Program, str]:
    """Trace another form of a network as the dense one was; say what stopped it, if anything.

    The sizes in its code are plain integers, and operations have no address: both cost time,
    and only values are compared.

    Args:
        model: the cut or masked network.
        one: the pass to run.
        like: the dense network's program of that pass.
        inside: what the pass runs in, given the copy that runs; it acts after the record.
    """
    made: list[weakref.ref[Tensor]] = []
    program = Program(way=like.way, results=like.results, tables=like.tables, private=like.private)
    stopped = ""
    try:
        apart = private_caches(every=True) if like.private else contextlib.nullcontext()
        with shared_variables_put_back(model), apart:
            what = one.inputs, one.method, one.training
            _record(model, what, program, made, like, inside)
    except Exception as error:  # noqa: BLE001 - user code may raise anything; it is reported
        stopped = f"{type(error).__name__}: {first_line(error)}"
    if like.way != "real":
        forget(made, failed=bool(stopped))
    return program, stopped


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
            return _with_tables(model, what, way, after, made, private=False)
    except KeyedBySize:
        pass  # its frames keep tensors, so what follows stands outside
    with private_caches(), sizes_of_one_trace():
        return _with_tables(model, what, way, after, made, private=True)


def _with_tables(
    model: nn.Module,
    what: tuple[Inputs, str, bool],
    way: str,
    after: Program | None,
    made: list[weakref.ref[Tensor]],
    *,
    private: bool,
) -> Program:
    """Trace one pass; again for every table of tensors that the pass took for an empty cache."""
    tables: frozenset[str] = frozenset()
    while True:
        program = Program(
            tensors=list(after.tensors) if after else [],
            way=way,
            results=after.results if after else None,
            tables=tables,
            private=private,
        )
        try:
            return _record(model, what, program, made)
        except NotCachesError as error:
            tables |= error.paths


def _record(
    model: nn.Module,
    what: tuple[Inputs, str, bool],
    program: Program,
    made: list[weakref.ref[Tensor]],
    like: Program | None = None,
    inside: Callable[[nn.Module], contextlib.AbstractContextManager[Any]] | None = None,
) -> Program:
    """Trace one pass into ``program``.

    ``made`` is filled with what the trace itself brought into being; the last two are those of
    :func:`retrace`.
    """
    example_inputs, method, training = what
    way = program.way
    mode = FakeTensorMode(allow_non_fake_inputs=True) if way == "fake" else None
    makers: dict[str, Callable[[Tensor], Tensor]] = {
        "meta": meta_like,
        "fake": lambda t: FakeTensor(mode, meta_like(t), torch.device("cpu")),
        "real": lambda t: t.detach().clone(),
    }
    convert = makers[way]
    twin = copy_model(model, lambda _, tensor: convert(tensor), apart=True)
    set_mode(twin, training)
    caches = ModuleCaches(twin, program.tables)
    inputs = map_tensors(example_inputs, convert)
    recorder = Recorder(twin, inputs, program)
    if like is None:
        program.attributes = plant_sizes(twin, but=held_containers(model))
    with contextlib.ExitStack() as stack:
        stack.enter_context(seeded_generators(0))  # two traces draw alike
        stack.enter_context(plain_operations())
        if mode is not None:
            stack.enter_context(mode)
        elif way == "meta":
            stack.enter_context(torch.device("meta"))
        if inside is not None:
            stack.enter_context(inside(twin))
        if like is None:
            stack.enter_context(recorder.running.follow())
        stack.enter_context(recorder)
        if like is None:
            stack.enter_context(Calls(recorder))
        elif like.numbers or like.literals:
            stack.enter_context(Literals(recorder))
        stack.enter_context(pass_mode(training))
        if like is None:
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
