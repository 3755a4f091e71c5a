"""Import torchvision where its compiled operators do not fit the installed torch.

Builds of torch and torchvision from different places make ``import torchvision``
fail on two detection operators that no network here uses. Declaring them is
enough. Only tests and benchmarks do this, never the package.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

import torch

# The declarations live as long as the library object does.
_declared: list[torch.library.Library] = []


def import_torchvision() -> ModuleType:
    """Return torchvision, declaring its missing operators first where they are missing."""
    try:
        return importlib.import_module("torchvision")
    except RuntimeError:
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _declared.append(library)
    return importlib.import_module("torchvision")
