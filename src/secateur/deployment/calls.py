"""Inputs of an export: made for any batch size from one example, in the order of the call."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from secateur.errors import InputError
from secateur.graph.copies import map_tensors
from secateur.graph.program import tensor_leaves
from secateur.latency import batched

CPU = torch.device("cpu")


def arguments(example: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return positional and keyword arguments of the network's call."""
    if isinstance(example, Mapping):
        return (), dict(example)
    return (tuple(example) if isinstance(example, tuple | list) else (example,)), {}


def ordered(model: nn.Module, example: Any) -> Any:
    """Put keyword arguments in the order of the forward pass, which exporters may choose too."""
    if not isinstance(example, Mapping):
        return example
    places = list(inspect.signature(model.forward).parameters)
    return dict(sorted(example.items(), key=lambda one: _place(one[0], places)))


def _place(name: str, places: list[str]) -> int:
    return places.index(name) if name in places else len(places)


def bound(model: nn.Module, example: Any) -> dict[str, Any]:
    """Return the call's arguments under the names of the forward pass's parameters.

    What ``*args`` and ``**kwargs`` take is one tuple and one dict, as exporters see it.

    Raises:
        InputError: the forward pass does not take ``example``.
    """
    positional, named = arguments(example)
    try:
        return dict(inspect.signature(model.forward).bind(*positional, **named).arguments)
    except TypeError as error:
        raise InputError(
            f"example_inputs must be what the forward pass takes, but {error}"
        ) from error


def spell_out(network: nn.Module, example: Any) -> None:
    """Give a forward pass that takes ``**kwargs`` a signature of the names that it gets, in place.

    PyTorch's exporter (2.13) counts what ``**kwargs`` takes twice, and finds a mismatch.
    """
    given = bound(network, example)
    variable = [
        name
        for name, kind in inspect.signature(network.forward).parameters.items()
        if kind.kind is inspect.Parameter.VAR_KEYWORD and name in given
    ]
    if not variable or "forward" in vars(network):
        return

    def forward(self: nn.Module, **named: Any) -> Any:
        return type(self).forward(self, **named)

    keyword = inspect.Parameter.KEYWORD_ONLY
    itself = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    spelled = inspect.Signature([itself, *(inspect.Parameter(name, keyword) for name in example)])
    vars(forward)["__signature__"] = spelled
    network.forward = MethodType(forward, network)


def input_names(model: nn.Module, example: Any) -> tuple[str, ...]:
    """Name every tensor of the call as the forward pass does, in the order of the call."""
    kinds = inspect.signature(model.forward).parameters
    named: dict[str, Any] = {}
    for name, value in bound(model, example).items():
        variable = kinds[name].kind is inspect.Parameter.VAR_KEYWORD
        named.update(value if variable else {name: value})
    return leaf_names(named)


def leaf_names(value: Any, path: str = "") -> tuple[str, ...]:
    """Name every tensor in dicts, tuples and lists by its path ("states.0"), in their order."""
    if isinstance(value, Tensor):
        return (path,)
    parts: list[tuple[Any, Any]] = []
    if isinstance(value, Mapping):
        parts = list(value.items())
    elif isinstance(value, tuple | list):
        parts = list(enumerate(value))
    return tuple(
        name
        for key, part in parts
        for name in leaf_names(part, f"{path}.{key}" if path else str(key))
    )


def dynamic(value: Any, batch: Any) -> Any:
    """Mirror ``value``: the first dimension of every tensor is ``batch``."""
    if isinstance(value, Tensor):
        return {0: batch}
    if isinstance(value, Mapping):
        return {name: dynamic(part, batch) for name, part in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(dynamic(part, batch) for part in value)
    return None


def check_batch(model: nn.Module, example: Any) -> None:
    """Refuse an example whose tensors do not share their first dimension.

    Raises:
        InputError: a tensor is a scalar or empty, two have different numbers of samples, or one
            is held by something else than dicts, tuples and lists.
    """
    batched(example, 1, CPU)
    names, tensors = input_names(model, example), tensor_leaves(example)
    if len(names) != len(tensors):
        raise InputError(
            "example_inputs must hold tensors in dicts, tuples and lists only (no cache), but of "
            f"{len(tensors)} tensors {len(tensors) - len(names)} are held otherwise"
        )
    sizes = {name: len(one) for name, one in zip(names, tensors, strict=True) if len(one) > 1}
    if len(set(sizes.values())) > 1:
        raise InputError(
            "example_inputs must have the batch as the first dimension of every tensor, but the "
            f"sizes are {sizes}"
        )


def drawn(example: Any, size: int) -> Any:
    """Make an input of ``size`` samples, the same one each time.

    Real numbers are from a normal distribution. Other numbers are the example's own samples in
    turn, so that they stay within their range: each time round, token numbers move on by one
    place. Masks (zeros and ones) and positions (consecutive numbers) stay in their places.
    """
    generator = torch.Generator().manual_seed(size)

    def draw(tensor: Tensor) -> Tensor:
        if tensor.is_floating_point():
            shape = (size, *tensor.shape[1:])
            return torch.randn(shape, generator=generator, dtype=tensor.dtype)
        rows = tensor[torch.arange(size) % len(tensor)]
        if not _may_move(tensor):
            return rows
        return torch.stack([row.roll(i // len(tensor), 0) for i, row in enumerate(rows)])

    return map_tensors(batched(example, None, CPU), draw)


def _may_move(tensor: Tensor) -> bool:
    if tensor.ndim < 2 or tensor.dtype == torch.bool:
        return False
    if bool(((tensor == 0) | (tensor == 1)).all()):
        return False
    return not bool((tensor.diff(dim=1) == 1).all())
