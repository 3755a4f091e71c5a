"""Where labelled images come from: class folders, parquet files, and names on the hub."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.progress import Progress
from torch import Tensor

from secateur.data.images import Encoded
from secateur.errors import InputError
from secateur.progress import track

IMAGE_SUFFIXES = (
    ".jpg",
    ".jpeg",
    ".png",
    ".bmp",
    ".gif",
    ".webp",
    ".tif",
    ".tiff",
    ".ppm",
    ".pgm",
    ".pbm",
)
SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
    "eval": "test",
}
HUB = "hub:"
SPLITS = ("train", "validation", "test")

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Source:
    """Labelled images before any is decoded.

    Attributes:
        classes: their names, in the order of the labels.
        images: all images, split after split; a tensor uint8 [N, C, H, W] needs no decoding.
        labels: int64, one per image.
        splits: rows of each split, named train, validation or test.
        scale: the pixel value that means 1.
    """

    classes: tuple[str, ...]
    images: Encoded | Tensor
    labels: Rows
    splits: dict[str, Rows]
    scale: float = 255.0


def read_source(
    source: str, test_source: str | None, label: str | None, progress: Progress | None
) -> Source:
    """Find the images and labels that ``source`` (and ``test_source``) names; decodes none.

    Raises:
        InputError: it does not exist, holds no images, or its columns do not fit.
    """
    tables = _tables("source", source, label, progress)
    if test_source is not None:
        extra = _tables("test_source", test_source, label, progress)
        if "test" not in extra and len(extra) > 1:
            raise InputError(
                f"test_source must have one split or one named test, but {test_source!r} has "
                f"{', '.join(extra)}"
            )
        tables["test"] = extra["test"] if "test" in extra else next(iter(extra.values()))
    return _joined(tables)


@dataclass(frozen=True)
class _Table:
    """One split: undecoded images and the class name of each."""

    images: Any
    classes: tuple[str, ...]
    labels: Rows


def _tables(
    argument: str, source: str, label: str | None, progress: Progress | None
) -> dict[str, _Table]:
    if source.startswith(HUB):
        return _from_hub(argument, source, label, progress)
    path = Path(source).expanduser()
    if not path.exists():
        raise InputError(
            f"{argument} must be 'digits', a folder, a parquet file or 'hub:NAME', "
            f"but {source!r} does not exist"
        )
    if path.is_file():
        if path.suffix != ".parquet":
            raise InputError(f"{argument} must be a folder or a .parquet file, but got {source!r}")
        return _from_parquet(argument, {"train": [path]}, source, label, progress)
    files = sorted(p for p in path.rglob("*.parquet") if not _hidden(p, path))
    if files:
        return _from_parquet(argument, _by_split(files), source, label, progress)
    return _from_folder(argument, path, progress)


def _from_folder(argument: str, root: Path, progress: Progress | None) -> dict[str, _Table]:
    """Read ``root/class/image`` or ``root/split/class/image``; other files are not read."""
    folders = {name: _subfolders(path) for name, path in _split_folders(argument, root).items()}
    found: dict[str, dict[str, list[str]]] = {}
    for split, classes in folders.items():
        found[split] = {
            path.name: _images_below(path) for path in track(classes, f"Listing {split}", progress)
        }
    if not any(files for split in found.values() for files in split.values()):
        raise InputError(
            f"{argument} must hold images in one folder per class, but {str(root)!r} has none"
        )
    names = tuple(sorted({name for split in found.values() for name in split}))
    return {split: _folder_table(files, names) for split, files in found.items()}


def _folder_table(files: Mapping[str, list[str]], classes: tuple[str, ...]) -> _Table:
    import datasets

    features = datasets.Features({"image": datasets.Image(decode=False)})
    paths = [path for name in sorted(files) for path in files[name]]
    labels = [classes.index(name) for name in sorted(files) for _ in files[name]]
    images = datasets.Dataset.from_dict({"image": paths}, features=features)
    return _Table(images, classes, np.array(labels, dtype=np.int64))


def _split_folders(argument: str, root: Path) -> dict[str, Path]:
    """Find train/, val/ and test/ in ``root``; without a train/ of class folders, it is all train.

    A folder named train that holds images itself is a class (cars, planes, trains).
    """
    below = _subfolders(root)
    named = [path for path in below if SPLIT_NAMES.get(path.name.lower()) == "train"]
    if not any(_subfolders(path) for path in named):
        return {"train": root}
    splits: dict[str, Path] = {}
    for path in below:
        split = SPLIT_NAMES.get(path.name.lower())
        if split is None:
            continue
        if split in splits:
            raise InputError(
                f"{argument} must have one folder per split, but {str(root)!r} has both "
                f"{splits[split].name!r} and {path.name!r}"
            )
        splits[split] = path
    return splits


def _subfolders(path: Path) -> list[Path]:
    return sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))


def _images_below(folder: Path) -> list[str]:
    return sorted(
        str(p)
        for p in folder.rglob("*")
        if p.suffix.lower() in IMAGE_SUFFIXES and not _hidden(p, folder)
    )


def _hidden(path: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(root).parts)


def _by_split(files: list[Path]) -> dict[str, list[Path]]:
    """Sort parquet files by the split that their names begin with; none named: all are train."""
    splits: dict[str, list[Path]] = {}
    for path in files:
        word = re.split(r"[^a-z]", path.stem.lower(), maxsplit=1)[0]
        if word in SPLIT_NAMES:
            splits.setdefault(SPLIT_NAMES[word], []).append(path)
    return splits or {"train": files}


def _from_parquet(
    argument: str,
    files: Mapping[str, list[Path]],
    source: str,
    label: str | None,
    progress: Progress | None,
) -> dict[str, _Table]:
    import datasets

    names = {split: [str(path) for path in paths] for split, paths in files.items()}
    with _reading(argument, source, progress):
        loaded = datasets.load_dataset("parquet", data_files=names)
    return _from_datasets(argument, source, loaded, label)


def _from_hub(
    argument: str, source: str, label: str | None, progress: Progress | None
) -> dict[str, _Table]:
    import datasets

    name, _, config = source.removeprefix(HUB).partition(":")
    if not name:
        raise InputError(f"{argument} must be 'hub:NAME' or 'hub:NAME:CONFIG', but got {source!r}")
    with _reading(argument, source, progress):
        loaded = datasets.load_dataset(name, config or None)
    return _from_datasets(argument, source, loaded, label)


@contextlib.contextmanager
def _reading(argument: str, source: str, progress: Progress | None) -> Iterator[None]:
    """Show that reading goes on, keep the library's own bars away, put its errors on one line."""
    import datasets
    import huggingface_hub.utils

    hub: Any = huggingface_hub.utils

    quiet = datasets.are_progress_bars_disabled(), hub.are_progress_bars_disabled()
    task = progress.add_task(f"Reading {source}", total=None) if progress is not None else None
    datasets.disable_progress_bars()
    hub.disable_progress_bars()
    try:
        yield
    except Exception as error:
        # The library lets through what its readers, the network and its own checks raise.
        first = str(error.__cause__ or error).strip().split("\n")[0]
        raise InputError(
            f"{argument} {source!r} cannot be read: {type(error).__name__}: {first}"
        ) from error
    finally:
        if not quiet[0]:
            datasets.enable_progress_bars()
        if not quiet[1]:
            hub.enable_progress_bars()
        if progress is not None and task is not None:
            progress.remove_task(task)


