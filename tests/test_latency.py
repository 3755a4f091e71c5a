from __future__ import annotations

import statistics
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from secateur.errors import InputError
from secateur.latency import Timing, efficiency, layer_times, paired, relative_time, summary


class Clock:
    """Time that only passes when a network works."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Works(nn.Module):
    """Takes ``costs`` in turn (the last one for ever) and notes what it sees."""

    def __init__(self, clock: Clock, diary: list[str], name: str, costs: list[float]) -> None:
        super().__init__()
        self.clock, self.diary, self.name, self.costs = clock, diary, name, list(costs)
        self.seen: list[Any] = []

    def forward(self, x: Tensor, extra: Tensor | None = None) -> Tensor:
        self.clock.now += self.costs.pop(0) if len(self.costs) > 1 else self.costs[0]
        self.diary.append(self.name)
        modes = self.training, torch.is_grad_enabled(), torch.get_num_threads()
        self.seen.append((tuple(x.shape), modes, extra))
        return x


def test_turns_alternate_and_speeds_are_exact() -> None:
    clock, diary = Clock(), []
    models = {"dense": Works(clock, diary, "d", [0.5]), "pruned": Works(clock, diary, "p", [0.125])}
    found = paired(models, torch.zeros(1, 3), batch=4, repeats=3, seconds=6, clock=clock)
    # One second per turn: 2 passes of the dense network, 8 of the pruned one, after 3 to warm up.
    assert "".join(diary) == "ddd" + "ppp" + ("dd" + "pppppppp") * 3
    assert found["dense"].median == found["dense"].low == found["dense"].high == 8
    assert found["pruned"].median == 32
    assert (found["pruned"].batch, found["pruned"].threads, found["pruned"].repeats) == (4, 1, 3)


def test_one_slow_turn_does_not_move_the_median() -> None:
    clock, diary = Clock(), []
    model = Works(clock, diary, "a", [1.0] * 4 + [50.0] + [1.0])
    found = paired({"a": model}, torch.zeros(1, 3), repeats=5, seconds=0.1, clock=clock)
    assert found["a"].median == 1
    assert len(diary) == 3 + 5


def test_warm_up_counts_its_fastest_pass() -> None:
    clock, diary = Clock(), []
    model = Works(clock, diary, "a", [9.0, 3.0, 0.5])
    paired({"a": model}, torch.zeros(1, 3), repeats=1, seconds=2, clock=clock)
    assert len(diary) == 3 + 4


def test_a_clock_that_stands_still_is_no_division_by_zero() -> None:
    model = Works(Clock(), [], "a", [0.0])
    found = paired({"a": model}, torch.zeros(1, 3), repeats=2, seconds=1e-9, clock=Clock())
    assert found["a"].median == pytest.approx(1e9)


def test_networks_see_the_batch_in_eval_mode_with_the_asked_threads() -> None:
    clock = Clock()
    model = Works(clock, [], "a", [1.0])
    before = torch.get_num_threads()
    wanted = 1 if before > 1 else 2
    paired({"a": model}, torch.zeros(1, 3, 8), batch=5, repeats=1, threads=wanted, clock=clock)
    assert {seen[:2] for seen in model.seen} == {((5, 3, 8), (False, False, wanted))}
    assert torch.get_num_threads() == before
    assert model.training


def test_thread_count_and_mode_come_back_after_an_error() -> None:
    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError("no")

    model, before = Broken(), torch.get_num_threads()
    with pytest.raises(RuntimeError, match="no"):
        paired({"a": model}, torch.zeros(1, 3), threads=before + 1)
    assert torch.get_num_threads() == before
    assert model.training


@pytest.mark.parametrize("kind", ["tuple", "dict"])
def test_inputs_may_be_many(kind: str) -> None:
    clock = Clock()
    model = Works(clock, [], "a", [1.0])
    x, extra = torch.arange(6.0).view(2, 3), torch.arange(4).view(2, 2)
    example = (x, extra) if kind == "tuple" else {"x": x, "extra": extra}
    paired({"a": model}, example, batch=3, repeats=1, clock=clock)
    shape, _, seen = model.seen[0]
    assert shape == (3, 3)
    assert torch.equal(seen, torch.tensor([[0, 1]] * 3))


def test_summary_has_the_median_and_quartiles() -> None:
    speeds = [5.0, 1.0, 4.0, 2.0, 3.0, 9.0]
    found = summary(speeds, 2, 1)
    low, median, high = statistics.quantiles(speeds, n=4, method="inclusive")
    assert (found.low, found.median, found.high) == pytest.approx((low, median, high))
    assert (found.batch, found.threads, found.repeats) == (2, 1, 6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch": 0}, "batch must be at least 1, but got 0"),
        ({"repeats": 0}, "repeats must be at least 1"),
        ({"threads": 0}, "threads must be at least 1"),
        ({"seconds": 0}, "seconds must be above 0"),
        ({"models": {}}, "models must hold at least one network"),
        ({"example": torch.tensor(1.0)}, "example must have a leading batch dimension"),
        ({"example": torch.zeros(0, 3)}, "example must hold at least one sample"),
    ],
)
def test_bad_arguments_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        paired(**({"models": {"a": nn.Identity()}, "example": torch.zeros(1, 3)} | settings))


def test_a_relative_time_is_the_median_of_neighbouring_turns() -> None:
    """The machine is three times slower from the middle on: each pair still says one half."""
    clock, diary = Clock(), []

    class Slowing(Works):
        def forward(self, x: Tensor, extra: Tensor | None = None) -> Tensor:
            factor = 3 if len(diary) > 20 else 1
            self.clock.now += factor * self.costs[0]
            diary.append(self.name)
            return x

    dense, pruned = Slowing(clock, diary, "d", [1.0]), Slowing(clock, diary, "p", [0.5])
    timing = Timing(repeats=9, seconds=18.0)
    assert relative_time(dense, pruned, torch.zeros(1, 3), timing, clock=clock) == 0.5
    assert "".join(diary).startswith("ddd" + "ppp" + "d" + "pp" + "d" + "pp")


def test_the_example_may_be_taken_as_it_is() -> None:
    clock = Clock()
    model = Works(clock, [], "a", [1.0])
    scale, x = torch.tensor(2.0), torch.zeros(7, 3)
    relative_time(model, model, (x, scale), Timing(batch=None, repeats=1), clock=clock)
    assert {seen[0] for seen in model.seen} == {(7, 3)}
    assert all(seen[2].ndim == 0 for seen in model.seen)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch": 0}, "batch must be at least 1, but got 0"),
        ({"threads": 0}, "threads must be at least 1"),
        ({"repeats": 0}, "repeats must be at least 1"),
        ({"seconds": 0}, "seconds must be above 0"),
        ({"tolerance": 0}, "tolerance must satisfy 0 < tolerance < 1, but got 0"),
        ({"tolerance": float("nan")}, "tolerance must satisfy"),
    ],
)
def test_bad_timing_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Timing(**settings)


def test_efficiency_is_the_speed_up_over_the_saving() -> None:
    assert efficiency(2.0, 100, 50) == 1
    assert efficiency(1.5, 100, 50) == 0.75
    with pytest.raises(InputError, match="pruned_macs must be above 0"):
        efficiency(2.0, 100, 0)


def test_layers_have_their_own_times() -> None:
    ticks = iter(range(100_000))
    model = nn.Sequential(nn.Linear(3, 3), nn.Sequential(nn.ReLU(), nn.Linear(3, 2)))
    twice = nn.Sequential(model[0], model[1], nn.Linear(2, 3), model[0])
    found = layer_times(twice, torch.zeros(1, 3), repeats=3, clock=lambda: float(next(ticks)))
    assert found == {"0": 2.0, "1.0": 1.0, "1.1": 1.0, "2": 1.0}
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in twice.modules())
