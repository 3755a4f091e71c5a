"""Sizes that a network's own methods read are true after a cut; what is equal by chance stays."""

from __future__ import annotations

import copy
import functools
import types
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secateur
from secateur.planning import make_plan

X = torch.randn(2, 8, dtype=torch.float64)


class Own(nn.Module):
    def __init__(self, hidden: int = 32) -> None:
        super().__init__()
        self.hidden = hidden
        self.a, self.o = nn.Linear(8, hidden), nn.Linear(hidden, 3)

    def reset_head(self, classes: int) -> None:
        self.o = nn.Linear(self.hidden, classes).to(self.a.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.o(torch.relu(self.a(x)))


class Chained(Own):
    """Several names, a default, a number of its own, and layers from a method of a base class."""

    def __init__(self, hidden: int | None = None) -> None:
        nn.Module.__init__(self)
        self.hidden = self.num_features = hidden or 4 * 8
        self.a = self.layer(8, self.num_features)
        self.o = functools.partial(nn.Linear, out_features=3)(self.hidden)

    def layer(self, inputs: int, outputs: int) -> nn.Module:
        return nn.Linear(inputs, outputs)


def body(width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(8, width), nn.ReLU())


class ByFunction(Own):
    def __init__(self, hidden: int = 32) -> None:
        nn.Module.__init__(self)
        self.hidden = hidden
        self.body = body(width=hidden)
        self.o = nn.Linear(hidden, 3)

    @property
    def a(self) -> Any:
        return self.body[0]

    def forward(self, x: Tensor) -> Tensor:
        return self.o(self.body(x))


class Wide(nn.Linear):
    def __init__(self, width: int) -> None:
        super().__init__(8, width)


class ByExtension(Own):
    def __init__(self, hidden: int = 32) -> None:
        nn.Module.__init__(self)
        self.hidden = hidden
        self.a, self.o = Wide(hidden), nn.Linear(32, 3)


class ByMethods(Own):
    """The constructor leaves it to methods, one of them of a base class and one of a class."""

    def __init__(self, hidden: int = 32) -> None:
        nn.Module.__init__(self)
        self.hidden = hidden
        self.build()

    def build(self) -> None:
        """Build.

        This line begins where the method does.
        """
        self.a = self.layer(8, self.hidden)
        self.o = nn.Linear(32, 3)

    @staticmethod
    def layer(inputs: int, outputs: int) -> nn.Module:
        return nn.Linear(inputs, outputs)


class InConfig(Own):
    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.config = config = types.SimpleNamespace(hidden=32, layers=2)
        self.a, self.o = nn.Linear(8, config.hidden), nn.Linear(config.hidden, 3)

    @property
    def hidden(self) -> int:
        return self.config.hidden


class InDict(Own):
    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.config = config = {"hidden": 32}
        self.a, self.o = nn.Linear(8, config["hidden"]), nn.Linear(config["hidden"], 3)

    @property
    def hidden(self) -> int:
        return self.config["hidden"]


class InList(Own):
    def __init__(self, widths: tuple[int, ...] = (8, 32, 3)) -> None:
        nn.Module.__init__(self)
        self.widths = list(widths)
        self.layers = nn.ModuleList(
            nn.Linear(one, other)
            for one, other in zip(widths[:-1], widths[1:], strict=True)  # noqa: RUF007
        )

    @property
    def hidden(self) -> int:
        return self.widths[1]

    @property
    def a(self) -> Any:
        return self.layers[0]

    def reset_head(self, classes: int) -> None:
        self.layers[1] = nn.Linear(self.hidden, classes).to(self.a.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers[1](torch.relu(self.layers[0](x)))


@pytest.mark.parametrize(
    "kind", [Own, Chained, ByFunction, ByExtension, ByMethods, InConfig, InDict, InList]
)
def test_a_new_head_fits(kind: type[Own]) -> None:
    torch.manual_seed(0)
    model = kind().double().eval()
    result = secateur.prune(model, X, sparsity=0.5)
    assert result.model.hidden == result.model.a.out_features == 16
    assert result.plan.notes == ()
    result.model.reset_head(5)
    assert result.model(X).shape == (2, 5)
    assert model.hidden == 32


class ByChance(nn.Module):
    """Numbers that size nothing, or another thing, equal to the width."""

    version = 32

    def __init__(self, width: int = 32, image_size: int = 32, classes: int = 32) -> None:
        super().__init__()
        self.width, self.image_size, self.classes, self.patience = width, image_size, classes, 32
        self.layers = 32
        self.norm_every = image_size
        self.a, self.o = nn.Linear(8, width), nn.Linear(width, classes)
        self.table = [32] * self.layers

    def forward(self, x: Tensor) -> Tensor:
        return self.o(torch.relu(self.a(x)))


def test_what_is_equal_by_chance_stays() -> None:
    result = secateur.prune(ByChance().double().eval(), X, sparsity=0.5)
    held = vars(result.model)
    assert held["width"] == 16
    stays = ("image_size", "classes", "patience", "layers", "norm_every")
    assert {held[name] for name in stays} == {32}
    assert held["table"] == [32] * 32
    assert result.model.version == 32
    assert not any("classes" in note for note in result.plan.notes)


class Mlp(nn.Module):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.dim, self.hidden = dim, hidden
        self.norm, self.up, self.down = nn.LayerNorm(dim), nn.Linear(dim, hidden), None
        self.down = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.relu(self.up(self.norm(x))))


class Blocks(nn.Module):
    """Two widths of one number: the stream's and that of the blocks within."""

    def __init__(self, dim: int = 32, inner: int = 32, depth: int = 2) -> None:
        super().__init__()
        self.embed_dim = self.num_features = dim
        self.depth, self.inner = depth, inner
        self.stem = nn.Linear(8, dim)
        self.blocks = nn.ModuleList(Mlp(dim, inner) for _ in range(depth))
        self.head = nn.Linear(self.num_features, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class Table(nn.Module):
    """As in Swin: numbers of windows, heads and layers that come out equal by chance."""

    def __init__(self, heads: int, window: tuple[int, int]) -> None:
        super().__init__()
        self.window = window
        self.bias = nn.Parameter(torch.rand((2 * window[0] - 1) * (2 * window[1] - 1), heads))


class Layer(nn.Module):
    def __init__(self, config: types.SimpleNamespace, dim: int, depth: int, heads: int) -> None:
        super().__init__()
        self.depth, self.heads = depth, heads
        self.table = Table(heads, (config.window, config.window))
        self.layers = nn.ModuleList(nn.Linear(dim, dim) for _ in range(depth))
        self.up, self.down = nn.Linear(dim, heads), nn.Linear(heads, dim)

    def folded(self, x: Tensor) -> Tensor:
        return x.view(-1, self.depth, x.shape[-1] // self.depth).flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + torch.relu(layer(x))
        return x + self.down(torch.relu(self.up(x)) * self.table.bias[0])


class Windows(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.config = config = types.SimpleNamespace(
            dim=16, window=4, heads=[2, 4], depths=[2, 4], layers=2
        )
        self.heads = config.heads
        self.loss_of = config.depths
        self.stem = nn.Linear(8, config.dim)
        self.stages = nn.ModuleList(
            Layer(config, config.dim, depth=config.depths[i], heads=config.heads[i])
            for i in range(config.layers)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for stage in self.stages:
            x = stage(x)
        self.counts = torch.zeros(self.config.depths[1])
        return x.sum(1)


def test_counts_in_loops_and_arithmetic_are_no_sizes() -> None:
    model = Windows().double().eval()
    plan = planned(model, {"stem": 8, "stages.0.up": 1, "stages.1.up": 2})
    pruned = secateur.cut(model, plan)
    assert plan.notes == ()
    assert vars(pruned.config) == {
        "dim": 8, "window": 4, "heads": [1, 2], "depths": [2, 4], "layers": 2
    }  # fmt: skip
    assert pruned.loss_of == [2, 4]
    assert [stage.table.window for stage in pruned.stages] == [(4, 4), (4, 4)]
    assert secateur.verify(model, pruned, plan, X).ok


class Experts(nn.Module):
    """A number that a loss alone reads is that of the config, which sizes a layer below."""

    def __init__(self) -> None:
        super().__init__()
        self.config = config = types.SimpleNamespace(experts=4)
        self.experts = config.experts
        self.part = Part(config)
        self.head = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.part(x)[:, :4].tanh())


class Part(nn.Module):
    def __init__(self, config: types.SimpleNamespace) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, config.experts), nn.Linear(config.experts, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.relu(self.a(x)))


def test_an_attribute_takes_what_the_field_of_the_config_sizes() -> None:
    model = Experts().double().eval()
    plan = planned(model, {"part.a": 2})
    pruned = secateur.cut(model, plan)
    assert (pruned.experts, pruned.config.experts) == (2, 2)


def planned(model: nn.Module, gone: dict[str, int]) -> secateur.Plan:
    graph = secateur.trace(model, X)
    assert set(gone) <= {group.name for group in graph.groups}
    return make_plan(graph, {name: tuple(range(count)) for name, count in gone.items()})


def test_equal_numbers_follow_what_each_of_them_sizes() -> None:
    model = Blocks().double().eval()
    plan = planned(model, {"stem": 8, "blocks.0.up": 16, "blocks.1.up": 16})
    pruned = secateur.cut(model, plan)
    assert (pruned.embed_dim, pruned.num_features) == (24, 24)
    assert [(block.dim, block.hidden) for block in pruned.blocks] == [(24, 16), (24, 16)]
    assert pruned.depth == 2
    assert secateur.verify(model, pruned, plan, X).ok


def test_a_number_of_several_sizes_stays_and_is_told() -> None:
    model = Blocks(inner=48).double().eval()
    plan = planned(model, {"blocks.0.up": 16, "blocks.1.up": 4})
    pruned = secateur.cut(model, plan)
    assert [block.hidden for block in pruned.blocks] == [32, 44]
    assert pruned.inner == 48
    assert plan.notes == ("inner stays 48: what was of that size has 32 and 44 now",)


class Scaled(Own):
    """The forward pass computes with the number: a change would change what it computes."""

    def forward(self, x: Tensor) -> Tensor:
        return self.o(torch.relu(self.a(x)) * float(self.hidden) ** -0.5)


def test_a_number_that_the_pass_computes_with_is_no_other_number() -> None:
    torch.manual_seed(0)
    model = Scaled().double().eval()
    result = secateur.prune(model, X, sparsity=0.5)
    reference = copy.deepcopy(model)
    with torch.no_grad():
        reference.o.weight[:, list(result.plan.cuts["o.weight"][1])] = 0
        assert torch.allclose(result.model(X), reference(X), rtol=0, atol=1e-12)


def test_without_source_nothing_is_guessed() -> None:
    names: dict[str, Any] = {"nn": nn, "torch": torch, "__name__": "nowhere"}
    code = (
        "class Net(nn.Module):\n"
        "    def __init__(self, hidden=32):\n"
        "        super().__init__()\n"
        "        self.hidden = hidden\n"
        "        self.a, self.o = nn.Linear(8, hidden), nn.Linear(hidden, 3)\n"
        "    def forward(self, x):\n"
        "        return self.o(torch.relu(self.a(x)))\n"
    )
    exec(code, names)
    result = secateur.prune(names["Net"]().double().eval(), X, sparsity=0.5)
    assert result.model.hidden == 32
    assert result.check.ok


@pytest.mark.zoo
@pytest.mark.parametrize(
    "name", ["resnet18", "mobilenetv3_small_050", "convnext_atto", "vit_tiny_patch16_224"]
)
def test_networks_of_timm_take_a_new_head(name: str) -> None:
    from zoo.torchvision_shim import import_torchvision

    import_torchvision()
    import timm

    size = {"img_size": 64} if name.startswith("vit") else {}
    model = timm.create_model(name, num_classes=7, pretrained=False, **size).eval()
    x = torch.randn(2, 3, 64, 64)
    pruned = secateur.prune(model, x, sparsity=0.5).model
    features = pruned.forward_features(x)
    assert pruned.num_features == features.shape[-1 if features.dim() == 3 else 1]
    pruned.reset_classifier(3)
    assert pruned(x).shape == (2, 3)
