"""Exports compute what the network computes, for any batch, or there is no file."""

from __future__ import annotations

import copy
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from click.testing import Result as Outcome
from small_runs import settings
from torch import Tensor, nn
from typer.testing import CliRunner

import secateur
from secateur.cli import app
from secateur.deployment import export_onnx, export_program, onnx_files, programs
from secateur.errors import ExportError, InputError
from secateur.latency import Timing
from secateur.study import RunConfig, prune_run

IMAGE = torch.zeros(1, 1, 8, 8)
QUICK = Timing(repeats=2, seconds=0.01)


class Net(nn.Module):
    """Convolutions with a residual, norms with statistics, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.inner = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        x = x + self.inner(x).relu()
        return self.head(x.mean((2, 3)))


class Words(nn.Module):
    """Takes token numbers and a mask by name, and gives two outputs by name."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, ids: Tensor, mask: Tensor, scale: float = 1.0) -> dict[str, Tensor]:
        states = self.table(ids) * mask.unsqueeze(-1)
        return {"states": states, "logits": scale * self.head(states.mean(1))}


class FixedBatch(nn.Module):
    """Writes the batch size that it is exported with into its own shape."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(64, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.reshape(2, 64))


@pytest.fixture(scope="module")
def nets() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    dense = Net().eval()
    dense.norm.running_mean = torch.randn(8)
    cut = secateur.prune(dense, IMAGE, sparsity=0.5)
    return {
        "cut": cut.model,
        "masked": secateur.mask(dense, cut.plan),
        "sparse": secateur.sparsify(dense, "l1", 0.75).model,
    }


@pytest.mark.parametrize("which", ["cut", "masked", "sparse"])
def test_onnx_files_take_any_batch(nets: dict[str, nn.Module], which: str, tmp_path: Path) -> None:
    model = nets[which]
    before = copy.deepcopy(model.state_dict())
    found = export_onnx(model, IMAGE, tmp_path / "net.onnx")
    assert found.max_error < 1e-5
    assert found.varied
    assert found.size == (tmp_path / "net.onnx").stat().st_size
    assert [path.name for path in tmp_path.iterdir()] == ["net.onnx"]
    assert all(torch.equal(before[name], now) for name, now in model.state_dict().items())
    file = onnx.load(tmp_path / "net.onnx")
    onnx.checker.check_model(file)
    assert file.graph.input[0].type.tensor_type.shape.dim[0].dim_param
    session = onnxruntime.InferenceSession(
        str(tmp_path / "net.onnx"), providers=["CPUExecutionProvider"]
    )
    images = torch.randn(7, 1, 8, 8)
    (got,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    with torch.no_grad():
        wanted = model(images)
    torch.testing.assert_close(torch.from_numpy(got), wanted, rtol=1e-4, atol=1e-5)


def test_zeros_of_single_weights_stay_zeros(nets: dict[str, nn.Module], tmp_path: Path) -> None:
    export_onnx(nets["sparse"], IMAGE, tmp_path / "net.onnx")
    file = onnx.load(tmp_path / "net.onnx")
    weights = [onnx.numpy_helper.to_array(one) for one in file.graph.initializer]
    zeros = sum(int((weight == 0).sum()) for weight in weights if weight.ndim > 1)
    wanted = [p for p in nets["sparse"].parameters() if p.ndim > 1]
    assert zeros == sum(int((weight == 0).sum()) for weight in wanted) > 400


@pytest.mark.parametrize("which", ["cut", "masked", "sparse"])
def test_programs_take_any_batch(nets: dict[str, nn.Module], which: str, tmp_path: Path) -> None:
    found = export_program(nets[which], IMAGE, tmp_path / "net.pt2")
    assert found.max_error < 1e-5
    assert [path.name for path in tmp_path.iterdir()] == ["net.pt2"]
    again = torch.export.load(tmp_path / "net.pt2").module()
    images = torch.randn(7, 1, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(again(images), nets[which](images))


def test_inputs_and_outputs_by_name(tmp_path: Path) -> None:
    model = Words().eval()
    example: dict[str, Any] = {
        "ids": torch.arange(8).reshape(2, 4),
        "mask": torch.tensor([[1.0, 1, 1, 1], [1, 1, 0, 0]]),
        "scale": 2.0,
    }
    assert export_onnx(model, example, tmp_path / "net.onnx").max_error < 1e-5
    assert export_program(model, example, tmp_path / "net.pt2").max_error < 1e-5
    session = onnxruntime.InferenceSession(
        str(tmp_path / "net.onnx"), providers=["CPUExecutionProvider"]
    )
    feed = {"ids": np.ones((3, 4), dtype=np.int64), "mask": np.ones((3, 4), dtype=np.float32)}
    assert session.run(None, feed)[1].shape == (3, 3)


def test_speeds_are_taken_in_turns(nets: dict[str, nn.Module], tmp_path: Path) -> None:
    for export, name in ((export_onnx, "net.onnx"), (export_program, "net.pt2")):
        found = export(nets["cut"], IMAGE, tmp_path / name, batches=(1, 4), timing=QUICK)
        assert [turn["pytorch"].batch for turn in found.speeds] == [1, 4]
        for turn in found.speeds:
            assert set(turn) == {"pytorch", "exported"}
            assert all(one.threads == 1 and one.repeats == 2 for one in turn.values())
            assert all(one.median > 0 for one in turn.values())


@pytest.mark.parametrize("kind", ["onnx", "program"])
def test_a_wrong_export_leaves_what_was_there(
    kind: str, nets: dict[str, nn.Module], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / ("net.onnx" if kind == "onnx" else "net.pt2")
    path.write_text("of yesterday")

    def spoil(ready: Any) -> Any:
        wrong = copy.deepcopy(ready.network)
        with torch.no_grad():
            next(wrong.parameters()).mul_(1.01)
        return dataclasses.replace(ready, network=wrong)

    if kind == "onnx":
        write = onnx_files._write
        monkeypatch.setattr(onnx_files, "_write", lambda ready, *rest: write(spoil(ready), *rest))
    else:
        make = programs._program
        monkeypatch.setattr(programs, "_program", lambda ready: make(spoil(ready)))
    export = export_onnx if kind == "onnx" else export_program
    with pytest.raises(ExportError, match="computes something else: relative error"):
        export(nets["cut"], IMAGE, path)
    assert path.read_text() == "of yesterday"
    assert [one.name for one in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize(("export", "name"), [(export_onnx, "n.onnx"), (export_program, "n.pt2")])
def test_a_batch_that_is_fixed_is_an_error(export: Any, name: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="batch"):
        export(FixedBatch(), torch.zeros(1, 64), tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_a_head_of_zeros_is_no_proof(tmp_path: Path) -> None:
    model = Net().eval()
    nn.init.zeros_(model.head.weight)
    found = export_program(model, IMAGE, tmp_path / "net.pt2")
    assert not found.varied


def test_nan_outputs_are_an_error(tmp_path: Path) -> None:
    model = Net().eval()
    with torch.no_grad():
        model.head.bias.fill_(float("nan"))
    with pytest.raises(ExportError, match="NaN or infinite"):
        export_onnx(model, IMAGE, tmp_path / "net.onnx")


def test_what_is_missing_is_named(
    nets: dict[str, nn.Module], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(InputError, match=r"needs onnxscript: .*pip install 'secateur\[onnx\]'"):
        export_onnx(nets["cut"], IMAGE, tmp_path / "net.onnx")


def test_paths_are_checked_before_any_work(nets: dict[str, nn.Module], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="existing folder"):
        export_onnx(nets["cut"], IMAGE, tmp_path / "no" / "net.onnx")
    with pytest.raises(InputError, match="must be a file"):
        export_onnx(nets["cut"], IMAGE, tmp_path)
    with pytest.raises(InputError, match=r"end in \.pt2"):
        export_program(nets["cut"], IMAGE, tmp_path / "net.onnx")


def secateur_says(*words: str | Path) -> Outcome:
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    prune_run(RunConfig.model_validate(settings(folder, finetune={"epochs": 0})))
    return folder / "run"


class TestVerb:
    def test_a_run_folder_knows_its_input(self, run: Path, tmp_path: Path) -> None:
        outcome = secateur_says(
            "export", run, "--onnx", tmp_path / "n.onnx", "--program", tmp_path / "n.pt2",
            "--batch", "2", "--seconds", "0.01", "--json",
        )  # fmt: skip
        assert outcome.exit_code == 0, outcome.output
        found = json.loads(outcome.stdout)
        assert [one["kind"] for one in found] == ["onnx", "torch.export"]
        assert all(one["max_error"] < 1e-4 for one in found)
        assert found[0]["speeds"][0]["exported"]["batch"] == 2
        assert found[0]["size"] == (tmp_path / "n.onnx").stat().st_size

    def test_it_says_what_it_did(self, run: Path, tmp_path: Path) -> None:
        outcome = secateur_says(
            "export", run, "--onnx", tmp_path / "n.onnx", "--input", "1x8x8", "--batch", "1",
            "--seconds", "0.01",
        )  # fmt: skip
        assert outcome.exit_code == 0, outcome.output
        assert "equals PyTorch: largest relative error" in outcome.stdout
        assert "batch 1, 1 thread: PyTorch" in outcome.stdout

    def test_mistakes_are_told(self, run: Path, tmp_path: Path) -> None:
        secateur.save(Net(), tmp_path / "saved")
        for words, told in (
            ((run,), "onnx or program must name the file"),
            ((run, "--onnx", "n.onnx", "--input", "1x8x8", "--tokens", "3"), "one of input"),
            ((tmp_path / "saved", "--onnx", tmp_path / "n.onnx"), "does not say what"),
            ((tmp_path, "--onnx", tmp_path / "n.onnx", "--input", "1x8x8"), "no saved network"),
        ):
            outcome = secateur_says("export", *words)
            assert outcome.exit_code == 2
            assert told in outcome.stderr
