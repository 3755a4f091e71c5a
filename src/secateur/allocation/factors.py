"""Channels that are products of units: the groups of a group norm, and the channels within them.

To cut the same share of both would leave the square of it: at half, a quarter of the channels and
a sixteenth of the weights. So one of them is cut unless the other is asked for by its name: the one
with more units, which chooses more finely; of two alike the norm's groups, since what is left of a
norm whose groups go whole computes what it did.
"""

from __future__ import annotations

from collections.abc import Container

import numpy as np

from secateur.graph import Graph

# Heads and their dimensions are a product, too, but one that people ask to be cut in both.
_HEADS = ("head", "kv_head", "head_dim")


def spared_factors(graph: Graph, judged: Container[str], named: Container[str]) -> list[str]:
    """Return the groups that stay whole since a group that they multiply with is cut.

    Args:
        graph: of the network.
        judged: groups that may be cut.
        named: groups that are asked for by name.
    """
    names = np.array(["", *(g.name for g in graph.groups for _ in range(g.size))], dtype=object)
    cut: dict[str, None] = {}
    spared: dict[str, None] = {}
    for axis in graph.layout.group_norms:
        products = dict.fromkeys(map(tuple, names[graph.layout.axes[axis]].tolist()))
        for product in products:
            factors = [name for name in dict.fromkeys(product) if name in judged]
            if len(factors) < 2 or any(graph.by_name[f].kind in _HEADS for f in factors):
                continue
            free = [name for name in factors if name not in spared] or factors
            most = max(free, key=lambda name: (name in cut, graph.by_name[name].size))
            cut[most] = None
            spared |= dict.fromkeys(
                name for name in factors if name not in cut and name not in named
            )
    return list(spared)


def note_of(spared: list[str]) -> str:
    """Say which groups stay whole, and how they are asked for."""
    shown = ", ".join(spared[:3])
    more = f" and {len(spared) - 3} more" if len(spared) > 3 else ""
    return (
        f"of the groups of a group norm and the channels within them one is cut: {shown}{more} "
        f"stay whole; limits={{{spared[0]!r}: 1.0}} cuts both"
    )
