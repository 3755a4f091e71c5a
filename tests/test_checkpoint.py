"""Saved networks: a fresh process reads them bit for bit, without pickle, or says what is wrong."""

from __future__ import annotations

import functools
import importlib
import json
import os
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from exactness import differences, snapshot
from torch import Tensor, nn

import secateur
from secateur.errors import CheckpointError, InputError
from secateur.files import with_checksum
from secateur.planning import make_plan

TOYS = '''
import enum
import functools
import math
from collections import OrderedDict
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn


class Mode(enum.Enum):
    LOUD = 2.0
    QUIET = 0.5


@dataclass
class Config:
    width: int
    names: tuple


def double(x):
    return 2 * x


class Everything(nn.Module):
    """One of each kind of thing that a network may hold."""

    def __init__(self, width=6):
        super().__init__()
        self.first = nn.Conv2d(3, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.tied_a = nn.Conv2d(width, width, 1, bias=False)
        self.tied_b = nn.Conv2d(width, width, 1, bias=False)
        self.tied_b.weight = self.tied_a.weight
        self.head = nn.Linear(width, 4)
        self.empty = None
        self.register_parameter("nothing", None)
        self.register_buffer("shift", torch.randn(width, 1, 1))
        self.register_buffer("volatile", torch.randn(width, 1, 1), persistent=False)
        self.register_buffer("table", torch.arange(4))
        self.plain = torch.randn(4)
        self.width = width
        self.rates = [0.1, 1e-30, float("inf")]
        self.shape = torch.Size([1, 2])
        self.places = {1: "a", "b": (1, [2, None])}
        self.kinds = {"x", "y"}
        self.order = OrderedDict(z=1, y=2)
        self.dtype = torch.float32
        self.device = torch.device("cpu")
        self.mode = Mode.LOUD
        self.config = Config(3, ("a", "b"))
        self.act = F.gelu
        self.own = double
        self.root = math.sqrt
        self.part = functools.partial(F.leaky_relu, negative_slope=0.25)
        self.kind = nn.ReLU
        self.alias = self.head
        self.method = self.scaled
        self.list = nn.ModuleList([nn.Identity(), nn.Dropout(0.3)])
        self.free = nn.ParameterList([nn.Parameter(torch.randn(width, 1, 1))])

    def scaled(self, x):
        return x * self.mode.value * self.root(self.config.width)

    def forward(self, x):
        h = self.part(self.norm(self.first(x))) + self.shift * self.volatile + self.free[0]
        h = self.tied_b(self.act(self.tied_a(h)))
        return self.own(self.method(self.alias(h.mean((2, 3))))) + self.plain + self.table


class Secret(nn.Module):
    """Holds what JSON cannot describe."""

    def __init__(self, hidden=8, heads=2):
        super().__init__()
        self.a = nn.Linear(5, hidden)
        self.b = nn.Linear(hidden, 3)
        self.heads = heads
        self.inner = nn.Module()
        self.inner.act = lambda x: torch.tanh(x)

    def forward(self, x):
        n, t, c = (h := self.a(x)).shape
        h = h.view(n, t, self.heads, c // self.heads).softmax(2)
        return self.b(self.inner.act(h.flatten(2)))


def secret(hidden=8, heads=2):
    return Secret(hidden, heads)


def not_a_module():
    return 3
'''

