"""Forward passes over all batches that wait for each other at chosen modules.

While all passes wait before a module, what it is about to be given is known for every
batch, and the module can be run by itself and changed; then all go on. So a network is
recovered from front to back in one pass. The passes are threads of which only one runs
at a time. Where so many waiting passes would take too much memory, each stop is reached
anew from the model's inputs instead: slower, and the same numbers.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from secateur.calibration import device_of, to_device
from secateur.graph.tracing import run_model

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


class Stopped(BaseException):
    """Ends a forward pass early; no handler of the model's own may stop it."""


def entries(
    model: nn.Module, batches: Sequence[Any], stops: Sequence[str], *, waiting: bool
) -> Generator[Callable[[], Iterator[Arguments]]]:
    """Yield, for every stop in turn, a function that gives what its module is called with.

    The module may be run and changed between two stops.

    Args:
        model: in eval mode.
        batches: the inputs of every batch, on any device.
        stops: paths of modules, in forward order; "" is the model itself.
        waiting: hold all passes in memory.
    """
    if not waiting:
        for stop in stops:
            yield lambda stop=stop: _reached(model, batches, stop)  # type: ignore[misc]
        return
    passes: list[_Pass] = []
    handles = []
    try:
        passes += (_Pass(model, inputs) for inputs in batches)
        for stop in stops:
            waits = _hook(stop)
            handle = model.get_submodule(stop).register_forward_pre_hook(waits, with_kwargs=True)
            handles.append(handle)
        for stop in stops:
            for each in passes:
                each.go_on(stop)
            yield lambda: (each.arguments for each in passes if each.arguments is not None)
    finally:
        for each in passes:
            each.end()
        for handle in handles:
            handle.remove()


def _reached(model: nn.Module, batches: Sequence[Any], stop: str) -> Iterator[Arguments]:
    """Run every batch up to the stop."""
    found: list[Arguments] = []

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found.append((args, kwargs))
        raise Stopped

    for inputs in batches:
        handle = model.get_submodule(stop).register_forward_pre_hook(before, with_kwargs=True)
        try:
            with torch.no_grad():
                run_model(model, to_device(inputs, device_of(model)))
        except Stopped:
            pass
        finally:
            handle.remove()
        if found:
            yield found.pop()


_here = threading.local()


def _hook(stop: str) -> Callable[..., None]:
    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        running: _Pass | None = getattr(_here, "running", None)
        if running is not None:
            running.wait(stop, (args, kwargs))

    return before


class _Pass:
    """One forward pass in a thread of its own; it runs only while :meth:`go_on` waits."""

    def __init__(self, model: nn.Module, inputs: Any) -> None:
        self.arguments: Arguments | None = None
        self._target: str | None = None
        self._error: BaseException | None = None
        self._may_run, self._waits = threading.Semaphore(0), threading.Semaphore(0)
        self._thread = threading.Thread(target=self._run, args=(model, inputs), daemon=True)
        self._thread.start()

    def _run(self, model: nn.Module, inputs: Any) -> None:
        _here.running = self
        self._may_run.acquire()
        try:
            if self._target is not None:
                with torch.no_grad():
                    run_model(model, to_device(inputs, device_of(model)))
        except Stopped:
            pass
        except BaseException as error:  # noqa: BLE001 - go_on raises it in the caller's thread
            self._error = error
        finally:
            self.arguments = None
            self._waits.release()

    def wait(self, stop: str, arguments: Arguments) -> None:
        """Stop here if this is the place; called in the pass's own thread."""
        if stop != self._target:
            return
        self.arguments = arguments
        self._waits.release()
        self._may_run.acquire()
        self.arguments = None
        if self._target is None:
            raise Stopped

    def go_on(self, stop: str) -> None:
        """Run until ``stop``, or to the end where it is never reached."""
        self._target = stop
        if self._thread.is_alive():
            self._may_run.release()
            self._waits.acquire()
        if self._error is not None:
            raise self._error

    def end(self) -> None:
        """Stop the pass where it is."""
        self._target = None
        self._may_run.release()
        self._thread.join()
