"""One small network per op family: what couples, and what the cut computes.

For each network a person wrote down which weight dimensions each group holds and
which inputs of which layer go with a unit. The oracle removes a unit by a hook
that zeroes those inputs of the dense network; it knows nothing of the algebra.
Where an operation mixes units (a norm, a softmax) the reference is written out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import secateur
from secateur.planning import make_plan

LIMIT = 1e-10


class Net(nn.Module):
    """Named layers and numbers, and a forward pass written as one function."""

    def __init__(self, forward: Callable[..., Any], **parts: Any) -> None:
        super().__init__()
        self.run = forward
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *inputs: Tensor) -> Any:
        return self.run(self, *inputs)


Reads = dict[str, Callable[[int], Iterable[int]]]


@dataclass
class Group:
    """What a person expects of one group.

    ``slots`` are "name:dim" pairs; ``reads`` gives, by layer, the input channels
    that go with a unit; ``reference`` computes the output without a unit where
    zeroing an input is no reference.
    """

    size: int
    slots: str
    reads: Reads | None = None
    reference: Callable[[Any, Tensor, int], Tensor] | None = None


@dataclass
class Case:
    """A network, the shape of its input, and all groups that it has."""

    net: Callable[[], nn.Module]
    shape: tuple[int, ...]
    groups: Sequence[Group]


@dataclass
class Stuck:
    """A network in which dimension 0 of a weight cannot be cut, and why."""

    net: Callable[[], nn.Module]
    shape: tuple[int, ...]
    reason: str
    name: str = "a.weight"
    dim: int = 0


def build(case: Case | Stuck) -> nn.Module:
    """Build a network with every parameter and running statistic random, in float64."""
    torch.manual_seed(0)
    model = case.net().double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.7)
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_()
            elif name.endswith("running_var"):
                buffer.uniform_(0.5, 2.0)
    return model


def example(case: Case | Stuck, batch: int = 5) -> Tensor:
    torch.manual_seed(1)
    return torch.randn(batch, *case.shape, dtype=torch.float64)


def same(unit: int) -> list[int]:
    """The unit is one position."""
    return [unit]


def pixels(count: int) -> Callable[[int], range]:
    """Each unit is ``count`` positions in a row."""
    return lambda unit: range(unit * count, (unit + 1) * count)


def after(start: int) -> Callable[[int], list[int]]:
    """The units begin at position ``start``."""
    return lambda unit: [start + unit]


def conv(inputs: int, outputs: int, kernel: int = 3, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, **options)


def relu_between(middle: Callable[[Any, Tensor], Tensor], **parts: Any) -> Callable[[], nn.Module]:
    """A convolution 3 -> 6, something in the middle, a convolution 6 -> 4."""

    def make() -> nn.Module:
        layers = {"a": conv(3, 6), "b": conv(6, 4), **{k: p() for k, p in parts.items()}}
        return Net(lambda m, x: m.b(middle(m, m.a(x))), **layers)

    return make


A = "a.weight:0 a.bias:0"
AB = "a.weight:0 a.bias:0 b.weight:1"
IMAGE = (3, 6, 6)
READS: Reads = {"b": same}


def plain(middle: Callable[[Any, Tensor], Tensor], extra: str = "", **parts: Any) -> Case:
    """One group of six channels from ``a`` to ``b``; ``extra`` names the slots in between."""
    return Case(relu_between(middle, **parts), IMAGE, [Group(6, f"{AB} {extra}", READS)])


def plain_stuck(reason: str, middle: Callable[[Any, Tensor], Tensor], **parts: Any) -> Stuck:
    return Stuck(relu_between(middle, **parts), IMAGE, reason)


def stack_of(kind: type, rank: int) -> Case:
    def make() -> nn.Module:
        return Net(lambda m, x: m.b(F.relu(m.a(x))), a=kind(3, 6, 3), b=kind(6, 4, 3))

    return Case(make, (3, *([7] * rank)), [Group(6, AB, READS)])


def transposed(kind: type, rank: int) -> Case:
    def make() -> nn.Module:
        return Net(lambda m, x: m.b(F.relu(m.a(x))), a=kind(3, 6, 3, stride=2), b=kind(6, 4, 2))

    return Case(make, (3, *([4] * rank)), [Group(6, "a.weight:1 a.bias:0 b.weight:0", READS)])


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None, dims: Sequence[int]) -> Tensor:
    mean = x.mean(dims, keepdim=True)
    var = (x - mean).square().mean(dims, keepdim=True)
    return (x - mean) / (var + 1e-5).sqrt() * weight + (0 if bias is None else bias)


def without(unit: int, size: int) -> list[int]:
    return [u for u in range(size) if u != unit]


def layer_norm_reference(m: Any, x: Tensor, unit: int) -> Tensor:
    keep = without(unit, 6)
    h = (x @ m.a.weight.T + m.a.bias)[..., keep]
    h = layer_norm(h, m.norm.weight[keep], m.norm.bias[keep], (-1,))
    return h @ m.b.weight[:, keep].T + m.b.bias


def rms_norm_reference(m: Any, x: Tensor, unit: int) -> Tensor:
    keep = without(unit, 6)
    h = (x @ m.a.weight.T + m.a.bias)[..., keep]
    h = h / (h.square().mean(-1, keepdim=True) + 1e-6).sqrt() * m.norm.weight[keep]
    return h @ m.b.weight[:, keep].T + m.b.bias


def one_group_norm_reference(m: Any, x: Tensor, unit: int) -> Tensor:
    keep = without(unit, 6)
    h = F.conv2d(x, m.a.weight[keep], m.a.bias[keep], padding=1)
    weight, bias = (t[keep][:, None, None] for t in (m.norm.weight, m.norm.bias))
    h = layer_norm(h, weight, bias, (1, 2, 3))
    return F.conv2d(h, m.b.weight[:, keep], m.b.bias, padding=1)


def group_norm_by_hand(m: Any, x: Tensor, blocks: list[list[int]]) -> Tensor:
    """Normalise each block of channels by itself; only the listed channels exist."""
    parts = []
    for block in blocks:
        h = F.conv2d(x, m.a.weight[block], m.a.bias[block], padding=1)
        weight, bias = (t[block][:, None, None] for t in (m.norm.weight, m.norm.bias))
        parts.append(layer_norm(h, weight, bias, (1, 2, 3)))
    keep = [channel for block in blocks for channel in block]
    return F.conv2d(torch.cat(parts, 1), m.b.weight[:, keep], m.b.bias, padding=1)


def softmax_reference(m: Any, x: Tensor, unit: int) -> Tensor:
    keep = without(unit, 6)
    h = F.conv2d(x, m.a.weight[keep], m.a.bias[keep], padding=1)
    return F.conv2d(h.softmax(1), m.b.weight[:, keep], m.b.bias, padding=1)


def channel_mean_reference(m: Any, x: Tensor, unit: int) -> Tensor:
    keep = without(unit, 6)
    h = F.conv2d(x, m.a.weight[keep], m.a.bias[keep], padding=1)
    h = h * h.mean(1, keepdim=True)
    return F.conv2d(h, m.b.weight[:, keep], m.b.bias, padding=1)


def channel_max_reference(m: Any, x: Tensor, unit: int) -> Tensor:
    keep = without(unit, 6)
    h = F.conv2d(x, m.a.weight[keep], m.a.bias[keep], padding=1)
    h = h - h.amax(1, keepdim=True)
    return F.conv2d(h, m.b.weight[:, keep], m.b.bias, padding=1)


def attention_reference(m: Any, x: Tensor, unit: int) -> Tensor:
    keep = without(unit, 6)
    q = x @ m.q.weight[keep].T + m.q.bias[keep]
    k = x @ m.k.weight[keep].T + m.k.bias[keep]
    return (q @ k.transpose(1, 2)).softmax(-1) @ x


def norm1(kind: Callable[..., nn.Module], **options: Any) -> Callable[[], nn.Module]:
    return lambda: kind(6, **options)


STATS = "norm.weight:0 norm.bias:0 norm.running_mean:0 norm.running_var:0"


def batch_norm(rank: int) -> Case:
    convs = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
    norms = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}

    def make() -> nn.Module:
        return Net(
            lambda m, x: m.b(F.gelu(m.norm(m.a(x)))),
            a=convs[rank](3, 6, 3, bias=False),
            norm=norms[rank](6),
            b=convs[rank](6, 4, 3),
        )

    slots = f"a.weight:0 {STATS} b.weight:1"
    return Case(make, (3, *([6] * rank)), [Group(6, slots, READS)])


def dense(middle: Callable[[Any, Tensor], Tensor], extra: str, group: Group, **parts: Any) -> Case:
    """Two dense layers 5 -> 6 -> 4 over a sequence, something in the middle."""

    def make() -> nn.Module:
        layers = {"a": nn.Linear(5, 6), "b": nn.Linear(6, 4), **{k: p() for k, p in parts.items()}}
        return Net(lambda m, x: m.b(middle(m, m.a(x))), **layers)

    return Case(make, (3, 5), [Group(6, f"{AB} {extra}", group.reads, group.reference)])


def residual(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    return m.d(F.relu(h + m.c(F.relu(m.b(h)))))


def squeeze_excite(m: Any, x: Tensor) -> Tensor:
    h = F.relu(m.a(x))
    gate = torch.sigmoid(m.up(torch.tanh(m.down(h.mean((2, 3), keepdim=True)))))
    return m.b(h * gate)


def shuffle_by_view(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    n, c, height, width = h.shape
    h = h.view(n, m.groups, c // m.groups, height, width).transpose(1, 2)
    return m.b(h.reshape(n, c, height, width))


def option_a(m: Any, x: Tensor) -> Tensor:
    h = F.relu(m.a(x))
    return m.c(F.relu(m.b(h) + F.pad(h, (0, 0, 0, 0, m.extra, m.extra))))


def option_a_literal(m: Any, x: Tensor) -> Tensor:
    h = F.relu(m.a(x))
    return m.c(F.relu(m.b(h) + F.pad(h, (0, 0, 0, 0, 2, 2))))


def two_branches(join: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Any, Tensor], Tensor]:
    return lambda m, x: m.c(join(F.relu(m.a(x)), torch.tanh(m.b(x))))


def chunk_apart(m: Any, x: Tensor) -> Tensor:
    left, right = m.a(x).chunk(2, dim=1)
    return m.b(F.relu(left)) + m.c(torch.tanh(right))


def branches(**join: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        return Net(join["forward"], a=conv(3, 6), b=conv(3, 5), c=conv(11, 4))

    return make


CASES: dict[str, Case] = {
    # convolutions
    "conv1d": stack_of(nn.Conv1d, 1),
    "conv2d": stack_of(nn.Conv2d, 2),
    "conv3d": stack_of(nn.Conv3d, 3),
    "conv_transpose1d": transposed(nn.ConvTranspose1d, 1),
    "conv_transpose2d": transposed(nn.ConvTranspose2d, 2),
    "conv_transpose3d": transposed(nn.ConvTranspose3d, 3),
    "conv_strided_dilated": Case(
        lambda: Net(
            lambda m, x: m.b(F.relu(m.a(x))),
            a=nn.Conv2d(3, 6, 3, stride=2, dilation=2, padding=1, bias=False),
            b=nn.Conv2d(6, 4, 3, padding="same", padding_mode="reflect"),
        ),
        (3, 9, 9),
        [Group(6, "a.weight:0 b.weight:1", READS)],
    ),
    "grouped": Case(
        lambda: Net(
            lambda m, x: m.b(F.relu(m.g(m.a(x)))),
            a=conv(3, 8), g=conv(8, 6, groups=2), b=conv(6, 4),
        ),
        IMAGE,
        [
            # A whole group of channels: 4 come in, 3 go out.
            Group(2, f"{A} g.weight:0 g.bias:0 b.weight:1", {"b": pixels(3)}),
            # Channel u of every group.
            Group(4, f"{A} g.weight:1", {"g": lambda u: (u, 4 + u)}),
            Group(3, "g.weight:0 g.bias:0 b.weight:1", {"b": lambda u: (u, 3 + u)}),
        ],
    ),
    "depthwise": Case(
        lambda: Net(
            lambda m, x: m.b(F.relu(m.d(m.a(x)))),
            a=conv(3, 6), d=conv(6, 6, groups=6), b=conv(6, 4, 1),
        ),
        IMAGE,
        [Group(6, f"{AB} d.weight:0 d.bias:0", READS)],
    ),
    "depthwise_multiplied": Case(
        lambda: Net(
            lambda m, x: m.b(F.relu(m.d(m.a(x)))),
            a=conv(3, 6), d=conv(6, 12, groups=6), b=conv(12, 4, 1),
        ),
        IMAGE,
        [
            Group(6, f"{AB} d.weight:0 d.bias:0", {"b": pixels(2)}),
            Group(2, "d.weight:0 d.bias:0 b.weight:1", {"b": lambda u: range(u, 12, 2)}),
        ],
    ),
    "grouped_transposed": Case(
        lambda: Net(
            lambda m, x: m.b(F.relu(m.g(m.a(x)))),
            a=conv(3, 8), g=nn.ConvTranspose2d(8, 6, 2, stride=2, groups=2), b=conv(6, 4),
        ),
        IMAGE,
        [
            Group(2, f"{A} g.weight:0 g.bias:0 b.weight:1", {"b": pixels(3)}),
            Group(4, f"{A} g.weight:0", {"g": lambda u: (u, 4 + u)}),
            Group(3, "g.weight:1 g.bias:0 b.weight:1", {"b": lambda u: (u, 3 + u)}),
        ],
    ),
    # dense layers
    "linear": Case(
        lambda: nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 4)),
        (5,),
        [Group(6, "0.weight:0 0.bias:0 2.weight:1", {"2": same})],
    ),
    "linear_without_bias": Case(
        lambda: nn.Sequential(nn.Linear(5, 6, bias=False), nn.GELU(), nn.Linear(6, 4, bias=False)),
        (5,),
        [Group(6, "0.weight:0 2.weight:1", {"2": same})],
    ),
    "linear_over_a_sequence": dense(lambda m, x: F.silu(x), "", Group(6, "", READS)),
    "linear_functional_matmul": Case(
        lambda: Net(
            lambda m, x: F.relu(x @ m.w + m.v) @ m.u,
            w=nn.Parameter(torch.empty(5, 6)), v=nn.Parameter(torch.empty(6)),
            u=nn.Parameter(torch.empty(6, 4)),
        ),
        (3, 5),
        [
            Group(6, "w:1 v:0 u:0", None, lambda m, x, u: (
                F.relu(x @ m.w[:, without(u, 6)] + m.v[without(u, 6)]) @ m.u[without(u, 6)]
            ))
        ],
    ),
    "bilinear_scores": Case(
        lambda: Net(
            lambda m, x: (m.q(x) @ m.k(x).transpose(1, 2)).softmax(-1) @ x,
            q=nn.Linear(5, 6), k=nn.Linear(5, 6),
        ),
        (3, 5),
        [Group(6, "q.weight:0 q.bias:0 k.weight:0 k.bias:0", None, attention_reference)],
    ),
    "einsum": Case(
        lambda: Net(
            lambda m, x: torch.einsum("ntc,oc->nto", F.relu(m.a(x)), m.w),
            a=nn.Linear(5, 6), w=nn.Parameter(torch.empty(4, 6)),
        ),
        (3, 5),
        [
            Group(6, f"{A} w:1", None, lambda m, x, u: (
                F.relu(m.a(x))[..., without(u, 6)] @ m.w[:, without(u, 6)].T
            ))
        ],
    ),
    # norms
    "batch_norm1d": batch_norm(1),
    "batch_norm2d": batch_norm(2),
    "batch_norm3d": batch_norm(3),
    "batch_norm_bare": plain(
        lambda m, x: m.norm(x), "norm.running_mean:0 norm.running_var:0",
        norm=norm1(nn.BatchNorm2d, affine=False),
    ),
    "batch_norm_of_dense": Case(
        lambda: nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.GELU(), nn.Linear(6, 4)),
        (5,),
        [
            Group(
                6,
                "0.weight:0 0.bias:0 1.weight:0 1.bias:0 1.running_mean:0 1.running_var:0 "
                "3.weight:1",
                {"3": same},
            )
        ],
    ),
    "instance_norm": plain(lambda m, x: m.norm(x), norm=norm1(nn.InstanceNorm2d)),
    "instance_norm_affine": plain(
        lambda m, x: m.norm(x), "norm.weight:0 norm.bias:0",
        norm=norm1(nn.InstanceNorm2d, affine=True),
    ),
    "instance_norm_tracking": plain(
        lambda m, x: m.norm(x), STATS,
        norm=norm1(nn.InstanceNorm2d, affine=True, track_running_stats=True),
    ),
    "layer_norm": dense(
        lambda m, x: m.norm(x), "norm.weight:0 norm.bias:0",
        Group(6, "", None, layer_norm_reference), norm=lambda: nn.LayerNorm(6),
    ),
    "rms_norm_by_hand": dense(
        lambda m, x: x * (x.pow(2).mean(-1, keepdim=True) + 1e-6).rsqrt() * m.norm.weight,
        "norm.weight:0",
        Group(6, "", None, rms_norm_reference), norm=lambda: nn.RMSNorm(6),
    ),
    "group_norm_of_one": Case(
        relu_between(lambda m, x: m.norm(x), norm=lambda: nn.GroupNorm(1, 6)),
        IMAGE,
        [Group(6, f"{AB} norm.weight:0 norm.bias:0", None, one_group_norm_reference)],
    ),
    "group_norm": Case(
        relu_between(lambda m, x: m.norm(x), norm=lambda: nn.GroupNorm(2, 6)),
        IMAGE,
        [
            Group(
                2, f"{AB} norm.weight:0 norm.bias:0", None,
                lambda m, x, u: group_norm_by_hand(m, x, [[[0, 1, 2], [3, 4, 5]][1 - u]]),
            ),
            Group(
                3, f"{AB} norm.weight:0 norm.bias:0", None,
                lambda m, x, u: group_norm_by_hand(
                    m, x, [without(u, 3), [3 + k for k in without(u, 3)]]
                ),
            ),
        ],
    ),
    "group_norm_of_each": plain(
        lambda m, x: m.norm(x), "norm.weight:0 norm.bias:0", norm=lambda: nn.GroupNorm(6, 6)
    ),
    # element by element
    "pointwise_chain": plain(
        lambda m, x: F.leaky_relu(F.mish(torch.tanh(x) * 2 + 1).clamp(-1, 1)) / 3
    ),
    "pointwise_in_place": plain(lambda m, x: F.relu(x.add_(1), inplace=True).mul_(2).sigmoid_()),
    "broadcast_parameter": plain(
        lambda m, x: x * m.scale + m.shift, "scale:0 shift:1",
        scale=lambda: nn.Parameter(torch.empty(6, 1, 1)),
        shift=lambda: nn.Parameter(torch.empty(1, 6, 1, 1)),
    ),
    "broadcast_scalar": plain(lambda m, x: x * m.s, s=lambda: nn.Parameter(torch.empty(1))),
    "broadcast_over_one_channel": Case(
        lambda: Net(
            lambda m, x: m.b(torch.sigmoid(m.gate(x)) * m.a(x)),
            a=conv(3, 6), gate=conv(3, 1), b=conv(6, 4),
        ),
        IMAGE,
        [Group(6, AB, READS)],
    ),
    "where": plain(lambda m, x: torch.where(x > 0, x, x * 0.1)),
    "prelu_shared": plain(lambda m, x: m.act(x), act=lambda: nn.PReLU()),
    "dropout": plain(lambda m, x: m.drop(F.elu(x)), drop=lambda: nn.Dropout2d(0.5)),
    "residual": Case(
        lambda: Net(residual, a=conv(3, 6), b=conv(6, 5), c=conv(5, 6), d=conv(6, 4)),
        IMAGE,
        [
            Group(
                6, f"{A} b.weight:1 c.weight:0 c.bias:0 d.weight:1", {"b": same, "d": same}
            ),
            Group(5, "b.weight:0 b.bias:0 c.weight:1", {"c": same}),
        ],
    ),
    "squeeze_excite": Case(
        lambda: Net(
            squeeze_excite, a=conv(3, 6), down=conv(6, 5, 1), up=conv(5, 6, 1), b=conv(6, 4)
        ),
        IMAGE,
        [
            Group(6, f"{AB} down.weight:1 up.weight:0 up.bias:0", {"down": same, "b": same}),
            Group(5, "down.weight:0 down.bias:0 up.weight:1", {"up": same}),
        ],
    ),
    "glu": Case(
        lambda: Net(lambda m, x: m.b(F.glu(m.a(x), dim=1)), a=conv(3, 12), b=conv(6, 4)),
        IMAGE,
        [Group(6, AB, READS)],
    ),
    # joins and parts
    "cat": Case(
        branches(forward=two_branches(lambda a, b: torch.cat([a, b], dim=1))),
        IMAGE,
        [
            Group(6, f"{A} c.weight:1", {"c": same}),
            Group(5, "b.weight:0 b.bias:0 c.weight:1", {"c": after(6)}),
        ],
    ),
    "cat_twice": Case(
        lambda: Net(
            lambda m, x: m.b(torch.cat([h := F.relu(m.a(x)), x, h], dim=1)),
            a=conv(3, 6), b=conv(15, 4),
        ),
        IMAGE,
        [Group(6, AB, {"b": lambda u: (u, 9 + u)})],
    ),
    "chunk_apart": Case(
        lambda: Net(chunk_apart, a=conv(3, 12), b=conv(6, 4), c=conv(6, 4)),
        IMAGE,
        [
            Group(6, AB),
            Group(6, f"{A} c.weight:1"),
        ],
    ),
    "chunk_together": Case(
        lambda: Net(
            lambda m, x: m.b(torch.mul(*m.a(x).chunk(2, dim=1))), a=conv(3, 12), b=conv(6, 4)
        ),
        IMAGE,
        [Group(6, AB, READS)],
    ),
    "split_by_attribute": Case(
        lambda: Net(
            lambda m, x: m.b(torch.mul(*m.a(x).split(m.width, dim=1))),
            a=conv(3, 12), b=conv(6, 4), width=6,
        ),
        IMAGE,
        [Group(6, AB, READS)],
    ),
    "slice_by_attribute": Case(
        lambda: Net(
            lambda m, x: m.b(F.relu(m.a(x))[:, : m.width]) + m.c(torch.tanh(m.a(x))[:, m.width :]),
            a=conv(3, 10), b=conv(6, 4), c=conv(4, 4), width=6,
        ),
        IMAGE,
        [
            Group(6, AB, {"b": same}),
            Group(4, f"{A} c.weight:1", {"c": same}),
        ],
    ),
    "slice_of_all": plain(lambda m, x: x[:, :, 1:-1, ::2]),
    "select_in_space": Case(
        lambda: Net(
            lambda m, x: m.b(F.relu(m.a(x))[:, :, 0, 1]), a=conv(3, 6), b=nn.Linear(6, 4)
        ),
        IMAGE,
        [Group(6, AB, READS)],
    ),
    "stack_new_dimension": Case(
        lambda: Net(
            lambda m, x: m.c(torch.stack([m.a(x), m.b(x)], dim=1).mean(1)),
            a=conv(3, 6), b=conv(3, 6), c=conv(6, 4),
        ),
        IMAGE,
        [Group(6, f"{A} b.weight:0 b.bias:0 c.weight:1", {"c": same})],
    ),
    "unbind_new_dimension": Case(
        lambda: Net(
            lambda m, x: m.b(torch.mul(*m.a(x).unflatten(1, (2, -1)).unbind(1))),
            a=conv(3, 12), b=conv(6, 4),
        ),
        IMAGE,
        [Group(6, AB, READS)],
    ),
    # shapes
    "flatten": Case(
        lambda: Net(
            lambda m, x: m.b(torch.flatten(F.relu(m.a(x)), 1)), a=conv(3, 6), b=nn.Linear(54, 4)
        ),
        (3, 3, 3),
        [Group(6, AB, {"b": pixels(9)})],
    ),
    "view_of_all": Case(
        lambda: Net(
            lambda m, x: m.b((h := F.relu(m.a(x))).view(h.size(0), -1)),
            a=conv(3, 6), b=nn.Linear(54, 4),
        ),
        (3, 3, 3),
        [Group(6, AB, {"b": pixels(9)})],
    ),
    "view_by_shape": plain(lambda m, x: x.view(x.shape[0], x.shape[1], -1).view(x.shape)),
    "view_by_attribute": Case(
        lambda: Net(
            lambda m, x: m.b(m.a(x).view(-1, m.width, 36).mean(2)),
            a=conv(3, 6), b=nn.Linear(6, 4), width=6,
        ),
        IMAGE,
        [Group(6, AB, READS)],
    ),
    "heads_by_attribute": Case(
        lambda: Net(
            lambda m, x: m.b(
                torch.tanh(m.a(x).view(x.shape[0], x.shape[1], m.heads, m.width)).flatten(2)
            ),
            a=nn.Linear(5, 6), b=nn.Linear(6, 4), heads=2, width=3,
        ),
        (3, 5),
        [
            Group(2, AB, {"b": pixels(3)}),
            Group(3, AB, {"b": lambda u: (u, 3 + u)}),
        ],
    ),
    "channels_last": Case(
        lambda: Net(
            lambda m, x: m.b(F.gelu(m.a(x).permute(0, 2, 3, 1))), a=conv(3, 6), b=nn.Linear(6, 4)
        ),
        IMAGE,
        [Group(6, AB, READS)],
    ),
    "transpose_and_squeeze": Case(
        lambda: Net(
            lambda m, x: m.b(m.a(x).amax((2, 3), keepdim=True).squeeze(-1).transpose(1, 2)),
            a=conv(3, 6), b=nn.Linear(6, 4),
        ),
        IMAGE,
        [Group(6, AB, READS)],
    ),
    "channel_shuffle_by_view": Case(
        lambda: Net(shuffle_by_view, a=conv(3, 6), b=conv(6, 4), groups=2),
        IMAGE,
        [
            Group(2, AB, {"b": lambda u: range(u, 6, 2)}),
            Group(3, AB, {"b": pixels(2)}),
        ],
    ),
    "channel_shuffle": Case(
        relu_between(lambda m, x: m.shuffle(x), shuffle=lambda: nn.ChannelShuffle(2)),
        IMAGE,
        [Group(3, AB, {"b": pixels(2)})],
    ),
    "pixel_shuffle": Case(
        lambda: Net(lambda m, x: m.b(F.pixel_shuffle(m.a(x), 2)), a=conv(3, 24), b=conv(6, 4)),
        IMAGE,
        [Group(6, AB, READS)],
    ),
    "pixel_unshuffle": Case(
        lambda: Net(lambda m, x: m.b(F.pixel_unshuffle(m.a(x), 2)), a=conv(3, 6), b=conv(24, 4)),
        IMAGE,
        [Group(6, AB, {"b": pixels(4)})],
    ),
    "expand_by_shape": Case(
        lambda: Net(
            lambda m, x: m.b(
                F.adaptive_avg_pool2d(h := m.a(x), 1).expand(-1, -1, h.shape[2], h.shape[3]) + h
            ),
            a=conv(3, 6), b=conv(6, 4),
        ),
        IMAGE,
        [Group(6, AB, READS)],
    ),
    "expand_over_channels": Case(
        lambda: Net(
            lambda m, x: m.b(m.gate(x).expand(-1, m.width, -1, -1) * m.a(x)),
            a=conv(3, 6), gate=conv(3, 1), b=conv(6, 4), width=6,
        ),
        IMAGE,
        [Group(6, AB, READS)],
    ),
    "repeat_in_space": plain(lambda m, x: x.repeat(1, 1, 2, 1)),
    "repeat_channels": Case(
        lambda: Net(
            lambda m, x: m.b(F.relu(m.a(x)).repeat(1, 2, 1, 1)), a=conv(3, 6), b=conv(12, 4)
        ),
        IMAGE,
        [Group(6, AB, {"b": lambda u: (u, 6 + u)})],
    ),
    # pads
    "pad_space": plain(lambda m, x: F.pad(F.pad(x, (1, 1, 1, 1)), (2, 2, 2, 2), mode="reflect")),
    "pad_channels_by_a_literal": Case(
        lambda: Net(
            lambda m, x: m.b(F.pad(F.relu(m.a(x)), (0, 0, 0, 0, 1, 2))), a=conv(3, 6), b=conv(9, 4)
        ),
        IMAGE,
        [Group(6, AB, {"b": after(1)})],
    ),
    "shortcut_padded_by_an_attribute": Case(
        lambda: Net(option_a, a=conv(3, 4), b=conv(4, 8), c=conv(8, 5), extra=2),
        IMAGE,
        [
            Group(
                4, f"{A} b.weight:1 b.weight:0 b.bias:0 c.weight:1",
                {"b": same, "c": after(2)},
            ),
            # Before and behind; ``extra`` keeps them of equal size.
            Group(2, "b.weight:0 b.bias:0 c.weight:1"),
            Group(2, "b.weight:0 b.bias:0 c.weight:1"),
        ],
    ),
    "shortcut_padded_by_a_literal": Case(
        lambda: Net(option_a_literal, a=conv(3, 4), b=conv(4, 8), c=conv(8, 5)),
        IMAGE,
        [
            Group(
                4, f"{A} b.weight:1 b.weight:0 b.bias:0 c.weight:1",
                {"b": same, "c": after(2)},
            ),
        ],
    ),
    # space
    "max_pool": plain(lambda m, x: F.max_pool2d(x, 2)),
    "max_pool_ceil_padded": plain(lambda m, x: F.max_pool2d(x, 3, 2, 1, ceil_mode=True)),
    "avg_pool": plain(lambda m, x: F.avg_pool2d(x, 3, 1, 1)),
    "adaptive_pools": plain(
        lambda m, x: F.adaptive_avg_pool2d(x, 2) + F.adaptive_max_pool2d(x, (2, 2))
    ),
    "nearest": plain(lambda m, x: F.interpolate(x, scale_factor=2)),
    "bilinear": plain(
        lambda m, x: F.interpolate(x, size=(9, 9), mode="bilinear", align_corners=False)
    ),
    "bicubic": plain(lambda m, x: F.interpolate(x, scale_factor=2, mode="bicubic")),
    "mean_over_space": Case(
        lambda: Net(lambda m, x: m.b(F.relu(m.a(x)).mean((2, 3))), a=conv(3, 6), b=nn.Linear(6, 4)),
        IMAGE,
        [Group(6, AB, READS)],
    ),
    # operations over the units themselves
    "mean_over_channels": Case(
        relu_between(lambda m, x: x * x.mean(1, keepdim=True)), IMAGE,
        [Group(6, AB, None, channel_mean_reference)],
    ),
    "max_over_channels": Case(
        relu_between(lambda m, x: x - x.amax(1, keepdim=True)), IMAGE,
        [Group(6, AB, None, channel_max_reference)],
    ),
    "softmax_over_channels": Case(
        relu_between(lambda m, x: x.softmax(1)), IMAGE, [Group(6, AB, None, softmax_reference)]
    ),
    "log_softmax_over_space": plain(lambda m, x: x.flatten(2).log_softmax(-1).view_as(x)),
    # lookups
    "index_in_space": plain(lambda m, x: x[:, :, torch.tensor([0, 2, 2, 5])]),
    # ties
    "tied": Case(
        lambda: Net(
            lambda m, x: m.b(F.relu(m.a(F.relu(m.a(F.relu(m.first(x))))))),
            first=conv(3, 6), a=conv(6, 6), b=conv(6, 4),
        ),
        IMAGE,
        [
            Group(
                6, "first.weight:0 first.bias:0 a.weight:0 a.weight:1 a.bias:0 b.weight:1",
                {"a": same, "b": same},
            )
        ],
    ),
}  # fmt: skip


STUCK: dict[str, Stuck] = {
    "output": Stuck(lambda: Net(lambda m, x: m.a(x), a=conv(3, 6)), IMAGE, "the model's output"),
    "input": Stuck(
        lambda: Net(lambda m, x: m.a(x), a=conv(3, 6)), IMAGE, "the model's input", dim=1
    ),
    "added_input": Stuck(
        lambda: Net(lambda m, x: m.b(m.a(x) + x), a=conv(3, 3), b=conv(3, 4)),
        IMAGE,
        "the model's input",
    ),
    "added_constant": plain_stuck("", lambda m, x: x + torch.ones(6, 1, 1, dtype=x.dtype)),
    "slice_by_a_literal": Stuck(
        lambda: Net(lambda m, x: m.b(m.a(x)[:, :4]), a=conv(3, 6), b=conv(4, 4)),
        IMAGE,
        "size 4 is fixed",
    ),
    "split_by_literals": Stuck(
        lambda: Net(
            lambda m, x: m.b((p := m.a(x).split([4, 2], 1))[0]) + m.c(p[1]),
            a=conv(3, 6), b=conv(4, 4), c=conv(2, 4),
        ),
        IMAGE,
        "is fixed",
    ),
    "view_by_a_literal": Stuck(
        lambda: Net(
            lambda m, x: m.b(m.a(x).view(-1, 6, 36).mean(2)), a=conv(3, 6), b=nn.Linear(6, 4)
        ),
        IMAGE,
        "size 6 is fixed",
    ),
    "crop_of_channels": Stuck(
        lambda: Net(
            lambda m, x: m.b(F.pad(m.a(x), (0, 0, 0, 0, -1, 0))), a=conv(3, 6), b=conv(5, 4)
        ),
        IMAGE,
        "",
    ),
    "one_channel_selected": Stuck(
        lambda: Net(
            lambda m, x: m.b((h := m.a(x)) * h[:, 0:1]), a=conv(3, 6), b=conv(6, 4)
        ),
        IMAGE,
        "",
    ),
    "every_second_channel": Stuck(
        lambda: Net(lambda m, x: m.b(m.a(x)[:, ::2]), a=conv(3, 6), b=conv(3, 4)),
        IMAGE,
        "every 2th position is taken",
    ),
    "channels_by_number": Stuck(
        lambda: Net(
            lambda m, x: m.b(m.a(x)[:, torch.tensor([5, 0, 1])]), a=conv(3, 6), b=conv(3, 4)
        ),
        IMAGE,
        "positions are looked up by number",
    ),
    "channels_unbound": Stuck(
        lambda: Net(
            lambda m, x: m.b(torch.stack(m.a(x).unbind(1)[:2], 1)), a=conv(3, 6), b=conv(2, 4)
        ),
        IMAGE,
        "taken one by one",
    ),
    "channels_sorted": plain_stuck("positions along it are returned", lambda m, x: x.sort(1)[0]),
    "channels_rolled": plain_stuck("size 1 is fixed", lambda m, x: x.roll(1, 1)),
    "largest_channel": plain_stuck("", lambda m, x: x * x.argmax(1, keepdim=True)),
    "no_rule": plain_stuck("it has no rule", lambda m, x: x * torch.linalg.svdvals(x).mean()),
    "never_read": Stuck(
        lambda: Net(lambda m, x: (m.a(x) * 0 + 1).sum() * m.b(x), a=conv(3, 6), b=conv(3, 4)),
        IMAGE,
        "the model's output",
        name="b.weight",
    ),
    "embedding_rows": Stuck(
        lambda: Net(
            lambda m, x: m.b(m.e((x > 0).long())), e=nn.Embedding(7, 6), b=nn.Linear(6, 4)
        ),
        (3,),
        "rows are looked up by number",
        name="e.weight",
    ),
}  # fmt: skip


def found_slots(group: Any) -> frozenset[str]:
    return frozenset(f"{slot.name}:{slot.dim}" for slot in group.slots)


def match(graph: Any, case: Case) -> list[tuple[Group, Any]]:
    """Pair the expected groups with the found ones, by slots and size."""
    left = list(graph.groups)
    pairs = []
    for expected in case.groups:
        wanted = (frozenset(expected.slots.split()), expected.size)
        found = next((g for g in left if (found_slots(g), g.size) == wanted), None)
        assert found is not None, (wanted, [(sorted(found_slots(g)), g.size) for g in left])
        left.remove(found)
        pairs.append((expected, found))
    assert left == [], [(sorted(found_slots(g)), g.size) for g in left]
    return pairs


def relative(found: Tensor, wanted: Tensor) -> float:
    assert found.shape == wanted.shape
    return float((found - wanted).abs().max() / wanted.abs().max())


def masked_by_hooks(model: nn.Module, x: Tensor, reads: Reads, unit: int) -> Tensor:
    """Run the dense network with the unit's positions zero where each layer reads them."""

    def blank(positions: list[int]) -> Callable[[nn.Module, tuple[Tensor]], tuple[Tensor]]:
        def hook(module: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
            dim = -1 if isinstance(module, nn.Linear) else 1
            return (inputs[0].index_fill(dim, torch.tensor(positions), 0.0),)

        return hook

    handles = [
        model.get_submodule(name).register_forward_pre_hook(blank(list(positions(unit))))
        for name, positions in reads.items()
    ]
    try:
        with torch.no_grad():
            return model(x)
    finally:
        for handle in handles:
            handle.remove()


def without_unit(expected: Group, model: nn.Module, x: Tensor, unit: int) -> Tensor:
    """Return what the dense network computes without one unit, as written down."""
    if expected.reads is not None:
        return masked_by_hooks(model, x, expected.reads, unit)
    assert expected.reference is not None
    return expected.reference(model, x, unit)


@pytest.mark.parametrize("name", CASES)
def test_groups_are_those_written_down(name: str) -> None:
    case = CASES[name]
    match(secateur.trace(build(case), example(case)), case)


@pytest.mark.parametrize("name", CASES)
def test_each_unit_cut_equals_the_reference_by_hand(name: str) -> None:
    case = CASES[name]
    model, x = build(case), example(case)
    graph = secateur.trace(model, x)
    for expected, group in match(graph, case):
        if expected.reads is None and expected.reference is None:
            continue
        changes = []
        for unit in range(group.size):
            plan = make_plan(graph, {group.name: (unit,)})
            assert plan.removed == {group.name: (unit,)}
            pruned = secateur.cut(model, plan)
            assert secateur.verify(model, pruned, plan, x).ok
            with torch.no_grad():
                wanted = without_unit(expected, model, x, unit)
                found = pruned(x)
                changes.append(relative(found, model(x)))
            assert relative(found, wanted) <= LIMIT
        assert min(changes) > 0  # no unit is dead, or its test would prove nothing
        assert max(changes) > 1e-2


@pytest.mark.parametrize("name", CASES)
def test_random_halves_are_exact_at_other_batch_sizes(name: str) -> None:
    case = CASES[name]
    model, x = build(case), example(case)
    graph = secateur.trace(model, x)
    for seed in range(3):
        scores = secateur.score(graph, "random", seed=seed)
        plan = secateur.allocate(graph, scores, sparsity=0.5)
        assert plan.given_back == {}
        pruned = secateur.cut(model, plan)
        for inputs in (x, example(case, 3)):
            check = secateur.verify(model, pruned, plan, inputs)
            assert check.ok
            assert check.max_error <= LIMIT
            assert check.changed


@pytest.mark.parametrize("name", CASES)
def test_the_sizes_that_layers_declare_follow_the_cut(name: str) -> None:
    case = CASES[name]
    model, x = build(case), example(case)
    graph = secateur.trace(model, x)
    plan = secateur.allocate(graph, secateur.score(graph, "random"), sparsity=0.5)
    for layer in secateur.cut(model, plan).modules():
        if isinstance(layer, nn.Linear):
            assert tuple(layer.weight.shape) == (layer.out_features, layer.in_features)
        elif isinstance(layer, (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)):
            assert layer.weight.shape[0] == layer.in_channels
            assert layer.weight.shape[1] * layer.groups == layer.out_channels
        elif isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
            assert layer.weight.shape[0] == layer.out_channels
            assert layer.weight.shape[1] * layer.groups == layer.in_channels
        elif isinstance(layer, nn.modules.batchnorm._NormBase) and layer.weight is not None:
            assert layer.weight.shape == (layer.num_features,)
        elif isinstance(layer, nn.LayerNorm):
            assert tuple(layer.weight.shape) == tuple(layer.normalized_shape)
        elif isinstance(layer, nn.GroupNorm):
            assert layer.weight.shape == (layer.num_channels,)
            assert layer.num_channels % layer.num_groups == 0


@pytest.mark.parametrize("name", STUCK)
def test_what_cannot_be_cut_is_pinned_with_its_reason(name: str) -> None:
    case = STUCK[name]
    graph = secateur.trace(build(case), example(case))
    pins = [pin for pin in graph.pinned if (pin.name, pin.dim) == (case.name, case.dim)]
    assert len(pins) == 1
    assert case.reason in pins[0].reason
    assert pins[0].count > 0


@pytest.mark.parametrize("name", STUCK)
def test_what_is_left_beside_a_pin_still_cuts_exactly(name: str) -> None:
    case = STUCK[name]
    model, x = build(case), example(case)
    graph = secateur.trace(model, x)
    if not graph.groups:
        with pytest.raises(secateur.SecateurError, match="nothing can be cut; pinned by"):
            secateur.allocate(graph, {}, sparsity=0.5)
        return
    plan = secateur.allocate(graph, secateur.score(graph, "random"), sparsity=0.5)
    check = secateur.verify(model, secateur.cut(model, plan), plan, x)
    assert check.ok
