from __future__ import annotations

import sys
import textwrap
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from secateur.errors import InputError
from secateur.models import (
    animals_cnn,
    cifar_resnet,
    digits_cnn,
    load_model,
    load_weights,
)

SHARED = Path(__file__).parents[2] / "shared"
WEIGHTS = SHARED / "weights"
CIFAR = SHARED / "data" / "cifar10-jpeg"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def keras_count(model: nn.Module) -> int:
    """Parameters and moving statistics: batch norm has four numbers per channel."""
    learned = sum(parameter.numel() for parameter in model.parameters())
    norms = (m for m in model.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d))
    return learned + sum(2 * norm.num_features for norm in norms)


def module(folder: Path, text: str, name: str = "net.py") -> Path:
    path = folder / name
    path.write_text(textwrap.dedent(text))
    return path


@pytest.fixture
def net(tmp_path: Path) -> Path:
    return module(
        tmp_path,
        """
        from torch import nn

        class Net(nn.Module):
            def __init__(self, width, depth=1):
                super().__init__()
                self.layers = nn.Sequential(*(nn.Linear(width, width) for _ in range(depth)))

            @classmethod
            def small(cls):
                return cls(2)

        def build(width=3, *, depth=1):
            return Net(width, depth)

        def anything(**options):
            return Net(**options)

        def broken():
            raise RuntimeError("out of\\npaint")

        def number():
            return 7

        constant = 7
        """,
    )


def test_a_model_of_a_package() -> None:
    model = load_model("secateur.models:cifar_resnet", {"depth": 20})
    assert sum(p.numel() for p in model.parameters()) == 269_722


def test_a_model_of_a_file(net: Path) -> None:
    model = load_model(f"{net}:build", {"width": 5, "depth": 2})
    assert [tuple(p.shape) for p in model.parameters()] == [(5, 5), (5,)] * 2
    assert type(load_model(f"{net}:Net.small")).__name__ == "Net"
    assert isinstance(load_model(f"{net}:anything", {"width": 2}), nn.Module)


def test_a_file_may_import_its_neighbour_and_be_called_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module(tmp_path, "WIDTH = 6", "secateur_test_neighbour.py")
    module(
        tmp_path,
        """
        def build():
            from torch import nn
            from secateur_test_neighbour import WIDTH
            return nn.Linear(WIDTH, 1)
        """,
        "json.py",
    )
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    model = load_model("./json.py:build")
    assert isinstance(model, nn.Linear)
    assert model.in_features == 6
    assert sys.path == before
    assert sys.modules["json"].__file__ != str(tmp_path / "json.py")
    del sys.modules["secateur_test_neighbour"]


def test_a_module_of_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module(tmp_path, "from torch import nn\ndef build(): return nn.ReLU()", "secateur_test_here.py")
    monkeypatch.chdir(tmp_path)
    assert isinstance(load_model("secateur_test_here:build"), nn.ReLU)
    del sys.modules["secateur_test_here"]


@pytest.mark.parametrize("reference", ["net.py", "net.py:", ":build", ""])
def test_a_reference_needs_both_sides(reference: str) -> None:
    with pytest.raises(InputError, match=r"^model must be 'package.module:callable' or 'file.py"):
        load_model(reference)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        (
            "bild",
            {},
            "must be one of Net, anything, broken, build, number, but got 'bild'; did you",
        ),
        ("Net.big", {}, "callable must be one of"),
        ("constant", {}, "'constant' is not callable"),
        ("broken", {}, "fails when called: RuntimeError: out of paint$"),
        ("number", {}, r"must return a torch\.nn\.Module, but returned int"),
        ("build", {"widht": 1, "x": 2}, "among width, depth for .*, but got widht, x"),
        ("number", {"x": 2}, r"among \(none\) for .*, but got x"),
        ("Net", {}, "must include width"),
        ("build", {"width": "wide"}, "fails when called: TypeError"),
    ],
)
def test_what_is_wrong_with_a_callable_is_said(
    net: Path, name: str, arguments: dict[str, object], message: str
) -> None:
    with pytest.raises(InputError, match=message) as caught:
        load_model(f"{net}:{name}", arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def build(:", "cannot be imported: SyntaxError"),
        ("import no_such_package_at_all", "cannot be imported: ModuleNotFoundError.*no_such_pack"),
        ("1 / 0", "cannot be imported: ZeroDivisionError"),
    ],
)
def test_a_file_that_cannot_be_imported(tmp_path: Path, text: str, message: str) -> None:
    path = module(tmp_path, text)
    before = set(sys.modules)
    with pytest.raises(InputError, match=message):
        load_model(f"{path}:build")
    assert set(sys.modules) == before


def test_missing_files_and_modules() -> None:
    with pytest.raises(InputError, match=r"the file 'no/such\.py' does not exist"):
        load_model("no/such.py:build")
    with pytest.raises(InputError, match="no module named 'no_such_package_at_all'"):
        load_model("no_such_package_at_all.models:build")
    with pytest.raises(InputError, match=r"no module named 'secateur\.no_such_room'"):
        load_model("secateur.no_such_room:build")


def test_a_module_that_needs_a_missing_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module(tmp_path, "import no_such_package_at_all", "secateur_test_needy.py")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="cannot be imported: ModuleNotFoundError"):
        load_model("secateur_test_needy:build")


