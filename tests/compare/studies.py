"""Studies so small that all their trials take a second or two."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from small_runs import write_net

from secateur.compare import CompareConfig


def asked(folder: Path, **over: Any) -> dict[str, Any]:
    """Return settings of a study on a few digits; ``over`` replaces keys."""
    return {
        "model": write_net(folder),
        "data": {"source": "digits", "limit": 100, "batch_size": 50, "calibration": 20},
        "criteria": ["l1", "taylor"],
        "sparsities": [0.25, 0.5],
        "choose": {"within": 0.5},
        "output": str(folder / "study"),
        **over,
    }


def study(folder: Path, **over: Any) -> CompareConfig:
    return CompareConfig.model_validate(asked(folder, **over))
