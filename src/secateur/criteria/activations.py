"""Criteria that look at activations where units are read: after norm and activation function.

A unit's values at a place (see :mod:`secateur.criteria.watching`) are all elements whose
position belongs to it, x_ij in observation i. Each place gives a unit one number; the context's
aggregation makes one of those of all places (a place where a unit does not occur counts zero).
All sums run in float64 over all batches, so that memory does not grow with their number and the
way samples are put into batches does not matter.

    activation_norm     (mean of |x|^p)^(1/p): the root mean square, or the mean absolute value
                        (the "mean activation" of Molchanov et al. 2017 after a ReLU)
    apoz                the share of values that are not zero: 1 - APoZ (Hu et al. 2016, "Network
                        trimming", equation 1)
    wanda               sum of |W_ij| ||X_j||_2 over the weights that read the unit, ||X_j||_2
                        over all observations (Sun et al. 2023, "A simple and effective pruning
                        approach for large language models", equation 1)
    entropy             -sum of p log p over the bins of a histogram of the unit's mean in each
                        observation (Luo and Wu 2017, "An entropy-based pruning method for CNN
                        compression", equation 2)
    taylor_activation   mean over observations of |mean_j of x_ij dL_i/dx_ij|, L_i the sample's
                        own loss (Molchanov et al. 2017, "Pruning convolutional neural networks
                        for resource efficient inference", equation 8; its division of every
                        layer by its l2 norm is ``score``'s ``normalisation="l2"``)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from secateur.calibration import Batches, check_repeatable, passes
from secateur.criteria.base import Context, Criterion, Scores, criterion
from secateur.criteria.combine import AGGREGATIONS
from secateur.criteria.contractions import CONVOLUTION, Weight, Weights, contracted, wide
from secateur.criteria.elements import ELEMENTWISE
from secateur.criteria.watching import (
    Operations,
    Place,
    Reading,
    arranged,
    places,
    watch,
    watching,
)
from secateur.errors import InputError, unknown_name
from secateur.graph import Graph
from secateur.graph.modules import Address
from secateur.graph.program import PRODUCTS

K = TypeVar("K")
_Key = tuple[int, str]
_Values = dict[_Key, Tensor]
"""By place number and group: one number a unit, or several."""

_NORMS = {"l1": 1, "l2": 2}
_NEVER_READ = "groups that are read in train mode only"


@criterion("activation_norm", needs_calibration=True, leaves_out=_NEVER_READ)
def activation_norm(graph: Graph, context: Context, *, norm: str = "l2") -> Scores:
    """Root mean square ("l2") or mean absolute value ("l1") of the unit's values."""
    if norm not in _NORMS:
        raise unknown_name("norm", norm, _NORMS)
    power = _NORMS[norm]
    means = _means(graph, context, lambda values: values.abs().pow(power).sum((0, 2)))
    return _combined(graph, context, {key: v.pow(1 / power) for key, v in means.items()})


@criterion(
    "apoz",
    needs_calibration=True,
    leaves_out=f"groups whose activations are never zero, and {_NEVER_READ}",
)
def apoz(graph: Graph, context: Context, *, threshold: float = 0.0) -> Scores:
    """Share of the unit's values with |x| above ``threshold``.

    After an activation function that is never exactly zero (GELU, SiLU) only a threshold above
    0 tells units apart.
    """
    if not threshold >= 0:
        raise InputError(f"threshold must be at least 0, but got {threshold}")
    means = _means(graph, context, lambda values: wide((values.abs() > threshold).sum((0, 2))))
    judged = {name for (_, name), share in means.items() if bool((share < 1).any())}
    return _combined(graph, context, {key: v for key, v in means.items() if key[1] in judged})


