"""Decoding, and where decoded images live: in memory where they fit, else read as needed.

Images are uint8 [C, H, W] with C = 1 (grey) or 3 (RGB). ``size`` is (H, W).
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from PIL import ExifTags, Image, ImageOps
from rich.progress import Progress
from torch import Tensor
from torch.utils.data import Dataset

from secateur.errors import InputError
from secateur.progress import track

IN_MEMORY_BYTES = 2**30
CHUNK = 512
# Smaller files than this are decoded faster by one thread: most of the time is spent in Python.
PARALLEL_BYTES = 4096
GREY_MODES = ("1", "L", "LA")

Pixels = npt.NDArray[np.uint8]
Record = dict[str, Any]  # as `datasets` holds an image that it has not decoded: bytes and path


class Store(Protocol):
    """Decoded images, by place."""

    def fetch(self, places: Tensor) -> Tensor:
        """Return uint8 [N, C, H, W] for places [N]."""
        ...


@dataclass(frozen=True)
class MemoryStore:
    """All images, decoded once: uint8 [N, C, H, W]."""

    pixels: Tensor

    def fetch(self, places: Tensor) -> Tensor:
        """Return uint8 [N, C, H, W] for places [N]."""
        return self.pixels[places]


@dataclass(frozen=True)
class Encoded:
    """Images as a source holds them, split after split.

    Attributes:
        images: a ``datasets.Dataset`` with an undecoded column ``image``.
        starts: the first row of each split.
    """

    images: Any
    starts: dict[str, int]

    def records(self, rows: Sequence[int]) -> list[Record]:
        """Return the undecoded images of ``rows``."""
        records: list[Record] = self.images[list(rows)]["image"]
        return records

    def name(self, row: int, record: Record) -> str:
        """Say which image it is: its file, or its split and row."""
        if record.get("bytes") is None:
            return str(record["path"])
        split = max((s for s in self.starts if self.starts[s] <= row), key=self.starts.__getitem__)
        place = f"row {row - self.starts[split]} of split {split!r}"
        return f"{record['path']} ({place})" if record.get("path") else place


@dataclass(frozen=True)
class LazyStore:
    """Images that stay encoded until they are asked for."""

    encoded: Encoded
    rows: Tensor
    size: tuple[int, int]
    channels: int

    def fetch(self, places: Tensor) -> Tensor:
        """Return uint8 [N, C, H, W] for places [N]."""
        rows = self.rows[places].tolist()
        batch = torch.empty((len(rows), self.channels, *self.size), dtype=torch.uint8)
        decoded = _decode_all(self.encoded, rows, self.size, self.channels)
        for place, pixels in enumerate(decoded):
            if isinstance(pixels, InputError):
                raise pixels
            batch[place] = torch.from_numpy(pixels)
        return batch


class ImageSet(Dataset[tuple[Tensor, int]]):
    """Labelled images of one split; item i is (float32 [C, H, W] normalised, label).

    Args:
        store: the decoded images.
        places: int64 [N], which images of the store, in order.
        labels: int64 [N].
        scale: the pixel value that becomes 1.
        mean: per channel, subtracted after scaling.
        std: per channel, divided by after that.
    """

    def __init__(
        self,
        store: Store,
        places: Tensor,
        labels: Tensor,
        *,
        scale: float = 255.0,
        mean: Sequence[float] = (0.0,),
        std: Sequence[float] = (1.0,),
    ) -> None:
        self.store = store
        self.places = places
        self.labels = labels
        self.scale = scale
        self.mean = torch.tensor(mean).view(1, -1, 1, 1)
        self.std = torch.tensor(std).view(1, -1, 1, 1)

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        if not -len(self) <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        images, labels = self.raw(torch.tensor([row % len(self)]))
        return self.normalised(images)[0], int(labels[0])

    def raw(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return (float32 [N, C, H, W] in [0, 1], int64 [N]) for rows [N], not yet normalised."""
        images = self.store.fetch(self.places[rows]).float().div_(self.scale)
        return images, self.labels[rows]

    def normalised(self, images: Tensor) -> Tensor:
        """Normalise what :meth:`raw` returned; may reuse its memory."""
        return images.sub_(self.mean).div_(self.std)


def decode(record: Record, size: tuple[int, int] | None, channels: int) -> Pixels:
    """Decode one image, upright, to uint8 [C, H, W].

    With a size, the image is scaled to cover it and cropped at the centre.

    Raises:
        Exception: whatever Pillow raises for a file that it cannot read.
    """
    with Image.open(_file(record)) as opened:
        image = _upright(opened)
        if size is not None and image.size != (size[1], size[0]):
            image = ImageOps.fit(
                _plain(image, channels), (size[1], size[0]), Image.Resampling.BILINEAR
            )
        pixels: Pixels = np.asarray(_plain(image, channels), dtype=np.uint8)
    # A copy: what Pillow lends is read-only, which PyTorch warns about.
    planes: Pixels = (pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)).copy()
    return planes


def _upright(image: Image.Image) -> Image.Image:
    turned = image.getexif().get(ExifTags.Base.Orientation, 1) != 1
    return ImageOps.exif_transpose(image) if turned else image


