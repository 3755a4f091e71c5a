"""Rules of the weighted layers: epsilon, gamma, z-plus and alpha-beta.

For a layer y = W x + b let, for every output, P be the sum of its positive
contributions and N that of its negative ones, the bias counted in whichever has its
sign: P = W+ x+ + W- x- + b+ and N = W- x+ + W+ x- + b-. All rules but epsilon
are then x times a transposed layer of two coefficients a unit (Bach et al. 2015;
Montavon et al. 2019, "Layer-wise relevance propagation: an overview"; the gamma rule
in its form for inputs of any sign, Andeol et al. 2021):

- alpha-beta: alpha R / P for the positive weights, -beta R / N for the negative ones
- z-plus: R / P, and none
- gamma: s = R / (y + gamma P) where y > 0, t = R / (y + gamma N) where y < 0;
  (1 + gamma) s + t, and s + (1 + gamma) t

Where no input is negative, the terms in x- vanish and are not computed: two layers
forward (whose sum is the output itself) and two back. The weights are split block by
block of outputs, so that no copy of a large matrix is ever held.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from secateur.relevance.settings import Settings

BLOCK = 4_000_000  # weights that are split at a time


@dataclass(frozen=True)
class Layer:
    """A linear map with weights: what the rules need to know of it.

    Attributes:
        apply: from (x, weight, bias or None) to the outputs.
        back: from (relevance coefficients, x, weight) to the transposed map's result.
        weight: the weights of all outputs.
        bias: one number an output, or None.
        out_dim: the weight's dimension that counts outputs.
        unit_dim: the output's dimension that counts them.
        together: whether several weights may be stacked along ``out_dim``.
        groups: how many times ``out_dim`` counts (of a transposed grouped convolution).
        scale: factor of every output, from a batch norm that follows, or None.
        shift: what is added to every output after it, or None.
    """

    apply: Callable[[Tensor, Tensor, Tensor | None], Tensor]
    back: Callable[[Tensor, Tensor, Tensor], Tensor]
    weight: Tensor
    bias: Tensor | None
    out_dim: int
    unit_dim: int
    together: bool = True
    groups: int = 1
    scale: Tensor | None = None
    shift: Tensor | None = None

    @property
    def outputs(self) -> int:
        """How many outputs the layer has."""
        return self.weight.shape[self.out_dim] * self.groups

    def offsets(self) -> Tensor | None:
        """The bias, with what follows folded in."""
        if self.shift is None or self.bias is None:
            return self.bias if self.shift is None else self.shift
        return self.shift + (self.bias if self.scale is None else self.bias * self.scale)

    def block(self, start: int, size: int) -> Tensor:
        """The weights of some outputs, a batch norm that follows folded in."""
        part = self.weight.narrow(self.out_dim, start, size) if self.together else self.weight
        if self.scale is None:
            return part
        shape = [1] * part.dim()
        shape[self.out_dim] = size
        return part * self.scale[start : start + size].view(shape)

    def blocks(self) -> Iterator[tuple[int, int]]:
        """Yield (start, size) of outputs whose weights are worked on at a time."""
        size = self.outputs
        if self.together:
            size = max(1, min(size, BLOCK * size // max(1, self.weight.numel())))
        for start in range(0, self.outputs, size):
            yield start, min(size, self.outputs - start)


Pull = Callable[[Tensor], Tensor]


def run_layer(layer: Layer, x: Tensor, settings: Settings) -> tuple[Tensor, Pull]:
    """Return the layer's output, and how relevance of it becomes relevance of ``x``."""
    if settings.rule == "epsilon":
        return _epsilon(layer, x, settings)
    nonnegative = x.numel() == 0 or bool(x.min() >= 0)
    lift = 0.0 if settings.rule == "gamma" else settings.epsilon
    y, sums = _sums(layer, x, nonnegative, lift, settings)

    def pull(relevance: Tensor) -> Tensor:
        out: Tensor | None = None
        for (start, size), pair in zip(layer.blocks(), sums, strict=True):
            part = relevance.narrow(layer.unit_dim, start, size)
            weights = layer.block(start, size)
            COEFFICIENTS[settings.rule](part, pair, settings)
            factors = (settings.alpha, -settings.beta) if settings.rule == "alpha-beta" else (1, 1)
            out = _back(layer, pair, x, weights, factors, nonnegative, out)
        sums.clear()
        assert out is not None
        return out.mul_(x) if nonnegative else out

    return y, pull


def plain_layer(layer: Layer, x: Tensor) -> Tensor:
    """Return the layer's output."""
    return layer.apply(x, layer.block(0, layer.outputs), layer.offsets())


def _epsilon(layer: Layer, x: Tensor, settings: Settings) -> tuple[Tensor, Pull]:
    y = plain_layer(layer, x)

    def pull(relevance: Tensor) -> Tensor:
        share = relevance / stabilise(y, settings.epsilon)
        return layer.back(share, x, layer.block(0, layer.outputs)).mul_(x)

    return y, pull


def stabilise(value: Tensor, epsilon: float) -> Tensor:
    """Move ``value`` away from zero by ``epsilon``; zero itself up."""
    return torch.where(value < 0, value - epsilon, value + epsilon)


@dataclass(frozen=True)
class Pair:
    """P and N of some outputs, later their coefficients; ``joined`` is both side by side."""

    positive: Tensor
    negative: Tensor | None
    joined: Tensor | None


