"""Code that keeps what it computes from sizes: a trace must not leave tensors without values there.

Each network is made anew by ``build``, in a module of its own, so that its caches are empty. What
it computes after a trace is compared with a copy of the same code that was never traced.
"""

from __future__ import annotations

import gc
import itertools
import logging
import sys
import types
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

import secateur
from secateur.errors import TraceError
from secateur.graph import leftovers

TEMPLATE = """
import functools
import torch
from torch import nn

KEPT = {{}}
LIST = []
LAST = None

{cache}

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(6, 8)
        self.table = nn.Parameter(torch.randn(40))
        self.last = nn.Linear(8, 3)

    def forward(self, x):
        places = index(x.shape[1])
        return self.last(torch.relu(self.first(x)) + self.table[places])
"""

MADE = "(torch.arange(n).add(3) * 2)[: n, None]"
FUNCTION = f"""
@functools.lru_cache(maxsize={{size}})
def index(n):
    return {MADE}
"""
PAIR = f"""
@functools.lru_cache
def pair(n):
    return {{"both": ({MADE}, n)}}

def index(n):
    return pair(n)["both"][0]
"""
DICTIONARY = f"""
def index(n):
    if int(n) not in KEPT:
        KEPT[int(n)] = {MADE}
    return KEPT[int(n)]
"""
VARIABLE = f"""
def index(n):
    global LAST
    if LAST is None:
        LAST = {MADE}
    return LAST
"""
LISTED = f"""
def index(n):
    if not LIST:
        LIST.append({MADE})
    return LIST[0]
"""
HELD = f"""
class Store:
    last = None

    def __init__(self):
        self.last = None

STORE = Store()

def index(n):
    if STORE.last is None:
        STORE.last = {MADE}
    return STORE.last
"""
LAST = f"""
def index(n):
    global LAST
    LAST = KEPT["last"] = {MADE}
    LIST.append(LAST)
    return LAST
"""
MANY = f"""
def index(n):
    for k in range(50):
        KEPT.setdefault((int(n), k), {MADE})
    return KEPT[int(n), 0]
"""
CACHES = {
    "many": MANY,
    "function": FUNCTION.format(size=10),
    "unbounded": FUNCTION.format(size=None),
    "pair": PAIR,
    "dictionary": DICTIONARY,
    "variable": VARIABLE,
    "listed": LISTED,
}
NUMBER = itertools.count()


def module(cache: str) -> types.ModuleType:
    found = types.ModuleType(f"leftover_{next(NUMBER)}")
    sys.modules[found.__name__] = found
    exec(TEMPLATE.format(cache=cache), vars(found))
    return found


@pytest.fixture(autouse=True)
def _clean() -> Iterator[None]:
    yield
    for name in [name for name in sys.modules if name.startswith("leftover_")]:
        del sys.modules[name]


def build(code: types.ModuleType) -> nn.Module:
    torch.manual_seed(0)
    net: nn.Module = code.Net().eval()
    return net


EXAMPLE = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(3))


def expected(cache: str) -> Tensor:
    with torch.no_grad():
        found: Tensor = build(module(cache))(EXAMPLE)
    return found


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("repeated", [1, 2])
def test_a_traced_network_computes_what_it_did(cache: str, repeated: int) -> None:
    code = module(CACHES[cache])
    net = build(code)
    for _ in range(repeated):
        graph = secateur.trace(net, EXAMPLE)
    with torch.no_grad():
        assert torch.equal(net(EXAMPLE), expected(CACHES[cache]))
    plan = secateur.allocate(graph, secateur.score(graph, "l2"), sparsity=0.5)
    assert secateur.verify(net, secateur.cut(net, plan), plan, EXAMPLE).ok


def test_without_the_cleaning_it_would_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("secateur.graph.tracing.forget", lambda made, **_: None)
    code = module(DICTIONARY)
    secateur.trace(build(code), EXAMPLE)
    assert all(kept.is_meta for kept in code.KEPT.values())


@pytest.mark.parametrize("cache", CACHES)
def test_what_a_run_before_has_kept_does_no_harm(cache: str) -> None:
    code = module(CACHES[cache])
    net = build(code)
    with torch.no_grad():
        before = net(EXAMPLE)
    kept = list(code.KEPT.values())
    secateur.trace(net, EXAMPLE)
    assert [id(one) for one in code.KEPT.values()] == [id(one) for one in kept]
    with torch.no_grad():
        assert torch.equal(net(EXAMPLE), before)


