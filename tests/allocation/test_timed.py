"""Latency targets: the search on made-up machines, and once on the real one."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import secateur
from secateur.allocation.timed import MOST_MEASUREMENTS, search
from secateur.errors import InputError, PlanError
from secateur.latency import Timing, relative_time


class Machine:
    """Tells times of a number of steps, and counts how often it is asked."""

    def __init__(self, time: Callable[[int], float], noise: float = 0.0, seed: int = 0) -> None:
        self.true, self.noise, self.draw = time, noise, random.Random(seed)
        self.asked: list[int] = []

    def __call__(self, count: int) -> float:
        self.asked.append(count)
        return self.true(count) * (1 + self.draw.uniform(-self.noise, self.noise))


def straight(top: int) -> Callable[[int], float]:
    return lambda count: 1 - 0.99 * count / top


@settings(max_examples=150, deadline=None)
@given(
    top=st.integers(100, 3000),
    share=st.integers(20, 99).map(lambda n: n / 100),
    fixed=st.integers(0, 15).map(lambda n: n / 100),
    bend=st.integers(3, 30).map(lambda n: n / 10),
    noise=st.sampled_from([0.0, 0.01]),
)
def test_a_smooth_machine_is_met_within_the_tolerance(
    top: int, share: float, fixed: float, bend: float, noise: float
) -> None:
    """A fixed cost, and a time that is no line in the MACs."""
    work = straight(top)
    machine = Machine(lambda count: fixed + (1 - fixed) * work(count) ** bend, noise)
    # Where one step is more than the tolerance, no search could meet it.
    smooth = all(machine.true(n) / machine.true(n + 1) < 1.02 for n in range(top * 9 // 10))
    if not smooth or machine.true(top * 9 // 10) > share:
        return
    count = search(work, machine, top, share, 0.05)
    assert abs(machine.true(count) / share - 1) <= 0.05
    assert len(machine.asked) <= 20


def test_a_line_takes_one_cut_that_is_confirmed() -> None:
    machine = Machine(straight(1000))
    count = search(straight(1000), machine, 1000, 0.5, 0.05)
    assert machine.asked == [count] * 4


def test_odd_widths_that_are_slow_do_not_lead_astray() -> None:
    """Every width that is no multiple of 4 costs 8 % more, as on real processors."""
    for share in (0.3, 0.5, 0.7, 0.9):
        work = straight(400)
        machine = Machine(lambda n, work=work: work(n) * (1.08 if n % 4 else 1.0), 0.005)
        count = search(work, machine, 400, share, 0.05)
        assert abs(machine.true(count) / share - 1) <= 0.05


def test_one_lucky_measurement_is_not_believed() -> None:
    """The first answer for each number is 20 % off; the second one is right."""
    work = straight(200)
    seen: set[int] = set()

    def time(count: int) -> float:
        first = count not in seen
        seen.add(count)
        return (work(count) + 0.3) / 1.3 * (0.8 if first else 1.0)

    count = search(work, time, 200, 0.6, 0.2)
    assert abs(0.9 * (work(count) + 0.3) / 1.3 / 0.6 - 1) <= 0.2


class Bursts(Machine):
    """One measurement of five is 14 % too long, as when something else runs for a while."""

    def __call__(self, count: int) -> float:
        return super().__call__(count) * (1.14 if self.draw.random() < 0.2 else 1)


def test_a_jump_over_the_target_is_seldom_taken_for_an_answer() -> None:
    """No number of steps is right: one side is 11 % too fast, the other 14 % too slow."""
    work = straight(300)
    wrong = 0
    for seed in range(60):
        machine = Bursts(lambda n: work(n) * (1.14 if work(n) > 0.5 else 0.89), 0.01, seed)
        try:
            search(work, machine, 300, 0.5, 0.05)
        except PlanError:
            continue
        wrong += 1
    assert wrong <= 10


def test_a_range_that_noise_closed_is_opened_again() -> None:
    """The first three answers are half of the truth: they put the end of the range too early."""
    work = straight(400)
    machine = Machine(work)

    def time(count: int) -> float:
        return machine(count) * (0.5 if len(set(machine.asked)) <= 3 else 1.0)

    count = search(work, time, 400, 0.4, 0.05)
    assert abs(work(count) / 0.4 - 1) <= 0.05


def test_the_whole_time_removes_nothing_and_measures_nothing() -> None:
    machine = Machine(straight(10))
    assert search(straight(10), machine, 10, 1.0, 0.05) == 0
    assert machine.asked == []


def test_a_time_out_of_reach_says_the_least_there_is() -> None:
    machine = Machine(lambda count: 0.4 + 0.6 * straight(50)(count))
    with pytest.raises(PlanError, match=r"as few units .* takes 0\.406 of the dense network's"):
        search(straight(50), machine, 50, 0.2, 0.05)
    assert 50 in machine.asked


def test_a_jump_over_the_target_says_what_is_nearest() -> None:
    machine = Machine(lambda count: 0.9 if count < 20 else 0.3)
    with pytest.raises(PlanError, match=r"within 5%: .* nearest take 0\.\d+ and 0\.\d+ of the"):
        search(straight(50), machine, 50, 0.5, 0.05)
    assert len(set(machine.asked)) <= MOST_MEASUREMENTS


def test_nothing_to_remove() -> None:
    with pytest.raises(PlanError, match="there is nothing to remove"):
        search(lambda _: 1.0, Machine(lambda _: 1.0), 0, 0.5, 0.05)


def test_pure_noise_ends() -> None:
    machine = Machine(lambda _: 1.0, 0.4)
    with pytest.raises(PlanError, match="cannot be met"):
        search(straight(10_000), machine, 10_000, 0.1, 0.01)
    assert len(set(machine.asked)) <= MOST_MEASUREMENTS


# --- through allocate and prune ---


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 24, 3, padding=1), nn.ReLU(), nn.Conv2d(24, 32, 3, padding=1), nn.ReLU(),
        nn.Conv2d(32, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 36, 10),
    ).eval()  # fmt: skip


IMAGE = torch.zeros(2, 3, 8, 8)


def by_parameters(dense: nn.Module, pruned: nn.Module) -> float:
    """A machine whose time is 0.1 and the rest by parameters."""
    sizes = [sum(p.numel() for p in model.parameters()) for model in (dense, pruned)]
    return 0.1 + 0.9 * sizes[1] / sizes[0]


@pytest.mark.parametrize("scope", ["local", "global", "isomorphic"])
@pytest.mark.parametrize("share", [0.9, 0.5, 0.25])
def test_the_cut_network_takes_the_share(scope: str, share: float) -> None:
    model = network()
    result = secateur.prune(
        model, IMAGE, latency=share, scope=scope, criterion="l1", measure=by_parameters
    )
    assert abs(by_parameters(model, result.model) / share - 1) <= 0.05
    assert result.check.ok
    again = secateur.prune(
        model, IMAGE, latency=share, scope=scope, criterion="l1", measure=by_parameters
    )
    assert again.plan == result.plan


def test_limits_and_rounding_hold() -> None:
    graph = secateur.trace(network(), IMAGE)
    plan = secateur.allocate(
        graph, secateur.score(graph, "l1"), latency=0.5, round_to=4, protect=["group:2"],
        measure=by_parameters, timing=Timing(tolerance=0.15),
    )  # fmt: skip
    assert "2" not in plan.removed
    assert plan.removed
    for name, units in plan.removed.items():
        assert (graph.by_name[name].size - len(units)) % 4 == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"latency": 0.0}, "latency must satisfy 0 < latency <= 1, but got 0.0"),
        ({"latency": 1.5}, "latency must satisfy 0 < latency <= 1, but got 1.5"),
        ({"latency": 0.5, "macs": 0.5}, "exactly one of .* but got macs, latency"),
    ],
)
def test_bad_targets_are_refused(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        secateur.prune(network(), IMAGE, measure=by_parameters, **arguments)


PATIENT = Timing(batch=4, repeats=30, seconds=2.0, tolerance=0.15)


@pytest.mark.slow
def test_on_this_machine() -> None:
    """Measured again, the cut network is near its share; wide, as other work disturbs a test."""
    torch.manual_seed(0)
    widths = (3, 64, 128, 128)
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(widths):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU()]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10))
    image = torch.zeros(1, 3, 32, 32)
    result = secateur.prune(model.eval(), image, latency=0.5, timing=PATIENT)
    again = relative_time(model, result.model, image, PATIENT)
    assert abs(again / 0.5 - 1) <= 0.35
