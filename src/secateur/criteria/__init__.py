"""Rules that judge: one score a unit, higher means keep."""

from secateur.criteria import activations, gradients, relevance, scaling, weights
from secateur.criteria.base import CRITERIA, Context, Criterion, Scores, criterion, score
from secateur.criteria.elements import element_scores
from secateur.criteria.orders import delta, interleave, weighted

__all__ = [
    "CRITERIA",
    "Context",
    "Criterion",
    "Scores",
    "criterion",
    "delta",
    "element_scores",
    "interleave",
    "score",
    "weighted",
]

_FAMILIES = (activations, gradients, relevance, scaling, weights)
