"""Groups as people see them: names, kinds, unit numbers, and what is pinned."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import secateur


def trace(model: nn.Module, *shape: int) -> secateur.Graph:
    return secateur.trace(model.eval(), torch.randn(2, *shape))


class Block(nn.Module):
    """A residual block, so that one group has many slots, and a head over flattened pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.inner = nn.Conv2d(4, 5, 1)
        self.outer = nn.Conv2d(5, 4, 1)
        self.hidden = nn.Linear(16, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(self.first(x))
        h = h + self.outer(F.relu(self.inner(h)))
        return self.head(F.relu(self.hidden(h.flatten(1))))


def test_groups_come_in_the_order_of_the_parameters_with_the_producers_name() -> None:
    graph = trace(Block(), 3, 2, 2)
    assert [(g.name, g.size, g.kind) for g in graph.groups] == [
        ("first", 4, "channel"),
        ("inner", 5, "channel"),
        ("hidden", 6, "neuron"),
    ]
    assert graph.by_name == {group.name: group for group in graph.groups}


def test_every_slot_tells_the_unit_of_every_position() -> None:
    graph = trace(Block(), 3, 2, 2)
    slots = {(s.name, s.dim): s.units.tolist() for s in graph.by_name["first"].slots}
    each = [0, 1, 2, 3]
    assert slots == {
        ("first.weight", 0): each,
        ("first.bias", 0): each,
        ("norm.weight", 0): each,
        ("norm.bias", 0): each,
        ("norm.running_mean", 0): each,
        ("norm.running_var", 0): each,
        ("inner.weight", 1): each,
        ("outer.weight", 0): each,
        ("outer.bias", 0): each,
        ("hidden.weight", 1): [unit for unit in each for _ in range(4)],
    }


def test_positions_of_others_are_minus_one() -> None:
    class Joined(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 2), nn.Linear(3, 3)
            self.c = nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.c(torch.cat([self.a(x), x, self.b(x)], 1))

    graph = trace(Joined(), 3)
    found = {
        g.name: [s.units.tolist() for s in g.slots if s.name == "c.weight"] for g in graph.groups
    }
    assert found == {
        "a": [[0, 1, -1, -1, -1, -1, -1, -1]],
        "b": [[-1, -1, -1, -1, -1, 0, 1, 2]],
    }


def test_units_are_numbered_by_their_first_position() -> None:
    """A reversed reader does not renumber the producer's units."""

    class Reversed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Conv2d(3, 6, 1)
            self.b = nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            n, c, h, w = (y := self.a(x)).shape
            return self.b(
                y.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w).mean((2, 3))
            )

    graph = trace(Reversed(), 3, 2, 2)
    slots = {
        group.size: {(s.name, s.dim): s.units.tolist() for s in group.slots}
        for group in graph.groups
    }
    assert slots[3]["a.weight", 0] == [0, 1, 2, 0, 1, 2]
    assert slots[3]["b.weight", 1] == [0, 0, 1, 1, 2, 2]


def test_two_groups_of_one_layer_have_two_names() -> None:
    class Halves(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Conv2d(3, 8, 1)
            self.b, self.c = nn.Conv2d(4, 2, 1), nn.Conv2d(4, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            left, right = self.a(x).chunk(2, 1)
            return self.b(left) + self.c(right)

    names = [group.name for group in trace(Halves(), 3, 2, 2).groups]
    assert len(names) == len(set(names)) == 2
    assert names == ["a", "a#2"]


def test_the_model_itself_may_hold_the_parameters() -> None:
    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.randn(3, 5))
            self.v = nn.Parameter(torch.randn(5, 2))

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(x @ self.w) @ self.v

    (group,) = trace(Bare(), 3).groups
    assert group.name
    assert {(slot.name, slot.dim) for slot in group.slots} == {("w", 1), ("v", 0)}


def test_a_single_unit_is_no_group() -> None:
    graph = trace(nn.Sequential(nn.Linear(3, 1), nn.ReLU(), nn.Linear(1, 2)), 3)
    assert graph.groups == ()


def test_pins_name_the_dimension_the_reason_and_the_share() -> None:
    class Part(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 6), nn.Linear(2, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x)[:, :2])

    pins = {(pin.name, pin.dim): pin for pin in trace(Part(), 3).pinned}
    assert set(pins) == {
        ("a.weight", 0), ("a.weight", 1), ("a.bias", 0), ("b.weight", 0), ("b.weight", 1),
        ("b.bias", 0),
    }  # fmt: skip
    assert pins["a.weight", 1].reason == "the model's input"
    assert pins["b.weight", 0].reason == "the model's output"
    assert "size 2 is fixed" in pins["b.weight", 1].reason
    assert (pins["b.weight", 1].count, pins["b.weight", 1].size) == (2, 2)
    assert (pins["a.weight", 1].count, pins["a.weight", 1].size) == (3, 3)


def test_what_is_read_nowhere_is_pinned() -> None:
    class Spare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.spare = nn.Linear(3, 6), nn.Linear(6, 4), nn.Linear(5, 7)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x))

    graph = trace(Spare(), 3)
    assert [group.name for group in graph.groups] == ["a"]
    reasons = {(p.name, p.dim): p.reason for p in graph.pinned if p.name == "spare.weight"}
    assert reasons == {
        ("spare.weight", 0): "no operation reads it",
        ("spare.weight", 1): "no operation reads it",
    }


def test_kernels_are_not_listed_as_pinned() -> None:
    graph = trace(nn.Sequential(nn.Conv2d(3, 6, 3), nn.Conv2d(6, 4, 3)), 3, 8, 8)
    assert all(pin.dim < 2 for pin in graph.pinned)


def test_tied_weights_stand_once_under_their_first_name() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(5, 5), nn.Linear(5, 5), nn.Linear(5, 2)
            self.b.weight = self.a.weight
            self.first = nn.Linear(3, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.c(self.b(F.relu(self.a(self.first(x)))))

    (group,) = trace(Tied(), 3).groups
    assert {(slot.name, slot.dim) for slot in group.slots} == {
        ("a.weight", 0), ("a.weight", 1), ("a.bias", 0), ("b.bias", 0), ("c.weight", 1),
        ("first.weight", 0), ("first.bias", 0),
    }  # fmt: skip


def test_heads_of_attention_are_known_as_such() -> None:
    model = nn.TransformerEncoderLayer(12, 3, 16, batch_first=True)
    kinds = {g.kind: g.size for g in trace(model, 5, 12).groups if g.kind.startswith("head")}
    assert kinds == {"head": 3, "head_dim": 4}


def test_a_group_cannot_be_changed_by_accident() -> None:
    group = trace(Block(), 3, 2, 2).groups[0]
    with pytest.raises(AttributeError):
        group.size = 3  # type: ignore[misc]


@pytest.mark.parametrize("width", [2, 3, 17])
def test_all_positions_of_a_unit_are_in_its_group_and_cover_the_dimension(width: int) -> None:
    model = nn.Sequential(
        nn.Conv2d(3, width, 1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(width * 4, width),
        nn.Linear(width, 2),
    )
    for group in trace(model, 3, 2, 2).groups:
        for slot in group.slots:
            assert set(np.unique(slot.units)) == set(range(group.size))
