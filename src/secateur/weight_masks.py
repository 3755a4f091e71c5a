"""Granularity weight: single weights go to zero, and the tensors keep their shapes.

Masked are the weights (of two or more dimensions) of convolutions, dense layers and the
projections of multi-head attention; where a weight is computed (weight norm, spectral norm,
``torch.nn.utils.prune``), the parameter that holds its zeros. Embeddings (and what is tied to one),
biases, norms, recurrent layers and modules' own parameters stay, unless a pattern of ``include``
names them.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Generic, TypeVar

import torch
from rich.progress import Progress
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from secateur.calibration import Batches, Loss, cross_entropy
from secateur.criteria.elements import ELEMENTWISE, element_scores
from secateur.errors import InputError, PlanError, unmatched
from secateur.graph.copies import clone_model
from secateur.reparametrised import refresh, undivided_dims, weight_of, zeros_carrier

M = TypeVar("M", bound=nn.Module)

Masks = dict[str, Tensor]

SCOPES = ("local", "global")

# A product such as 0.7 x 10 may fall just short of its whole number.
_SLACK = 1e-9

_PROJECTIONS = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")


@dataclass(frozen=True)
class Sparse(Generic[M]):
    """A network with zeros, and where they are.

    Attributes:
        model: the network; shapes are as they were.
        masks: parameter name -> bool tensor of its shape, True where the weight stays.
        removed: weights that the masks take.
        maskable: weights of the layers that masks are for, those of ``left_out`` included.
        params: all parameters of the network.
        left_out: layers whose weight is computed by something that no zeros come through.
    """

    model: M
    masks: Masks
    removed: int
    maskable: int
    params: int
    left_out: tuple[str, ...] = ()

    @property
    def sparsity(self) -> float:
        """Share removed of the weights that masks are for."""
        return self.removed / self.maskable

    @property
    def param_sparsity(self) -> float:
        """Share removed of all parameters of the network."""
        return self.removed / self.params


def sparsify(
    model: M,
    criterion: str = "l1",
    sparsity: float | None = None,
    *,
    pattern: str | None = None,
    scope: str = "local",
    calibration: Batches | None = None,
    example_inputs: Any = None,
    loss: Loss = cross_entropy,
    seed: int = 0,
    options: Mapping[str, Any] | None = None,
    protect: Sequence[str] = (),
    include: Sequence[str] = (),
    inplace: bool = False,
    progress: Progress | None = None,
) -> Sparse[M]:
    """Set the weights with the lowest scores to zero.

    Exactly one of ``sparsity`` and ``pattern`` is given. Of equal scores the earlier position
    goes first (and the earlier tensor, where tensors compete), so counts are exact:

    - local scope: each tensor of n weights loses floor(sparsity x n).
    - global scope: all weights compete; floor(sparsity x all) go. Nothing keeps a tensor from
      losing all its weights; use criterion "lamp", whose scores are made for it, or protect it.
    - pattern "N:M" (2:4, say): in each run of M weights along the input dimension the N with the
      highest scores stay; a shorter last run keeps N, too. The input dimension is 1, and 0 of
      transposed convolutions; a depthwise convolution has one input and so keeps all its weights.

    Args:
        model: any network.
        criterion: the name of an element-wise criterion.
        sparsity: share of the maskable weights to remove, 0 <= s < 1.
        pattern: "N:M" with 0 < N < M.
        scope: "local" or "global"; without meaning for a pattern.
        calibration: (inputs, labels) batches, for criteria that need data.
        example_inputs: for criteria that need an input, but no data.
        loss: from the model's outputs and the labels to a scalar.
        seed: for criteria that draw.
        options: of the criterion, by name.
        protect: globs of parameters (or of modules) that stay whole.
        include: globs of other parameters of two or more dimensions that may be masked.
        inplace: change ``model`` itself instead of a copy.
        progress: where to show how far scoring is.

    Raises:
        InputError: an argument breaks its rule, or a glob matches nothing.
        PlanError: the network has no weights that may be masked.
    """
    shape = _check(criterion, sparsity, pattern, scope)
    inputs = input_dims(model, protect=protect, include=include)
    found = element_scores(
        model,
        criterion,
        calibration,
        loss=loss,
        seed=seed,
        example_inputs=example_inputs,
        options=options,
        progress=progress,
    )
    missing = next((name for name in inputs if name not in found), None)
    if missing is not None:
        raise InputError(f"criterion {criterion!r} has no scores for {missing}; protect it")
    scores = competing_scores(model, {name: found[name] for name in inputs})
    beyond = _out_of_reach(model) if not protect else {}
    if shape is not None:
        masks = {name: _runs(scores[name], dim, *shape) for name, dim in inputs.items()}
    else:
        masks = lowest_masked(scores, float(sparsity or 0), scope)
    masked: M = model if inplace else clone_model(model)
    apply_masks(masked, masks)
    return Sparse(
        model=masked,
        masks=masks,
        removed=sum(int((~mask).sum()) for mask in masks.values()),
        maskable=sum(mask.numel() for mask in masks.values()) + sum(beyond.values()),
        params=sum(parameter.numel() for parameter in model.parameters()),
        left_out=tuple(beyond),
    )


def apply_masks(model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Set what ``masks`` take to zero, in place; call it after each optimiser step to hold zeros.

    Args:
        model: the network.
        masks: parameter name -> bool tensor of its shape, True where the weight stays.

    Raises:
        PlanError: a mask fits no parameter.
    """
    parameters = dict(model.named_parameters())
    for name, mask in masks.items():
        if name not in parameters:
            raise PlanError(f"masks hold {name!r}, which the model does not have")
        if mask.dtype != torch.bool or mask.shape != parameters[name].shape:
            raise PlanError(
                f"the mask of {name!r} must be bool {tuple(parameters[name].shape)}, but got "
                f"{mask.dtype} {tuple(mask.shape)}"
            )
    with torch.no_grad():
        for name, mask in masks.items():
            weight = parameters[name]
            weight.masked_fill_(~mask.to(weight.device), 0)
    for module in model.modules():
        refresh(module)