@criterion("wanda", needs_calibration=True, leaves_out=_NEVER_READ)
def wanda(graph: Graph, context: Context) -> Scores:
    """Absolute weights that read the unit, each times the norm of what it reads.

    Where queries meet keys there is no weight: a dimension's score is the norm of the term that
    it adds to the product, sqrt(sum of ||Q_j||^2 ||K_j||^2). Where a mean or a norm is all that
    reads the unit, the score is ||X_j||.
    """
    found = places(graph)
    squares: dict[int, Tensor] = {}
    weights: dict[int, Tensor] = {}

    def see(place: Place, reading: Reading) -> None:
        if reading.weight is not None:
            _add(squares, place.number, reading.weight.squares(reading.values))
            if place.number not in weights:
                weights[place.number] = reading.weight.sums().to("cpu", torch.float64)
        elif reading.other is not None:
            _add(squares, place.number, _product_squares(reading.values, reading.other))
        else:
            _add(squares, place.number, reading.values.square().sum((0, 2)))

    watch(graph, found, see, _batches(context))
    values = {}
    for place in found:
        norms = squares[place.number].sqrt() * weights.get(place.number, torch.ones(()))
        along = norms.sum(0) if norms.dim() > 1 else norms
        for name, size in _sizes(graph, place).items():
            values[place.number, name] = place.to_units(along, name, size)
    return _combined(graph, context, values)


def _product_squares(values: Tensor, other: Tensor) -> Tensor:
    """Sum, over the matrices of a batch, the squared norm of each position's outer product."""
    right = wide(other.detach()).square()
    batch = right.shape[0] if right.dim() == 3 else 1
    sizes = right.reshape(batch, values.shape[1], -1).sum(2)
    return (values.square().reshape(batch, -1, values.shape[1]).sum(1) * sizes).sum(0)


def wanda_elements(model: nn.Module, context: Context) -> dict[str, Tensor]:
    """|W_ij| ||X_j||_2 for every single weight that multiplies activations.

    The norm runs over all that the weight reads in a pass. In a convolution j is the input
    channel and the norm runs over all its pixels. What multiplies no activation (biases,
    norms, lookup tables) scores zero.

    Args:
        model: the network; it is left as it was.
        context: with calibration batches.

    Returns:
        {parameter name: float64 tensor of its shape, on its device} (float32 on a device
        without float64).

    Raises:
        InputError: no batch.
    """
    meter = _Meter(model)
    with watching(model, meter):
        for _ in passes(model, _batches(context)):
            pass
    return meter.scores()


ELEMENTWISE.register("wanda")(Criterion("wanda", wanda_elements, needs_calibration=True))


_Operand = tuple[tuple[str, int], int, tuple[int, ...], tuple[int, ...]]


