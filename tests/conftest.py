"""What all tests share: one thread, so that workers side by side do not slow each other."""

from __future__ import annotations

import torch

torch.set_num_threads(1)
