"""The share of the parameters that lie on groups, and why the rest does not."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from secateur.graph.groups import Analysis, Pinned

ENOUGH = 0.95
"""The share below which a trace says why so much stays."""

_MOST = 3
# Both sides of the network are pinned anyway; what else pins a weight says more.
_OUTSIDE = ("the model's input", "the model's output")
_UNTOLD = "its positions can only go all together"


@dataclass(frozen=True)
class Reason:
    """Why ``params`` parameters are on no group; ``places`` are the modules it was found in."""

    text: str
    params: int
    places: tuple[str, ...]


@dataclass(frozen=True)
class Reach:
    """Parameters in all and on no group, and the reasons, the gravest first."""

    params: int
    stuck: int
    reasons: tuple[Reason, ...]

    @property
    def share(self) -> float:
        """The share of the parameters that lie on a group; 1 where there are none."""
        return 1 - self.stuck / self.params if self.params else 1.0

    def notes(self) -> tuple[str, ...]:
        """Say how much stays and why, where it is much."""
        if self.share >= ENOUGH:
            return ()
        shown = "; ".join(
            f"{reason.params / self.params:.1%}: {reason.text}{_at(reason.places)}"
            for reason in self.reasons[:_MOST]
        )
        rest = len(self.reasons) - _MOST
        more = f"; and {rest} more reasons" if rest > 0 else ""
        return (
            f"{self.stuck / self.params:.1%} of the parameters lie on no group and stay "
            f"({shown}{more})",
        )


def reach(found: Analysis) -> Reach:
    """Count the parameters with no coordinate on a unit, by what pins them."""
    layout = found.layout
    pins: dict[str, list[Pinned]] = defaultdict(list)
    for pin in found.pinned:
        pins[pin.name].append(pin)
    sizes = [len(axis) for axis in layout.axes]
    stays = [len(axis) - int(np.count_nonzero(axis.any(axis=1))) for axis in layout.axes]
    params = stuck = 0
    counts: dict[str, int] = defaultdict(int)
    places: dict[str, dict[str, None]] = defaultdict(dict)
    for name, axes in layout.parameters.items():
        params += math.prod(sizes[axis] for axis in axes)
        left = math.prod(stays[axis] for axis in axes)
        if not left:
            continue
        stuck += left
        text, place = _cause(pins[name])
        counts[text] += left
        places[text][place] = None
    gravest = sorted(counts, key=lambda text: -counts[text])
    reasons = (Reason(text, counts[text], tuple(filter(None, places[text]))) for text in gravest)
    return Reach(params, stuck, tuple(reasons))


def _cause(pins: Sequence[Pinned]) -> tuple[str, str]:
    """Return the reason that pins a parameter, without its place, and the place."""
    inner = [pin for pin in pins if pin.reason not in _OUTSIDE] or list(pins)
    if not inner:
        return _UNTOLD, ""
    reason = max(inner, key=lambda pin: pin.count).reason
    found = re.fullmatch(r"(\S+|a comparison) in (the model|\S+?)(: .*)?", reason)
    if found is None:
        return reason, ""
    return f"{found[1]}{found[3] or ': its sides do not fit together'}", found[2]


def _at(places: Sequence[str]) -> str:
    if not places:
        return ""
    more = f" and {len(places) - 1} more" if len(places) > 1 else ""
    return f", in {places[0]}{more}"
