"""The forward passes that a trace follows: examples, methods, and a neutral train mode.

A network may use its parameters in another way in train mode, on another input or in another
method, so each such pass is traced and proved. Neutral train mode is train mode without its
noise: dropout off, batch norm by its running statistics. It differs from eval mode only by what
the model's own code does there.
"""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from secateur.errors import InputError
from secateur.graph.program import tensor_leaves

FORWARD = "forward"


@dataclass(frozen=True)
class Pass:
    """One way to run a network.

    Attributes:
        inputs: a tensor, a tuple of arguments or a dict of keyword arguments.
        method: path of the method that takes them; "forward" is a call of the network itself.
        training: neutral train mode with gradients enabled, instead of eval mode without.
        example: 0 for the example input, 1 and on for further ones.
        shapes: of the example input at another size, those of its tensors; else empty.
    """

    inputs: Any
    method: str = FORWARD
    training: bool = False
    example: int = 0
    shapes: tuple[tuple[int, ...], ...] = ()

    @property
    def label(self) -> str:
        """The pass in words; "" for the example input in eval mode."""
        parts = [f"further example {self.example}"] if self.example else []
        if self.shapes:
            parts.append("another size")
        if self.method != FORWARD:
            parts.append(f"method {self.method}")
        if self.training:
            parts.append("train mode")
        return ", ".join(parts)


def list_passes(model: nn.Module, example_inputs: Any, also: Sequence[Any]) -> list[Pass]:
    """Return every pass of the examples: each in eval mode, then each in train mode.

    Args:
        model: the network.
        example_inputs: a tensor, a tuple of arguments or a dict of keyword arguments.
        also: further examples in these forms, or ("method", inputs) for another method.

    Raises:
        InputError: ``also`` is no sequence of examples, or names no method of the model.
    """
    if isinstance(also, (Tensor, Mapping, str)) or not isinstance(also, Sequence):
        raise InputError(
            f"also must be a list of further examples, but got {type(also).__name__}: "
            "write also=[example]"
        )
    examples = [Pass(example_inputs)]
    for number, entry in enumerate(also, 1):
        if isinstance(entry, tuple) and entry and isinstance(entry[0], str):
            examples.append(_of_method(model, entry, number))
        else:
            examples.append(Pass(entry, example=number))
        if not tensor_leaves(examples[-1].inputs):
            raise InputError(
                "also must hold tensors, tuples or dicts that hold one, or ('method', inputs), "
                f"but entry {number} is {type(entry).__name__}"
            )
    return [*examples, *(replace(example, training=True) for example in examples)]


def _of_method(model: nn.Module, entry: tuple[Any, ...], number: int) -> Pass:
    method = entry[0]
    if len(entry) != 2:
        raise InputError(
            f"also must give a method as ('method', inputs), but entry {number} has "
            f"{len(entry)} parts: put the arguments of {method!r} into one tuple"
        )
    try:
        found = operator.attrgetter(method)(model)
    except AttributeError:
        found = None
    if not callable(found):
        raise InputError(f"also names the method {method!r}, which the model does not have")
    return Pass(entry[1], method, example=number)


def set_mode(model: nn.Module, training: bool) -> None:
    """Put ``model`` into eval mode, or into train mode with PyTorch's own modules in eval mode."""
    model.train(training)
    for module in model.modules() if training else ():
        if type(module).forward.__module__.startswith("torch.nn.") and "forward" not in vars(
            module
        ):
            module.training = False


@contextlib.contextmanager
def pass_mode(training: bool) -> Iterator[None]:
    """Run a pass as its mode asks: gradients enabled and dropout off in train mode."""
    with torch.set_grad_enabled(training), contextlib.ExitStack() as stack:
        if training:
            stack.enter_context(_Neutral())
        yield


def _argument(index: int, name: str, value: Any) -> Callable[[list[Any], dict[str, Any]], None]:
    """Return a change of a call: argument ``index`` or ``name`` becomes ``value``."""

    def change(args: list[Any], kwargs: dict[str, Any]) -> None:
        if len(args) > index:
            args[index] = value
        elif name in kwargs:
            kwargs[name] = value

    return change


def _statistics(index: int, at: int) -> Callable[[list[Any], dict[str, Any]], None]:
    """Return the change of a batch norm's call whose running mean is argument ``at``."""
    change = _argument(index, "training", False)

    def use_running(args: list[Any], kwargs: dict[str, Any]) -> None:
        mean = args[at] if len(args) > at else kwargs.get("running_mean")
        if mean is not None:
            change(args, kwargs)

    return use_running


_OFF: dict[Any, Callable[[list[Any], dict[str, Any]], None]] = {
    **{
        function: _argument(2, "training", False)
        for function in (
            F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout,
            F.feature_alpha_dropout,
        )
    },
    **{
        function: _argument(2, "train", False)
        for function in (
            torch.dropout, torch.dropout_, torch.feature_dropout, torch.feature_dropout_,
            torch.alpha_dropout, torch.alpha_dropout_, torch.feature_alpha_dropout,
            torch.feature_alpha_dropout_, torch.native_dropout,
        )
    },
    F.rrelu: _argument(3, "training", False),
    torch.rrelu: _argument(3, "training", False),
    F.scaled_dot_product_attention: _argument(4, "dropout_p", 0.0),
    F.multi_head_attention_forward: _argument(13, "training", False),
    F.batch_norm: _statistics(5, 1),
    torch.batch_norm: _statistics(5, 3),
}  # fmt: skip


class _Neutral(TorchFunctionMode):
    """Switches dropout and batch statistics off where the model's own code asks for them."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        change = _OFF.get(func)
        if change is None:
            return func(*args, **(kwargs or {}))
        given, named = list(args), dict(kwargs or {})
        change(given, named)
        return func(*given, **named)