def _sums(
    layer: Layer, x: Tensor, nonnegative: bool, lift: float, settings: Settings
) -> tuple[Tensor, list[Pair]]:
    """Return the output and, block by block, (P + lift, N - lift).

    The lift goes in with the bias: it costs nothing, and the two cancel in the output.
    """
    bias = layer.offsets()
    if bias is None:
        bias = layer.weight.new_zeros(layer.outputs)
    high, low = bias.clamp(min=0) + lift, bias.clamp(max=0) - lift
    sides = (x,) if nonnegative else (x.clamp(min=0), x.clamp(max=0))
    whole: Tensor | None = None
    pairs: list[Pair] = []
    for start, size in layer.blocks():
        end = start + size
        pair = _forward(layer, sides, layer.block(start, size), high[start:end], low[start:end])
        assert pair.negative is not None
        if size == layer.outputs:
            whole = pair.positive + pair.negative
        else:
            if whole is None:
                shape = list(pair.positive.shape)
                shape[layer.unit_dim] = layer.outputs
                whole = x.new_empty(shape)
            place = whole.narrow(layer.unit_dim, start, size)
            torch.add(pair.positive, pair.negative, out=place)
        # z-plus needs N for the output alone; a copy lets go of the shared memory
        if settings.rule == "z-plus":
            pair = Pair(pair.positive.clone(), None, None)
        pairs.append(pair)
    assert whole is not None
    return whole, pairs


def _stack(weights: Tensor, dim: int, flip: bool, factors: tuple[float, float]) -> Tensor:
    """Return [W+ W-] along ``dim``, each times its factor; [W- W+] if ``flip``."""
    size = weights.shape[dim]
    shape = list(weights.shape)
    shape[dim] = 2 * size
    both = weights.new_empty(shape)
    for place, factor in enumerate(factors):
        half = both.narrow(dim, place * size, size)
        positive = (place == 0) is not flip
        torch.clamp(weights, min=0 if positive else None, max=None if positive else 0, out=half)
        if factor != 1:
            half.mul_(factor)
    return both


def _forward(
    layer: Layer, sides: tuple[Tensor, ...], weights: Tensor, high: Tensor, low: Tensor
) -> Pair:
    """Return P and N with their biases for some outputs."""
    dim = layer.out_dim
    both: Tensor | None = None
    halves: list[Tensor] = []
    for flip, side in enumerate(sides):
        stacked = _stack(weights, dim, bool(flip), (1, 1))
        if layer.together:
            found = layer.apply(side, stacked, None if flip else torch.cat([high, low]))
            both = found if both is None else both.add_(found)
            continue
        parts = stacked.chunk(2, dim)
        found_halves = [
            layer.apply(side, part, None if flip else bias)
            for part, bias in zip(parts, (high, low), strict=True)
        ]
        halves = [a.add_(b) for a, b in zip(halves, found_halves, strict=False)] or found_halves
    if both is not None:
        halves = list(both.chunk(2, layer.unit_dim))
    return Pair(halves[0], halves[1], both)


def _back(
    layer: Layer,
    pair: Pair,
    x: Tensor,
    weights: Tensor,
    factors: tuple[float, float],
    nonnegative: bool,
    out: Tensor | None,
) -> Tensor:
    """Add one block's transposed map to ``out``, times x where its sign matters."""
    dim = layer.out_dim
    for flip in (False,) if nonnegative else (False, True):
        if pair.negative is None:
            signed = weights.clamp(max=0) if flip else weights.clamp(min=0)
            found = layer.back(pair.positive, x, signed)
        else:
            stacked = _stack(weights, dim, flip, factors)
            if pair.joined is not None:
                found = layer.back(pair.joined, x, stacked)
            else:
                parts = stacked.chunk(2, dim)
                found = layer.back(pair.positive, x, parts[0])
                found.add_(layer.back(pair.negative, x, parts[1]))
        if not nonnegative:
            found.mul_(x.clamp(max=0) if flip else x.clamp(min=0))
        out = found if out is None else out.add_(found)
    assert out is not None
    return out


def _alpha_beta(relevance: Tensor, pair: Pair, settings: Settings) -> None:
    assert pair.negative is not None
    torch.div(relevance, pair.positive, out=pair.positive)
    torch.div(relevance, pair.negative, out=pair.negative)


def _z_plus(relevance: Tensor, pair: Pair, settings: Settings) -> None:
    torch.div(relevance, pair.positive, out=pair.positive)


def _gamma(relevance: Tensor, pair: Pair, settings: Settings) -> None:
    assert pair.negative is not None
    gamma, epsilon = settings.gamma, settings.epsilon
    y = pair.positive + pair.negative
    nothing = relevance.new_zeros(())
    up = torch.where(y > 0, relevance / (y + gamma * pair.positive + epsilon), nothing)
    down = torch.where(y < 0, relevance / (y + gamma * pair.negative - epsilon), nothing)
    torch.add(down, up, alpha=1 + gamma, out=pair.positive)
    torch.add(up, down, alpha=1 + gamma, out=pair.negative)


# Each turns P and N, in place, into the coefficients of the positive and negative weights.
COEFFICIENTS: dict[str, Callable[[Tensor, Pair, Settings], None]] = {
    "alpha-beta": _alpha_beta,
    "z-plus": _z_plus,
    "gamma": _gamma,
}
