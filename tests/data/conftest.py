from collections.abc import Mapping
from pathlib import Path

import datasets
import pytest
from pictures import Folder, picture


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """Write class folders: {"cat": 5, "dog": 4}, or with splits {"train/cat": 5, ...}."""

    def write(
        counts: Mapping[str, int], *, size: tuple[int, int] = (8, 6), mode: str = "RGB"
    ) -> Path:
        root = tmp_path / "images"
        for place, (name, count) in enumerate(counts.items()):
            (root / name).mkdir(parents=True)
            for number in range(count):
                picture(1000 * place + number, size, mode).save(root / name / f"{number:03}.png")
        return root

    return write