def _from_datasets(
    argument: str, source: str, loaded: Mapping[str, Any], label: str | None
) -> dict[str, _Table]:
    """Take the splits that have a role here from a ``DatasetDict``."""
    import datasets

    chosen: dict[str, Any] = {}
    for name, table in loaded.items():
        role = SPLIT_NAMES.get(re.split(r"[^a-z]", name.lower(), maxsplit=1)[0])
        if role is not None and role not in chosen:
            chosen[role] = table
    if not chosen and len(loaded) == 1:
        chosen = {"train": next(iter(loaded.values()))}
    if not chosen:
        raise InputError(
            f"{argument} must have a split named train, but {source!r} has {', '.join(loaded)}"
        )
    tables: dict[str, _Table] = {}
    for split, table in chosen.items():
        image = _image_column(argument, source, table)
        classes, labels = _labels(argument, source, split, table, label)
        images = table.select_columns([image])
        if image != "image":
            images = images.rename_column(image, "image")
        images = images.cast_column("image", datasets.Image(decode=False))
        tables[split] = _Table(images, classes, labels)
    return tables


def _image_column(argument: str, source: str, table: Any) -> str:
    import datasets

    typed = [name for name, kind in table.features.items() if isinstance(kind, datasets.Image)]
    named = [name for name in ("image", "img") if name in table.features]
    found = typed if len(typed) == 1 else named
    if not found:
        raise InputError(
            f"{argument} must have a column 'image', but {source!r} has "
            f"{', '.join(table.column_names)}"
        )
    return found[0]


def _labels(
    argument: str, source: str, split: str, table: Any, label: str | None
) -> tuple[tuple[str, ...], Rows]:
    import datasets

    typed = [n for n, kind in table.features.items() if isinstance(kind, datasets.ClassLabel)]
    named = [name for name in (label or "label",) if name in table.features]
    found = named or (typed if label is None and len(typed) == 1 else [])
    if not found:
        raise InputError(
            f"{'label' if label else argument} must name a column of labels "
            f"({label or 'label'!r} was looked for), but {source!r} has "
            f"{', '.join(table.column_names)}"
        )
    kind = table.features[found[0]]
    values = list(table[found[0]][:])
    if any(value is None or value == -1 for value in values):
        raise InputError(
            f"{argument} must have a label for every image, but split {split!r} "
            f"of {source!r} has not"
        )
    if isinstance(kind, datasets.ClassLabel):
        return tuple(kind.names), np.array(values, dtype=np.int64)
    if not all(isinstance(value, str | int) for value in values):
        raise InputError(
            f"{argument}: column {found[0]!r} of {source!r} must hold class names or numbers"
        )
    distinct = sorted(set(values))
    order = {value: place for place, value in enumerate(distinct)}
    return tuple(map(str, distinct)), np.array([order[v] for v in values], dtype=np.int64)


def _joined(tables: Mapping[str, _Table]) -> Source:
    """Put the splits one after another, with one list of classes."""
    import datasets

    ordered = {split: tables[split] for split in SPLITS if split in tables}
    # The training split's order leads: the outputs of a trained network follow it.
    everything = tuple(dict.fromkeys(n for table in ordered.values() for n in table.classes))
    place = {name: number for number, name in enumerate(everything)}
    labels: list[Rows] = []
    splits: dict[str, Rows] = {}
    starts: dict[str, int] = {}
    start = 0
    for split, table in ordered.items():
        translate = np.array([place[name] for name in table.classes], dtype=np.int64)
        labels.append(translate[table.labels])
        starts[split] = start
        splits[split] = np.arange(start, start + len(table.labels))
        start += len(table.labels)
    images = datasets.concatenate_datasets([table.images for table in ordered.values()])
    return Source(everything, Encoded(images, starts), np.concatenate(labels), splits)
