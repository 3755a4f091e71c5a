"""Operations are found again where data decide how many others run before them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import secateur
from secateur.calibration import Batches
from secateur.planning import make_plan

WIDTH = 6


class Steps(nn.Module):
    """Runs a mean, a product, a sum and a norm once, or twice: every size is that of the rest."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mix", torch.eye(WIDTH).roll(1, 0))

    def forward(self, x: Tensor, times: int) -> Tensor:
        for _ in range(times):
            x = x - x.relu().mean(-1, keepdim=True)
            x = x + torch.tanh(x @ self.mix)
            x = F.layer_norm(x, (WIDTH,))
        return x


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.steps = Steps()
        self.a, self.b = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, times: int) -> Tensor:
        y = self.steps(x, times)
        return y + self.b(self.a(y).relu())


class Varying(nn.Module):
    """The first number of a batch decides how many steps are taken.

    One group is read by a norm and a layer, one by a mean alone, and two by layers alone.
    """

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.block = Block()
        self.hidden, self.norm = nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH)
        self.head, self.aside = nn.Linear(WIDTH, 3), nn.Linear(WIDTH, WIDTH)

    def body(self, x: Tensor) -> Tensor:
        times = 2 if x[0, 0] > 0 else 1
        return self.block(self.second(self.first(x).relu()), times)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.body(x)
        shown = self.head(self.norm(self.hidden(y).relu()))
        return shown, self.aside(y).relu().mean(-1, keepdim=True)


def batch(first: float, seed: int, number: int = 7) -> tuple[Tensor, Tensor]:
    x = torch.randn(
        number, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )
    x[0, 0] = first
    return x, torch.zeros(number, dtype=torch.long)


@pytest.fixture
def model() -> Varying:
    torch.manual_seed(0)
    found = Varying().double().eval()
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.normal_()
    return found


@pytest.fixture
def graph(model: Varying) -> secateur.Graph:
    """Of one step; the batches below take one and two."""
    found = secateur.trace(model, batch(-1.0, 0)[0])
    assert set(found.by_name) == {"first", "block.a", "hidden", "aside"}
    return found


@pytest.fixture
def batches() -> Batches:
    return [batch(1.0, 1), batch(-1.0, 2)]


def test_activations_are_those_of_the_place(
    model: Varying, graph: secateur.Graph, batches: Batches
) -> None:
    found = secateur.score(graph, "activation_norm", batches)
    with torch.no_grad():
        y = torch.cat([model.body(x) for x, _ in batches])
        read = {"aside": model.aside(y).relu(), "hidden": model.norm(model.hidden(y).relu())}
    for group, values in read.items():
        torch.testing.assert_close(found[group], values.square().mean(0).sqrt())


def test_gradients_are_those_of_the_place(
    model: Varying, graph: secateur.Graph, batches: Batches
) -> None:
    """The loss sees only what a mean reads, so that no weight tells the place."""

    def loss(outputs: tuple[Tensor, Tensor], labels: Tensor) -> Tensor:
        return outputs[1].square().mean()

    found = secateur.score(graph, "taylor_activation", batches, loss=loss)
    with torch.no_grad():
        values = torch.cat([model.aside(model.body(x)).relu() for x, _ in batches])
    # d/dx_j (mean of x)^2 = 2 mean / width
    gradient = 2 * values.mean(1, keepdim=True) / WIDTH
    torch.testing.assert_close(found["aside"], (values * gradient).abs().mean(0))


def test_relevance_is_that_of_the_place(
    model: Varying, graph: secateur.Graph, batches: Batches
) -> None:
    options = {"rule": "epsilon", "epsilon": 1e-13}
    found = secateur.score(graph, "lrp", batches, options=options)
    with torch.no_grad():
        h = model.norm(model.hidden(torch.cat([model.body(x) for x, _ in batches])).relu())
        chosen = model.head(h).argmax(1)
        wanted = (h * model.head.weight[chosen]).mean(0)
    torch.testing.assert_close(found["hidden"], wanted, rtol=1e-8, atol=1e-10)


def test_masks_act_on_the_place(model: Varying, graph: secateur.Graph, batches: Batches) -> None:
    gone, kept = (1, 4), [0, 2, 3, 5]
    masked = secateur.mask(model, make_plan(graph, {"hidden": gone, "aside": gone}))
    for x, _ in batches:
        with torch.no_grad():
            shown, aside = masked(x)
            y = model.body(x)
            h = F.layer_norm(
                model.hidden(y).relu()[:, kept],
                (4,),
                model.norm.weight[kept],
                model.norm.bias[kept],
            )
            wanted = h @ model.head.weight[:, kept].T + model.head.bias
        torch.testing.assert_close(shown, wanted)
        torch.testing.assert_close(aside, model.aside(y).relu()[:, kept].mean(1, keepdim=True))


def test_recovery_makes_up_for_the_skip_path_of_the_place(
    model: Varying, graph: secateur.Graph
) -> None:
    data = [batch(-1.0, 1, 60), batch(1.0, 2, 60)]
    plan = make_plan(graph, {"first": (1, 4), "block.a": (0, 3)})
    pruned = secateur.cut(model, plan)
    found = secateur.recover(model, pruned, plan, data, ridge=0.0)
    assert [record.name for record in found.layers if record.changed] == ["second", "block.b"]
    recovered = found.model
    rows, targets = [], []
    with torch.no_grad():
        for times, (x, _) in zip((1, 2), data, strict=True):
            y = model.block.steps(model.second(model.first(x).relu()), times)
            lost = recovered.block.steps(recovered.second(recovered.first(x).relu()), times)
            rows.append(recovered.block.a(lost).relu())
            targets.append(model.block.b(model.block.a(y).relu()) + y - lost)
    x, y = torch.cat(rows), torch.cat(targets)
    solution = torch.linalg.lstsq(torch.cat([x, torch.ones(len(x), 1)], 1), y).solution
    torch.testing.assert_close(recovered.block.b.weight.T.detach(), solution[:-1])
    torch.testing.assert_close(recovered.block.b.bias.detach(), solution[-1])
