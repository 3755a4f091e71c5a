"""Ctrl-C at any moment of a pass leaves the network, the process and its settings as they were."""

from __future__ import annotations

import gc
import random
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules import module as all_modules
from torch.utils.data import DataLoader, TensorDataset

import secateur
from secateur.finetune import TrainSettings, finetune
from secateur.recovery import reconstruction_scores

ROWS = torch.randn(6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
DATA = [(ROWS, torch.tensor([0, 1, 2, 0, 1, 2])), (ROWS + 1, torch.tensor([0, 1, 2, 2, 1, 0]))]


class Clock:
    """Interrupts whoever asks for the time for the ``left``-th time."""

    left = 0

    def __deepcopy__(self, memo: dict[int, Any]) -> Clock:
        return self

    def __call__(self) -> None:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


CLOCK = Clock()


class Ticking(nn.Module):
    """Asks for the time before and after its layer."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        CLOCK()
        x = self.layer(x)
        CLOCK()
        return x


def network() -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8), nn.LayerNorm(8)]
    net = nn.Sequential(*map(Ticking, [*layers, nn.Linear(8, 3)])).double()
    net(ROWS).sum().backward()
    net[0].layer.bias.requires_grad_(False)
    net[4].eval()
    return net


def state(net: nn.Module) -> list[Any]:
    """Describe all of a network that work on it may change."""
    tensors = [*net.named_parameters(), *net.named_buffers()]
    return [
        [(name, id(t), t.requires_grad, t.tolist()) for name, t in tensors],
        [
            (name, p.grad if p.grad is None else p.grad.tolist())
            for name, p in net.named_parameters()
        ],
        [(name, module.training) for name, module in net.named_modules()],
        [
            (name, key, list(value))
            for name, module in net.named_modules()
            for key, value in vars(module).items()
            if key.endswith("_hooks")
        ],
    ]


def surroundings() -> list[Any]:
    """Describe all of the process that work may change."""
    return [
        gc.isenabled(),
        threading.active_count(),
        torch.is_grad_enabled(),
        torch._C._len_torch_dispatch_stack(),
        torch._C._len_torch_function_stack(),
        torch.backends.mha.get_fastpath_enabled(),
        torch.backends.cuda.flash_sdp_enabled(),
        torch._C._get_mkldnn_enabled(),
        torch.backends.cudnn.enabled,
        torch.get_num_threads(),
        torch.get_default_dtype(),
        torch.get_rng_state().tolist(),
        random.getstate(),
        np.random.get_state()[1].tolist(),  # type: ignore[index]
        len(all_modules._global_forward_hooks),
        len(all_modules._global_forward_pre_hooks),
    ]


Work = Callable[[nn.Module], Any]


def scored(criterion: str) -> Work:
    def work(net: nn.Module) -> None:
        secateur.score(secateur.trace(net, ROWS), criterion, DATA)

    return work


def single_weights(net: nn.Module) -> None:
    secateur.element_scores(net, "taylor", DATA, example_inputs=ROWS)


def recovered(method: str, **options: Any) -> Work:
    def work(net: nn.Module) -> None:
        graph = secateur.trace(net, ROWS)
        plan = secateur.allocate(graph, secateur.score(graph, "l2"), sparsity=0.5)
        pruned = secateur.cut(net, plan)
        before = state(pruned)
        try:
            secateur.recover(net, pruned, plan, DATA, method, **options)
        finally:
            assert state(pruned) == before

    return work


WORK: dict[str, Work] = {
    "trace": lambda net: secateur.trace(net, ROWS),
    "prune": lambda net: secateur.prune(net, ROWS, sparsity=0.5),
    **{name: scored(name) for name in ("taylor_activation", "taylor", "hessian", "lrp", "wanda")},
    "single weights": single_weights,
    "reconstruction": lambda net: reconstruction_scores(secateur.trace(net, ROWS), DATA),
    "least squares": recovered("least_squares"),
    "one layer at a time": recovered("least_squares", memory=0),
    "bias": recovered("bias"),
    "recalibrate": recovered("recalibrate"),
}


@pytest.fixture(autouse=True)
def _stopped() -> Iterator[None]:
    yield
    CLOCK.left = 0


def passes(work: Work, net: nn.Module) -> int:
    CLOCK.left = 0
    work(net)
    return -CLOCK.left


@pytest.mark.parametrize("name", WORK)
def test_an_interrupt_leaves_everything_as_it_was(name: str) -> None:
    net, work = network(), WORK[name]
    before, around = state(net), surroundings()
    ticks = passes(work, net)
    assert ticks > 3
    assert state(net) == before
    assert surroundings() == around
    held: list[BaseException] = []
    for tick in sorted({*range(1, ticks + 1, max(1, ticks // 25)), ticks}):
        CLOCK.left = tick
        with pytest.raises(KeyboardInterrupt) as caught:
            work(net)
        held.append(caught.value)  # as a notebook does, with all its frames
        assert state(net) == before
        assert surroundings() == around
    CLOCK.left = 0
    assert secateur.prune(net, ROWS, sparsity=0.5).check.ok


def test_an_interrupt_between_two_layers_ends_the_waiting_passes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The exception is held, as a notebook holds it: nothing waits for the garbage collector."""

    def interrupt(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        return solve(*args, **kwargs)

    home: Any = sys.modules["secateur.recovery.recover"]
    calls, solve = 0, home.solve_site
    monkeypatch.setattr(home, "solve_site", interrupt)
    net = network()
    before, around = state(net), surroundings()
    with pytest.raises(KeyboardInterrupt) as caught:
        WORK["least squares"](net)
    assert caught.value
    assert state(net) == before
    assert surroundings() == around


@pytest.mark.parametrize("tick", [1, 7, 13, 20, 31, 44])
def test_an_interrupted_training_changes_weights_alone(tick: int) -> None:
    net, teacher = network(), network()
    loader = DataLoader(TensorDataset(ROWS, DATA[0][1]), batch_size=3)
    settings = TrainSettings(epochs=3, distill_weight=0.5)
    # What a training imports for the first time in a process is none of its doing.
    finetune(network(), loader, loader, settings, teacher=teacher)
    taught, around = state(teacher), surroundings()
    modes, hooks = state(net)[2:]
    CLOCK.left = tick
    with pytest.raises(KeyboardInterrupt) as caught:
        finetune(net, loader, loader, settings, teacher=teacher)
    assert caught.value
    assert state(teacher) == taught
    assert surroundings() == around
    assert state(net)[3] == hooks
    assert state(net)[2] == modes


def test_a_cut_network_after_an_interrupt_is_that_of_before() -> None:
    net = network()
    wanted = secateur.prune(net, ROWS, sparsity=0.5).model.state_dict()
    CLOCK.left = 5
    with pytest.raises(KeyboardInterrupt):
        secateur.prune(net, ROWS, sparsity=0.5)
    CLOCK.left = 0
    found = secateur.prune(net, ROWS, sparsity=0.5).model.state_dict()
    assert all(torch.equal(found[key], value) for key, value in wanted.items())