class _Meter(Operations):
    """Sums the squares of what every weight of a model reads.

    A weight is told by the operand: a parameter, or a view of some part of it (an expert of a
    stack), with the dimension that is contracted.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self._parameters = dict(model.named_parameters())
        self._weights = Weights(model)
        self._squares: dict[_Operand, Tensor] = {}
        self._read: dict[_Operand, Weight] = {}

    def meet(self, packet: str, address: Address, args: tuple[Any, ...], result: Any) -> None:
        if packet not in PRODUCTS and packet != CONVOLUTION:
            return
        arg, dim, weight = contracted(packet, args, self._weights)
        if weight is not None and weight.place is not None:
            operand = weight.tensor
            start = int(operand.storage_offset())
            key = (weight.place, start, tuple(operand.shape), operand.stride())
            self._read[key] = weight
            _add(self._squares, key, weight.squares(arranged(args[arg], dim, weight.images)))

    def scores(self) -> dict[str, Tensor]:
        found = {
            name: wide(torch.empty_strided(p.shape, p.stride(), device=p.device)).zero_()
            for name, p in self._parameters.items()
            if p.is_floating_point()
        }
        for key, weight in self._read.items():
            assert weight.place is not None
            name, _ = weight.place
            operand = weight.tensor.detach()
            start = operand.storage_offset() - self._parameters[name].storage_offset()
            into = found[name].as_strided(operand.shape, operand.stride(), start)
            norms = wide(self._squares[key].sqrt().to(operand.device))
            into += wide(operand).abs() * weight.spread(norms)
        return found


@criterion("entropy", needs_calibration=True, leaves_out=_NEVER_READ)
def entropy(graph: Graph, context: Context, *, bins: int = 32) -> Scores:
    """Entropy of the unit's mean over observations, in nats.

    The batches are read twice: the first time for every unit's lowest and highest mean,
    between which its ``bins`` bins of equal width lie.
    """
    if bins < 2:
        raise InputError(f"bins must be at least 2, but got {bins}")
    batches = _batches(context)
    check_repeatable(batches, "criterion 'entropy'")
    found = places(graph)
    low: _Values = {}
    high: _Values = {}
    counts: _Values = {}

    def span(place: Place, reading: Reading) -> None:
        for key, pooled in _pooled(graph, place, reading.values):
            if len(pooled):
                least, most = pooled.amin(0), pooled.amax(0)
                low[key] = torch.minimum(low.get(key, least), least)
                high[key] = torch.maximum(high.get(key, most), most)

    def count(place: Place, reading: Reading) -> None:
        for key, pooled in _pooled(graph, place, reading.values):
            if len(pooled):
                width = (high[key] - low[key]).clamp_min(torch.finfo(torch.float64).tiny)
                bin_of = ((pooled - low[key]) / width * bins).long().clamp(0, bins - 1)
                units = torch.arange(pooled.shape[1]).expand_as(bin_of)
                flat = torch.bincount(
                    (units * bins + bin_of).flatten(), minlength=units[0].numel() * bins
                )
                _add(counts, key, flat.reshape(-1, bins))

    watch(graph, found, span, batches)
    watch(graph, found, count, batches)
    values = {}
    for key, number in counts.items():
        share = number / number.sum(1, keepdim=True)
        values[key] = torch.special.entr(share).sum(1)
    return _combined(graph, context, values)


@criterion("taylor_activation", needs_calibration=True, leaves_out=_NEVER_READ)
def taylor_activation(graph: Graph, context: Context) -> Scores:
    """How much the loss of a sample changes, to first order, when the unit is read as zero."""
    found = places(graph)
    totals: _Values = {}
    seen: dict[int, int] = {}

    def see(place: Place, reading: Reading) -> None:
        assert reading.gradient is not None
        seen[place.number] = seen.get(place.number, 0) + len(reading.values)
        for key, pooled in _pooled(graph, place, reading.values * reading.gradient):
            _add(totals, key, pooled.abs().sum(0))

    watch(graph, found, see, _batches(context), context.loss)
    means = {key: value / max(1, seen[key[0]]) for key, value in totals.items()}
    return _combined(graph, context, means)


def _means(graph: Graph, context: Context, total: Callable[[Tensor], Tensor]) -> _Values:
    """Average over a unit's values, place by place, what ``total`` sums to [positions]."""
    found = places(graph)
    totals: dict[int, Tensor] = {}
    seen: dict[int, int] = {}

    def see(place: Place, reading: Reading) -> None:
        number, _, within = reading.values.shape
        seen[place.number] = seen.get(place.number, 0) + number * within
        _add(totals, place.number, total(reading.values))

    watch(graph, found, see, _batches(context))
    means = {}
    for place in found:
        average = totals[place.number] / max(1, seen[place.number])
        for name, size in _sizes(graph, place).items():
            means[place.number, name] = place.to_units(average, name, size) / _positions(
                place, name, size
            )
    return means


def _pooled(graph: Graph, place: Place, values: Tensor) -> Iterator[tuple[_Key, Tensor]]:
    """Yield for every group the mean of each unit in each observation: [observations, size]."""
    average = values.mean(2)
    for name, size in _sizes(graph, place).items():
        mean = place.to_units(average, name, size).to("cpu", torch.float64)
        yield (place.number, name), mean / _positions(place, name, size)


def _positions(place: Place, group: str, size: int) -> Tensor:
    """Count the positions of each unit, at least 1."""
    ones = torch.ones(place.size, dtype=torch.float64)
    return place.to_units(ones, group, size).clamp_min(1)


def _sizes(graph: Graph, place: Place) -> dict[str, int]:
    return {name: graph.by_name[name].size for name in place.columns}


def _add(totals: dict[K, Tensor], key: K, value: Tensor) -> None:
    """Add to a sum that is kept in float64 on the CPU."""
    small = value.to("cpu", torch.float64)
    totals[key] = totals[key] + small if key in totals else small


def _combined(graph: Graph, context: Context, values: _Values) -> Scores:
    """Aggregate over the places of each group; groups without any are left out."""
    aggregate = AGGREGATIONS[context.aggregation]
    rows = {
        group.name: [value for (_, name), value in values.items() if name == group.name]
        for group in graph.groups
    }
    return {name: aggregate(torch.stack(found)) for name, found in rows.items() if found}


def _batches(context: Context) -> Batches:
    assert context.calibration is not None
    return context.calibration
