"""The base of all modes that see the operations of a pass."""

from __future__ import annotations

import functools
import sys
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode


class DispatchMode(TorchDispatchMode):
    """A dispatch mode that leaves PyTorch's compiler alone where nobody has imported it.

    PyTorch shields every mode from its compiler, and imports that for the purpose with the first
    operation: half a second and more. A process without the compiler needs no shield.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Shield ``__torch_dispatch__`` once the compiler is there."""
        plain = cls.__dict__.get("__torch_dispatch__")
        super().__init_subclass__(**kwargs)
        if plain is None:
            return
        shielded = cls.__dict__["__torch_dispatch__"]

        @functools.wraps(plain)
        def dispatch(self: Any, *args: Any, **kwargs: Any) -> Any:
            chosen = shielded if "torch._dynamo" in sys.modules else plain
            return chosen(self, *args, **kwargs)

        setattr(cls, "__torch_dispatch__", dispatch)  # noqa: B010 - mypy takes it for a method