READER = """
import pickle
import sys

import safetensors.torch
import torch

import secateur.checkpoint


def refuse(*args, **kwargs):
    raise AssertionError("pickle was used")


torch.load = torch.serialization.load = refuse
pickle.load = pickle.loads = pickle.Unpickler = pickle._Unpickler = refuse
model = secateur.load(sys.argv[1], trust=["checkpoint_toys"])
data = safetensors.torch.load_file(sys.argv[2])
with torch.no_grad():
    output = model.eval()(data["x"])
# Weights that lie elsewhere in memory may be summed in another order.
assert torch.allclose(output, data["y"], rtol=1e-5, atol=1e-6), (output - data["y"]).abs().max()
print(type(model).__name__, sum(p.numel() for p in model.parameters()))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("toys")
    (path / "checkpoint_toys.py").write_text(TOYS)
    (path / "reader.py").write_text(READER)
    return path


@pytest.fixture
def toys(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(folder))
    torch.manual_seed(0)
    return importlib.import_module("checkpoint_toys")


def image() -> Tensor:
    torch.manual_seed(1)
    return torch.randn(2, 3, 5, 5)


def sequence() -> Tensor:
    torch.manual_seed(1)
    return torch.randn(2, 4, 5)


def cut_in_half(model: nn.Module, x: Tensor) -> nn.Module:
    graph = secateur.trace(model, x)
    plan = secateur.allocate(graph, secateur.score(graph, "l2"), sparsity=0.5)
    assert plan.given_back == {}
    return secateur.cut(model, plan)


def read_in_a_fresh_process(folder: Path, saved: Path, model: nn.Module, x: Tensor) -> str:
    """Load ``saved`` elsewhere, with every pickle reader a trap, and compare bit for bit."""
    training = model.training
    with torch.no_grad():
        y = model.eval()(x)
    model.train(training)
    safetensors.torch.save_file({"x": x, "y": y}, saved / "case.safetensors")
    places = os.pathsep.join([str(folder), str(Path(secateur.__file__).parents[1])])
    environment = {**os.environ, "PYTHONPATH": places, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(folder / "reader.py"), str(saved), str(saved / "case.safetensors")],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_pruned_network_is_read_by_a_fresh_process(
    toys: Any, folder: Path, tmp_path: Path
) -> None:
    torch.set_num_threads(1)
    model = cut_in_half(toys.Everything(), image())
    assert model.first.out_channels == 3
    assert secateur.save(model, tmp_path / "run") == tmp_path / "run"
    told = read_in_a_fresh_process(folder, tmp_path / "run", model, image())
    assert told == f"Everything {sum(p.numel() for p in model.parameters())}"


def test_a_network_of_a_factory_is_read_by_a_fresh_process(
    toys: Any, folder: Path, tmp_path: Path
) -> None:
    model = cut_in_half(toys.secret(hidden=12, heads=4), sequence())
    assert (model.heads, model.a.out_features) == (2, 4)
    secateur.save(
        model, tmp_path, factory="checkpoint_toys:secret", arguments={"hidden": 12, "heads": 4}
    )
    told = read_in_a_fresh_process(folder, tmp_path, model, sequence())
    assert told == f"Secret {sum(p.numel() for p in model.parameters())}"


def without_ids(record: dict[str, Any]) -> dict[str, Any]:
    """Drop what names objects in memory, and attributes that are such objects."""
    kept = {}
    for key, value in record.items():
        if key.startswith("identity"):
            continue
        if key.startswith("attributes"):
            value = {k: v for k, v in value.items() if k not in ("method", "part")}
        kept[key] = value
    return kept


def test_everything_that_a_network_holds_comes_back(toys: Any, tmp_path: Path) -> None:
    model = cut_in_half(toys.Everything(), image()).train()
    model.norm.requires_grad_(False)
    model.first.bias.requires_grad_(False)
    found: Any = secateur.load(secateur.save(model, tmp_path))
    before, after = without_ids(snapshot(model)), without_ids(snapshot(found))
    assert differences(before, after) == []
    assert type(found) is toys.Everything
    assert found.tied_a.weight is found.tied_b.weight
    assert found.alias is found.head
    assert found.method.__self__ is found
    assert list(found.state_dict()) == list(model.state_dict())
    assert "volatile" not in found.state_dict()
    assert torch.equal(found.volatile, model.volatile)
    assert torch.equal(found.plain, model.plain)
    assert found.table.dtype == torch.int64
    assert (found.empty, found.nothing) == (None, None)
    assert (found.rates, found.shape, found.places) == (model.rates, model.shape, model.places)
    assert (found.kinds, found.order, found.config) == (model.kinds, model.order, model.config)
    assert isinstance(found.order, OrderedDict)
    assert isinstance(found.shape, torch.Size)
    assert found.mode is toys.Mode.LOUD
    assert (found.act, found.own, found.kind) == (model.act, model.own, model.kind)
    assert isinstance(found.part, functools.partial)
    assert found.part.keywords == {"negative_slope": 0.25}
    frozen = {name for name, p in found.named_parameters() if not p.requires_grad}
    assert frozen == {"norm.weight", "norm.bias", "first.bias"}
    assert all(p.is_leaf and p.grad is None for p in found.parameters())
    found(image()).sum().backward()
    assert found.tied_a.weight.grad is not None


def test_training_mode_comes_back(toys: Any, tmp_path: Path) -> None:
    for training in (True, False):
        model = toys.Everything().train(training)
        found = secateur.load(secateur.save(model, tmp_path))
        assert {m.training for m in found.modules()} == {training}
        folder = secateur.save(
            toys.Secret().train(training), tmp_path, factory="checkpoint_toys:secret"
        )
        found = secateur.load(folder, trust=[toys])
        assert {m.training for m in found.modules()} == {training}


def test_the_saved_files_are_data(toys: Any, tmp_path: Path) -> None:
    secateur.save(toys.Everything(), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"model.safetensors", "model.json"}
    json.loads((tmp_path / "model.json").read_text())
    weights = safetensors.torch.load_file(tmp_path / "model.safetensors")
    assert "tied_a.weight" in weights
    assert "tied_b.weight" not in weights


def test_saving_again_replaces(toys: Any, tmp_path: Path) -> None:
    first, second = toys.Everything(), toys.Everything(width=8)
    secateur.save(first, tmp_path)
    secateur.save(second, tmp_path)
    found: Any = secateur.load(tmp_path)
    assert torch.equal(found.first.weight, second.first.weight)


def test_saving_leaves_the_model_as_it_was(toys: Any, tmp_path: Path) -> None:
    model = toys.Everything()
    before = snapshot(model)
    secateur.save(model, tmp_path)
    assert differences(before, snapshot(model)) == []


def test_a_loaded_network_can_be_pruned_on(toys: Any, tmp_path: Path) -> None:
    model = cut_in_half(toys.Everything(8), image()).eval()
    found = secateur.load(secateur.save(model, tmp_path))
    result = secateur.prune(found, image(), sparsity=0.5)
    assert result.check.ok
    assert result.model.first.out_channels == 2


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 4)),
        lambda: nn.LSTM(3, 6, num_layers=2, bidirectional=True, batch_first=True),
        lambda: nn.TransformerEncoderLayer(12, 3, 16, batch_first=True),
        lambda: nn.MultiheadAttention(6, 2),
        lambda: nn.Sequential(OrderedDict(a=nn.Conv2d(3, 6, 3, padding_mode="circular"))),
    ],
)
def test_modules_of_pytorch_come_back(make: Callable[[], nn.Module], tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = make().eval()
    found = secateur.load(secateur.save(model, tmp_path))
    shapes = {
        nn.Sequential: (2, 3), nn.LSTM: (2, 4, 3), nn.TransformerEncoderLayer: (2, 4, 12),
        nn.MultiheadAttention: (4, 2, 6),
    }  # fmt: skip
    shape = (2, 3, 8, 8) if hasattr(model, "a") else shapes[type(model)]
    x = torch.randn(shape)
    inputs = (x, x, x) if isinstance(model, nn.MultiheadAttention) else (x,)
    wanted, output = model(*inputs), found(*inputs)
    for a, b in zip(wanted, output, strict=True):
        if isinstance(a, Tensor):
            assert torch.equal(a, b)


# --- what cannot be saved ---


def test_what_json_cannot_describe_is_named_with_the_way_out(toys: Any, tmp_path: Path) -> None:
    words = r"inner\.act holds .*<lambda>.*save with factory='package.module:callable'"
    with pytest.raises(CheckpointError, match=words):
        secateur.save(toys.Secret(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_hooks_are_named(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 4))
    model[0].register_forward_hook(lambda *args: None)
    with pytest.raises(CheckpointError, match=r"^0 has hooks \(_forward_hooks\)"):
        secateur.save(model, tmp_path)


def test_a_class_of_a_function_is_named(tmp_path: Path) -> None:
    class Local(nn.Linear):
        pass

    with pytest.raises(CheckpointError, match=r"0 holds .*Local, which cannot be found again"):
        secateur.save(nn.Sequential(Local(3, 4)), tmp_path)


@pytest.mark.parametrize("factory", ["checkpoint_toys.secret", "secret"])
def test_a_factory_without_a_colon_is_refused(toys: Any, factory: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"factory must be 'package.module:callable'.*{factory}"):
        secateur.save(toys.Secret(), tmp_path, factory=factory)


# --- what cannot be loaded ---


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    model = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 4))
    return secateur.save(model, tmp_path / "run")


def edit(saved: Path, change: Callable[[dict[str, Any]], None]) -> None:
    layout = json.loads((saved / "model.json").read_text())
    change(layout)
    (saved / "model.json").write_text(json.dumps(with_checksum(layout)))


@pytest.mark.parametrize("name", ["model.safetensors", "model.json"])
def test_a_missing_file_is_named(saved: Path, name: str) -> None:
    (saved / name).unlink()
    with pytest.raises(CheckpointError, match=f"holds no saved network.*{name}.* is missing"):
        secateur.load(saved)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere holds no saved network"):
        secateur.load(tmp_path / "nowhere")


@pytest.mark.parametrize("keep", [0, 10, 100, -1])
def test_truncated_weights_are_recognised(saved: Path, keep: int) -> None:
    path = saved / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged or cut short"):
        secateur.load(saved)


def test_one_flipped_bit_is_recognised(saved: Path) -> None:
    path = saved / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged"):
        secateur.load(saved)


@pytest.mark.parametrize("keep", [0, 1, 50, -20])
def test_a_truncated_layout_is_recognised(saved: Path, keep: int) -> None:
    path = saved / "model.json"
    path.write_text(path.read_text()[:keep])
    with pytest.raises(CheckpointError, match=r"model\.json is damaged"):
        secateur.load(saved)


def test_a_layout_that_is_no_text_is_recognised(saved: Path) -> None:
    (saved / "model.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(CheckpointError, match=r"model\.json is damaged"):
        secateur.load(saved)


@pytest.mark.parametrize("content", ["[]", "3", "{}", '{"format": 99}'])
def test_another_format_is_recognised(saved: Path, content: str) -> None:
    (saved / "model.json").write_text(content)
    with pytest.raises(CheckpointError, match="format must be 1"):
        secateur.load(saved)


def rename_class(name: str) -> Callable[[dict[str, Any]], None]:
    return lambda layout: layout["modules"]["0"].update({"class": name})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (rename_class("torch.nn.modules.linear:Gone"), "Gone cannot be imported"),
        (rename_class("no_such_package:Thing"), "no_such_package is refused: it is not imported"),
        (rename_class("collections:OrderedDict"), "is no torch.nn.Module"),
        (lambda layout: layout["modules"].pop("0"), "cannot be rebuilt"),
        (lambda layout: layout["modules"]["0"].pop("parameters"), "cannot be rebuilt"),
        (
            lambda layout: layout["modules"]["0"]["parameters"].update(weight="9.weight"),
            r"0\.weight must not be taken from '9\.weight'",
        ),
        (
            lambda layout: layout["modules"]["0"]["attributes"].update(x={"$": "spell"}),
            "unknown kind of value 'spell'",
        ),
        (
            lambda layout: layout["modules"]["0"]["attributes"].update(
                x={"$": "object", "name": "os:system"}
            ),
            "os:system is refused",
        ),
        (
            lambda layout: layout["modules"]["0"]["attributes"].update(
                x={"$": "instance", "class": "subprocess:Popen", "state": {}}
            ),
            "subprocess:Popen is refused",
        ),
    ],
)
def test_a_layout_that_was_tampered_with_is_refused(
    saved: Path, change: Callable[[dict[str, Any]], None], words: str
) -> None:
    edit(saved, change)
    with pytest.raises(CheckpointError, match=words):
        secateur.load(saved)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"name": "checkpoint_toys:gone"}, "checkpoint_toys:gone cannot be imported"),
        ({"name": "checkpoint_toys:not_a_module"}, "does not build a torch.nn.Module"),
        ({"arguments": {"width": 3}}, "cannot be rebuilt"),
    ],
)
def test_a_factory_that_does_not_fit_is_told(
    toys: Any, tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    secateur.save(toys.Secret(), tmp_path, factory="checkpoint_toys:secret")
    edit(
        tmp_path,
        lambda layout: layout["factory"].update(change, arguments=change.get("arguments", {})),
    )
    with pytest.raises(CheckpointError, match=words):
        secateur.load(tmp_path, trust=["checkpoint_toys"])


def test_a_cut_network_is_not_mistaken_for_the_dense_one(toys: Any, tmp_path: Path) -> None:
    """The factory builds the dense network; the saved shapes and numbers must win."""
    dense = toys.secret()
    graph = secateur.trace(dense, sequence())
    sizes = {group.size: group.name for group in graph.groups}
    assert sorted(sizes) == [2, 4]
    pruned = secateur.cut(dense, make_plan(graph, {sizes[4]: (0,)}))
    secateur.save(pruned, tmp_path, factory="checkpoint_toys:secret")
    found: Any = secateur.load(tmp_path, trust=["checkpoint_toys"])
    assert (found.a.out_features, found.b.in_features, found.heads) == (6, 6, 2)
    assert torch.equal(found(sequence()), pruned(sequence()))
