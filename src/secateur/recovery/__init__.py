"""Get accuracy back without training: statistics, biases, and weights in closed form."""

from secateur.recovery.norms import recalibrate
from secateur.recovery.records import LayerRecord
from secateur.recovery.recover import METHODS, Recovered, recover

__all__ = ["METHODS", "LayerRecord", "Recovered", "recalibrate", "recover"]
