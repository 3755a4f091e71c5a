"""How to train: the settings, their defaults and their rules."""

from __future__ import annotations

import math
from dataclasses import dataclass

from secateur.errors import InputError

OPTIMIZERS = ("adam", "adamw", "sgd")
SCHEDULES = ("constant", "cosine", "step", "plateau")
PRECISIONS = ("no", "fp16", "bf16")
BEST_BY = ("accuracy", "loss")


@dataclass(frozen=True)
class TrainSettings:
    """How to train. The batch size belongs to the loader.

    Attributes:
        epochs: passes over the training data; 0 trains nothing.
        lr: learning rate at the start, or after the warm-up.
        optimizer: adam, adamw (decoupled weight decay) or sgd.
        momentum: of sgd; Adam has its own.
        nesterov: Nesterov's momentum, of sgd.
        weight_decay: L2 penalty (adam, sgd) or decay (adamw).
        schedule: constant; cosine (from ``lr`` to ``lr_min``, step by step); step (times
            ``lr_factor`` every ``lr_every`` epochs); plateau (times ``lr_factor`` after
            ``lr_every`` epochs without a lower validation loss).
        warmup: epochs, or a part of one, in which the rate first grows in a straight line
            from ``lr_min`` to ``lr``; the cosine has the epochs after them.
        lr_factor: what step and plateau multiply by.
        lr_every: epochs between drops (step) or flat epochs before one (plateau).
        lr_min: the rate never falls below it.
        patience: stop after that many epochs without a lower validation loss; None never.
        min_delta: how much lower a validation loss must be to count as lower, for
            ``patience`` and plateau.
        best_by: the best epoch has the highest validation "accuracy" (then the lowest
            loss), or the lowest validation "loss".
        label_smoothing: share of each label spread over all classes, in training only.
        distill_weight: share of the loss that the teacher's answers have instead of the
            labels; 0 for no teacher.
        distill_temperature: what both networks' logits are divided by for that.
        accumulate: batches that make one optimiser step together.
        clip: largest norm of all gradients together; None for any.
        mixed_precision: "no", "fp16" (GPU only) or "bf16".
        seed: of dropout and of what the loader draws.

    Raises:
        InputError: a value breaks its rule; all that do are named.
    """

    epochs: int = 1
    lr: float = 1e-3
    optimizer: str = "adam"
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 0.0
    schedule: str = "cosine"
    warmup: float = 0.0
    lr_factor: float = 0.1
    lr_every: int = 1
    lr_min: float = 0.0
    patience: int | None = None
    min_delta: float = 0.0
    best_by: str = "accuracy"
    label_smoothing: float = 0.0
    distill_weight: float = 0.0
    distill_temperature: float = 4.0
    accumulate: int = 1
    clip: float | None = None
    mixed_precision: str = "no"
    seed: int = 0

    def __post_init__(self) -> None:
        warmup_at_most = max(self.epochs, 0)
        rules = {
            "epochs must be at least 0": self.epochs >= 0,
            "lr must be above 0": 0 < self.lr < math.inf,
            f"optimizer must be one of {', '.join(OPTIMIZERS)}": self.optimizer in OPTIMIZERS,
            "momentum must be in [0, 1)": 0 <= self.momentum < 1,
            "nesterov must be false without sgd and a momentum": not self.nesterov
            or (self.optimizer == "sgd" and self.momentum > 0),
            "weight_decay must be at least 0": 0 <= self.weight_decay < math.inf,
            f"schedule must be one of {', '.join(SCHEDULES)}": self.schedule in SCHEDULES,
            f"warmup must be in [0, {warmup_at_most}] epochs": 0 <= self.warmup <= warmup_at_most,
            "lr_factor must be in (0, 1]": 0 < self.lr_factor <= 1,
            "lr_every must be at least 1": self.lr_every >= 1,
            "lr_min must be in [0, lr]": 0 <= self.lr_min <= self.lr,
            "patience must be at least 1 or null": self.patience is None or self.patience >= 1,
            "min_delta must be at least 0": 0 <= self.min_delta < math.inf,
            f"best_by must be one of {', '.join(BEST_BY)}": self.best_by in BEST_BY,
            "label_smoothing must be in [0, 1)": 0 <= self.label_smoothing < 1,
            "distill_weight must be in [0, 1]": 0 <= self.distill_weight <= 1,
            "distill_temperature must be above 0": 0 < self.distill_temperature < math.inf,
            "accumulate must be at least 1": self.accumulate >= 1,
            "clip must be above 0 or null": self.clip is None or self.clip > 0,
            f"mixed_precision must be one of {', '.join(PRECISIONS)}": self.mixed_precision
            in PRECISIONS,
        }
        broken = [
            f"{rule}, but got {getattr(self, rule.split()[0])!r}"
            for rule, kept in rules.items()
            if not kept
        ]
        if broken:
            raise InputError("; ".join(broken))
