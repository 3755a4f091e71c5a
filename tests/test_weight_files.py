"""Weights as people have them: what is understood, and what is told of the rest."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from typer.testing import CliRunner

from secateur.cli import app
from secateur.cli_shared import file_or_model
from secateur.errors import InputError
from secateur.models import digits_cnn, load_weights
from secateur.results import load_result
from secateur.weight_files import read_weights, without_prefix

State = dict[str, Tensor]


def state() -> State:
    torch.manual_seed(5)
    return digits_cnn().state_dict()


def prefixed(prefix: str) -> State:
    return {prefix + name: value for name, value in state().items()}


def optimizer() -> Any:
    return torch.optim.Adam(digits_cnn().parameters()).state_dict()


FILES: dict[str, Callable[[Path], None]] = {
    "safetensors": lambda path: save_file(state(), path),
    "safetensors of DataParallel": lambda path: save_file(prefixed("module."), path),
    "a state dict": lambda path: torch.save(state(), path),
    "a state dict, old format": lambda path: torch.save(
        state(), path, _use_new_zipfile_serialization=False
    ),
    "of DataParallel": lambda path: torch.save(nn.DataParallel(digits()).state_dict(), path),
    "of a compiled DataParallel": lambda path: torch.save(prefixed("_orig_mod.module."), path),
    "a checkpoint": lambda path: torch.save(
        {"epoch": 3, "state_dict": state(), "optimizer": optimizer(), "best": 0.5}, path
    ),
    "a checkpoint's model": lambda path: torch.save(
        {"model": state(), "optimizer": optimizer()}, path
    ),
    "its averages beside it": lambda path: torch.save(
        {"ema": {"x": torch.ones(1)}, "model_state_dict": state()}, path
    ),
    "Lightning": lambda path: torch.save(
        {"state_dict": prefixed("model."), "hyper_parameters": {"lr": 1}, "callbacks": {}}, path
    ),
    "under a name of its own": lambda path: torch.save({"student": state(), "step": 1}, path),
}


def digits() -> nn.Module:
    model = digits_cnn()
    model.load_state_dict(state())
    return model


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("file", ["w.pth", "w.safetensors", "w"])
def test_what_a_file_holds_decides_and_not_its_name(tmp_path: Path, name: str, file: str) -> None:
    FILES[name](tmp_path / file)
    model = digits_cnn()
    load_weights(model, tmp_path / file)
    for key, value in state().items():
        assert model.state_dict()[key].equal(value), key


class Evil:
    def __reduce__(self) -> Any:
        return os.system, ("touch ran",)


def test_nothing_of_a_file_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": state(), "evil": Evil()}, "w.pth")
    with pytest.raises(InputError, match="would run its code"):
        read_weights("w.pth")
    assert not Path("ran").exists()


def scripted(path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(nn.Linear(2, 2)).save(str(path))


def cut_short(path: Path) -> None:
    torch.save(state(), path)
    path.write_bytes(path.read_bytes()[:700])


REFUSED: dict[str, tuple[Callable[[Path], None], str]] = {
    "a whole model": (lambda path: torch.save(digits(), path), "convert it once: python -c"),
    "a program": (scripted, "is a TorchScript program; take its weights out once: python -c"),
    "cut short": (cut_short, "is damaged: "),
    "a tensor": (lambda path: torch.save(torch.ones(3), path), "but holds a Tensor"),
    "a list": (lambda path: torch.save([1, 2], path), "but holds a list"),
    "two of them": (
        lambda path: torch.save({"generator": state(), "critic": state()}, path),
        "must hold one state dict .*, but holds generator, critic; save the part",
    ),
    "nothing": (lambda path: torch.save({}, path), "but holds nothing"),
    "text": (lambda path: path.write_text("weights"), "is not a safetensors file"),
    "an empty file": (lambda path: path.write_bytes(b""), "is not a safetensors file"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_read_is_told_on_one_line(tmp_path: Path, name: str) -> None:
    write, words = REFUSED[name]
    write(tmp_path / "w.pth")
    with pytest.raises(InputError, match=words) as told:
        load_weights(digits_cnn(), tmp_path / "w.pth")
    assert "\n" not in str(told.value)


def test_the_conversion_works_as_it_is_told(tmp_path: Path) -> None:
    torch.save(digits(), tmp_path / "w.pth")
    with pytest.raises(InputError) as told:
        read_weights(tmp_path / "w.pth")
    code = str(told.value).partition('python -c "')[2].removesuffix('"')
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
    found = read_weights(tmp_path / "w.weights.pth")
    assert all(value.equal(found[name]) for name, value in state().items())


def test_prefixes_go_only_where_the_model_has_none() -> None:
    one = torch.ones(1)
    assert list(without_prefix({"module.a": one}, {"module.a": one})) == ["module.a"]
    assert list(without_prefix({"x.y.a.b": one, "x.y.c": one}, {"a.b": one})) == ["a.b", "c"]
    assert list(without_prefix({"x.a": one, "y.a": one}, {"a": one})) == ["x.a", "y.a"]
    assert list(without_prefix({"x.a": one}, {"z": one})) == ["x.a"]
    assert without_prefix({}, {"z": one}) == {}


# --- a model before the options, as README writes it ---

NET = """
from torch import nn

def build():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 10))
"""


@pytest.mark.parametrize("verb", ["prune", "sensitivity"])
@pytest.mark.parametrize("module", ["my_package.models:build", "my_package/models.py:build"])
def test_the_model_may_stand_before_the_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str, module: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my_package").mkdir()
    Path("my_package/models.py").write_text(NET)
    words = [verb, module, "--data", "digits", "--macs", "0.5", "--output", "out"]
    if verb == "prune":
        words += ["--epochs", "0", "--batch-size", "256"]
    found = CliRunner().invoke(app, words)
    assert found.exit_code == 0, found.output
    if verb == "prune":
        assert load_result(Path("out/result.json")).asked["model"] == module
    sys.modules.pop("my_package.models", None)
    sys.modules.pop("my_package", None)


def test_a_file_and_a_model_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "a:b").write_text("")
    assert file_or_model(None, None) == (None, None)
    assert file_or_model(None, "m:f") == (None, "m:f")
    assert file_or_model("run.yaml", "m:f") == (Path("run.yaml"), "m:f")
    assert file_or_model("C:/run.yml", None) == (Path("C:/run.yml"), None)
    assert file_or_model(str(tmp_path / "a:b"), None) == (tmp_path / "a:b", None)
    assert file_or_model("package.module:build", None) == (None, "package.module:build")
    with pytest.raises(InputError, match="model must be given once"):
        file_or_model("a.b:c", "d:e")
