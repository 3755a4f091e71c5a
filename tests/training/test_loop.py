"""What the loop adds to PyTorch: steps against hand-written ones, teachers, precision, trackers."""

from __future__ import annotations

import io
import math
import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.tracking import GeneralTracker
from rich.console import Console
from rich.progress import Progress
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from secateur import checked
from secateur import progress as room
from secateur.errors import InputError, SecateurError, StorageError
from secateur.finetune import TrainSettings, finetune
from secateur.training import devices


def samples(count: int = 24) -> TensorDataset:
    generator = torch.Generator().manual_seed(7)
    inputs = torch.randn(count, 5, generator=generator)
    return TensorDataset(inputs, inputs[:, :3].argmax(1))


def linear() -> nn.Linear:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return nn.Linear(5, 3)


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return nn.Sequential(nn.Linear(5, 9), nn.BatchNorm1d(9), nn.ReLU(), nn.Linear(9, 3))


def plain(**over: Any) -> TrainSettings:
    return TrainSettings(**{"epochs": 4, "lr": 0.05, "schedule": "constant", **over})


def slopes(weight: Tensor, bias: Tensor, inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of the mean cross entropy of a linear classifier, from the formula."""
    powers = (inputs @ weight.T + bias).exp()
    error = powers / powers.sum(1, keepdim=True) - nn.functional.one_hot(labels, 3)
    return error.T @ inputs / len(labels), error.mean(0)


class HandAdam:
    """Kingma and Ba (2015), algorithm 1; ``decoupled`` as Loshchilov and Hutter (2019)."""

    def __init__(self, rate: float, decay: float, decoupled: bool) -> None:
        self.rate, self.decay, self.decoupled = rate, decay, decoupled
        self.first, self.second, self.time = 0.0, 0.0, 0

    def __call__(self, value: Tensor, slope: Tensor) -> Tensor:
        self.time += 1
        if self.decoupled:
            value = value * (1 - self.rate * self.decay)
        else:
            slope = slope + self.decay * value
        self.first = 0.9 * self.first + 0.1 * slope
        self.second = 0.999 * self.second + 0.001 * slope**2
        first = self.first / (1 - 0.9**self.time)
        second = self.second / (1 - 0.999**self.time)
        return value - self.rate * first / (second**0.5 + 1e-8)


class HandSGD:
    """Sutskever et al. (2013), as PyTorch writes it: the rate outside of the velocity."""

    def __init__(self, rate: float, decay: float, momentum: float, nesterov: bool) -> None:
        self.rate, self.decay, self.momentum, self.nesterov = rate, decay, momentum, nesterov
        self.velocity: Any = None

    def __call__(self, value: Tensor, slope: Tensor) -> Tensor:
        slope = slope + self.decay * value
        before = self.velocity
        self.velocity = slope if before is None else self.momentum * before + slope
        step = slope + self.momentum * self.velocity if self.nesterov else self.velocity
        return value - self.rate * step


STEPS: dict[str, tuple[dict[str, Any], Callable[[], Any]]] = {
    "adam": ({"weight_decay": 0.02}, lambda: HandAdam(0.05, 0.02, False)),
    "adamw": ({"optimizer": "adamw", "weight_decay": 0.3}, lambda: HandAdam(0.05, 0.3, True)),
    "sgd": (
        {"optimizer": "sgd", "momentum": 0.8, "weight_decay": 0.02},
        lambda: HandSGD(0.05, 0.02, 0.8, False),
    ),
    "nesterov": (
        {"optimizer": "sgd", "momentum": 0.8, "weight_decay": 0.02, "nesterov": True},
        lambda: HandSGD(0.05, 0.02, 0.8, True),
    ),
}


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize("parts", [1, 3])
def test_steps_equal_hand_written_ones(name: str, parts: int) -> None:
    """Also where a step is made of several batches, the last of them smaller."""
    over, make = STEPS[name]
    model, data = linear(), samples(22)
    inputs, labels = data.tensors
    weight, bias = model.weight.detach().clone(), model.bias.detach().clone()
    rules = make(), make()
    for _ in range(4):
        by = slopes(weight, bias, inputs, labels)
        weight, bias = rules[0](weight, by[0]), rules[1](bias, by[1])
    train = DataLoader(data, batch_size=22 if parts == 1 else 9)
    checks = DataLoader(data, batch_size=22)
    history = finetune(model, train, checks, plain(accumulate=parts, best_by="loss", **over))
    assert min(history, key=lambda entry: entry.val_loss).epoch == 4
    assert torch.allclose(model.weight, weight, atol=1e-5)
    assert torch.allclose(model.bias, bias, atol=1e-5)


def test_a_window_that_is_not_full_is_a_step_too() -> None:
    """Five batches by two make three steps; the warm-up rate tells which they were."""
    model, data = linear(), samples(20)
    weight, bias = model.weight.detach().clone(), model.bias.detach().clone()
    inputs, labels = data.tensors
    for first, last, rate in ((0, 8, 0.0), (8, 16, 0.1 * 2 / 5), (16, 20, 0.1 * 4 / 5)):
        by = slopes(weight, bias, inputs[first:last], labels[first:last])
        weight, bias = weight - rate * by[0], bias - rate * by[1]
    asked = TrainSettings(epochs=1, lr=0.1, warmup=1, optimizer="sgd", momentum=0, accumulate=2)
    finetune(model, DataLoader(data, batch_size=4), DataLoader(data, batch_size=20), asked)
    assert torch.allclose(model.weight, weight, atol=1e-6)


def test_a_teacher_is_learnt_from_and_left_alone() -> None:
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Linear(5, 3), nn.Dropout(0.5)).train()
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    inputs, labels = samples().tensors
    loader = DataLoader(TensorDataset(inputs, labels), batch_size=8)
    taught, free = linear(), linear()
    finetune(taught, loader, loader, plain(distill_weight=0.5), teacher=teacher)
    finetune(free, loader, loader, plain())
    assert not torch.equal(taught.weight, free.weight)
    assert teacher.training
    assert all(module.training for module in teacher.modules())
    assert all(torch.equal(before[k], v) for k, v in teacher.state_dict().items())


def test_with_the_teachers_answers_alone_its_function_is_found() -> None:
    torch.manual_seed(0)
    teacher, model = nn.Linear(5, 3), linear()
    data = samples()
    loader = DataLoader(data, batch_size=24)
    # The best epoch goes by the labels, which the teacher does not know: one long epoch.
    many = DataLoader(torch.utils.data.ConcatDataset([data] * 600), batch_size=24, shuffle=False)
    asked = TrainSettings(epochs=1, lr=0.02, schedule="constant", distill_weight=1.0)
    finetune(model, many, loader, asked, teacher=teacher)
    with torch.no_grad():
        inputs = data.tensors[0]
        gap = model(inputs).softmax(1) - teacher(inputs).softmax(1)
    assert float(gap.abs().max()) < 0.02


@pytest.mark.parametrize(("teacher", "share"), [(None, 0.5), (nn.Linear(5, 3), 0.0)])
def test_a_teacher_and_its_share_go_together(teacher: nn.Module | None, share: float) -> None:
    loader = DataLoader(samples(), batch_size=8)
    with pytest.raises(InputError, match="teacher must be given exactly where"):
        finetune(linear(), loader, loader, plain(distill_weight=share), teacher=teacher)


def test_another_teacher_cannot_resume(tmp_path: Path) -> None:
    loader = DataLoader(samples(), batch_size=8)
    asked = plain(distill_weight=0.5)
    finetune(linear(), loader, loader, asked, teacher=nn.Linear(5, 3), folder=tmp_path)
    with pytest.raises(InputError, match="teacher was"):
        finetune(linear(), loader, loader, asked, teacher=linear(), folder=tmp_path, resume=True)


def test_the_best_epoch_by_loss() -> None:
    data = samples(60)
    few = TensorDataset(*(tensor[:12] for tensor in data.tensors))
    checks, train = DataLoader(few, batch_size=12), DataLoader(data, batch_size=6)
    for by in ("accuracy", "loss"):
        model = network()
        history = finetune(model, train, checks, plain(epochs=10, best_by=by))
        with torch.no_grad():
            loss = nn.functional.cross_entropy(model(few.tensors[0]), few.tensors[1])
        lowest = min(entry.val_loss for entry in history)
        best = max(history, key=lambda entry: (entry.val_accuracy, -entry.val_loss))
        assert best.val_loss > lowest
        expected = lowest if by == "loss" else best.val_loss
        assert float(loss) == pytest.approx(expected, rel=1e-5)


class TestPrecision:
    def test_bfloat16_computes_otherwise_and_keeps_weights_whole(self) -> None:
        loader = DataLoader(samples(), batch_size=8)
        models = [linear() for _ in range(3)]
        for model, precision in zip(models, ("no", "bf16", "no"), strict=True):
            finetune(model, loader, loader, plain(mixed_precision=precision))
        first, half, again = (model.weight for model in models)
        assert half.dtype == torch.float32
        assert torch.equal(first, again)
        assert not torch.equal(first, half)
        assert torch.allclose(first, half, atol=0.02)
        assert models[1](samples().tensors[0]).dtype == torch.float32

    @pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU has float16")
    def test_float16_needs_a_gpu(self) -> None:
        loader = DataLoader(samples(), batch_size=8)
        with pytest.raises(InputError, match="'fp16' needs a GPU"):
            finetune(network(), loader, loader, plain(mixed_precision="fp16"))

    def test_float16_needs_a_gpu_in_words_everywhere(self) -> None:
        with pytest.raises(InputError, match="mixed_precision must be one of no, fp16, bf16"):
            plain(mixed_precision="fp8")


class Listing(GeneralTracker):
    """Keeps what it is told."""

    name = "listing"
    requires_logging_directory = False

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[tuple[Any, Any]] = []
        self.config: dict[str, Any] = {}
        self.closed = 0

    @property
    def tracker(self) -> Any:
        return self.rows

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.config = values

    def log(self, values: dict[str, Any], step: int | None = None, **_: Any) -> None:
        self.rows.append((step, values))

    def finish(self) -> None:
        self.closed += 1


class TestTrackers:
    def test_each_epoch_is_told_and_resumed_ones_go_on(self, tmp_path: Path) -> None:
        loader = DataLoader(samples(), batch_size=8)
        first, second = Listing(), Listing()
        history = finetune(linear(), loader, loader, plain(), folder=tmp_path, trackers=[first])
        assert [step for step, _ in first.rows] == [1, 2, 3, 4]
        assert first.rows[2][1] == {
            "loss/train": history[2].train_loss,
            "loss/validation": history[2].val_loss,
            "accuracy/validation": history[2].val_accuracy,
            "learning rate": 0.05,
        }
        assert first.config["optimizer"] == "adam"
        assert first.closed == 1
        (tmp_path / "epoch-0004.json").unlink()
        finetune(linear(), loader, loader, plain(), folder=tmp_path, resume=True, trackers=[second])
        assert [step for step, _ in second.rows] == [4]

    def test_tensorboard_writes_its_files(self, tmp_path: Path) -> None:
        pytest.importorskip("tensorboard")
        loader = DataLoader(samples(), batch_size=8)
        finetune(linear(), loader, loader, plain(), trackers=["tensorboard"], logs=tmp_path)
        assert list(tmp_path.rglob("events.out.tfevents*"))

    @pytest.mark.parametrize(
        ("trackers", "message"),
        [
            (["tensorbord"], "trackers must be one of .*did you mean 'tensorboard'"),
            (["wandb"], "trackers name 'wandb', but its package is not installed"),
        ],
    )
    def test_those_that_cannot_be_had(
        self, trackers: list[str], message: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(devices, "get_available_trackers", list)
        loader = DataLoader(samples(), batch_size=8)
        with pytest.raises(InputError, match=message):
            finetune(linear(), loader, loader, plain(), trackers=trackers)

    def test_one_that_writes_needs_a_folder(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(devices, "get_available_trackers", lambda: ["tensorboard"])
        loader = DataLoader(samples(), batch_size=8)
        with pytest.raises(InputError, match="tracker 'tensorboard' needs a folder"):
            finetune(linear(), loader, loader, plain(), trackers=["tensorboard"])


class TestShown:
    def told(self, terminal: bool) -> tuple[str, Progress]:
        console = Console(file=io.StringIO(), force_terminal=terminal, width=200)
        return console.file.getvalue(), Progress(console=console, disable=not terminal)  # type: ignore[attr-defined]

    def test_lines_where_there_is_no_screen(self, monkeypatch: pytest.MonkeyPatch) -> None:
        _, progress = self.told(False)
        loader = DataLoader(samples(), batch_size=8)
        finetune(linear(), loader, loader, plain(), progress=progress)
        assert progress.console.file.getvalue() == ""  # type: ignore[attr-defined]
        monkeypatch.setattr(room, "LINE_EVERY", 0.0)
        history = finetune(linear(), loader, loader, plain(), phase="again", progress=progress)
        said = progress.console.file.getvalue().splitlines()  # type: ignore[attr-defined]
        lines = [line for line in said if ": epoch " in line]
        assert len(lines) == 4
        last = history[-1]
        assert lines[-1].startswith(
            f"again: epoch 4/4, loss {last.train_loss:.3f}, on validation loss "
            f"{last.val_loss:.3f} and accuracy {last.val_accuracy:.1%}, "
        )
        assert lines[-1].endswith("at most 0 s left")

    def test_one_bar_for_all_epochs(self) -> None:
        seen: list[tuple[float, Any, str]] = []

        class Watched(Progress):
            def update(self, task: Any, **fields: Any) -> None:
                super().update(task, **fields)
                one = self._tasks[task]
                seen.append((one.completed, one.total, one.description))

        progress = Watched(console=Console(file=io.StringIO()))
        loader = DataLoader(samples(), batch_size=8)
        history = finetune(linear(), loader, loader, plain(), progress=progress)
        steps = [entry for entry in seen if entry[2].startswith("finetune: epoch")]
        assert [(done, total) for done, total, _ in steps] == [(n, 12) for n in range(1, 13)]
        assert steps[-1][2] == (
            f"finetune: epoch 4/4, loss {history[3].train_loss:.3f}, "
            f"accuracy {history[2].val_accuracy:.1%}"
        )
        assert not progress.tasks


class TestBeforeAndAfterDisaster:
    def test_a_full_disk_is_an_error_before_training(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model = nn.Linear(1000, 50)
        floats = 50_050 * 4
        usage = namedtuple("usage", "total used free")
        free = {"bytes": 0}
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 0, free["bytes"]))
        inputs = torch.zeros(4, 1000)
        loader = DataLoader(TensorDataset(inputs, torch.arange(4)), batch_size=4)
        # Three checkpoints of weights and moments, and two best epochs.
        for moments, over in (
            (2, {}),
            (1, {"optimizer": "sgd"}),
            (0, {"optimizer": "sgd", "momentum": 0}),
        ):
            needed = floats * (3 * (1 + moments) + 2)
            free["bytes"] = needed - 1
            with pytest.raises(InputError, match=f"must have {needed / 1e6:.1f} MB free"):
                finetune(model, loader, loader, plain(epochs=1, **over), folder=tmp_path)
            assert not list(tmp_path.iterdir())
        free["bytes"] = needed
        finetune(model, loader, loader, plain(epochs=1, **over), folder=tmp_path)
        # What is there already need not be free again, and nothing is written any more.
        free["bytes"] = 0
        finetune(model, loader, loader, plain(epochs=1, **over), folder=tmp_path, resume=True)

    def test_a_disk_that_fills_up_keeps_the_checkpoint_before(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        loader = DataLoader(samples(), batch_size=8)
        straight, resumed = network(), network()
        finetune(straight, loader, loader, plain())
        whole, calls = checked.save_file, list[Path]()

        def failing(tensors: Any, path: Path, metadata: Any) -> None:
            calls.append(path)
            if len(calls) == 6:  # the optimiser's tensors of the third epoch
                path.write_bytes(b"half")
                raise SafetensorError("I/O error: No space left on device (os error 28)")
            whole(tensors, path, metadata)

        with monkeypatch.context() as patch:
            patch.setattr(checked, "save_file", failing)
            with pytest.raises(StorageError, match=r"cannot be written: .*No space left"):
                finetune(network(), loader, loader, plain(), folder=tmp_path)
        assert not list(tmp_path.glob(".*"))
        finetune(resumed, loader, loader, plain(), folder=tmp_path, resume=True)
        for name, value in straight.state_dict().items():
            assert torch.equal(value, resumed.state_dict()[name])

    @pytest.mark.skipif(not Path("/proc/self").exists(), reason="Linux's read-only /proc")
    def test_a_read_only_folder_is_an_error_before_training(self) -> None:
        loader = DataLoader(samples(), batch_size=8)
        for folder in (Path("/proc"), Path("/proc/secateur/run")):
            with pytest.raises(InputError, match="folder must be writable, but got /proc"):
                finetune(linear(), loader, loader, plain(), folder=folder)

    def test_validation_that_is_not_a_number_stops_too(self) -> None:
        inputs, labels = samples().tensors
        broken = inputs.clone()
        broken[5] = math.inf
        model = network()
        begun = {name: value.clone() for name, value in model.state_dict().items()}
        with pytest.raises(
            SecateurError,
            match=r"loss on validation is nan after epoch 1 \(step 3, learning rate 0.05\); "
            "the weights from before are back",
        ):
            finetune(
                model,
                DataLoader(TensorDataset(inputs, labels), batch_size=8),
                DataLoader(TensorDataset(broken, labels), batch_size=8),
                plain(),
            )
        assert all(torch.equal(begun[k], v) for k, v in model.state_dict().items())

    def test_a_loss_that_runs_away_keeps_the_best(self, tmp_path: Path) -> None:
        loader = DataLoader(samples(), batch_size=8)
        model = linear()
        # Decay this strong turns each weight into minus itself times 1e30.
        asked = plain(lr=1e30, optimizer="sgd", weight_decay=1.0)
        named = r"loss is nan at step [1-3] of epoch 1 \(learning rate 1e\+30\)"
        with pytest.raises(SecateurError, match=named):
            finetune(model, loader, loader, asked, folder=tmp_path)
        assert bool(torch.isfinite(model.weight).all())


KILLED = """
import sys, time
from pathlib import Path
import torch
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from secateur.finetune import TrainSettings, finetune
from secateur.rounds import gradual
from secateur.schedule import Cubic

class Slow(TensorDataset):
    def __getitem__(self, index):
        time.sleep(float(sys.argv[3]))
        return super().__getitem__(index)

torch.set_num_threads(1)
torch.manual_seed(1)
model = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3),
                      nn.Linear(16, 3))
