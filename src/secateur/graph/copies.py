"""Copies of a model with other tensors, and the integers in its attributes."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from secateur.graph.attributes import change_held, held_values
from secateur.graph.hooks import separate_hooks
from secateur.graph.module_tree import modules_of, registered_tensors
from secateur.graph.program import tensor_leaves
from secateur.graph.sizes import Attr, Sized

M = TypeVar("M", bound=nn.Module)

Replace: TypeAlias = Callable[[str, Tensor], Tensor]
"""From the name and the tensor of a model to the tensor of its copy."""


def meta_like(tensor: Tensor) -> Tensor:
    """Return a tensor of the same layout without memory."""
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")


def replica(tensor: Tensor, data: Tensor) -> Tensor:
    """Return ``data`` as what ``tensor`` is: its class, attributes, gradients and memory format."""
    made = _laid_out_like(tensor, data)
    if isinstance(tensor, nn.Parameter):
        kind = type(tensor)
        plain = kind is nn.Parameter or type(data) is kind
        made = nn.Parameter(made, requires_grad=False) if plain else made.as_subclass(kind)
    if tensor.is_leaf and tensor.requires_grad:
        made.requires_grad_()
    held = getattr(tensor, "__dict__", None)
    if held:
        vars(made).update({key: _copy_value(value, {}) for key, value in held.items()})
    return made


def _laid_out_like(tensor: Tensor, data: Tensor) -> Tensor:
    """Put the dimensions of ``data`` in memory in the order in which ``tensor`` has them."""
    if tensor.layout is not torch.strided or data.dim() != tensor.dim() or 0 in tensor.stride():
        return data
    if data.shape == tensor.shape and data.stride() == tensor.stride():
        return data
    order = sorted(range(tensor.dim()), key=lambda dim: (-tensor.stride()[dim], dim))
    back = sorted(range(tensor.dim()), key=order.__getitem__)
    # Detached: code that trains may not write in place to a view that was made without gradients.
    return data.permute(order).contiguous().permute(back).detach()


def cloned(tensor: Tensor) -> Tensor:
    """Return a copy of a parameter or buffer that shares no memory with it, without gradient."""
    return replica(tensor, tensor.detach().clone())


def copy_model(model: nn.Module, replace: Replace, *, apart: bool = False) -> nn.Module:
    """Copy ``model``, with ``replace(name, tensor)`` in place of every tensor it holds.

    Parameters and buffers keep their registration and their ties; tensors that modules hold as
    plain attributes come with their path, those in sets and foreign objects with an empty name.

    Args:
        model: what to copy.
        replace: makes the tensors of the copy.
        apart: give hooks variables of their own, so that the copy runs without a trace in the
            user's; else the copy's hooks store where the model's do.
    """
    memo: dict[int, Any] = {}
    for name, tensor in every_tensor(model):
        if id(tensor) not in memo:
            memo[id(tensor)] = replace(name, tensor)
    plain = [module for _, module in modules_of(model) if _copies_plainly(module)]
    for module in plain:
        memo[id(module)] = type(module).__new__(type(module))
    with _HeldTensors(replace):
        for module in plain:
            held = vars(memo[id(module)])
            for key, value in vars(module).items():
                kind = type(value)
                if kind in _ATOMS:
                    held[key] = value
                elif kind in _TABLES and not value and id(value) not in memo:
                    held[key] = memo[id(value)] = kind()
                elif key != "_compiled_call_impl":  # nn.Module.__getstate__ drops it too
                    held[key] = _copy_value(value, memo)
        copied = copy.deepcopy(model, memo)
        if apart:
            separate_hooks(copied, memo, _copy_value)
    return copied


def stand_in(model: nn.Module, *, buffers: bool = False) -> nn.Module:
    """Return a network with the same weights that may be run in the place of ``model``.

    Its modes, hooks, gradients and what its modules and hooks remember are its own; so nothing of
    the user's changes while it runs, whatever ends it, and other threads may run ``model``.

    Args:
        model: whose weights it shares.
        buffers: share these, too, and let both be written to.
    """
    # Autograd takes no tensor that inference mode made.
    shared = {id(tensor) for tensor in model.parameters() if not tensor.is_inference()}

    def same(_: str, tensor: Tensor) -> Tensor:
        if buffers or id(tensor) in shared:
            return replica(tensor, tensor.detach())
        return cloned(tensor)

    return copy_model(model, same, apart=True)


class _HeldTensors(TorchFunctionMode):
    """Replaces the tensors that a deep copy meets, results of a past pass among them."""

    def __init__(self, replace: Replace) -> None:
        super().__init__()
        self._replace = replace

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is not Tensor.__deepcopy__:
            return func(*args, **(kwargs or {}))
        tensor, memo = args
        if id(tensor) not in memo:
            memo[id(tensor)] = self._replace("", tensor)
        return memo[id(tensor)]


def clone_model(model: M) -> M:
    """Copy ``model`` as it is, without gradients and without the history of held tensors."""
    copied: M = copy_model(model, lambda _, tensor: cloned(tensor))  # type: ignore[assignment]
    return copied


def _copies_plainly(module: nn.Module) -> bool:
    """Tell whether a module's copy is a copy of its attributes and nothing else."""
    kind = type(module)
    return (
        not hasattr(kind, "__deepcopy__")
        and kind.__getstate__ is nn.Module.__getstate__
        and kind.__setstate__.__module__ in _PLAIN_STATE
    )


