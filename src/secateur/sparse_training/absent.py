"""Take residual branches out of a network: what stands in their place has no weights.

The class of the network stays as it is, and so does its code: it still calls what it called, and
gets zeros of the shape that the module would have given. So x + f(x) becomes x + 0.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from secateur.errors import PlanError, VerificationError
from secateur.graph import Graph
from secateur.graph.copies import clone_model, copy_model, map_tensors
from secateur.graph.process_settings import plain_operations
from secateur.graph.program import tensor_leaves
from secateur.graph.tracing import run_model
from secateur.output_error import largest_error
from secateur.precision import Precision, in_precision
from secateur.random_draws import Draws
from secateur.sparse_training.blocks import Block, Blocks

M = TypeVar("M", bound=nn.Module)

TOLERANCE = 1e-10


class Absent(nn.Module):
    """Gives zeros where a module gave something: no weights, no multiplications.

    Args:
        place: which of the tensors that it is called with the zeros are like.
        width: size of their last dimension, where it is another one.
        window: of a convolution (channels, kernel, stride, padding, dilation), where the zeros
            have its shape.
        items: things in the tuple that the module gave, all but the first None; 0 for a tensor.
    """

    # nn.TransformerEncoder asks its first layer's attention for this before it takes a fused way.
    batch_first = False

    def __init__(
        self,
        place: int = 0,
        width: int | None = None,
        window: tuple[int, tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[int, ...]]
        | None = None,
        items: int = 0,
    ) -> None:
        super().__init__()
        self.place, self.items = place, items
        self.width = width
        self.channels = None if window is None else window[0]
        self.kernel, self.stride, self.padding, self.dilation = window[1:] if window else ((),) * 4

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return zeros; see the class."""
        given = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        zeros = self._zeros(given[self.place])
        return (zeros, *[None] * (self.items - 1)) if self.items else zeros

    def _zeros(self, x: Tensor) -> Tensor:
        if self.width is not None:
            return x.new_zeros((*x.shape[:-1], self.width))
        if self.channels is None:
            return torch.zeros_like(x)
        windows = zip(self.kernel, self.stride, self.padding, self.dilation, strict=True)
        first = x.dim() - len(self.kernel)
        sides = [
            (x.shape[first + i] + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
            for i, (kernel, stride, padding, dilation) in enumerate(windows)
        ]
        return x.new_zeros((*x.shape[: first - 1], self.channels, *sides))

    def extra_repr(self) -> str:
        """Say what the zeros are like."""
        if self.width is not None:
            return f"width={self.width}"
        return "" if self.channels is None else f"channels={self.channels}, stride={self.stride}"


@dataclass
class _Called:
    """How often a module was called, and the tensors in and out of the last call."""

    times: int
    given: list[Tensor]
    result: Any


def remove_blocks(
    model: M, blocks: Sequence[Block], example_inputs: Any, *, inplace: bool = False
) -> M:
    """Take the branches of residual blocks out of a network, and prove that this is right.

    Args:
        model: the network, or what ``cut`` has made of it.
        blocks: which ones; see :func:`secateur.sparse_training.residual_blocks`.
        example_inputs: a tensor, a tuple of arguments or a dict of keyword arguments.
        inplace: change ``model`` itself instead of a copy.

    Returns:
        The network, of the same class, :class:`Absent` in the place of the branches' modules. Save
        it without ``factory``: a factory would build the modules that are gone.

    Raises:
        PlanError: a module gives what cannot be stood in for, or the model's code asks a module
            for more than its output.
        VerificationError: the network does not compute what it computes with the branches' last
            layers at zero.
    """
    changed: M = model if inplace else clone_model(model)
    stands = _stand_ins(model, blocks, example_inputs)
    expected = _outputs(_silenced(model, blocks), example_inputs)
    trial = copy_model(model, lambda _, tensor: _double(tensor), apart=True)
    _put(trial, stands)
    try:
        found = _outputs(trial, example_inputs)
    except (AttributeError, TypeError, RuntimeError, ValueError, IndexError) as error:
        names = ", ".join(block.name for block in blocks)
        raise PlanError(f"{names} cannot go, the model's code fails without: {error}") from error
    worst = largest_error(found, expected)
    if worst > TOLERANCE:
        raise VerificationError(
            f"the network without {', '.join(block.name for block in blocks)} differs from the one "
            f"with the branches at zero by {worst:.3g} (tolerance {TOLERANCE:.0e})"
        )
    _put(changed, stands)
    return changed


def difference(one: nn.Module, other: nn.Module, example_inputs: Any) -> float:
    """Return the largest difference of two networks' outputs, in eval mode and float64.

    It is relative to the largest magnitude in the same output of ``other``, and infinite where
    shapes differ.
    """
    found, expected = (
        _outputs(copy_model(network, lambda _, tensor: _double(tensor), apart=True), example_inputs)
        for network in (one, other)
    )
    return largest_error(found, expected)


def removable(graph: Graph, blocks: Blocks) -> Blocks:
    """Sort out, before any work, the blocks whose branches cannot go; with the reason."""
    try:
        remove_blocks(graph.model, blocks.found, graph.example_inputs)
    except (PlanError, VerificationError):
        pass
    else:
        return blocks
    kept, left = [], dict(blocks.left)
    for block in blocks.found:
        try:
            remove_blocks(graph.model, (block,), graph.example_inputs)
        except (PlanError, VerificationError) as error:
            left[block.name] = str(error)
        else:
            kept.append(block)
    return replace(blocks, found=tuple(kept), left=left)


def _stand_ins(
    model: nn.Module, blocks: Sequence[Block], example_inputs: Any
) -> dict[str, nn.Module]:
    paths = {name for block in blocks for name in block.modules}
    inside = {
        path: module
        for path, module in model.named_modules()
        if any(f"{path}.".startswith(f"{top}.") for top in paths)
    }
    missing = sorted(paths - inside.keys())
    if missing:
        raise PlanError(f"blocks must be of the model, but it has no module {missing[0]!r}")
    calls = _watched(model, inside, example_inputs)
    return {
        path: stand
        for top in sorted(paths)
        for path, stand in _stands_for(top, inside[top], inside, calls)
    }


def _watched(
    model: nn.Module, modules: Mapping[str, nn.Module], example_inputs: Any
) -> dict[str, _Called]:
    """Run the network once and note how the modules are called."""
    calls: dict[str, _Called] = {}

    def watcher(path: str) -> Any:
        def watch(_: nn.Module, args: Any, kwargs: Any, result: Any) -> None:
            given = [v for v in (*args, *kwargs.values()) if isinstance(v, Tensor)]
            times = calls[path].times if path in calls else 0
            calls[path] = _Called(times + 1, given, result)

        return watch

    handles = [
        module.register_forward_hook(watcher(path), with_kwargs=True)
        for path, module in modules.items()
    ]
    try:
        with plain_operations():  # the fused way calls no module
            _outputs(model, example_inputs, wide=False)
    finally:
        for handle in handles:
            handle.remove()
    return calls


def _stands_for(
    path: str, module: nn.Module, inside: Mapping[str, nn.Module], calls: Mapping[str, _Called]
) -> Iterator[tuple[str, nn.Module]]:
    """Yield what stands for a module, or for the modules in it."""
    called = calls.get(path)
    stand = _stand(module, called) if called is not None and called.times == 1 else None
    if stand is not None:
        yield path, stand
        return
    children = [
        (f"{path}.{name}", child)
        for name, child in module.named_children()
        if next(child.parameters(), None) is not None
    ]
    if not children or next(module.parameters(recurse=False), None) is not None:
        why = "is not called once" if called is None or called.times != 1 else (
            f"gives {_told(called.result)} for {_told(called.given)}"
        )  # fmt: skip
        raise PlanError(f"{path} ({type(module).__name__}) cannot be stood in for: it {why}")
    for name, child in children:
        if name in inside:
            yield from _stands_for(name, child, inside, calls)


def _stand(module: nn.Module, called: _Called) -> nn.Module | None:
    result, items = called.result, 0
    if type(result) is tuple and result:
        result, items = result[0], len(result)
    if not isinstance(result, Tensor) or not called.given:
        return None
    if isinstance(module, _ConvNd):
        return _stand_for_convolution(module) if not isinstance(module, _ConvTransposeNd) else None
    shapes = [tensor.shape for tensor in called.given]
    if result.shape in shapes and not _strides(module):
        return Absent(shapes.index(result.shape), items=items)
    if not list(module.children()) and result.shape[:-1] == shapes[0][:-1]:
        return Absent(width=result.shape[-1], items=items)
    return None


def _strides(module: nn.Module) -> bool:
    """Tell whether something in a module changes resolutions, so that equal shapes may be luck."""
    return any(getattr(part, "stride", 1) not in (1, (1,), (1, 1), (1, 1, 1))
               for part in module.modules())  # fmt: skip


def _stand_for_convolution(module: _ConvNd) -> nn.Module:
    stride, dilation = tuple(module.stride), tuple(module.dilation)
    kernel = tuple(module.kernel_size)
    reach = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    if isinstance(module.padding, str):
        padding = tuple(r // 2 if module.padding == "same" else 0 for r in reach)
        whole = module.padding == "same"
    else:
        padding = tuple(module.padding)
        whole = all(2 * p == r for p, r in zip(padding, reach, strict=True))
    outputs, inputs = module.weight.shape[0], module.weight.shape[1] * module.groups
    if whole and set(stride) == {1} and outputs == inputs:
        return Absent()
    if module.padding == "same":
        kernel, padding = (1,) * len(kernel), (0,) * len(kernel)
    return Absent(window=(outputs, kernel, stride, padding, dilation))


def _put(model: nn.Module, stands: Mapping[str, nn.Module]) -> None:
    """Put modules in the places of others, wherever those are held."""
    found = dict(model.named_modules())
    made = {id(found[path]): stand for path, stand in stands.items()}
    for module in list(model.modules()):
        for name, child in module._modules.items():
            if child is not None and id(child) in made:
                module._modules[name] = made[id(child)].train(child.training)
                if isinstance(module, nn.TransformerEncoderLayer):
                    # Its fused way reads all weights; this is how it is told not to take it.
                    module.activation_relu_or_gelu = 0


def _silenced(model: nn.Module, blocks: Sequence[Block]) -> nn.Module:
    """Return a copy in float64 with the branches' last layers at zero: the reference."""
    copied = copy_model(model, lambda _, tensor: _double(tensor), apart=True)
    parameters = dict(copied.named_parameters())
    with torch.no_grad():
        for block in blocks:
            for name in block.end:
                parameters[name].zero_()
    return copied


def _outputs(model: nn.Module, example_inputs: Any, *, wide: bool = True) -> list[Tensor]:
    inputs = map_tensors(example_inputs, _double if wide else torch.clone)
    modes = [(module, module.training) for module in model.modules()]
    try:
        precise = Precision(torch.float64) if wide else contextlib.nullcontext()
        with torch.no_grad(), precise, Draws(model, 0, {}).watch():
            return tensor_leaves(run_model(model.eval(), inputs))
    finally:
        for module, mode in modes:
            module.training = mode


def _double(tensor: Tensor) -> Tensor:
    return in_precision(tensor, torch.float64)


def _told(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor {tuple(value.shape)}"
    if isinstance(value, list | tuple):
        return f"({', '.join(_told(item) for item in value)})"
    return type(value).__name__
