"""Random numbers that a network draws in its forward, drawn alike in networks of unlike widths.

Each draw gets random numbers of its own, by the operation's address in the network: so two
networks draw the same, whatever else they draw before. Where the plan cuts the shape of a draw,
both draw one number for all positions of that dimension.
"""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from secateur.graph.dispatch import DispatchMode
from secateur.graph.generators import seed_torch, seeded_generators, torch_states
from secateur.graph.modules import Address, Turns
from secateur.graph.normal_mode import in_normal_mode

Shapes = Mapping[Address, tuple[int, ...]]
Dims = Mapping[Address, tuple[int, ...]]


class Draws(DispatchMode):
    """Gives every draw of a network random numbers of its own.

    Attributes:
        shapes: of what was drawn, by address.
        unknown: draws that were to be the same along dimensions, and cannot be.
    """

    def __init__(self, network: nn.Module, seed: int, even: Dims) -> None:
        """Draw by ``seed``, the same number along the dimensions that ``even`` names."""
        super().__init__()
        self.shapes: dict[Address, tuple[int, ...]] = {}
        self.unknown: set[Address] = set()
        self._turns = Turns(network)
        self._seed = seed
        self._even = even

    @contextlib.contextmanager
    def watch(self) -> Iterator[None]:
        """Take the draws of what runs inside; every generator is put back after it."""
        with seeded_generators(self._seed), self._turns.follow(), self:
            yield

    @in_normal_mode
    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        named = dict(kwargs or {})
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return func(*args, **named)
        packet = str(func.overloadpacket)
        where = self._turns.take(packet)
        if named.get("generator") is not None:
            named["generator"] = None  # the network's own must stay as it is
        seed_torch(zlib.crc32(repr((*where, self._seed)).encode()))
        before = torch_states()
        result = self._drawn(func, where, args, named)
        drew = any(not torch.equal(a, b) for a, b in zip(before, torch_states(), strict=True))
        if drew:
            first = result[0] if isinstance(result, (tuple, list)) else result
            self.shapes[where] = tuple(first.shape)
        return result

    def _drawn(self, func: Any, where: Address, args: tuple[Any, ...], kwargs: Any) -> Any:
        dims = self._even.get(where, ())
        if dims:
            made = _drawn_evenly(func, str(func.overloadpacket), args, kwargs, dims)
            if made is not None:
                return made
            self.unknown.add(where)
        return func(*args, **kwargs)


def uneven(one: Shapes, other: Shapes) -> tuple[dict[Address, tuple[int, ...]], set[Address]]:
    """Compare the draws of two networks.

    Returns:
        The dimensions in which draws differ, by address, and the draws that do not correspond.
    """
    dims = {}
    unlike = set(one.keys() ^ other.keys())
    for where in one.keys() & other.keys():
        shapes = one[where], other[where]
        if len(shapes[0]) != len(shapes[1]):
            unlike.add(where)
        elif shapes[0] != shapes[1]:
            dims[where] = tuple(d for d, (n, m) in enumerate(zip(*shapes, strict=True)) if n != m)
    return dims, unlike


def _drawn_evenly(
    func: Any, packet: str, args: tuple[Any, ...], kwargs: dict[str, Any], dims: Sequence[int]
) -> Any:
    """Draw one number for all positions along ``dims``; None where that is not known how."""
    name = packet.removeprefix("aten.")
    numbers = not any(isinstance(arg, Tensor) for arg in args[1:])
    if name in _IN_PLACE and numbers:
        part = _first(args[0], dims).clone()
        return args[0].copy_(func(part, *args[1:], **kwargs).expand_as(args[0]))
    if name in ("rand_like", "randn_like", "randint_like") and numbers:
        return func(_first(args[0], dims), *args[1:], **kwargs).expand_as(args[0]).clone()
    if name in ("rand", "randn", "randint", "normal"):
        place = next((i for i, arg in enumerate(args) if isinstance(arg, (list, tuple))), None)
        if place is not None:
            shape = args[place]
            few = [1 if d in dims else n for d, n in enumerate(shape)]
            drawn = func(*args[:place], few, *args[place + 1 :], **kwargs)
            return drawn.expand(shape).clone()
    form = _FROM_NOISE.get(name)
    return None if form is None else form(dims, *args, **kwargs)


_IN_PLACE = frozenset(
    f"{name}_"
    for name in (
        "bernoulli", "cauchy", "exponential", "geometric", "log_normal", "normal", "random",
        "uniform",
    )
)  # fmt: skip


def _first(tensor: Tensor, dims: Sequence[int]) -> Tensor:
    """Return the part of a tensor at the first positions of ``dims``."""
    for dim in dims:
        tensor = tensor.narrow(dim, 0, 1)
    return tensor


def _uniform(like: Tensor, dims: Sequence[int]) -> Tensor:
    return torch.rand_like(_first(like, dims)).expand_as(like)


def _bernoulli(dims: Sequence[int], x: Tensor, p: Any = None, *, generator: None = None) -> Tensor:
    return (_uniform(x, dims) < (x if p is None else p)).to(x.dtype)


def _bernoulli_(dims: Sequence[int], x: Tensor, p: Tensor, *, generator: None = None) -> Tensor:
    return x.copy_(_uniform(x, dims) < p)


def _normal(dims: Sequence[int], mean: Any, std: Any = 1.0, *, generator: None = None) -> Tensor:
    whole = mean + torch.zeros_like(std) if isinstance(std, Tensor) else mean
    noise = torch.randn_like(_first(whole, dims)).expand_as(whole)
    return torch.add(noise * std, mean)


def _dropout(dims: Sequence[int], x: Tensor, p: float, train: bool | None) -> Any:
    kept = _uniform(x, dims) >= (p if train or train is None else 0.0)
    return x * kept / (1 - p if train or train is None else 1.0), kept


def _leaky(
    dims: Sequence[int],
    x: Tensor,
    noise: Tensor,
    lower: float = 1 / 8,
    upper: float = 1 / 3,
    training: bool = False,
    generator: None = None,
) -> Tensor:
    noise.copy_(torch.where(x <= 0, lower + (upper - lower) * _uniform(x, dims), 1.0))
    return x * noise


_FROM_NOISE: dict[str, Callable[..., Any]] = {
    "bernoulli": _bernoulli,
    "bernoulli_": _bernoulli_,
    "native_dropout": _dropout,
    "normal": _normal,
    "rrelu_with_noise": _leaky,
}
