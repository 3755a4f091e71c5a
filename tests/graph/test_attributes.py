"""Numbers and tensors in plain attributes: followed where they lie, cut and set by their path."""

from __future__ import annotations

import argparse
import copy
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import secateur
from secateur.errors import PlanError
from secateur.graph.attributes import change_held, held_values, set_held

X = torch.randn(2, 6, 8, dtype=torch.float64)
LIMIT = 1e-12


@dataclass
class Config:
    width: int = 32
    name: str = "small"


@dataclass(frozen=True)
class Frozen:
    width: int = 32


@dataclass
class Nested:
    inner: Config = field(default_factory=Config)
    sizes: list[int] = field(default_factory=lambda: [8, 32])


class Slotted:
    __slots__ = ("name", "width")

    def __init__(self) -> None:
        self.width, self.name = 32, "small"


class OfClass:
    """As in minGPT: the numbers are the class's own."""

    width = 32


class Sizes(NamedTuple):
    inputs: int
    width: int


class Derived:
    """A property of one number is another's."""

    def __init__(self) -> None:
        self.half = 16

    @property
    def width(self) -> int:
        return 2 * self.half


class Pretrained:
    """As the config of a Hugging Face model."""

    __module__ = "transformers.configuration_utils"

    def __init__(self) -> None:
        self.width = 32

    def to_dict(self) -> dict[str, int]:
        return vars(self)


class OtherOfTransformers:
    """A cache, say: it holds numbers, but none that a cut should follow."""

    __module__ = "transformers.cache_utils"

    def __init__(self) -> None:
        self.width = 32


CONFIGS: dict[str, tuple[Callable[[], Any], Callable[[Any], int], str]] = {
    "dataclass": (Config, lambda c: c.width, "config.width"),
    "frozen": (Frozen, lambda c: c.width, "config.width"),
    "slots": (Slotted, lambda c: c.width, "config.width"),
    "class": (OfClass, lambda c: c.width, "config.width"),
    "namespace": (lambda: types.SimpleNamespace(width=32), lambda c: c.width, "config.width"),
    "arguments": (lambda: argparse.Namespace(width=32), lambda c: c.width, "config.width"),
    "dict": (lambda: {"width": 32}, lambda c: c["width"], 'config["width"]'),
    "tuple keys": (lambda: {("w", 1): 32}, lambda c: c["w", 1], "config[('w', 1)]"),
    "named tuple": (lambda: Sizes(8, 32), lambda c: c.width, "config[1]"),
    "nested": (Nested, lambda c: c.inner.width, "config.inner.width"),
    "list in it": (Nested, lambda c: c.sizes[1], "config.sizes[1]"),
    "dict of dicts": (
        lambda: {"model": {"sizes": (8, 32)}},
        lambda c: c["model"]["sizes"][1],
        'config["model"]["sizes"][1]',
    ),
    "hugging face": (Pretrained, lambda c: c.width, "config.width"),
    "property": (Derived, lambda c: c.width, "config.half"),
}


class Scan(nn.Module):
    """A state of as many numbers as the config says, carried over the steps."""

    def __init__(self, config: Any, read: Callable[[Any], int]) -> None:
        super().__init__()
        self.config, self.read = config, read
        self.a, self.b = nn.Linear(8, 32), nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        h = torch.zeros(x.shape[0], self.read(self.config), dtype=x.dtype)
        for t in range(x.shape[1]):
            h = torch.tanh(h + x[:, t])
        return self.b(h)


def zeroed(model: nn.Module, weight: str, units: tuple[int, ...]) -> nn.Module:
    """The dense network with the columns of the units' reader set to zero, by hand."""
    reference = copy.deepcopy(model)
    with torch.no_grad():
        reference.get_parameter(weight)[:, list(units)] = 0
    return reference


def halved(model: nn.Module, x: Any) -> tuple[nn.Module, secateur.Plan]:
    graph = secateur.trace(model, x)
    plan = secateur.allocate(graph, secateur.score(graph, "random", seed=1), sparsity=0.5)
    return secateur.cut(model, plan), plan


def away(one: nn.Module, other: nn.Module, x: Any) -> float:
    with torch.no_grad():
        return float((one(x) - other(x)).abs().max())


@pytest.mark.parametrize("name", CONFIGS)
def test_a_size_in_a_config_follows_the_cut(name: str) -> None:
    make, read, path = CONFIGS[name]
    torch.manual_seed(0)
    config = make()
    model = Scan(config, read).double().eval()
    pruned, plan = halved(model, X)
    assert plan.sizes == {"a": 32}
    assert plan.given_back == {}
    assert plan.attributes == {path: 8 if name == "property" else 16}
    assert pruned.a.weight.shape == (16, 8)
    assert read(pruned.config) == 16
    assert type(pruned.config) is type(config)
    assert read(config) == 32
    assert read(model.config) == 32
    assert away(pruned, zeroed(model, "b.weight", plan.removed["a"]), X) < LIMIT


