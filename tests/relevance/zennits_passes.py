"""Zennit's relevance, layer by layer, by hooks of its own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from zoo.torchvision_shim import import_torchvision

import_torchvision()  # zennit imports it

from zennit.attribution import Gradient  # noqa: E402
from zennit.canonizers import CompositeCanonizer, SequentialMergeBatchNorm  # noqa: E402
from zennit.composites import LayerMapComposite  # noqa: E402
from zennit.layer import Sum  # noqa: E402
from zennit.rules import AlphaBeta, Epsilon, Gamma, Norm, Pass, ZPlus  # noqa: E402
from zennit.types import Activation, AvgPool, BatchNorm, Convolution, Linear  # noqa: E402

ZENNIT_RULES = {
    "alpha-beta": lambda: AlphaBeta(2, 1),
    "epsilon": lambda: Epsilon(1e-6),
    "gamma": lambda: Gamma(0.25),
    "z-plus": lambda: ZPlus(),
}
WEIGHTED = (nn.modules.conv._ConvNd, nn.Linear)


class _ExactMerge(SequentialMergeBatchNorm):
    """Zennit's merge, whose identity norm divides by sqrt(1 + eps) once more; here by 1."""

    def register(self, linears: Any, batch_norm: Any) -> None:
        super().register(linears, batch_norm)
        self.eps, batch_norm.eps = batch_norm.eps, 0.0

    def remove(self) -> None:
        super().remove()
        self.batch_norm.eps = self.eps


def zennit_composite(rule: str, *canonizers: Any, exact: bool = True) -> LayerMapComposite:
    """Return the composite that uses ``rule`` in every weighted layer."""
    merge = _ExactMerge() if exact else SequentialMergeBatchNorm()
    hook = ZENNIT_RULES[rule]()
    return LayerMapComposite(
        [
            (Activation, Pass()),
            (BatchNorm, Pass()),
            (Sum, Norm()),
            (AvgPool, Norm()),
            (Convolution, hook),
            (Linear, hook),
        ],
        canonizers=[CompositeCanonizer((merge, *canonizers))],
    )


def zennits(
    model: nn.Module, image: Tensor, rule: str, *canonizers: Any, exact: bool = True
) -> dict[str, Tensor]:
    """Return Zennit's relevance at the input of every weighted layer, by module."""
    kept: dict[str, Tensor] = {}
    handles = []
    with Gradient(model, zennit_composite(rule, *canonizers, exact=exact)) as attributor:
        for name, module in model.named_modules():
            if isinstance(module, WEIGHTED):

                def keep(module: nn.Module, args: Any, name: str = name) -> Any:
                    kept[name] = args[0].view_as(args[0])
                    kept[name].retain_grad()
                    return (kept[name],)

                # Before Zennit's own, so that it sees what their rule gives back.
                handles.append(module.register_forward_pre_hook(keep, prepend=True))

        def start(logits: Tensor) -> Tensor:
            best = logits.detach().argmax(1, keepdim=True)
            return torch.zeros_like(logits).scatter_(1, best, logits.detach().gather(1, best))

        attributor(image.clone().requires_grad_(), start)
    for handle in handles:
        handle.remove()
    return {name: tensor.grad for name, tensor in kept.items()}
