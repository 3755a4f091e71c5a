"""From scores and a target to a plan: who goes, and how many."""

from secateur.allocation.choose import (
    NO_LIMITS,
    TARGETS,
    allocate,
    check_options,
    check_target,
    check_targets,
)
from secateur.allocation.limits import Limit, check_limits, check_patterns
from secateur.allocation.order import SCOPES
from secateur.allocation.timed import Measure

__all__ = [
    "NO_LIMITS",
    "SCOPES",
    "TARGETS",
    "Limit",
    "Measure",
    "allocate",
    "check_limits",
    "check_options",
    "check_patterns",
    "check_target",
    "check_targets",
]
