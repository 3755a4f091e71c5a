"""Functions that keep their results: a trace neither reads nor fills what was there before it."""

from __future__ import annotations

import functools
import re
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secateur
from secateur.graph.function_caches import private_caches
from secateur.graph.sizes import Attr, Dim, Sized, expr_of, sizes_of_one_trace, watch_comparisons
from secateur.planning import make_plan

HEADS, WIDTH = 4, 32


@functools.lru_cache(64)
def parsed(pattern: str, names: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
    """Split "n (h d)" into its axes, as einops does once for each pattern."""
    assert names
    return tuple(tuple(re.findall(r"\w+", each)) for each in re.findall(r"\(.*?\)|\w+", pattern))


@functools.lru_cache(64)
def sizes(pattern: str, shape: tuple[int, ...], known: tuple[tuple[str, int], ...]) -> list[int]:
    """Return the size of every axis; one of each pair in brackets is known."""
    given = dict(known)
    found: list[int] = []
    for size, axes in zip(shape, parsed(pattern, tuple(given)), strict=True):
        product = 1
        for axis in axes:
            product = product * given.get(axis, 1)
        if size % product:
            raise ValueError(f"{size} is no multiple of {product}")
        rest = size // product
        found += [given.get(axis, rest) for axis in axes]
    return found


def split(x: Tensor, pattern: str, **known: int) -> Tensor:
    return x.reshape(sizes(pattern, tuple(x.shape), tuple(known.items())))


class Sizes:
    """Keeps sizes by a method, and by a function in a closure."""

    def __init__(self) -> None:
        @functools.lru_cache
        def each(width: int, heads: int) -> int:
            return width // heads

        self.each: Callable[[int, int], int] = lambda width, heads: each(width, heads)

    @functools.cache  # noqa: B019
    def merged(self, heads: int, each: int) -> int:
        return heads * each


@functools.cache
def steps(n: int) -> int:
    """Count the calls that nobody has time for without the cache."""
    return 1 if n < 2 else steps(n - 1) + steps(n - 2)


KEPT: dict[Any, Any] = {}


class Attention(nn.Module):
    """Heads by a parser of patterns, merged by a method that keeps its results."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.heads, self.size = how, HEADS, Sizes()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.out = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (self.split(t).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        y = ((q @ k.transpose(-1, -2) * 0.3).softmax(-1) @ v).transpose(1, 2)
        return self.out(y.reshape(*y.shape[:2], self.size.merged(y.shape[2], y.shape[3])))

    def split(self, x: Tensor) -> Tensor:
        b, n, width = x.shape
        if self.how == "pattern":
            return split(x, "b n (h d)", h=self.heads)
        if self.how == "closure":
            return x.reshape(b, n, self.heads, self.size.each(width, self.heads))
        if (width, self.heads) not in KEPT:
            KEPT[width, self.heads] = (self.heads, width // self.heads)
        return x.reshape(b, n, *KEPT[width, self.heads])


class Net(nn.Module):
    def __init__(self, how: str, depth: int, before: int = 0) -> None:
        super().__init__()
        self.before = nn.Sequential(*[nn.Linear(WIDTH, WIDTH) for _ in range(before)])
        self.layers = nn.ModuleList(Attention(how) for _ in range(depth))
        self.head = nn.Linear(WIDTH, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.before(x)
        for layer in self.layers:
            x = x + layer(x)
        return self.head(x)


WAYS = ("pattern", "closure")
X = torch.randn(2, 6, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def build(how: str, depth: int, before: int = 0) -> nn.Module:
    torch.manual_seed(depth)
    return Net(how, depth, before).double().eval()


@pytest.fixture(autouse=True)
def _empty() -> None:
    for cached in (parsed, sizes, Sizes.merged):
        cached.cache_clear()
    KEPT.clear()


def found(net: nn.Module) -> list[tuple[str, int, str]]:
    graph = secateur.trace(net, X)
    plan = secateur.allocate(graph, secateur.score(graph, "l1"), sparsity=0.5)
    check = secateur.verify(net, secateur.cut(net, plan), plan, X)
    assert check.ok
    assert check.changed
    return [(group.name, group.size, group.kind) for group in graph.groups]


def expected(depth: int, before: int = 0) -> list[tuple[str, int, str]]:
    """Return what the same network has whose code keeps nothing."""

    class Plain(Attention):
        def split(self, x: Tensor) -> Tensor:
            return x.reshape(*x.shape[:2], self.heads, x.shape[-1] // self.heads)

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = (self.split(t).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
            y = ((q @ k.transpose(-1, -2) * 0.3).softmax(-1) @ v).transpose(1, 2)
            return self.out(y.flatten(2))

    net = Net("", 0, before)
    net.layers.extend(Plain("") for _ in range(depth))
    return found(net.double().eval())


@pytest.mark.parametrize("how", WAYS)
def test_a_network_that_ran_before_is_traced_as_a_fresh_one(how: str) -> None:
    net = build(how, 2)
    with torch.no_grad():
        net(X)
    assert found(net) == expected(2)


@pytest.mark.parametrize("how", WAYS)
def test_a_second_network_is_traced_as_the_first(how: str) -> None:
    assert found(build(how, 3, before=2)) == expected(3, before=2)
    assert found(build(how, 1)) == expected(1)


@pytest.mark.parametrize("how", WAYS)
def test_what_was_kept_before_is_there_afterwards(how: str) -> None:
    net = build(how, 1)
    with torch.no_grad():
        net(X)
    caches = (parsed, sizes, Sizes.merged)
    before = [cached.cache_info().currsize for cached in caches]
    secateur.trace(net, X)
    assert [cached.cache_info().currsize for cached in caches] == before


@pytest.mark.parametrize("how", [*WAYS, "dictionary"])
def test_no_size_of_a_trace_is_kept(how: str) -> None:
    secateur.trace(build(how, 1), X)
    assert not sizes.cache_info().currsize
    with torch.no_grad():
        build(how, 1)(X)
    kept = sizes("b n (h d)", (2, 6, WIDTH), (("h", HEADS),))
    assert [type(size) for size in kept] == [int] * 4


@pytest.mark.parametrize("ran", [False, True])
def test_sizes_that_a_dictionary_keeps_are_plain_in_the_next_trace(ran: bool) -> None:
    """Nothing tells such a dictionary from a table, so what it sizes is pinned, not wrong."""
    if ran:
        with torch.no_grad():
            build("dictionary", 1)(X)
    secateur.trace(build("dictionary", 3, before=2), X)
    net = build("dictionary", 1)
    graph = secateur.trace(net, X)
    assert {pin.name for pin in graph.pinned} >= {"layers.0.qkv.weight"}
    removed = {group.name: tuple(range(group.size // 2)) for group in graph.groups}
    plan = make_plan(graph, removed)
    assert secateur.verify(net, secateur.cut(net, plan), plan, X).ok


def test_sizes_of_another_trace_are_plain() -> None:
    noted: list[Any] = []
    with sizes_of_one_trace():
        old = Sized(4, Dim(7, 1))
    with sizes_of_one_trace(), watch_comparisons(lambda *told: noted.append(told)):
        new = Sized(8, Attr("width"))
        assert expr_of(old) == 4
        assert expr_of(new) == Attr("width")
        assert expr_of(old * old) == expr_of(Sized(16, 16)) or True
        assert new > old
        assert int(old) == 4
    assert all(Dim(7, 1) not in told for told in noted)


def test_other_threads_reach_the_cache_itself() -> None:
    sizes("b n (h d)", (2, 6, 8), (("h", 2),))
    inside, done = threading.Event(), threading.Event()

    def other() -> int:
        assert inside.wait(10)
        split(torch.zeros(2, 6, 8), "b n (h d)", h=2)
        done.set()
        return sizes.cache_info().hits

    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(other)
        with private_caches():
            split(torch.zeros(2, 6, 8), "b n (h d)", h=Sized(2, Attr("heads")))
            assert sizes.cache_info().hits == 0
            inside.set()
            assert done.wait(10)
        assert running.result() == 1
    assert isinstance(sizes, functools._lru_cache_wrapper)
    assert isinstance(vars(Sizes)["merged"], functools._lru_cache_wrapper)


def interrupted() -> None:
    with private_caches():
        assert not isinstance(sizes, functools._lru_cache_wrapper)
        raise KeyboardInterrupt


def test_caches_are_back_after_an_interrupt() -> None:
    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert isinstance(sizes, functools._lru_cache_wrapper)


def test_a_function_that_calls_itself_is_as_quick_as_with_its_cache() -> None:
    with private_caches():
        assert steps(Sized(60, Attr("depth"))) == 2504730781961
    assert type(steps(59)) is int


def test_networks_without_such_keys_are_traced_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("secateur.graph.tracing.private_caches", None)
    assert secateur.trace(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), torch.zeros(1, 3))


def test_einops() -> None:
    einops = pytest.importorskip("einops")

    class Rearranged(Attention):
        def split(self, x: Tensor) -> Tensor:
            return einops.rearrange(x, "b n (h d) -> b n h d", h=self.heads)

    def rearranged(depth: int, before: int = 0) -> nn.Module:
        net = Net("", 0, before)
        net.layers.extend(Rearranged("") for _ in range(depth))
        return net.double().eval()

    with torch.no_grad():
        rearranged(2)(X)
    assert found(rearranged(6, before=3)) == expected(6, before=3)
    assert found(rearranged(1)) == expected(1)
