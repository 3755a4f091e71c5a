"""What refers to objects, found in one reading of all objects of the process."""

from __future__ import annotations

import gc
from collections import defaultdict
from collections.abc import Sequence
from typing import Any


def owners_of(kept: Sequence[Any]) -> dict[int, list[Any]]:
    """Return what refers to each of some objects, by its id; ``kept`` itself does not count."""
    found: dict[int, list[Any]] = defaultdict(list)
    wanted = {id(one) for one in kept}
    for owner in gc.get_referrers(*kept) if kept else ():
        if owner is kept:
            continue
        for referent in {id(one) for one in gc.get_referents(owner)} & wanted:
            found[referent].append(owner)
    return found
