"""What a pass costs beside its time: memory at its peak, and MACs by PyTorch's own count."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from secateur.calibration import device_of
from secateur.graph.dispatch import DispatchMode
from secateur.graph.normal_mode import in_normal_mode
from secateur.graph.process_settings import plain_operations
from secateur.graph.program import tensor_leaves
from secateur.graph.tracing import run_model
from secateur.measure import evaluating


def peak_memory(model: nn.Module, inputs: Any) -> int:
    """Return the most bytes that the tensors of one inference hold at a time.

    Activations and results, not the weights and inputs, which are there before. On a GPU it is
    the allocator's own count; on the CPU the tensors that operations return are counted while
    they live, without what kernels hold inside.

    Args:
        model: any network; its modes are put back.
        inputs: a tensor, a tuple of arguments or a dict of keyword arguments, where the model is.
    """
    device = device_of(model)
    with evaluating(model):
        if device.type == "cuda":
            before = torch.cuda.memory_allocated(device)
            torch.cuda.reset_peak_memory_stats(device)
            run_model(model, inputs)
            return torch.cuda.max_memory_allocated(device) - before
        known = [*model.parameters(), *model.buffers(), *tensor_leaves(inputs)]
        watch = _Living(known)
        with watch:
            run_model(model, inputs)
    return watch.peak


def counted_macs(model: nn.Module, inputs: Any) -> int:
    """Return the multiply-accumulates of one pass as ``torch.utils.flop_counter`` counts them.

    Half its operations; for the whole batch of ``inputs``. It knows matrix products, convolutions
    and attention, as Secateur's own count does.
    """
    counter = FlopCounterMode(display=False)
    with evaluating(model), plain_operations(), counter:
        run_model(model, inputs)
    return int(counter.get_total_flops()) // 2


class _Living(DispatchMode):
    """Adds up the bytes of the storages that operations return, as long as they live."""

    def __init__(self, known: list[Tensor]) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._seen = {tensor.untyped_storage()._cdata for tensor in known}

    @in_normal_mode
    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tensor_leaves(result):
            storage = tensor.untyped_storage()
            key = storage._cdata
            if key not in self._seen:
                self._seen.add(key)
                size = storage.nbytes()
                self.now += size
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._gone, key, size)
        return result

    def _gone(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.now -= size
