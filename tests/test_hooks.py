"""Hooks of the user's that store, count or compute: what they keep stays as it was."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import secateur
from secateur.errors import SecateurError

ROWS = torch.randn(6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
DATA = [(ROWS, torch.tensor([0, 1, 2, 0, 1, 2]))]

FEATURES: dict[str, Any] = {}
CALLS = 0
SEEN: list[Tensor] = []


class Stats:
    """An object that counts, sums and keeps."""

    def __init__(self) -> None:
        self.calls, self.kept, self.mean = 0, [], torch.zeros((), dtype=torch.float64)

    def forward(self, module: nn.Module, args: Any, out: Tensor) -> None:
        self.calls += 1
        self.kept.append(out)
        self.mean.add_(out.detach().mean())

    __call__ = forward


def in_globals(module: nn.Module, args: Any, out: Tensor) -> None:
    global CALLS
    CALLS += 1
    FEATURES["last"] = out
    remember(out)


def remember(out: Tensor) -> None:
    SEEN.append(out)


Register = Callable[[nn.Sequential], Callable[[], Any]]


def into_dictionary(net: nn.Sequential) -> Callable[[], Any]:
    kept: dict[str, Tensor] = {}
    net[1].register_forward_hook(lambda module, args, out: kept.__setitem__("relu", out))
    return lambda: kept


def into_list(net: nn.Sequential) -> Callable[[], Any]:
    kept: list[Tensor] = []
    net[1].register_forward_hook(lambda module, args, out: kept.append(out))
    return lambda: kept


def into_queue(net: nn.Sequential) -> Callable[[], Any]:
    kept: deque[Tensor] = deque(maxlen=2)
    net[0].register_forward_pre_hook(lambda module, args: kept.append(args[0]))
    return lambda: kept


def into_globals(net: nn.Sequential) -> Callable[[], Any]:
    net[1].register_forward_hook(in_globals)
    return lambda: (CALLS, FEATURES, SEEN)


def into_variable(net: nn.Sequential) -> Callable[[], Any]:
    calls, last = 0, None

    def hook(module: nn.Module, args: Any, out: Tensor) -> None:
        nonlocal calls, last
        calls, last = calls + 1, out

    net[1].register_forward_hook(hook)
    return lambda: (calls, last)


def into_object(net: nn.Sequential) -> Callable[[], Any]:
    stats = Stats()
    net[1].register_forward_hook(stats)
    return lambda: vars(stats)


def by_method(net: nn.Sequential) -> Callable[[], Any]:
    stats = Stats()
    net[0].register_forward_hook(stats.forward)
    net[2].register_forward_hook(stats.forward)
    return lambda: vars(stats)


def by_partial(net: nn.Sequential) -> Callable[[], Any]:
    kept: list[Any] = []

    def hook(where: list[Any], module: nn.Module, args: Any, out: Tensor) -> None:
        where.append(out)

    net[1].register_forward_hook(partial(hook, kept))
    return lambda: kept


def into_default(net: nn.Sequential) -> Callable[[], Any]:
    kept: list[Any] = []

    def hook(module: nn.Module, args: Any, out: Tensor, where: list[Any] = kept) -> None:
        where.append(out)

    net[1].register_forward_hook(hook)
    return lambda: kept


def summed(net: nn.Sequential) -> Callable[[], Any]:
    total = {"n": 0.0}
    net[1].register_forward_hook(
        lambda module, args, out: total.__setitem__("n", total["n"] + float(out.detach().sum()))
    )
    return lambda: total


def into_array(net: nn.Sequential) -> Callable[[], Any]:
    total = np.zeros(8)

    def hook(module: nn.Module, args: Any, out: Tensor) -> None:
        total[:] += out.detach().numpy().sum(0)

    net[1].register_forward_hook(hook)
    return lambda: total


def into_tensor(net: nn.Sequential) -> Callable[[], Any]:
    mean = torch.zeros(8, dtype=torch.float64)

    def hook(module: nn.Module, args: Any, out: Tensor) -> None:
        mean.lerp_(out.detach().mean(0), 0.1)

    net[1].register_forward_hook(hook)
    return lambda: mean


def into_module(net: nn.Sequential) -> Callable[[], Any]:
    net[1].register_forward_hook(lambda module, args, out: setattr(module, "last", out))
    return lambda: getattr(net[1], "last", None)


def refusing(net: nn.Sequential) -> Callable[[], Any]:
    def hook(module: nn.Module, args: Any, out: Tensor) -> None:
        if bool(torch.isnan(out).any()):
            raise ValueError("not a number")

    net[1].register_forward_hook(hook)
    return lambda: None


def of_gradients(net: nn.Sequential) -> Callable[[], Any]:
    kept: list[Any] = []
    net[1].register_full_backward_hook(lambda module, into, out: kept.append(out))
    return lambda: kept


def of_states(net: nn.Sequential) -> Callable[[], Any]:
    kept: list[Any] = []
    net.register_state_dict_post_hook(lambda module, state, prefix, meta: kept.append(len(state)))
    return lambda: kept


HOOKS: dict[str, Register] = {
    found.__name__: found
    for found in (
        into_dictionary, into_list, into_queue, into_globals, into_variable, into_object,
        by_method, by_partial, into_default, summed, into_array, into_tensor, into_module,
        refusing, of_gradients, of_states,
    )
}  # fmt: skip


# What these compute with has a place for each channel, so no channel may go.
PINNING = ("into_array", "into_tensor")


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3)).double().eval()


@pytest.fixture(autouse=True)
def _empty() -> Iterator[None]:
    global CALLS
    yield
    CALLS = 0
    FEATURES.clear()
    SEEN.clear()


def told(value: Any) -> Any:
    """Describe what is kept: tensors by identity and values, numbers and containers by value."""
    if isinstance(value, Tensor):
        return id(value), value.device.type, value.detach().flatten().tolist()
    if isinstance(value, np.ndarray):
        return id(value), value.tolist()
    if isinstance(value, dict):
        return {key: told(part) for key, part in value.items()}
    if isinstance(value, list | tuple | deque):
        return [told(part) for part in value]
    return value


def pruned(net: nn.Module) -> secateur.Check:
    return secateur.prune(
        net, ROWS, criterion="taylor_activation", sparsity=0.5, calibration=DATA
    ).check


def recovered(net: nn.Module) -> secateur.Check:
    graph = secateur.trace(net, ROWS)
    plan = secateur.allocate(graph, secateur.score(graph, "lrp", DATA), sparsity=0.5)
    found = secateur.recover(net, secateur.cut(net, plan), plan, DATA, method="least_squares")
    assert found.layers
    return secateur.verify(net, secateur.cut(net, plan), plan, ROWS)


WORK = {"prune": pruned, "recover": recovered}


@pytest.mark.parametrize("work", WORK)
@pytest.mark.parametrize("ran", [False, True])
@pytest.mark.parametrize("name", HOOKS)
def test_what_hooks_keep_stays_as_it_was(name: str, ran: bool, work: str) -> None:
    net = network()
    kept = HOOKS[name](net)
    if ran:
        net(ROWS).sum().backward()
        net.zero_grad()
    hooks = [dict(module._forward_hooks) for module in net.modules()]
    before = told(kept())
    if name not in PINNING:
        check = WORK[work](net)
        assert check.ok
        assert check.changed
    assert told(kept()) == before
    assert [dict(module._forward_hooks) for module in net.modules()] == hooks
    sizes = [group.size for group in secateur.trace(net, ROWS).groups]
    assert sizes == ([] if name in PINNING else [8])
    assert told(kept()) == before


def test_the_cut_network_has_the_hooks() -> None:
    net = network()
    kept = into_list(net)
    result = secateur.prune(net, ROWS, sparsity=0.5)
    result.model(ROWS)
    assert [tuple(out.shape) for out in kept()] == [(6, 4)]


class Decoder(nn.Module):
    """Reads what a hook stored, by the name of a variable."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(x + FEATURES["encoded"])


