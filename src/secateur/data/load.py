"""From a source's name to four sets of labelled images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from rich.progress import Progress

from secateur.data.images import Encoded, ImageSet, MemoryStore, Store, load_pixels
from secateur.data.sources import Rows, Source, read_source
from secateur.data.splits import check_classes, divide, stratified
from secateur.errors import InputError

DIGITS_TOP = 16.0
CALIBRATION_DRAW = 9


@dataclass(frozen=True)
class ImageData:
    """What a run learns from and is judged on.

    Attributes:
        classes: names, in the order of the labels.
        train: images to train on.
        calibration: a stratified part of ``train``, for passes that only collect statistics.
        validation: images to choose by.
        test: images for the last measurement only.
        shape: (C, H, W) of every image.
        mean: per channel, subtracted from pixels in [0, 1].
        std: per channel, divided by after that.
        skipped: unreadable images left out.
    """

    classes: tuple[str, ...]
    train: ImageSet
    calibration: ImageSet
    validation: ImageSet
    test: ImageSet
    shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    skipped: int = 0


def load_data(
    source: str,
    *,
    test_source: str | None = None,
    image_size: int | tuple[int, int] | None = None,
    channels: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    validation: float = 0.1,
    calibration: int = 512,
    limit: int | None = None,
    seed: int = 0,
    skip_unreadable: bool = False,
    label: str | None = None,
    progress: Progress | None = None,
) -> ImageData:
    """Load labelled images and divide them.

    Args:
        source: ``digits`` (the handwritten digits of scikit-learn, 1 x 8 x 8), a folder with one
            folder per class (also below ``train/``, ``val/`` and ``test/``), a parquet file or a
            folder of them (``train*.parquet``, ``test*.parquet``) as Hugging Face ``datasets``
            writes them, or ``hub:NAME`` or ``hub:NAME:CONFIG`` for ``datasets.load_dataset``.
        test_source: another source, whose test split (or only split) is the test split.
        image_size: side or (height, width) in pixels; images are scaled to cover it and cropped
            at the centre. Needed where sizes differ.
        channels: 1 (grey) or 3 (RGB); None takes 1 where all images are grey, else 3.
        mean: per channel, subtracted from pixels in [0, 1]; together with ``std``.
        std: per channel; None for both leaves pixels in [0, 1].
        validation: share of the training images held out, where no validation split exists.
        calibration: how many training images the calibration set has, at most.
        limit: at most so many images per split, stratified.
        seed: decides every choice of images.
        skip_unreadable: leave unreadable images out and count them instead of raising.
        label: the column of labels (parquet and hub); None looks for ``label``.
        progress: where to show how far it is.

    Raises:
        InputError: an argument breaks its rule, the source does not exist or holds no images, an
            image cannot be read, image sizes differ without ``image_size``, a class is in one
            split only, or there is only one class.
    """
    size = _size(image_size)
    _check(channels in (None, 1, 3), f"channels must be 1 or 3, but got {channels}")
    _check(0 < validation < 1, f"validation must be in (0, 1), but got {validation}")
    _check(calibration >= 1, f"calibration must be at least 1, but got {calibration}")
    _check(limit is None or limit >= 1, f"limit must be at least 1, but got {limit}")
    _check(seed >= 0, f"seed must be at least 0, but got {seed}")
    _check(test_source != source, f"test_source must differ from source, but got {test_source!r}")
    _check((mean is None) == (std is None), "mean and std must be given together, but got one")
    _check(all(s > 0 for s in std or ()), f"std must be above 0, but got {_list(std)}")
    if source == "digits":
        _check(test_source is None, f"digits takes no test_source, but got {test_source!r}")
        _check(size in (None, (8, 8)), f"image_size must be 8 for digits, but got {image_size}")
        _check(channels in (None, 1), f"channels must be 1 for digits, but got {channels}")
        found = _digits()
    else:
        found = read_source(source, test_source, label, progress)
    parts = divide(
        found.labels, found.splits, found.classes, validation=validation, limit=limit, seed=seed
    )
    wanted = np.sort(np.concatenate(list(parts.values())))
    store, shape, readable = _pixels(found, wanted, size, channels, skip_unreadable, progress)
    skipped = len(wanted) - int(readable.sum())
    wanted = wanted[readable]
    parts = {name: rows[np.isin(rows, wanted)] for name, rows in parts.items()}
    check_classes(found.labels, parts, found.classes)
    _check_channels("mean", mean, shape[0])
    _check_channels("std", std, shape[0])
    means = tuple(float(value) for value in mean or (0.0,) * shape[0])
    stds = tuple(float(value) for value in std or (1.0,) * shape[0])

    def images(rows: Rows) -> ImageSet:
        return ImageSet(
            store,
            torch.from_numpy(np.searchsorted(wanted, rows)),
            torch.from_numpy(found.labels[rows]),
            scale=found.scale,
            mean=means,
            std=stds,
        )

    train = parts["train"]
    few = stratified(
        found.labels[train], min(calibration, len(train)), seed=(seed, CALIBRATION_DRAW)
    )
    return ImageData(
        classes=found.classes,
        train=images(train),
        calibration=images(train[few]),
        validation=images(parts["validation"]),
        test=images(parts["test"]),
        shape=shape,
        mean=means,
        std=stds,
        skipped=skipped,
    )


def _digits() -> Source:
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    images = torch.from_numpy(pixels.astype(np.uint8)).view(-1, 1, 8, 8)
    return Source(
        classes=tuple(str(digit) for digit in range(10)),
        images=images,
        labels=labels.astype(np.int64),
        splits={"train": np.arange(len(labels))},
        scale=DIGITS_TOP,
    )


def _pixels(
    source: Source,
    wanted: Rows,
    size: tuple[int, int] | None,
    channels: int | None,
    skip_unreadable: bool,
    progress: Progress | None,
) -> tuple[Store, tuple[int, int, int], npt.NDArray[np.bool_]]:
    if isinstance(source.images, Encoded):
        return load_pixels(
            source.images,
            wanted,
            size=size,
            channels=channels,
            skip_unreadable=skip_unreadable,
            progress=progress,
        )
    pixels = source.images[torch.from_numpy(wanted)]
    depth, height, width = pixels.shape[1:]
    return MemoryStore(pixels), (depth, height, width), np.ones(len(wanted), dtype=bool)


def _size(image_size: int | tuple[int, int] | None) -> tuple[int, int] | None:
    if image_size is None:
        return None
    sides = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
    _check(
        len(sides) == 2 and all(isinstance(side, int) and side >= 1 for side in sides),
        f"image_size must be a whole number of pixels or (height, width), but got {image_size!r}",
    )
    return sides[0], sides[1]


def _check_channels(name: str, values: Sequence[float] | None, channels: int) -> None:
    _check(
        values is None or len(values) == channels,
        f"{name} must have {channels} values (one per channel), but got {_list(values)}",
    )


def _list(values: Sequence[float] | None) -> str:
    return ", ".join(str(value) for value in values or ()) or "none"


def _check(holds: bool, message: str) -> None:
    if not holds:
        raise InputError(message)
