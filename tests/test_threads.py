"""A network is pruned beside threads that run others, or prune, at the same time."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
import torch
from torch import nn

import secateur
from secateur.allocation.searched import search_allocation
from secateur.graph.process_settings import SharedSetting, plain_operations


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Linear(8, 16), nn.LayerNorm(16), nn.Linear(16, 16), nn.LayerNorm(16)]
    return nn.Sequential(*layers, nn.Linear(16, 4)).double().eval()


ROWS = torch.randn(6, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
DATA = [(ROWS, torch.tensor([0, 1, 2, 3, 0, 1]))]


@pytest.fixture(autouse=True)
def _quick_turns() -> Iterator[None]:
    """Let threads take turns so often that every operation may meet another thread's."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


@contextmanager
def served(model: nn.Module) -> Iterator[None]:
    """Run ``model`` over and over in another thread; fail where that thread does."""
    over = threading.Event()
    wanted = model(ROWS)

    def serve() -> int:
        passes = 0
        with torch.no_grad():
            while not over.is_set():
                assert torch.equal(model(ROWS), wanted)
                passes += 1
        return passes

    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(serve)
        try:
            yield
        finally:
            over.set()
        assert running.result() > 0


def pruned_by(criterion: str) -> Callable[[nn.Module], list[torch.Tensor]]:
    def work(model: nn.Module) -> list[torch.Tensor]:
        result = secateur.prune(model, ROWS, criterion=criterion, sparsity=0.5, calibration=DATA)
        assert result.check.ok
        assert result.check.changed
        return [parameter.detach() for parameter in result.model.parameters()]

    return work


def recovered(model: nn.Module) -> list[torch.Tensor]:
    result = secateur.prune(model, ROWS, sparsity=0.5)
    found = secateur.recover(model, result.model, result.plan, DATA)
    return [parameter.detach() for parameter in found.model.parameters()]


def masked(model: nn.Module) -> list[torch.Tensor]:
    result = secateur.prune(model, ROWS, sparsity=0.5)
    with torch.no_grad():
        return [secateur.mask(model, result.plan)(ROWS)]


WORK = {
    "l2": pruned_by("l2"),
    "taylor_activation": pruned_by("taylor_activation"),
    "lrp": pruned_by("lrp"),
    "recover": recovered,
    "mask": masked,
}


@pytest.mark.parametrize("name", WORK)
def test_work_beside_a_thread_that_runs_a_network(name: str) -> None:
    wanted = WORK[name](network())
    with served(network()):
        for _ in range(3):
            found = WORK[name](network())
            assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize("name", WORK)
def test_the_same_work_in_three_threads_at_once(name: str) -> None:
    wanted = WORK[name](network())
    with ThreadPoolExecutor(3) as pool:
        for found in pool.map(WORK[name], [network() for _ in range(6)]):
            assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def attention_settings() -> tuple[bool, bool]:
    return torch.backends.mha.get_fastpath_enabled(), torch.backends.cuda.flash_sdp_enabled()


def test_settings_that_two_threads_hold_are_put_back_by_the_last() -> None:
    before = attention_settings()
    assert before == (True, True)
    first, second = threading.Event(), threading.Event()

    def other() -> tuple[bool, bool]:
        with plain_operations():
            first.set()
            assert second.wait(10)
            return attention_settings()

    with ThreadPoolExecutor(1) as pool:
        with plain_operations():
            running = pool.submit(other)
            assert first.wait(10)
        second.set()
        assert running.result() == (False, False)
    assert attention_settings() == before


def test_a_setting_that_fails_is_not_held() -> None:
    @contextmanager
    def failing() -> Iterator[None]:
        if tried:
            raise ValueError
        tried.append(1)
        yield

    tried = [1]
    setting = SharedSetting(failing)
    with pytest.raises(ValueError), setting():  # noqa: PT011
        pass
    tried.clear()
    with setting():
        assert tried


def test_optuna_says_again_what_it_said() -> None:
    optuna = pytest.importorskip("optuna")
    before = optuna.logging.get_verbosity()
    graph = secateur.trace(network(), ROWS)
    scores = secateur.score(graph, "l1")
    found = search_allocation(graph, scores, lambda plan: plan.pruned.params, trials=3)
    assert found
    assert optuna.logging.get_verbosity() == before
