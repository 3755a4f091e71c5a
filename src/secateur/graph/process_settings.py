"""Settings of the whole process, held by any number of threads and calls at once."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode


class SharedSetting:
    """A context manager over a process-wide setting: the first to enter sets it, the last restores.

    Contexts of two threads that each save and restore by themselves overlap: the first to end
    takes the setting from the other, and the second leaves it behind for good.
    """

    def __init__(self, setting: Callable[[], AbstractContextManager[object]]) -> None:
        self._setting = setting
        self._lock = threading.Lock()
        self._holders = 0
        self._held = contextlib.ExitStack()

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        """Hold the setting."""
        with self._lock:
            if not self._holders:
                self._held.enter_context(self._setting())
            self._holders += 1
        try:
            yield
        finally:
            with self._lock:
                self._holders -= 1
                if not self._holders:
                    self._held.close()


@contextlib.contextmanager
def _math_attention() -> Iterator[None]:
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


@contextlib.contextmanager
def _without_onednn() -> Iterator[None]:
    used = torch._C._get_mkldnn_enabled()
    torch._C._set_mkldnn_enabled(False)
    try:
        yield
    finally:
        torch._C._set_mkldnn_enabled(used)


_plain_attention, _plain_recurrence = SharedSetting(_math_attention), SharedSetting(_without_onednn)


class _PlainOperations(TorchFunctionMode):
    """Runs an LSTM without oneDNN, which computes a whole layer as one operation.

    Overrides the kernel that the network's own code chooses for an attention.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        if name == "lstm":
            with _plain_recurrence():
                return func(*args, **(kwargs or {}))
        if name in _ATTENTIONS:
            with _one_at_a_time, sdpa_kernel(SDPBackend.MATH):
                return func(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


_ATTENTIONS = frozenset({"scaled_dot_product_attention", "multi_head_attention_forward"})
# What the code of another thread chose would be put back in the middle of this one's attention.
_one_at_a_time = threading.RLock()


@contextlib.contextmanager
def plain_operations() -> Iterator[None]:
    """Switch fused attention and recurrence off, so that their parts are plain operations."""
    with _plain_attention(), _PlainOperations():
        yield
