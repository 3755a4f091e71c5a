"""Prune and finetune in turns: in rounds, gradually, layer by layer; weights or structures."""

from secateur.rounds.judging import RECONSTRUCTION, judge
from secateur.rounds.rewinding import keep_weights, read_weights
from secateur.rounds.state import Round, all_epochs
from secateur.rounds.structures import PrunedInRounds, structure_rounds
from secateur.rounds.weights import MaskRule, gradual, next_masks, weight_rounds

__all__ = [
    "RECONSTRUCTION",
    "MaskRule",
    "PrunedInRounds",
    "Round",
    "all_epochs",
    "gradual",
    "judge",
    "keep_weights",
    "next_masks",
    "read_weights",
    "structure_rounds",
    "weight_rounds",
]
