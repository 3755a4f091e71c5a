"""A network and pictures so small that a whole run takes a second or two."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

NET = """
from torch import nn

class Small(nn.Sequential):
    pass

def build(width=8, classes=10, channels=1):
    return Small(
        nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes),
    )

def failing():
    class Failing(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 3)

        def forward(self, x):
            return self.linear(x.flatten(1)[:, :7])

    return Failing()

def uncuttable(classes=10):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, classes))
"""


RESIDUAL = """
from torch import nn

class Block(nn.Module):
    def __init__(self, width, stride):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, width, 3, stride, 1), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, 1, 1), nn.BatchNorm2d(width)
        self.short = nn.Conv2d(width, width, 1, stride) if stride > 1 else nn.Identity()
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        y += self.short(x)
        return self.relu(y)

class Residual(nn.Sequential):
    pass

def build(width=8):
    return Residual(
        nn.Conv2d(1, width, 3, 1, 1), nn.ReLU(), Block(width, 1), Block(width, 2), Block(width, 1),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10),
    )

def odd():
    model = build()
    model.act = lambda x: x
    return model
"""


def write_net(folder: Path) -> str:
    """Write the network's file and return how the command line names it."""
    path = folder / "net.py"
    path.write_text(NET)
    return f"{path}:build"


def write_residual(folder: Path) -> str:
    """Write a network with three residual blocks, one of them with a projection."""
    path = folder / "residual_net.py"
    path.write_text(RESIDUAL)
    return f"{path}:build"


def settings(folder: Path, **over: Any) -> dict[str, Any]:
    """Return settings of a run on a few digits; ``over`` replaces keys."""
    return {
        "model": write_net(folder),
        "data": {"source": "digits", "limit": 150, "batch_size": 32, "calibration": 32},
        "criterion": "l2",
        "target": {"sparsity": 0.5},
        "finetune": {"epochs": 2, "lr": 0.01},
        "speed": {"batches": [1], "repeats": 2, "seconds": 0.01},
        "output": str(folder / "run"),
        "seed": 3,
        **over,
    }


def write_photos(folder: Path, splits: dict[str, dict[str, int]], side: int = 8) -> Path:
    """Write grey pictures: {split: {class: how many}}."""
    generator = np.random.default_rng(0)
    for split, classes in splits.items():
        for place, (name, count) in enumerate(classes.items()):
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = generator.integers(0, 100, (side, side)) + 100 * (place % 2)
                image = Image.fromarray(pixels.astype(np.uint8))
                image.save(folder / split / name / f"{number}.png")
    return folder
