"""Pictures and tables that the data tests share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
from PIL import Image

Folder = Callable[..., Path]


def picture(seed: int, size: tuple[int, int] = (8, 6), mode: str = "RGB") -> Image.Image:
    """A picture of (height, width) whose pixels depend on ``seed`` alone."""
    shape = size if mode == "L" else (*size, 3)
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


def table(
    labels: list[int], names: list[str], seed: int = 0, column: str = "image"
) -> datasets.Dataset:
    """A split as Hugging Face ``datasets`` holds it."""
    features = datasets.Features(
        {column: datasets.Image(), "label": datasets.ClassLabel(names=names)}
    )
    pictures = [picture(seed + number) for number in range(len(labels))]
    return datasets.Dataset.from_dict({column: pictures, "label": labels}, features=features)


def plain_table(labels: list[object]) -> datasets.Dataset:
    """A split whose labels are names or numbers without a list of classes."""
    pictures = [picture(number) for number in range(len(labels))]
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "label": datasets.Value("string" if isinstance(labels[0], str) else "int64"),
        }
    )
    return datasets.Dataset.from_dict({"image": pictures, "label": labels}, features=features)
