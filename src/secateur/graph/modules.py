"""Which module of a network is running, and which of its operations."""

from __future__ import annotations

import contextlib
import threading
from collections import defaultdict
from collections.abc import Iterator
from typing import Any, TypeAlias

from torch import nn
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)

from secateur.graph.module_tree import modules_of
from secateur.graph.program import family

Address: TypeAlias = tuple[str, str, int]
"""Where an operation stands: family, path of the module that runs it, and turn."""


class Running:
    """The path of the module whose forward runs, kept up to date inside :meth:`follow`."""

    def __init__(self, model: nn.Module) -> None:
        self._names = {id(module): name for name, module in modules_of(model)}
        self._stack: list[str] = []

    @property
    def path(self) -> str:
        """The module's path; "" for the network itself."""
        return self._stack[-1] if self._stack else ""

    @contextlib.contextmanager
    def follow(self) -> Iterator[None]:
        """Watch the modules that this thread runs; one that is not the network's is its caller's.

        PyTorch calls such hooks for the modules of all threads.
        """
        here = threading.get_ident()

        def enter(module: nn.Module, _: Any) -> None:
            if threading.get_ident() == here:
                self._stack.append(self._names.get(id(module), self.path))

        def leave(module: nn.Module, _: Any, __: Any) -> None:
            # The one that was running when the watch began was not entered.
            if threading.get_ident() == here and self._stack:
                self._stack.pop()

        before = register_module_forward_pre_hook(enter)
        after = register_module_forward_hook(leave, always_call=True)
        try:
            yield
        finally:
            before.remove()
            after.remove()


class Turns(Running):
    """Says where each operation stands, so that it is found when the network runs again.

    An operation is told by its family, the module that runs it and its turn: how many of
    the family that module ran before in the same pass. So it is found again where data decide
    what runs in other modules, as in a mixture of experts.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self._next: dict[tuple[str, str], int] = defaultdict(int)

    def take(self, op: str) -> Address:
        """Return the address of the operation ``op`` that runs now, and count it."""
        here = family(op), self.path
        turn = self._next[here]
        self._next[here] = turn + 1
        return (*here, turn)

    def restart(self) -> None:
        """Begin another pass."""
        self._next.clear()


def where_is(op: str, module: str) -> str:
    """Say which operation this is, for a person."""
    return f"{op} in {module or 'the model'}"
