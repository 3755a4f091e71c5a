"""Which module of a network is running."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import nn
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)


class Running:
    """The path of the module whose forward runs, kept up to date inside :meth:`follow`."""

    def __init__(self, model: nn.Module) -> None:
        self._names = {id(module): name for name, module in model.named_modules()}
        self._stack: list[str] = []

    @property
    def path(self) -> str:
        """The module's path; "" for the network itself."""
        return self._stack[-1] if self._stack else ""

    @contextlib.contextmanager
    def follow(self) -> Iterator[None]:
        """Watch every module's forward; one that is not the network's own counts as its caller."""

        def enter(module: nn.Module, _: Any) -> None:
            self._stack.append(self._names.get(id(module), self.path))

        def leave(module: nn.Module, _: Any, __: Any) -> None:
            if self._stack:  # the one that was running when the watch began was not entered
                self._stack.pop()

        before = register_module_forward_pre_hook(enter)
        after = register_module_forward_hook(leave, always_call=True)
        try:
            yield
        finally:
            before.remove()
            after.remove()
