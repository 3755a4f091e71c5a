"""Steps that make numbers exactly zero.

Symbols: factors l, momentum mu, learning rate eta, strength gamma of the L1 penalty.
"""

from __future__ import annotations

import torch
from torch import Tensor


def soft_threshold(values: Tensor, threshold: float) -> Tensor:
    """Return sign(v) max(|v| - threshold, 0): the proximal step of the L1 norm."""
    return values.sign() * (values.abs() - threshold).clamp_min(0)


def accelerated_step(
    ahead: Tensor,
    velocity: Tensor,
    gradient: Tensor,
    *,
    lr: float,
    strength: float,
    momentum: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """One accelerated proximal gradient step, in the form that evaluates once per batch.

    Huang & Wang 2018, "Data-driven sparse structure selection for deep neural networks",
    section 3.2: with l' = l + mu v the point where the network runs,

        z = l' - eta grad(l');  s = S(z, eta gamma);  v <- s - l' + mu v;  l' <- s + mu v

    Args:
        ahead: l', the factors that the network runs with.
        velocity: v.
        gradient: of the loss at ``ahead``.
        lr: eta.
        strength: gamma.
        momentum: mu.

    Returns:
        The new l', v, and the factors s themselves, in which zeros are exact.
    """
    factors = soft_threshold(ahead - lr * gradient, lr * strength)
    velocity = factors - ahead + momentum * velocity
    return factors + momentum * velocity, velocity, factors


def shrink_(weight: Tensor, threshold: float) -> None:
    """Soft-threshold a weight in place."""
    with torch.no_grad():
        weight.copy_(soft_threshold(weight, threshold))
