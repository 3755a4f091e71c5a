"""Secateur: make trained PyTorch networks smaller and faster by pruning, and prove it."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from secateur.allocation import allocate
    from secateur.checkpoint import load, save
    from secateur.criteria import Criterion, element_scores, score
    from secateur.cutting import cut
    from secateur.errors import SecateurError
    from secateur.graph import Graph, Group, trace
    from secateur.huggingface import Saved, save_pretrained
    from secateur.masking import mask
    from secateur.plan import Plan
    from secateur.pruning import Pruned, prune
    from secateur.recovery import Recovered, recover
    from secateur.verification import Check, verify
    from secateur.weight_masks import Sparse, apply_masks, find_masks, sparsify

__all__ = [
    "Check",
    "Criterion",
    "Graph",
    "Group",
    "Plan",
    "Pruned",
    "Recovered",
    "Saved",
    "SecateurError",
    "Sparse",
    "allocate",
    "apply_masks",
    "cut",
    "element_scores",
    "find_masks",
    "load",
    "mask",
    "prune",
    "recover",
    "save",
    "save_pretrained",
    "score",
    "sparsify",
    "trace",
    "verify",
]

# A room never has the name of a public function: importing it would hide the function.
_HOMES = {
    "allocate": "allocation",
    "cut": "cutting",
    "mask": "masking",
    "verify": "verification",
    "Check": "verification",
    "Criterion": "criteria",
    "Graph": "graph",
    "Group": "graph",
    "Plan": "plan",
    "Pruned": "pruning",
    "Recovered": "recovery",
    "Saved": "huggingface",
    "SecateurError": "errors",
    "Sparse": "weight_masks",
    "apply_masks": "weight_masks",
    "element_scores": "criteria",
    "find_masks": "weight_masks",
    "load": "checkpoint",
    "prune": "pruning",
    "recover": "recovery",
    "save": "checkpoint",
    "save_pretrained": "huggingface",
    "score": "criteria",
    "sparsify": "weight_masks",
    "trace": "graph",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that reports need no torch."""
    if name not in __all__:
        raise AttributeError(f"module 'secateur' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"secateur.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
