"""The parts that one training loop is made of: settings, rates, losses, frozen zeros."""

from secateur.training.frozen import Frozen, Masks, StepHook
from secateur.training.losses import training_loss
from secateur.training.rates import flat_epochs, learning_rate
from secateur.training.settings import TrainSettings

__all__ = [
    "Frozen",
    "Masks",
    "StepHook",
    "TrainSettings",
    "flat_epochs",
    "learning_rate",
    "training_loss",
]
