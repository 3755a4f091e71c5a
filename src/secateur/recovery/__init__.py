"""Get accuracy back without training: statistics, biases, and weights in closed form."""

from secateur.recovery.norms import recalibrate
from secateur.recovery.records import LayerRecord
from secateur.recovery.recover import METHODS, Recovered, recover
from secateur.recovery.scores import reconstruction_scores

__all__ = [
    "METHODS",
    "LayerRecord",
    "Recovered",
    "recalibrate",
    "reconstruction_scores",
    "recover",
]
