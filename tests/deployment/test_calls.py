"""What goes into an export and what comes out, with the names that the network's code has."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import secateur
from secateur.deployment import export_onnx, export_program, programs
from secateur.deployment.calls import drawn
from secateur.errors import ExportError, InputError

EXPORTS = [(export_onnx, "net.onnx"), (export_program, "net.pt2")]
IDS = torch.tensor([[2, 9, 4, 7], [5, 3, 8, 0]])
MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])


class Store:
    """Holds tensors in its own way, as a cache does."""

    def __init__(self, keys: Tensor) -> None:
        self.keys = keys


@dataclasses.dataclass
class Found:
    """Outputs by name."""

    logits: Tensor
    states: tuple[Tensor, ...]
    samples: int
    cache: Store


class Anything(nn.Module):
    """Takes whatever is named, and returns a data class."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, **named: Any) -> Found:
        first = self.table(named["ids"])
        second = first * named["mask"].unsqueeze(-1)
        logits = self.head(second.mean(1)) * named["scale"]
        return Found(logits, (first, second), len(logits), Store(second))


class Chosen(nn.Module):
    """Returns what a test asks for."""

    def __init__(self, output: Any) -> None:
        super().__init__()
        self.a = nn.Linear(4, 4)
        self.output = output

    def forward(self, x: Tensor) -> Any:
        return self.output(self.a(x))


class Tokens(nn.Module):
    """Means of embeddings, of every sample or of the first for all."""

    def __init__(self, first: bool = False) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 6)
        self.first = first

    def forward(self, ids: Tensor) -> Tensor:
        means = self.table(ids).flatten(1)
        return means[:1].expand(means.shape) if self.first else means


class Looping(nn.Module):
    """Has as many steps as its input's values say."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(int(x.abs().sum()) % 3 + 1):
            x = self.a(x)
        return x


@pytest.mark.parametrize(("export", "name"), EXPORTS)
def test_what_is_no_tensor_is_left_out_and_named(export: Any, name: str, tmp_path: Path) -> None:
    model = Anything().eval()
    given = {"scale": 2.0, "mask": MASK.float(), "ids": IDS}
    done = export(model, given, tmp_path / name)
    assert done.left_out == ("samples (int)", "cache (Store)")
    assert done.varied
    ids, mask = torch.randint(0, 11, (5, 4)), torch.rand(5, 4)
    with torch.no_grad():
        wanted = model(ids=ids, mask=mask, scale=2.0)
    if name == "net.onnx":
        path = str(tmp_path / name)
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        assert [one.name for one in session.get_outputs()] == ["logits", "states.0", "states.1"]
        assert {one.shape[0] for one in session.get_inputs()} == {"batch"}
        feed = {"ids": ids.numpy(), "mask": mask.numpy()}
        logits, *states = map(torch.from_numpy, session.run(None, feed))
    else:
        found = torch.export.load(tmp_path / name).module()(scale=2.0, mask=mask, ids=ids)
        assert list(found) == ["logits", "states"]
        logits, states = found["logits"], list(found["states"])
    torch.testing.assert_close([logits, *states], [wanted.logits, *wanted.states])


def test_names_that_are_taken(tmp_path: Path) -> None:
    model = Chosen(lambda h: {"x": h, "relu": h.relu().sigmoid(), "a.weight": h}).eval()
    export_onnx(model, torch.zeros(1, 4), tmp_path / "net.onnx")
    session = onnxruntime.InferenceSession(
        str(tmp_path / "net.onnx"), providers=["CPUExecutionProvider"]
    )
    x = torch.randn(3, 4)
    found = session.run(["x.out", "relu.out", "a.weight.out"], {"x": x.numpy()})
    with torch.no_grad():
        wanted = list(model(x).values())
    torch.testing.assert_close([torch.from_numpy(one) for one in found], wanted)


def test_token_samples_differ_and_stay_within_the_example() -> None:
    given = {"ids": IDS, "mask": MASK, "labels": torch.tensor([1, 2])}
    found = drawn(given, 5)
    assert found["ids"][:2].equal(IDS)
    assert found["ids"][2:].tolist() == [[7, 2, 9, 4], [0, 5, 3, 8], [4, 7, 2, 9]]
    assert found["mask"].equal(MASK[torch.tensor([0, 1, 0, 1, 0])])
    assert found["labels"].tolist() == [1, 2, 1, 2, 1]
    places = torch.arange(4).expand(1, 4)
    assert drawn(places, 3).equal(places.expand(3, 4))
    assert drawn(IDS[:1], 2).tolist() == [[2, 9, 4, 7], [7, 2, 9, 4]]


def test_a_file_that_takes_the_first_sample_for_all_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = programs._program

    def spoil(ready: Any) -> Any:
        wrong = Tokens(first=True)
        wrong.load_state_dict(ready.network.state_dict())
        return make(dataclasses.replace(ready, network=wrong.eval()))

    monkeypatch.setattr(programs, "_program", spoil)
    with pytest.raises(ExportError, match="computes something else"):
        export_program(Tokens().eval(), IDS[:1], tmp_path / "net.pt2")


@pytest.mark.parametrize(("export", "name"), EXPORTS)
def test_the_exporter_s_own_reason_is_told(
    export: Any, name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ExportError, match="data-dependent") as caught:
        export(Looping().eval(), torch.ones(1, 4), tmp_path / name)
    assert "\x1b" not in str(caught.value)
    assert len(str(caught.value)) < 500
    assert "def forward" not in "".join(capfd.readouterr())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("export", "name"), EXPORTS)
def test_a_masked_reference_with_a_norm(export: Any, name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 3)).eval()
    cut = secateur.prune(dense, torch.zeros(1, 4), sparsity=0.5)
    with pytest.raises(ExportError, match="export the cut network instead"):
        export(secateur.mask(dense, cut.plan), torch.zeros(1, 4), tmp_path / name)
    assert export(cut.model, torch.zeros(1, 4), tmp_path / name).max_error < 1e-5


@pytest.mark.parametrize(
    ("model", "example", "told"),
    [
        (Anything(), {"ids": IDS, "mask": MASK[:1].expand(3, 4), "scale": 1.0}, "first dimension"),
        (Anything(), {"ids": IDS, "mask": MASK, "scale": Store(IDS)}, "1 are held otherwise"),
        (Tokens(), {"tokens": IDS}, "what the forward pass takes"),
        (Chosen(Store), torch.zeros(1, 4), "must return tensors, .* but got Store"),
    ],
)
def test_mistakes_are_told_first(model: nn.Module, example: Any, told: str, tmp_path: Path) -> None:
    for export, name in EXPORTS:
        with pytest.raises(InputError, match=told):
            export(model.eval(), example, tmp_path / name)


def test_a_network_that_takes_one_sample_only(tmp_path: Path) -> None:
    model = Chosen(lambda h: h.reshape(1, 4)).eval()
    with pytest.raises(ExportError, match="the network itself fails at batch size 2"):
        export_onnx(model, torch.zeros(1, 4), tmp_path / "net.onnx")
