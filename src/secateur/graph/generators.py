"""Random number generators that a network's code may draw from: PyTorch's, NumPy's, Python's."""

from __future__ import annotations

import contextlib
import random
import threading
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor


@contextlib.contextmanager
def seeded_generators(seed: int) -> Iterator[None]:
    """Run a block with the global generators at ``seed``, and put their states back after it.

    The generators are those of the process, so one thread at a time runs such a block.
    """
    with ONE_AT_A_TIME, _states_put_back():
        random.seed(seed)
        np.random.seed(seed)
        seed_torch(seed)
        yield


@contextlib.contextmanager
def _states_put_back() -> Iterator[None]:
    python, numpy = random.getstate(), np.random.get_state()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


ONE_AT_A_TIME = threading.RLock()
"""Held while the generators of the process are at a state of ours."""


def seed_torch(seed: int) -> None:
    """Seed the generators of the processor and of every CUDA device that is in use."""
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)


def torch_states() -> list[Tensor]:
    """Return the states of the generators that :func:`seed_torch` seeds."""
    states = [torch.default_generator.get_state()]
    return states + (torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [])