def _plain(image: Image.Image, channels: int) -> Image.Image:
    """Bring any mode to 8-bit grey or RGB."""
    if image.mode.startswith("I;16"):
        # Pillow's own conversion clips at 255 instead of scaling.
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise ValueError(f"pixel mode {image.mode} has no agreed range")
    elif image.mode == "P":
        image = image.convert("RGBA" if "transparency" in image.info else "RGB")
    return image.convert("L" if channels == 1 else "RGB")


def _file(record: Record) -> Any:
    return record["path"] if record.get("bytes") is None else io.BytesIO(record["bytes"])


def load_pixels(
    encoded: Encoded,
    rows: npt.NDArray[np.int64],
    *,
    size: tuple[int, int] | None,
    channels: int | None,
    skip_unreadable: bool,
    progress: Progress | None,
) -> tuple[Store, tuple[int, int, int], npt.NDArray[np.bool_]]:
    """Decode ``rows`` once: kept in memory up to ``IN_MEMORY_BYTES``, else checked and left.

    Args:
        encoded: the images of the source.
        rows: int64 [N], which of them.
        size: (H, W) to bring them to; None asks that all have one size.
        channels: 1 or 3; None means 1 where all are grey, else 3.
        skip_unreadable: leave unreadable images out instead of raising.
        progress: where to show how far it is.

    Returns:
        The store (one place per readable row, in order), (C, H, W), and which rows are readable.

    Raises:
        InputError: an image cannot be read, sizes differ, or nothing can be read.
    """
    wanted = rows.tolist()
    channels = channels or _channels(encoded, wanted, progress)
    memory: Tensor | None = None
    shape: tuple[int, int] | None = size
    first = -1
    readable = np.zeros(len(wanted), dtype=bool)
    kept: list[int] = []
    decoded = _decode_all(encoded, wanted, size, channels)
    for place, pixels in enumerate(track(decoded, "Decoding images", progress, len(wanted))):
        if isinstance(pixels, InputError):
            if not skip_unreadable:
                raise pixels
            continue
        height, width = pixels.shape[1:]
        if first < 0:
            first, shape = wanted[place], (height, width)
            if len(wanted) * pixels.nbytes <= IN_MEMORY_BYTES:
                memory = torch.empty((len(wanted), *pixels.shape), dtype=torch.uint8)
        elif shape != (height, width):
            raise _sizes_differ(encoded, first, wanted[place])
        if memory is not None:
            memory[len(kept)] = torch.from_numpy(pixels)
        kept.append(place)
    if shape is None or not kept:
        raise InputError(f"source: none of its {len(wanted)} images can be read")
    readable[kept] = True
    store: Store
    if memory is not None:
        store = MemoryStore(memory[: len(kept)])
    else:
        store = LazyStore(encoded, torch.from_numpy(rows[readable]), shape, channels)
    return store, (channels, *shape), readable


def _decode_all(
    encoded: Encoded, rows: Sequence[int], size: tuple[int, int] | None, channels: int
) -> Iterator[Pixels | InputError]:
    """Decode in order and in parallel; an unreadable image becomes the error that names it."""

    def one(row: int, record: Record) -> Pixels | InputError:
        try:
            return _decoded(encoded.name(row, record), record, size, channels)
        except InputError as error:
            return error

    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        for start in range(0, len(rows), CHUNK):
            chunk = rows[start : start + CHUNK]
            records = encoded.records(chunk)
            large = _bytes(records[0]) >= PARALLEL_BYTES
            yield from (pool.map if large else map)(one, chunk, records)


def _bytes(record: Record) -> int:
    data, path = record.get("bytes"), record.get("path")
    if data is not None:
        return len(data)
    return Path(path).stat().st_size if path and Path(path).is_file() else 0


def _decoded(name: str, record: Record, size: tuple[int, int] | None, channels: int) -> Pixels:
    try:
        return decode(record, size, channels)
    except Exception as error:  # Pillow's plug-ins raise whatever they like
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"image {name} cannot be read: {reason}") from error


def _channels(encoded: Encoded, rows: Sequence[int], progress: Progress | None) -> int:
    """Find out whether all images are grey; stops at the first one in colour."""
    for start in track(range(0, len(rows), CHUNK), "Reading image headers", progress):
        for record in encoded.records(rows[start : start + CHUNK]):
            try:
                with Image.open(_file(record)) as image:
                    grey = image.mode in GREY_MODES or image.mode.startswith("I;16")
            except (OSError, ValueError, SyntaxError):
                continue  # decoding reports it, by name
            if not grey:
                return 3
    return 1


def _sizes_differ(encoded: Encoded, first: int, other: int) -> InputError:
    told = []
    for row in (first, other):
        record = encoded.records([row])[0]
        with Image.open(_file(record)) as image:
            width, height = _upright(image).size
        told.append(f"{encoded.name(row, record)} is {width} x {height}")
    return InputError(
        f"image_size must be given when sizes differ: {told[0]}, but {told[1]} (width x height)"
    )
