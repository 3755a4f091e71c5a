"""What recovery did, layer by layer."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LayerRecord:
    """What recovery did to one layer.

    ``before`` and ``after`` are the squared error against the dense network's output on
    the calibration data, as a share of that output's variance.
    """

    name: str
    before: float
    after: float
    changed: bool