def test_one_config_stays_one_for_all_its_modules() -> None:
    for config, read in (
        (Config(), lambda c: c.width),
        ({"width": 32}, lambda c: c["width"]),
    ):
        model = nn.Sequential(Scan(config, read), nn.ReLU(), nn.Linear(4, 2)).eval()
        model.config = config
        model[2].config = config
        pruned, plan = halved(model.double(), X)
        assert pruned.config is pruned[0].config is pruned[2].config
        assert pruned.config is not config
        assert read(pruned.config) == 16
        assert len(plan.attributes) == 1
        assert read(config) == 32


class TwoWidths(nn.Module):
    """One number of the config sizes two states."""

    def __init__(self) -> None:
        super().__init__()
        self.config = Config()
        self.a, self.b = nn.Linear(8, 32), nn.Linear(8, 32)
        self.c, self.d = nn.Linear(32, 4), nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        n, w = x.shape[0], self.config.width
        one = torch.relu(self.a(x).sum(1) + torch.ones(n, w, dtype=x.dtype))
        two = torch.relu(self.b(x).sum(1) + torch.ones(n, w, dtype=x.dtype))
        return self.c(one) + self.d(two)


def test_one_number_for_two_widths_keeps_them_equal() -> None:
    model = TwoWidths().double().eval()
    graph = secateur.trace(model, X)
    assert [group.size for group in graph.groups] == [32, 32]
    wanted = {"a": tuple(range(10)), "b": tuple(range(20))}
    mended = graph.mend(wanted)
    assert {name: len(units) for name, units in mended.removed.items()} == {"a": 10, "b": 10}
    assert mended.given_back == {"b": 10}
    pruned, plan = halved(model, X)
    assert pruned.config.width == 16
    reference = zeroed(zeroed(model, "c.weight", plan.removed["a"]), "d.weight", plan.removed["b"])
    assert away(pruned, reference, X) < LIMIT


def test_in_place_the_models_own_config_changes() -> None:
    model = Scan(Config(), lambda c: c.width).double().eval()
    graph = secateur.trace(model, X)
    plan = secateur.allocate(graph, secateur.score(graph, "l2"), sparsity=0.5)
    assert secateur.cut(model, plan, inplace=True) is model
    assert model.config.width == 16


class Alone:
    """One object for everybody: copies are itself."""

    def __init__(self) -> None:
        self.width = 32

    def __deepcopy__(self, memo: dict[int, Any]) -> Alone:
        return self


def test_an_object_that_no_copy_parts_from_the_callers_pins_what_it_sizes() -> None:
    config = Alone()
    graph = secateur.trace(Scan(config, lambda c: c.width).double(), X)
    assert graph.groups == ()
    assert type(config.width) is int
    assert config.width == 32


TABLES: dict[str, tuple[Callable[[Tensor], Any], Callable[[Any], Tensor], str]] = {
    "attribute": (lambda t: t, lambda held: held, "held"),
    "list": (lambda t: [1, t], lambda held: held[1], "held[1]"),
    "tuple": (lambda t: (t, "x"), lambda held: held[0], "held[0]"),
    "dict": (lambda t: {"pos": t}, lambda held: held["pos"], 'held["pos"]'),
    "nested": (lambda t: {"a": [(t,)]}, lambda held: held["a"][0][0], 'held["a"][0][0]'),
    "object": (lambda t: types.SimpleNamespace(pos=t), lambda held: held.pos, "held.pos"),
    "named tuple": (lambda t: Sizes(1, t), lambda held: held.width, "held[1]"),  # type: ignore[arg-type]
}


class Table(nn.Module):
    """Positions from a table that is no buffer."""

    def __init__(self, held: Any, read: Callable[[Any], Tensor]) -> None:
        super().__init__()
        self.held, self.read = held, read
        self.a, self.b = nn.Linear(8, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.relu(self.a(x) + self.read(self.held).to(x.dtype)))


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("name", TABLES)
def test_a_table_in_an_attribute_is_cut_along(name: str, inplace: bool) -> None:
    make, read, path = TABLES[name]
    torch.manual_seed(0)
    table = torch.randn(6, 16, dtype=torch.float64)
    model = Table(make(table), read).double().eval()
    graph = secateur.trace(model, X)
    plan = secateur.allocate(graph, secateur.score(graph, "random"), sparsity=0.5)
    (units,) = plan.removed.values()
    assert plan.cuts[path] == {1: tuple(sorted(units))}
    reference = zeroed(model, "b.weight", units)
    assert secateur.verify(model, secateur.cut(model, plan), plan, X).ok
    pruned = secateur.cut(model, plan, inplace=inplace)
    kept = [i for i in range(16) if i not in units]
    assert torch.equal(read(pruned.held), table[:, kept])
    assert table.shape == (6, 16)
    assert away(pruned, reference, X) < LIMIT
    assert secateur.Plan.from_json(plan.to_json()) == plan


