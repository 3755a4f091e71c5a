"""Optuna's messages on its own progress, which would stand between Secateur's bars."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from secateur.graph.process_settings import SharedSetting


@contextlib.contextmanager
def _warnings_alone() -> Iterator[None]:
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)


quiet_optuna = SharedSetting(_warnings_alone)
"""Lets Optuna warn and say no more."""
