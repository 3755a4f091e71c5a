"""Run a network up to a layer, and catch what goes in and out there."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from secateur.calibration import Batches, pair_of
from secateur.graph.dispatch import DispatchMode
from secateur.graph.modules import Turns
from secateur.graph.normal_mode import in_normal_mode
from secateur.recovery.lockstep import Arguments, Stopped
from secateur.recovery.sites import Site, Skip


@dataclass
class Caught:
    """A layer's input and output, and what is added to the output later."""

    x: Tensor | None = None
    y: Tensor | None = None
    skip: Tensor | None = None


class _Watch(DispatchMode):
    """Catches an operand of one operation, and ends the pass there."""

    def __init__(self, skip: Skip, turns: Turns, caught: Caught) -> None:
        super().__init__()
        self._address = (skip.op, skip.module, skip.turn)
        self._arg = skip.arg
        self._turns = turns
        self._caught = caught

    @in_normal_mode
    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if self._turns.take(str(func.overloadpacket)) == self._address:
            self._caught.skip = args[self._arg]
            raise Stopped
        return func(*args, **(kwargs or {}))


def catch(model: nn.Module, arguments: Arguments, site: Site, *, output: bool) -> Caught:
    """Run the module around ``site`` until all that is wanted there is known.

    Args:
        model: in eval mode.
        arguments: what the module ``site.scope`` is called with.
        site: where.
        output: catch the layer's output; else its input.
    """
    caught = Caught()

    def before(module: nn.Module, args: tuple[Any, ...]) -> None:
        if not output:
            caught.x = args[0] if site.skip is None else args[0].clone()
            if site.skip is None:
                raise Stopped

    def after(module: nn.Module, args: Any, result: Tensor) -> None:
        if output:
            caught.y = result if site.skip is None else result.clone()
            if site.skip is None:
                raise Stopped

    module = model.get_submodule(site.name)
    around = model.get_submodule(site.scope)
    handles = [module.register_forward_pre_hook(before), module.register_forward_hook(after)]
    try:
        with torch.no_grad(), contextlib.ExitStack() as stack:
            if site.skip is not None:
                turns = Turns(around)
                stack.enter_context(turns.follow())
                stack.enter_context(_Watch(site.skip, turns, caught))
            around(*arguments[0], **arguments[1])
    except Stopped:
        pass
    finally:
        for handle in handles:
            handle.remove()
    return caught


def inputs_of(calibration: Batches) -> Iterator[Any]:
    """Yield the inputs of every (inputs, labels) batch.

    Raises:
        InputError: a batch is of another form.
    """
    return (pair_of(batch)[0] for batch in calibration)
