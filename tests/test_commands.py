"""The commands of README and docs run as they are printed.

Each stands in a folder that holds what its text presupposes: a network, weights, pictures, runs.
"""

from __future__ import annotations

import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from PIL import Image
from safetensors.torch import save_file
from small_runs import settings, write_photos
from typer.testing import CliRunner

from secateur.cli import app
from secateur.models import load_model

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

NET = """
from torch import nn

def build(classes=2):
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, classes),
    )
"""

ELSEWHERE = {
    "examples/": "needs CIFAR-10 and a trained ResNet-56: tests/test_examples.py reads these files",
    "hf:FOLDER": "needs a folder of transformers: tests/test_huggingface.py",
    "secateur export": "needs ONNX and much time: tests/deployment",
    "FOLDER": "a pattern, not a command",
    "runs/tune": "a tuning run, resumed: tests/tuning",
}
"""What is not run here, and why."""

SMALL = {
    "secateur prune my_package": ["--epochs", "0", "--image-size", "16"],
    "secateur demo": None,
}
"""Options that make a command small; None is not run for its time."""


def commands() -> Iterator[tuple[str, str]]:
    """Yield the place and the text of every command: of blocks, and in backticks."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8").replace("\\\n", " ")
        for line in text.splitlines():
            found = re.match(r" *(secateur .*?)(?: +#.*)?$", line)
            within = re.findall(r"`(secateur [a-z]+ [^`]*)`", line)
            for command in [found.group(1)] if found else within:
                yield page.name, " ".join(command.split())


EVERY = sorted(set(commands()))
LEFT = [one for one in EVERY if any(mark in one[1] for mark in ELSEWHERE)]
HERE = [one for one in EVERY if one not in LEFT]


def write_settings(folder: Path) -> None:
    """Write the YAML files that the commands name."""
    small = {
        "model": "my_package.models:build",
        "data": {"source": "images", "image_size": 16},
        "seed": 1,
    }
    fast = {"batches": [1], "repeats": 2, "seconds": 0.01}
    files = {
        "study.yaml": {**small, "criteria": ["l2"], "sparsities": [0.5], "choose": {"within": 0.9}},
        "sens.yaml": {**small, "criterion": "l2", "sparsities": [0.5]},
        "tune.yaml": {
            **small, "criterion": "l2", "target": {"sparsity": 0.5}, "top": 1, "speed": fast,
            "search": {"trials": 2, "sampler": "random", "objective": {"metric": "loss"},
                       "space": {"lr": {"type": "log", "low": 0.01, "high": 0.1}}},
        },
    }  # fmt: skip
    files["sensitivity.yaml"] = files["sens.yaml"]
    for name, content in files.items():
        (folder / name).write_text(yaml.safe_dump(content))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a folder as a reader would have it."""
    folder = tmp_path_factory.mktemp("reader")
    (folder / "my_package").mkdir()
    (folder / "my_package" / "models.py").write_text(NET)
    write_photos(folder, {"images": {"cats": 20, "dogs": 20}}, side=16)
    for path in folder.glob("images/*/*.png"):
        with Image.open(path) as grey:
            grey.convert("RGB").save(path)
    write_settings(folder)
    model = load_model(f"{folder / 'my_package' / 'models.py'}:build", {})
    save_file(model.state_dict(), folder / "weights.safetensors")
    from secateur.study import RunConfig, prune_run

    for name in ("demo", "a", "b"):
        asked = settings(folder, output=str(folder / "runs" / name), finetune={"epochs": 0})
        prune_run(RunConfig.model_validate(asked))
    return folder


@pytest.mark.parametrize(("page", "command"), HERE, ids=[" in ".join(one[::-1]) for one in HERE])
def test_a_command_runs_as_printed(
    page: str, command: str, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "here"
    shutil.copytree(place, folder)
    monkeypatch.chdir(folder)
    extra = next((more for mark, more in SMALL.items() if command.startswith(mark)), [])
    if extra is None:
        pytest.skip("takes minutes; tests/study/test_demo.py has it in small")
    try:
        found = CliRunner().invoke(app, [*shlex.split(command)[1:], *extra])
    finally:
        for name in ("my_package", "my_package.models"):
            sys.modules.pop(name, None)
    assert found.exit_code == 0, f"{page}: {command}: {found.output[-800:]}"


def test_what_is_not_run_is_known() -> None:
    assert len(HERE) >= 8
    assert all(mark in " ".join(command for _, command in LEFT) for mark in ELSEWHERE)