def find_masks(model: nn.Module, *, include: Sequence[str] = ()) -> Masks:
    """Read the masks of a network from its zeros, after loading it, say.

    Only tensors with a zero get a mask; weights that are zero by chance are taken for masked.

    Raises:
        InputError: a glob of ``include`` matches nothing.
    """
    masks = zero_masks(model, include=include)
    return {name: mask for name, mask in masks.items() if not bool(mask.all())}


def zero_masks(
    model: nn.Module, *, protect: Sequence[str] = (), include: Sequence[str] = ()
) -> Masks:
    """Return a mask of every weight that may be masked: whether it is other than zero.

    Raises:
        InputError: a glob matches nothing.
        PlanError: nothing may be masked.
    """
    parameters = dict(model.named_parameters())
    names = input_dims(model, protect=protect, include=include)
    return {name: parameters[name].detach() != 0 for name in names}


def input_dims(
    model: nn.Module, *, protect: Sequence[str] = (), include: Sequence[str] = ()
) -> dict[str, int]:
    """Return what may be masked: parameter name -> its input dimension.

    Raises:
        InputError: a glob matches nothing.
        PlanError: nothing is left.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    matrices = {name for name, p in model.named_parameters() if p.dim() > 1}
    embedded = {
        id(module.weight)
        for module in model.modules()
        if isinstance(module, nn.Embedding | nn.EmbeddingBag)
    }
    chosen = {
        names[id(weight)]: dim
        for weight, dim in _layer_weights(model)
        if id(weight) not in embedded
    }
    included = _named(matrices, include, "include")
    known = {**dict.fromkeys(included, 1), **chosen}
    spared = _named(known, protect, "protect")
    found = {name: known[name] for name in names.values() if name in known and name not in spared}
    if not found:
        raise PlanError("the model has no weights of convolutions or dense layers to mask")
    return found


def _layer_weights(model: nn.Module) -> Iterator[tuple[Tensor, int]]:
    """Yield the weights that may be masked, each with its input dimension."""
    for module in model.modules():
        held = module._parameters
        names = _PROJECTIONS if isinstance(module, nn.MultiheadAttention) else ("weight",)
        turned = _is_turned(module)
        if turned or isinstance(module, _ConvNd | nn.Linear | nn.MultiheadAttention):
            dim = 0 if turned or isinstance(module, _ConvTransposeNd) else 1
            for name in names:
                weight = held.get(name)
                if weight is not None:
                    yield weight, dim
            if not isinstance(module, nn.MultiheadAttention) and held.get("weight") is None:
                carrier = zeros_carrier(module)
                if carrier is not None:
                    yield carrier, dim


def competing_scores(model: nn.Module, scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return element scores as they compete, changed where a layer computes its weight.

    What is zero already (``torch.nn.utils.prune``) goes first; of weights that are divided by their
    length (weight norm) the highest of each stays, as a length of zero gives no numbers.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = dict(scores)
    for module in _computing(model):
        carrier, weight = zeros_carrier(module), weight_of(module)
        name = names.get(id(carrier), "")
        if carrier is None or weight is None or name not in found:
            continue
        values = found[name].masked_fill((weight == 0) & (carrier.detach() != 0), -math.inf)
        for dim in undivided_dims(module, carrier):
            rows = values.movedim(dim, 0).reshape(values.shape[dim], -1)
            rows = rows.scatter(1, rows.argmax(1, keepdim=True), math.inf)
            moved = values.movedim(dim, 0)
            values = rows.reshape(moved.shape).movedim(0, dim)
        found[name] = values
    return found


def _out_of_reach(model: nn.Module) -> dict[str, int]:
    """Return layers whose computed weight no parameter carries, and how many weights it has."""
    names = {module: name for name, module in model.named_modules()}
    return {
        names[module]: weight.numel()
        for module in _computing(model)
        if (weight := weight_of(module)) is not None and zeros_carrier(module) is None
    }


def _computing(model: nn.Module) -> Iterator[nn.Module]:
    """Yield the convolutions and dense layers whose weight is no parameter of theirs."""
    for module in model.modules():
        if isinstance(module, _ConvNd | nn.Linear) and module._parameters.get("weight") is None:
            yield module


def _is_turned(module: nn.Module) -> bool:
    """Tell a dense layer whose weight is [inputs, outputs]: GPT-2's, known by its name."""
    return any(
        (kind.__module__, kind.__name__) == ("transformers.pytorch_utils", "Conv1D")
        for kind in type(module).__mro__
    )