# Their __setstate__ only fills in attributes that old pickles lack; the last is what the
# compiler, once used, puts in the place of nn.Module's.
_PLAIN_STATE = frozenset(
    f"torch.{room}"
    for room in (
        "nn.modules.module", "nn.modules.conv", "nn.modules.activation", "nn.modules.pooling",
        "_dynamo.mutation_guard",
    )
)  # fmt: skip


_ATOMS = frozenset({int, float, bool, str, type(None)})
_TABLES = frozenset({dict, OrderedDict})


def _copy_value(value: Any, memo: dict[int, Any]) -> Any:
    """Deep-copy an attribute; the many small tables of a module by the short way."""
    kind = type(value)
    if kind in _ATOMS or (kind is tuple and all(type(v) in _ATOMS for v in value)):
        return value
    if id(value) in memo:
        return memo[id(value)]
    if isinstance(value, torch.Generator):  # its state is a tensor that must keep its values
        return memo.setdefault(id(value), value.clone_state())
    if kind in (dict, OrderedDict, set, list) and not value:
        return memo.setdefault(id(value), kind())
    if kind in (dict, OrderedDict) and all(type(key) in _ATOMS for key in value):
        made = memo.setdefault(id(value), kind())
        made.update((key, _copy_value(item, memo)) for key, item in value.items())
        return made
    try:
        return copy.deepcopy(value, memo)
    except TypeError as error:
        if "pickle" not in str(error):
            raise
        return value  # a lock, a Python module, an operator: nothing that a copy could change


def named_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the name and tensor of every parameter and buffer, ties once."""
    yield from registered_tensors(model)


def map_tensors(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Rebuild nested containers with ``change`` applied to every tensor."""
    memo = {id(tensor): change(tensor) for tensor in tensor_leaves(value)}
    return copy.deepcopy(value, memo)


def held_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the path and tensor of every tensor held as a plain attribute, each once.

    Parameters and buffers that lie in attributes, too, are none of them.
    """
    seen = {id(tensor) for _, tensor in named_tensors(model)}
    for path, value in held_values(model, integers=False):
        if isinstance(value, Tensor) and id(value) not in seen:
            seen.add(id(value))
            yield path, value


def every_tensor(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the name and tensor of every parameter and buffer, then those of plain attributes."""
    yield from named_tensors(model)
    yield from held_tensors(model)


def integer_attributes(model: nn.Module, *, configs: bool = True) -> dict[str, int]:
    """Return every integer that modules hold as plain attributes, by path.

    Those in configs of Hugging Face models are left out unless ``configs``.
    """
    held = held_values(model, configs=configs)
    return {path: value for path, value in held if type(value) is int}


def plant_sizes(model: nn.Module, *, but: Iterable[int] = ()) -> dict[str, int]:
    """Replace the integers that modules hold as plain attributes by :class:`Sized` ones.

    Booleans stay, and so do numbers below 1, which size nothing, and what lies in objects
    whose ids are in ``but``.

    Returns:
        The values by path.
    """
    planted: dict[str, int] = {}

    def sized(path: str, value: Any) -> Any:
        if isinstance(value, Tensor) or value < 1:
            return value
        planted[path] = value
        return Sized(value, Attr(path))

    change_held(model, sized, but=but)
    return planted