def test_a_place_that_cannot_be_emptied_is_named() -> None:
    net = build(module(HELD))
    with pytest.raises(TraceError, match=r"keeps a tensor of shape \[5, 1\].* in Store.last.*run"):
        secateur.trace(net, EXAMPLE)


def test_what_the_code_overwrites_in_every_pass_is_put_back() -> None:
    code = module(LAST)
    net = build(code)
    with torch.no_grad():
        net(EXAMPLE)
    kept = (code.LAST, code.KEPT["last"], list(code.LIST))
    values = [code.LAST.clone(), code.KEPT["last"].clone()]
    graph = secateur.trace(net, EXAMPLE)
    plan = secateur.allocate(graph, secateur.score(graph, "l2"), sparsity=0.5)
    assert secateur.verify(net, secateur.cut(net, plan), plan, EXAMPLE).ok
    assert code.LAST is kept[0]
    assert code.KEPT["last"] is kept[1]
    assert [id(one) for one in code.LIST] == [id(one) for one in kept[2]]
    assert all(torch.equal(a, b) for a, b in zip(kept[:2], values, strict=True))


@pytest.mark.parametrize("cache", [VARIABLE, LISTED, HELD])
def test_after_a_run_such_a_place_does_no_harm(cache: str) -> None:
    code = module(cache)
    net = build(code)
    with torch.no_grad():
        before = net(EXAMPLE)
        secateur.trace(net, EXAMPLE)
        assert torch.equal(net(EXAMPLE), before)


def test_an_error_that_somebody_keeps_is_the_error_that_is_told() -> None:
    """PyTorch logs what fails on fake tensors, and a handler may keep the frames with it."""

    class Keeper(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            kept.append(record)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x.flatten(1)[:, :7] * 2)

    kept: list[logging.LogRecord] = []
    handler, logger = Keeper(), logging.getLogger("torch._subclasses.fake_tensor")
    logger.addHandler(handler)
    try:
        with pytest.raises(TraceError, match="fails on its example input"):
            secateur.trace(Net().eval(), EXAMPLE)
    finally:
        logger.removeHandler(handler)
    assert kept


def test_circles_of_objects_are_no_cache() -> None:
    class Circle:
        def __init__(self, tensor: Tensor) -> None:
            self.tensor, self.myself = tensor, self

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(Circle(self.first(x)).tensor.relu())

    assert secateur.trace(Net().eval(), EXAMPLE).groups


def test_nothing_is_looked_for_where_nothing_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """It reads all objects there are, which takes a fifth of a second."""

    def fail(wanted: set[int]) -> None:
        raise AssertionError("all objects were read")

    monkeypatch.setattr(leftovers, "_empty_functions", fail)
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    assert secateur.trace(net, EXAMPLE).groups


def test_all_objects_are_read_a_fixed_number_of_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is left, and however much: one reading takes a tenth of a second and more."""

    class Cycle(Exception):
        """Keeps the frames of the whole trace until it is collected, as an import may."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(30))

        def forward(self, x: Tensor) -> Tensor:
            try:
                raise Cycle
            except Cycle as error:
                kept = error  # a frame that holds its own exception is a circle
            for layer in self.layers:
                x = layer(x)
            assert kept
            return x

    read: list[int] = []
    referrers, collect = gc.get_referrers, gc.collect
    monkeypatch.setattr(gc, "get_referrers", lambda *of: read.append(len(of)) or referrers(*of))
    monkeypatch.setattr(gc, "collect", lambda *args: read.append(0) or collect(*args))
    assert secateur.trace(Net().eval(), EXAMPLE).groups
    assert read == [0, 0]  # once for each pass: eval mode and train mode
    read.clear()
    code = module(MANY)
    with torch.no_grad():
        before = build(code)(EXAMPLE)
    code.KEPT.clear()
    net = build(code)
    secateur.trace(net, EXAMPLE)
    assert len(read) < 10
    with torch.no_grad():
        assert torch.equal(net(EXAMPLE), before)