inputs = torch.randn(60, 6)
data = Slow(inputs, inputs[:, :3].argmax(1))
folder = Path(sys.argv[1])
finetune(
    model,
    DataLoader(data, batch_size=6, shuffle=True, generator=torch.Generator()),
    DataLoader(TensorDataset(*data.tensors), batch_size=60),
    TrainSettings(epochs=5, lr=0.02, weight_decay=0.01, accumulate=2, clip=1.0, warmup=0.5),
    hook=gradual(Cubic(0.5, begin=3, end=18, frequency=2)),
    folder=folder,
    resume=sys.argv[2] == "resume",
)
save_file(model.state_dict(), folder.parent / (folder.name + ".safetensors"))
"""


def test_a_killed_process_resumes_to_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Signal 9 in the middle of the third epoch: no handler runs, nothing is tidied up."""
    script = tmp_path / "train.py"
    script.write_text(KILLED)
    env = {**os.environ, "OMP_NUM_THREADS": "1"}

    def command(name: str, how: str, pause: float) -> list[str]:
        return [sys.executable, str(script), str(tmp_path / name), how, str(pause)]

    running = subprocess.Popen(command("killed", "new", 0.05), env=env)
    try:
        second = tmp_path / "killed" / "epoch-0002.json"
        waited = time.monotonic() + 120
        while not second.exists() and running.poll() is None and time.monotonic() < waited:
            time.sleep(0.02)
        time.sleep(1.0)  # an epoch takes three seconds
        running.send_signal(signal.SIGKILL)
        assert running.wait(60) == -signal.SIGKILL
    finally:
        running.kill()
    left = {path.name for path in (tmp_path / "killed").glob("*.json")}
    assert left == {"epoch-0001.json", "epoch-0002.json"}
    subprocess.run(command("killed", "resume", 0), env=env, check=True, timeout=120)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "argv", command("straight", "new", 0)[1:])
        runpy.run_path(str(script))
    one, other = (load_file(tmp_path / f"{name}.safetensors") for name in ("straight", "killed"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert int((one["0.weight"] == 0).sum()) == 48
