"""Rules that judge: one score a unit, higher means keep."""

from secateur.criteria import gradients, scaling, weights
from secateur.criteria.base import CRITERIA, Context, Criterion, Scores, criterion, score

__all__ = ["CRITERIA", "Context", "Criterion", "Scores", "criterion", "score"]

_FAMILIES = (gradients, scaling, weights)
