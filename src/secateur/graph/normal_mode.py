"""Autograd's normal mode, whatever the caller or the network's code chose.

Inside ``torch.inference_mode`` PyTorch hands composite operations (``linear``, ``conv2d``) to a
dispatch mode as a whole, and a tensor made there can never be trained.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


@contextlib.contextmanager
def normal_mode() -> Iterator[None]:
    """Run a block outside of inference mode, without gradients; also a decorator.

    Outside of inference mode it changes nothing.
    """
    if not torch.is_inference_mode_enabled():
        yield
        return
    with torch.inference_mode(False), torch.no_grad():
        yield


def normal_tensor(tensor: Tensor) -> Tensor:
    """Return a tensor that autograd may keep: a copy of one that inference mode made."""
    return tensor.clone() if tensor.is_inference() else tensor


def in_normal_mode(dispatch: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate ``__torch_dispatch__``: the network's own inference mode does not hide its parts."""

    @functools.wraps(dispatch)
    def dispatched(
        self: TorchDispatchMode, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if not torch.is_inference_mode_enabled():
            return dispatch(self, func, types, args, kwargs)
        with normal_mode(), self:
            return func(*args, **(kwargs or {}))

    return dispatched
