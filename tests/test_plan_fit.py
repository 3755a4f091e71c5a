"""A plan fits the network that it was made for, whatever its values, and no other."""

from __future__ import annotations

import copy
import dataclasses
import json
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secateur
from secateur.errors import CheckpointError, PlanError
from secateur.files import with_checksum
from secateur.plan import Plan

X = torch.randn(2, 3, 8, 8)


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.conv2(self.bn1(self.conv1(x)).relu())).relu()


class ResNet(nn.Module):
    def __init__(self, blocks: int, width: int = 16, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.blocks = nn.Sequential(*(Block(width) for _ in range(blocks)))
        self.head = nn.Linear(width, classes)
        self.register_buffer("seen", torch.zeros(4))
        self.register_buffer("passing", torch.zeros(3), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


def planned(model: nn.Module) -> Plan:
    graph = secateur.trace(model, X)
    return secateur.allocate(graph, secateur.score(graph, "random"), sparsity=0.5)


def refuses(model: nn.Module, plan: Plan, words: str) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for verb in (
        lambda: secateur.cut(model, plan),
        lambda: secateur.cut(model, plan, inplace=True),
        lambda: secateur.mask(model, plan),
        lambda: secateur.verify(model, model, plan, X),
    ):
        with pytest.raises(PlanError, match=re.escape(words)):
            verb()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])


def with_more(model: ResNet) -> nn.Module:
    model.extra = nn.Linear(2, 2)
    return model


def with_buffer(model: ResNet) -> nn.Module:
    model.register_buffer("seen", torch.zeros(5))
    return model


def tied(model: ResNet) -> nn.Module:
    model.blocks[1].conv1.weight = model.blocks[0].conv1.weight
    return model


OTHERS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "deeper": (lambda: ResNet(3), "has 'blocks.2.conv1.weight' of shape (16, 16, 3, 3)"),
    "shallower": (lambda: ResNet(1), "knows 'blocks.1.conv1.weight' of shape (16, 16, 3, 3)"),
    "wider": (lambda: ResNet(2, 32), "'stem.weight' has shape (16, 3, 3, 3) there, and (32, 3,"),
    "other classes": (lambda: ResNet(2, classes=7), "'head.weight' has shape (10, 16) there"),
    "one more layer": (lambda: with_more(ResNet(2)), "has 'extra.weight' of shape (2, 2)"),
    "another buffer": (lambda: with_buffer(ResNet(2)), "'seen' has shape (4,) there, and (5,)"),
    "tied": (lambda: tied(ResNet(2)), "knows 'blocks.1.conv1.weight'"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_another_network_is_refused_by_its_first_difference(name: str) -> None:
    build, words = OTHERS[name]
    refuses(build().eval(), planned(ResNet(2).eval()), words)


def trained(model: nn.Module) -> nn.Module:
    optimizer = torch.optim.SGD(model.train().parameters(), lr=0.1)
    model(X).square().mean().backward()
    optimizer.step()
    return model.eval()


def changed_buffer(model: ResNet) -> nn.Module:
    model.passing = torch.zeros(7)
    return model


SAME: dict[str, Callable[[ResNet], nn.Module]] = {
    "itself": lambda model: model,
    "copy": copy.deepcopy,
    "trained": trained,
    "double": lambda model: model.double(),
    "half": lambda model: model.to(torch.bfloat16),
    "meta": lambda model: model.to("meta"),
    "other weights": lambda model: ResNet(2).eval(),
    "channels last": lambda model: model.to(memory_format=torch.channels_last),
    "frozen": lambda model: model.requires_grad_(False),
    "a buffer that comes and goes": changed_buffer,
}


@pytest.mark.parametrize("name", SAME)
def test_the_same_network_fits_whatever_its_values(name: str) -> None:
    model = ResNet(2).eval()
    plan = planned(model)
    other = SAME[name](model)
    assert sum(p.numel() for p in secateur.cut(other, plan).parameters()) == plan.pruned.params


def without(data: dict[str, Any]) -> None:
    del data["cuts"]["blocks.0.bn1.weight"]


def moved(data: dict[str, Any]) -> None:
    data["cuts"]["blocks.0.conv1.bias"]["0"] = "0-7"


def fewer(data: dict[str, Any]) -> None:
    name = next(iter(data["removed"]))
    data["removed"][name] = data["removed"][name][:-1]


def renumbered(data: dict[str, Any]) -> None:
    data["removed"] = {name: list(range(8)) for name in data["removed"]}


def attribute(data: dict[str, Any]) -> None:
    data["attributes"]["head.out_features"] = 3


def unread(data: dict[str, Any]) -> None:
    data["consumers"] = data["consumers"][1:]


def reshaped(data: dict[str, Any]) -> None:
    data["shapes"]["passing"] = [3]


EDITS = [without, moved, fewer, renumbered, attribute, unread, reshaped]


def read_back(plan: Plan, edit: Callable[[dict[str, Any]], None]) -> Plan:
    """Edit the plan's file, and its checksum too."""
    data = json.loads(plan.to_json())
    edit(data)
    return Plan.from_json(json.dumps(with_checksum(data)))


@pytest.mark.parametrize("edit", EDITS, ids=lambda f: f.__name__)
def test_an_edited_plan_is_refused(edit: Callable[[dict[str, Any]], None]) -> None:
    model = ResNet(2).eval()
    plan = planned(model)
    edited = read_back(plan, edit)
    assert edited != plan
    refuses(model, edited, "plan was edited")


def test_an_edit_in_memory_is_refused_and_a_note_is_none() -> None:
    model = ResNet(2).eval()
    plan = planned(model)
    refuses(model, dataclasses.replace(plan, cuts={}), "plan was edited")
    noted = dataclasses.replace(plan, notes=("mine",))
    assert secateur.verify(model, secateur.cut(model, noted), noted, X).ok


def test_a_file_without_a_digest_is_no_plan() -> None:
    with pytest.raises(CheckpointError, match="digest"):
        read_back(planned(ResNet(2).eval()), lambda data: data.update(digest=""))


def test_the_digest_survives_the_file() -> None:
    plan = planned(ResNet(2).eval())
    again = Plan.from_json(plan.to_json())
    assert again == plan
    assert len(again.digest) == 64
    assert again.shapes["stem.weight"] == (16, 3, 3, 3)
    assert "passing" not in again.shapes