def encoded(module: nn.Module, args: Any, out: Tensor) -> None:
    FEATURES["encoded"] = out


def decoding(how: str) -> nn.Sequential:
    torch.manual_seed(0)
    first, second = nn.Linear(5, 8), nn.Linear(8, 8)
    if how == "globals":
        first.register_forward_hook(encoded)
        return nn.Sequential(first, nn.Tanh(), second, Decoder()).double().eval()
    kept: list[Tensor] = []

    class Closed(Decoder):
        def forward(self, x: Tensor) -> Tensor:
            return self.out(x + kept.pop())

    first.register_forward_hook(lambda module, args, out: kept.append(out))
    return nn.Sequential(first, nn.Tanh(), second, Closed()).double().eval()


@pytest.mark.parametrize("how", ["globals", "closure"])
def test_what_a_hook_stores_for_the_network_is_part_of_it(how: str) -> None:
    net = decoding(how)
    with torch.no_grad():
        wanted = net(ROWS)
    kept = dict(FEATURES)
    graph = secateur.trace(net, ROWS)
    assert [group.size for group in graph.groups] == [8]
    plan = secateur.allocate(graph, secateur.score(graph, "l2"), sparsity=0.5)
    small = secateur.cut(net, plan)
    check = secateur.verify(net, small, plan, ROWS)
    assert check.ok
    assert check.changed
    assert {key: id(value) for key, value in FEATURES.items()} == {
        key: id(value) for key, value in kept.items()
    }
    gone = list(plan.removed[graph.groups[0].name])
    first, last = net[0], net[3].out
    with torch.no_grad():
        found = small(ROWS)
        assert torch.equal(net(ROWS), wanted)
        hidden = first(ROWS)
        read = torch.tanh(hidden)
        read[:, gone] = 0
        total = net[2](read) + hidden
        total[:, gone] = 0
        torch.testing.assert_close(found, last(total))


def test_a_hook_that_fails_is_an_error() -> None:
    net = network()

    def hook(module: nn.Module, args: Any, out: Tensor) -> None:
        raise ValueError("never")

    net[1].register_forward_hook(hook)
    with pytest.raises(SecateurError, match="ValueError: never"):
        secateur.trace(net, ROWS)


def test_handles_of_hooks_still_remove_them() -> None:
    net = network()
    handle = net[1].register_forward_hook(lambda module, args, out: out * 2)
    secateur.trace(net, ROWS)
    handle.remove()
    assert not net[1]._forward_hooks
    assert copy.deepcopy(net)(ROWS).equal(net(ROWS))
