"""A training that is killed in the middle of an epoch ends like one that was not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import secateur
from secateur.errors import CheckpointError, InputError
from secateur.finetune import TrainSettings
from secateur.planning import make_plan
from secateur.sparse_training import (
    Keeping,
    select_structures,
    shrink_units,
    slim,
    train_sparse,
    zero_smallest,
)

SETTINGS = TrainSettings(epochs=4, lr=0.02, optimizer="sgd", momentum=0.9, clip=5.0)
METHODS = ("select", "slim", "sparse", "grow")


class Net(nn.Module):
    """A convolution with norm and dropout, a residual layer, a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.bn = nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.drop = nn.Dropout(0.2)
        self.up, self.branch, self.down = nn.Linear(6, 10), nn.Linear(10, 10), nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(torch.relu(self.bn(self.a(x)))).mean((2, 3))
        x = torch.relu(self.up(x))
        return self.down(x + self.branch(x))


class Stopping(TensorDataset):
    """Calls ``stop`` when so many samples have been read."""

    left: int | None = None

    def __getitem__(self, index: int) -> Any:
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                stop()
        return super().__getitem__(index)


def kill() -> None:
    """Do what kill -9 does."""
    os.kill(os.getpid(), signal.SIGKILL)


def interrupt() -> None:
    """Leave the same files behind, without a process of its own."""
    raise KeyboardInterrupt


stop = interrupt


def loader(stop_after: int | None = None) -> DataLoader:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 3, (96,), generator=generator)
    images = 0.3 * torch.randn(96, 1, 6, 6, generator=generator)
    images[:, 0, 0, :] += labels[:, None].float()
    data = Stopping(images, labels)
    data.left = stop_after
    # Its own generator, which a resumed training has to put where it was.
    return DataLoader(data, 16, shuffle=True, generator=torch.Generator().manual_seed(5))


def trained(
    method: str, keeping: Keeping, stop_after: int | None = None, **over: Any
) -> tuple[nn.Module, Any]:
    """Train a network that is the same at each call."""
    torch.manual_seed(1)
    net, data = Net(), loader(stop_after)
    graph = secateur.trace(net, torch.zeros(2, 1, 6, 6))
    if method == "select":
        options = {"strength": 0.01, "blocks": 0.05, **over}
        return net, select_structures(graph, data, SETTINGS, keeping=keeping, **options)
    if method == "slim":
        return net, slim(net, data, SETTINGS, keeping=keeping, **{"strength": 0.01, **over})
    if method == "sparse":
        zero_smallest(net, 0.5)
        return net, train_sparse(net, data, SETTINGS, keeping=keeping, **{"strength": 0.01, **over})
    plan = make_plan(graph, {"up": [0, 1, 2]})
    options = {"grow": 0.05, "every": 4, **over}
    return net, shrink_units(net, plan, data, SETTINGS, keeping=keeping, **options)


def told(found: Any) -> Any:
    """What a method found, to compare."""
    if isinstance(found, tuple):
        return found
    factors = {name: values.tolist() for name, values in found.factors.items()}
    return factors, found.blocks, found.losses, found.removed, found.gone


MIDDLE = 96 * 2 + 40


def check_resumed(method: str, kept: Path) -> None:
    """Go on with what was stopped in the third epoch, and compare with an undisturbed training."""
    assert (kept / "epoch-0002.json").is_file()
    assert not (kept / "epoch-0003.json").exists()
    whole, found = trained(method, Keeping())
    again, resumed = trained(method, Keeping(kept, resume=True))
    left, right = whole.state_dict(), again.state_dict()
    assert all(torch.equal(left[name], right[name]) for name in left)
    assert told(found) == told(resumed)
    # Once more: all epochs are there, and nothing is trained.
    third, same = trained(method, Keeping(kept, resume=True), stop_after=0)
    assert all(torch.equal(left[name], value) for name, value in third.state_dict().items())
    assert told(same) == told(found)


def test_killed_in_the_middle_of_an_epoch(tmp_path: Path) -> None:
    script = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import torch; torch.set_num_threads(1)\n"
        "from pathlib import Path\n"
        "import test_resume as here\n"
        "here.stop = here.kill\n"
        "here.trained('select', here.Keeping(Path(sys.argv[2])), stop_after=here.MIDDLE)\n"
    )
    words = [str(Path(__file__).parent), str(tmp_path / "kept")]
    done = subprocess.run([sys.executable, "-c", script, *words], check=False)
    assert done.returncode == -signal.SIGKILL
    check_resumed("select", tmp_path / "kept")


@pytest.mark.parametrize("method", METHODS)
def test_stopped_in_the_middle_of_an_epoch(method: str, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        trained(method, Keeping(tmp_path / "kept"), stop_after=MIDDLE)
    check_resumed(method, tmp_path / "kept")


def test_other_settings_and_used_folders_are_refused(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    trained("slim", Keeping(kept))
    with pytest.raises(InputError, match=r"folder must be empty, but .* holds a training"):
        trained("slim", Keeping(kept))
    with pytest.raises(InputError, match=r"strength was 0\.01, but got 0\.02"):
        trained("slim", Keeping(kept, resume=True), strength=0.02)
    with pytest.raises(InputError, match="frozen was None, but got"):
        trained("sparse", Keeping(kept, resume=True))
    with pytest.raises(InputError, match="resume needs a folder"):
        trained("slim", Keeping(resume=True))


def test_a_damaged_checkpoint_is_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kept = tmp_path / "kept"
    whole, _ = trained("select", Keeping(kept))
    newest = kept / "epoch-0004.safetensors"
    newest.write_bytes(newest.read_bytes()[:-10])
    again, _ = trained("select", Keeping(kept, resume=True))
    assert "the checkpoint before it is used" in caplog.text
    left = whole.state_dict()
    assert all(torch.equal(left[name], value) for name, value in again.state_dict().items())
    for path in kept.glob("*.json"):
        document = json.loads(path.read_text())
        path.write_text(json.dumps(document)[:-5])
    with pytest.raises(CheckpointError, match=r"every checkpoint in .* is damaged"):
        trained("select", Keeping(kept, resume=True))


@pytest.mark.parametrize(
    ("name", "value"),
    [("patience", 2), ("accumulate", 2), ("distill_weight", 0.5), ("mixed_precision", "bf16")],
)
def test_settings_without_a_meaning_here_are_refused(name: str, value: Any) -> None:
    with pytest.raises(InputError, match=rf"{name} must be .* in sparse training, but got"):
        slim(Net(), loader(), TrainSettings(epochs=1, **{name: value}))
