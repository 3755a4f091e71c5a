"""What a relevance pass can be asked for."""

from __future__ import annotations

from dataclasses import dataclass

from secateur.errors import InputError, unknown_name

RULE_NAMES = ("alpha-beta", "epsilon", "gamma", "z-plus")
TARGETS = ("predicted", "label")


@dataclass(frozen=True)
class Settings:
    """The rule of the weighted layers, and the logit to start from.

    Attributes:
        rule: "alpha-beta", "epsilon", "gamma" or "z-plus".
        alpha: share of the positive contributions (alpha-beta).
        beta: share of the negative contributions (alpha-beta); alpha - beta is 1.
        epsilon: added to denominators, away from zero; of every rule.
        gamma: how much more the favoured contributions weigh (gamma).
        target: "predicted" (the largest logit) or "label" (the given class's).
    """

    rule: str = "alpha-beta"
    alpha: float = 2.0
    beta: float = 1.0
    epsilon: float = 1e-6
    gamma: float = 0.25
    target: str = "predicted"

    def __post_init__(self) -> None:
        if self.rule not in RULE_NAMES:
            raise unknown_name("relevance rule", self.rule, RULE_NAMES)
        if self.target not in TARGETS:
            raise unknown_name("relevance target", self.target, TARGETS)
        if not (self.alpha >= 0 and self.beta >= 0 and abs(self.alpha - self.beta - 1) < 1e-12):
            raise InputError(
                "alpha and beta must not be negative and alpha - beta must be 1, "
                f"but they are {self.alpha} and {self.beta}"
            )
        if not 0 < self.epsilon < float("inf"):
            raise InputError(f"epsilon must be positive and finite, but is {self.epsilon}")
        if not 0 <= self.gamma < float("inf"):
            raise InputError(f"gamma must be finite and at least 0, but is {self.gamma}")
