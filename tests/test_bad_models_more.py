"""Awkward networks that were once cut wrongly or refused in words that nobody understands."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from networks import randomise
from test_bad_models import (
    Chooses,
    Returns,
    Writes,
    cut_exactly,
    images,
    plain,
    rows,
    statements,
    twice,
)
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import secateur
from secateur.errors import InputError, SecateurError
from secateur.planning import make_plan


@dataclass(slots=True)
class Slots:
    logits: Tensor
    other: Tensor


def test_slots_dataclass() -> None:
    assert cut_exactly(Returns(Slots).double(), rows(), trains=False).groups


@pytest.mark.parametrize(
    "text",
    [
        "v = h.unsqueeze(1).expand(2, 1, 8, 5, 5); o = v[:, 0] * 2",
        "o = torch.empty(0, dtype=h.dtype, device=h.device); torch.add(h, 1, out=o)",
        "o = torch.empty(0, dtype=h.dtype, device=h.device); o.set_(h); o[:, :3] = 0.1",
    ],
)
def test_writes(text: str) -> None:
    cut_exactly(Writes(statements(text)).double(), images(), trains=False)


def test_spectral_norm() -> None:
    model = plain()
    parametrizations.spectral_norm(model[0])
    cut_exactly(model, rows(), trains=False)


class Averages(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 5)
        self.register_buffer("mean", torch.zeros(8))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.sigmoid(self.a(x))
        self.mean.mul_(0.9).add_(h.detach().mean(0), alpha=0.1)
        return self.b(h - self.mean)


def test_a_network_that_changes_what_it_reads_is_proved_right() -> None:
    model = randomise(Averages().double())
    graph = secateur.trace(model, rows())
    plan = make_plan(graph, {graph.groups[0].name: (0, 3)})
    assert secateur.verify(model, secateur.cut(model, plan), plan, rows()).ok


def test_a_module_that_holds_what_cannot_be_copied() -> None:
    class Holds(Chooses):
        def __init__(self) -> None:
            super().__init__(lambda h: h)
            self.op, self.np = twice, torch

    assert secateur.trace(Holds().double(), rows()).groups


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("way", ["script", "trace", "part", "export"])
def test_scripted_networks_are_refused(way: str) -> None:
    model = plain().float()
    if way == "script":
        model = torch.jit.script(model)
    elif way == "trace":
        model = torch.jit.trace(model, rows().float())
    elif way == "export":
        model = torch.export.export(model, (rows().float(),)).module()
    else:
        model = nn.Sequential(torch.jit.script(model), nn.Linear(5, 5))
    with pytest.raises(SecateurError):
        secateur.prune(model, rows().float(), sparsity=0.5)


def test_lazy_input_error() -> None:
    with pytest.raises(InputError):
        secateur.trace(nn.Sequential(nn.LazyLinear(8), nn.Linear(8, 5)).double(), rows())


def test_random_state_is_put_back() -> None:
    class Sets(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            torch.manual_seed(5)
            return super().forward(x)

    model, inputs = Sets(*plain()), rows()
    torch.manual_seed(1)
    wanted = torch.rand(3)
    torch.manual_seed(1)
    secateur.trace(model, inputs)
    assert torch.equal(torch.rand(3), wanted)


@pytest.mark.parametrize("which", ["model", "inputs"])
def test_meta_is_planned_but_not_proved(which: str) -> None:
    model, inputs = randomise(plain()), rows()
    if which == "model":
        model = model.to("meta")
    else:
        inputs = inputs.to("meta")
    graph = secateur.trace(model, inputs)
    plan = make_plan(graph, {graph.groups[0].name: (0,)})
    with pytest.raises(SecateurError):
        secateur.verify(model, secateur.cut(model, plan), plan, inputs)