class Positions(nn.Module):
    """A table and a dictionary of tables that a folder can hold."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.tables = torch.randn(6, 16), {"scale": [torch.rand(16)]}
        self.config = Config(16)
        self.a, self.b = nn.Linear(8, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        shift = torch.ones(self.config.width, dtype=x.dtype)
        h = self.a(x) + self.table.to(x.dtype) + shift
        return self.b(torch.relu(h) * self.tables["scale"][0].to(x.dtype))


def test_tables_and_configs_are_saved_as_they_were_cut(tmp_path: Path) -> None:
    model = Positions().eval()
    result = secateur.prune(model, X.float(), sparsity=0.5)
    assert result.model.table.shape == (6, 8)
    secateur.save(result.model, tmp_path)
    again = secateur.load(tmp_path)
    assert torch.equal(again(X.float()), result.model(X.float()))
    assert again.config == Config(8)
    assert again.tables["scale"][0].shape == (8,)


def test_a_table_that_is_a_parameter_elsewhere_is_that_parameter() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(8, 16), nn.Linear(16, 3)
            self.weights = [self.a.weight, self.b.weight]

        def forward(self, x: Tensor) -> Tensor:
            h = torch.nn.functional.linear(x, self.weights[0])
            return torch.nn.functional.linear(torch.relu(h), self.weights[1])

    pruned, plan = halved(Tied().double().eval(), X)
    assert not any("weights" in name for name in plan.cuts)
    assert pruned.weights[0] is pruned.a.weight
    assert pruned(X).shape == (2, 6, 3)


def test_a_table_that_nothing_reads_stays() -> None:
    model = Table(torch.randn(6, 16).double(), lambda held: held).double().eval()
    model.other = torch.randn(6, 16)
    pruned, _ = halved(model, X)
    assert torch.equal(pruned.other, model.other)


def test_paths_are_what_code_would_write() -> None:
    model = nn.Sequential(nn.Linear(2, 3))
    model[0].config = {"a": [1, {"b.c": (2, 3)}], 4: Config(5)}
    found = {path: value for path, value in held_values(model) if "config" in path}
    assert found == {
        '0.config["a"][0]': 1,
        '0.config["a"][1]["b.c"][0]': 2,
        '0.config["a"][1]["b.c"][1]': 3,
        "0.config[4].width": 5,
    }
    set_held(model, {path: 10 * value for path, value in found.items()})
    assert model[0].config == {"a": [10, {"b.c": (20, 30)}], 4: Config(50)}
    with pytest.raises(PlanError, match="does not have"):
        set_held(model, {'0.config["x"][0]': 1})
    with pytest.raises(PlanError, match="no attribute's path"):
        set_held(model, {"0.config + 1": 1})


def test_what_is_no_data_is_not_entered() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.code, self.kind, self.draw = secateur, Config, torch.Generator()
            self.layers = [nn.Linear(2, 3)]
            self.words = list(range(5000))
            self.flag = True
            self.me = {"self": {}}
            self.me["self"] = self.me  # a circle

    def refuse(path: str, value: Any) -> Any:
        raise AssertionError(path)

    change_held(Net(), refuse)


def listed(model: nn.Module) -> Iterator[str]:
    yield from (path for path, _ in held_values(model))


def test_numbers_of_the_modules_own_class_count() -> None:
    class Wide(nn.Module):
        width = 16
        _version = 3

        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(8, 16), nn.Linear(16, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(torch.relu(self.a(x) + torch.ones(self.width, dtype=x.dtype)))

    assert [path for path in listed(Wide()) if "." not in path] == ["width"]
    pruned, plan = halved(Wide().double().eval(), X)
    assert plan.attributes == {"width": 8}
    assert pruned.width == 8
    assert Wide.width == 16
    assert pruned(X).shape == (2, 6, 3)


def test_other_objects_of_transformers_are_left_alone() -> None:
    model = Scan(OtherOfTransformers(), lambda c: c.width)
    assert not [path for path, _ in held_values(model) if path.startswith("config")]


def test_configs_of_hugging_face_are_left_out_where_asked() -> None:
    model = Scan(Pretrained(), lambda c: c.width)
    paths = [path for path, _ in held_values(model)]
    assert "config.width" in paths
    without = [path for path, _ in held_values(model, configs=False)]
    assert without == [path for path in paths if path != "config.width"]
