"""Where tensors are."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def moved(value: Any, device: torch.device) -> Any:
    """Put every tensor in nested containers on ``device``."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {key: moved(item, device) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return tuple(moved(item, device) for item in value)
    return value


def device_of(model: nn.Module) -> torch.device:
    """Return where the network's parameters are."""
    return next((p.device for p in model.parameters()), torch.device("cpu"))