def _named(names: Collection[str], patterns: Sequence[str], what: str) -> set[str]:
    """Return the parameters that the patterns mean, by their own names or those of modules."""
    if isinstance(patterns, str):
        raise InputError(f"{what} must be a list of patterns, but got the text {patterns!r}")
    found: set[str] = set()
    for pattern in patterns:
        hits = {name for name in names if any(fnmatchcase(p, pattern) for p in _prefixes(name))}
        if not hits:
            raise unmatched(what, pattern, names)
        found |= hits
    return found


def _prefixes(name: str) -> Iterator[str]:
    parts = name.split(".")
    for number in range(1, len(parts) + 1):
        yield ".".join(parts[:number])


def lowest_masked(scores: Mapping[str, Tensor], sparsity: float, scope: str) -> Masks:
    """Mask the lowest scores: floor(sparsity x n) of each tensor, or of all together.

    A score of infinity never goes, also where fewer go than were asked.
    """
    if scope == "local":
        return {name: _above_lowest(values, sparsity) for name, values in scores.items()}
    flat = torch.cat([values.reshape(-1).cpu() for values in scores.values()])
    kept = _above_lowest(flat, sparsity)
    parts = kept.split([values.numel() for values in scores.values()])
    return {
        name: part.reshape(values.shape).to(values.device)
        for (name, values), part in zip(scores.items(), parts, strict=True)
    }


def _above_lowest(values: Tensor, sparsity: float) -> Tensor:
    """Return a mask that takes the floor(sparsity x n) lowest; the earlier of equals."""
    count = math.floor(sparsity * values.numel() + _SLACK)
    if count == 0:
        return torch.ones_like(values, dtype=torch.bool)
    flat = values.reshape(-1)
    edge = flat.kthvalue(count).values
    kept = flat > edge
    ties = (flat == edge).nonzero().squeeze(1)
    # Everything below the edge goes; of what lies on it, the first ones.
    kept[ties[count - int((flat < edge).sum()) :]] = True
    kept |= flat == math.inf
    return kept.reshape(values.shape)


def _runs(values: Tensor, dim: int, keep: int, run: int) -> Tensor:
    """Mask all but the ``keep`` highest of each run along ``dim``; the earlier of equals goes."""
    moved = values.movedim(dim, -1)
    size = moved.shape[-1]
    padded = torch.nn.functional.pad(moved.double(), (0, -size % run), value=-math.inf)
    parts = padded.reshape(*moved.shape[:-1], -1, run)
    order = parts.argsort(dim=-1, stable=True)
    kept = torch.zeros_like(parts, dtype=torch.bool)
    kept.scatter_(-1, order[..., run - keep :], True)
    kept |= parts == math.inf
    return kept.reshape(*moved.shape[:-1], -1)[..., :size].movedim(-1, dim).contiguous()


def _check(
    criterion: str, sparsity: float | None, pattern: str | None, scope: str
) -> tuple[int, int] | None:
    ELEMENTWISE[criterion]
    if scope not in SCOPES:
        raise InputError(f"scope must be one of {', '.join(SCOPES)}, but got {scope!r}")
    if (sparsity is None) == (pattern is None):
        named = "none" if sparsity is None else "sparsity, pattern"
        raise InputError(f"exactly one of sparsity, pattern must be given, but got {named}")
    if pattern is None:
        if sparsity is None or not 0 <= sparsity < 1:
            raise InputError(f"sparsity must satisfy 0 <= sparsity < 1, but got {sparsity}")
        return None
    return check_pattern(pattern)


def check_pattern(pattern: str) -> tuple[int, int]:
    """Return N and M of "N:M".

    Raises:
        InputError: it is no such text.
    """
    keep, colon, run = pattern.partition(":")
    if not (colon and keep.isdecimal() and run.isdecimal() and 0 < int(keep) < int(run)):
        raise InputError(f"pattern must be 'N:M' with 0 < N < M, but got {pattern!r}")
    return int(keep), int(run)
