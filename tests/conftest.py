"""What all tests share: one thread each, and a process left as it was found."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch.utils._python_dispatch import _get_current_dispatch_mode, _pop_mode

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def no_dispatch_mode_is_left_behind() -> Iterator[None]:
    """A mode that stays would change, in silence, what every later test computes."""
    yield
    left = _get_current_dispatch_mode()
    if left is not None:
        _pop_mode()
    assert left is None
