"""What ``inspect`` says of a network, against counts made by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from small_runs import write_net
from torch import nn

from secateur.errors import InputError, TraceError
from secateur.study.inspection import inspected
from secateur.study.stages import widths


def test_groups_places_and_shares(tmp_path: Path) -> None:
    found = inspected(write_net(tmp_path), {"width": 4}, None, (1, 8, 8))
    params = 9 * 4**2 + 25 * 4 + 10
    macs = 64 * 9 * 4 + 16 * 9 * 4**2 + 10 * 4
    assert (found["params"], found["macs"], found["input"]) == (params, macs, "1x8x8")
    first, second = found["groups"]
    assert (first["name"], first["kind"], first["size"]) == ("0", "channel", 4)
    assert (first["out_of"], first["into"]) == (["0"], ["4"])
    assert (second["out_of"], second["into"]) == (["4"], ["9"])
    assert {"0.weight[0]", "0.bias[0]", "1.weight[0]", "4.weight[1]"} <= set(first["slots"])
    # Three of four units: of conv 0 weight and bias, of norm 1, and of what conv 4 reads.
    assert first["params_share"] == pytest.approx(3 * (9 + 1 + 2 + 9 * 4) / params)
    assert first["macs_share"] == pytest.approx(3 * (64 * 9 + 16 * 9 * 4) / macs)
    assert second["params_share"] == pytest.approx(3 * (9 * 4 + 1 + 2 + 10) / params)
    assert second["macs_share"] == pytest.approx(3 * (16 * 9 * 4 + 10) / macs)


def test_what_is_pinned_and_why(tmp_path: Path) -> None:
    found = inspected(write_net(tmp_path), {}, None, (1, 8, 8))
    places = {pin["where"]: pin["reason"] for pin in found["pinned"]}
    assert places["9.weight[0]"] == "the model's output"


def test_an_input_that_does_not_fit(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="example input"):
        inspected(write_net(tmp_path), {}, None, (3, 8, 8))


def test_widths_know_transposed_convolutions() -> None:
    def build(width: int) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(3, width, 1), nn.ConvTranspose2d(width, 2 * width, 2, groups=2), nn.ReLU()
        )

    found = [(w.layer, w.dense, w.pruned) for w in widths(build(4), build(2))]
    assert found == [("0", 4, 2), ("1", 8, 4)]


NETS = """
import torch
from torch import nn

class Tagger(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(11, 6)
        self.out = nn.Linear(6, 3)
    def forward(self, ids):
        return self.out(self.table(ids))

class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(4, 6), nn.Linear(5, 6)
        self.out = nn.Linear(6, 2)
    def forward(self, a, b):
        return self.out(self.left(a) + self.right(b))

def pair():
    return {"a": torch.zeros(2, 4), "b": torch.zeros(2, 5)}
"""


@pytest.fixture
def nets(tmp_path: Path) -> str:
    (tmp_path / "nets.py").write_text(NETS)
    return str(tmp_path / "nets.py")


def test_tokens(nets: str) -> None:
    found = inspected(f"{nets}:Tagger", {}, None, tokens=7)
    (group,) = found["groups"]
    assert (group["name"], group["size"], group["out_of"]) == ("table", 6, ["table"])
    assert (found["input"], found["macs"]) == ("7 tokens", 7 * 6 * 3)


def test_inputs_of_ones_own(nets: str) -> None:
    found = inspected(f"{nets}:Pair", {}, None, inputs=f"{nets}:pair")
    (group,) = found["groups"]
    assert (group["size"], set(group["out_of"]), group["into"]) == (6, {"left", "right"}, ["out"])


def test_without_weights_the_same_is_found(nets: str) -> None:
    whole = inspected(f"{nets}:Tagger", {}, None, tokens=7)
    assert inspected(f"{nets}:Tagger", {}, None, tokens=7, meta=True) == whole


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({}, "exactly one of input, tokens and inputs must be given, but got none"),
        ({"tokens": 3, "shape": (3,)}, "must be given, but got input, tokens"),
        ({"tokens": 0}, "tokens must be at least 1, but got 0"),
        ({"tokens": 3, "meta": True, "weights": "w.safetensors"}, "weights must not be given"),
        ({"inputs": "nothing"}, "inputs must be 'package.module:callable'"),
    ],
)
def test_which_input(nets: str, asked: dict[str, Any], told: str) -> None:
    arguments = {"weights": None, **asked}
    with pytest.raises(InputError, match=told):
        inspected(f"{nets}:Tagger", {}, **arguments)