def test_weights_come_back(tmp_path: Path) -> None:
    source, target = digits_cnn(), digits_cnn()
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    load_weights(target, tmp_path / "w.safetensors")
    for name, value in target.state_dict().items():
        assert torch.equal(value, source.state_dict()[name]), name


def test_batch_norm_counters_may_be_missing(tmp_path: Path) -> None:
    state = {k: v for k, v in digits_cnn().state_dict().items() if "num_batches" not in k}
    save_file(state, tmp_path / "w.safetensors")
    load_weights(digits_cnn(), tmp_path / "w.safetensors")


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
        self.second.weight = self.first.weight


def test_tied_weights_need_be_there_once(tmp_path: Path) -> None:
    save_file({"second.weight": torch.ones(3, 3)}, tmp_path / "w.safetensors")
    model = Tied()
    load_weights(model, tmp_path / "w.safetensors")
    assert torch.equal(model.first.weight, torch.ones(3, 3))


def test_misfits_are_named_and_nothing_is_changed(tmp_path: Path) -> None:
    state = digits_cnn(classes=10).state_dict()
    del state["conv1.weight"]
    save_file(state | {"extra": torch.ones(1)}, tmp_path / "w.safetensors")
    model = digits_cnn(classes=7)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(InputError) as caught:
        load_weights(model, tmp_path / "w.safetensors")
    assert str(caught.value).endswith(
        "do not fit DigitsCNN: conv1.weight is not in the file; "
        "linear.weight is (7, 64) in the model and (10, 64) in the file; "
        "linear.bias is (7,) in the model and (10,) in the file; and 1 more"
    )
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_weights_of_another_network_name_the_strangers(tmp_path: Path) -> None:
    state = digits_cnn().state_dict() | {"extra": torch.ones(1)}
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(InputError, match=r"DigitsCNN: extra is not in the model$"):
        load_weights(digits_cnn(), tmp_path / "w.safetensors")


def test_missing_and_damaged_weight_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"the file '.*none\.safetensors' does not exist"):
        load_weights(digits_cnn(), tmp_path / "none.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(b"not weights")
    with pytest.raises(InputError, match="is not a safetensors file"):
        load_weights(digits_cnn(), str(tmp_path / "bad.safetensors"))


def test_digits_cnn() -> None:
    model = digits_cnn()
    assert 50_000 <= sum(p.numel() for p in model.parameters()) <= 100_000
    assert model(torch.rand(2, 1, 8, 8)).shape == (2, 10)
    assert digits_cnn(classes=4)(torch.rand(2, 1, 8, 8)).shape == (2, 4)


@pytest.mark.parametrize(("depth", "count"), [(20, 269_722), (32, 464_154), (56, 853_018)])
def test_cifar_resnet_has_the_published_size(depth: int, count: int) -> None:
    assert sum(p.numel() for p in cifar_resnet(depth).parameters()) == count


def test_cifar_resnet_pads_half_before_and_half_after() -> None:
    shortcut = cifar_resnet(8).layer2[0].shortcut
    x = torch.rand(1, 16, 8, 8)
    y = shortcut(x)
    assert y.shape == (1, 32, 4, 4)
    assert torch.equal(y[:, 8:24], x[:, :, ::2, ::2])
    assert not y[:, :8].any()
    assert not y[:, 24:].any()


@pytest.mark.parametrize("depth", [2, 7, 55])
def test_cifar_resnet_has_6n_plus_2_layers(depth: int) -> None:
    with pytest.raises(InputError, match=rf"depth must be 6n \+ 2 .* but got {depth}"):
        cifar_resnet(depth)


def test_animals_cnn_has_the_published_size() -> None:
    model = animals_cnn()
    assert keras_count(model) == 5_011_242
    assert model(torch.rand(2, 3, 100, 100)).shape == (2, 10)


@pytest.mark.skipif(not WEIGHTS.is_dir(), reason=f"no weights at {WEIGHTS}")
@pytest.mark.parametrize("depth", [20, 32, 44, 56])
def test_published_weights_fit(depth: int) -> None:
    path = WEIGHTS / f"resnet{depth}-cifar10.safetensors"
    model = cifar_resnet(depth)
    load_weights(model, path)
    state = model.state_dict()
    assert all(torch.equal(state[name], value) for name, value in load_file(path).items())


@pytest.mark.slow
@pytest.mark.skipif(
    not (WEIGHTS.is_dir() and CIFAR.is_dir()), reason=f"no weights and data at {SHARED}"
)
@pytest.mark.parametrize(("depth", "hits"), [(20, 8103), (56, 8320)])
def test_resnet_scores_what_it_did(depth: int, hits: int) -> None:
    from secateur.data import batches, load_data
    from secateur.measure import quality

    model = cifar_resnet(depth)
    load_weights(model, WEIGHTS / f"resnet{depth}-cifar10.safetensors")
    data = load_data(
        str(CIFAR / "train.parquet"),
        test_source=str(CIFAR / "test.parquet"),
        mean=MEAN,
        std=STD,
        limit=10_000,
    )
    found = quality(model, batches(data.test, 250), "test")
    # A few images lie so near a border that another processor may put them across it.
    assert found.count == 10_000
    assert abs(found.accuracy * 10_000 - hits) <= 3
