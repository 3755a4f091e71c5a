"""Typed records of what a run asked and found; plain data, no torch.

A :class:`Result` is the content of ``result.json``: everything the report
draws comes from here. Shares are in [0, 1]; sizes in bytes; times in seconds.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from secateur.errors import CheckpointError
from secateur.files import read_json, write_json

FORMAT = 1

R = TypeVar("R")


@dataclass(frozen=True)
class Quality:
    """How well a network classifies ``count`` images of one split.

    ``low`` and ``high`` bound the accuracy (95 % Wilson interval); precision,
    recall and F1 are macro averages. ``top5`` is the share with the label among
    the five highest outputs, None for five classes or fewer; ``ece`` the expected
    calibration error. Weighted averages count each class by its labels (weighted
    recall is the accuracy); ``*_low`` and ``*_high`` bound the macro averages (95 %,
    bootstrap). All of these are None in results of before they were measured.
    """

    split: str
    count: int
    accuracy: float
    low: float
    high: float
    precision: float
    recall: float
    f1: float
    loss: float
    top5: float | None = None
    ece: float | None = None
    weighted_precision: float | None = None
    weighted_f1: float | None = None
    precision_low: float | None = None
    precision_high: float | None = None
    recall_low: float | None = None
    recall_high: float | None = None
    f1_low: float | None = None
    f1_high: float | None = None


@dataclass(frozen=True)
class Size:
    """Parameters, MACs per sample, and bytes of the weight file, raw and gzipped."""

    params: int
    macs: int
    bytes_raw: int
    bytes_gzip: int


@dataclass(frozen=True)
class Speed:
    """Inferences per second at one batch size: median and quartiles of ``repeats`` turns."""

    batch: int
    threads: int
    repeats: int
    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Measured:
    """One network, measured."""

    quality: Quality
    size: Size
    speeds: tuple[Speed, ...] = ()


@dataclass(frozen=True)
class Point:
    """One network of a comparison: how it was chosen and what it scored on ``split``."""

    criterion: str
    scope: str
    sparsity: float
    split: str
    accuracy: float
    loss: float
    params: int
    macs: int
    chosen: bool = False


@dataclass(frozen=True)
class Width:
    """Output width (channels, neurons) of one layer before and after."""

    layer: str
    dense: int
    pruned: int


@dataclass(frozen=True)
class LayerZeros:
    """Weights of one layer that pruning may set to zero, and how many of them are zero."""

    layer: str
    weights: int
    zeros: int


@dataclass(frozen=True)
class Branch:
    """A residual branch of a network whose training could let branches go.

    Attributes:
        name: the module that holds the sum.
        gone: whether it was removed.
        factor: at the end of that training, 1 at its start; None for a branch that had none.
        params: parameters of the branch in the dense network; None where they are not counted.
        reason: why it had no factor, else "".
    """

    name: str
    gone: bool
    factor: float | None = None
    params: int | None = None
    reason: str = ""


@dataclass(frozen=True)
class Epoch:
    """One epoch of training; ``lr`` is the rate at its end."""

    phase: str
    epoch: int
    lr: float
    train_loss: float
    val_loss: float
    val_accuracy: float
    seconds: float


@dataclass(frozen=True)
class PinnedDim:
    """A dimension that was not cut, and why."""

    name: str
    dim: int
    reason: str


@dataclass(frozen=True)
class PassRecord:
    """The largest error of one traced pass; ``label`` is "" for the example in eval mode."""

    label: str
    max_error: float


@dataclass(frozen=True)
class CheckRecord:
    """The proof: largest relative error of the cut network against its masked reference.

    The fields are those of :class:`secateur.verification.Check`.
    """

    max_error: float
    tolerance: float
    ok: bool
    changed: bool
    dtype: str
    inputs: int = 1
    reason: str = ""
    notes: tuple[str, ...] = ()
    passes: tuple[PassRecord, ...] = ()


@dataclass(frozen=True)
class ClassQuality:
    """How well one class is recognised; ``low`` and ``high`` bound the recall (95 %, Wilson).

    Recall is None for a class without images, precision for one that is never predicted, F1 where
    either is.
    """

    name: str
    count: int
    recall: float | None
    low: float | None
    high: float | None
    precision: float | None
    f1: float | None = None


@dataclass(frozen=True)
class Paired:
    """Two networks on the same images.

    Attributes:
        count: images.
        lost: right before, wrong after.
        won: wrong before, right after.
        p_value: of McNemar's test: how likely so uneven a split of lost and won is, if neither
            network were better.
    """

    count: int
    lost: int
    won: int
    p_value: float

    @property
    def change(self) -> float:
        """Accuracy after less accuracy before."""
        return (self.won - self.lost) / self.count


@dataclass(frozen=True)
class LayerTime:
    """Median seconds of one layer in a pass of the dense and of the pruned network."""

    layer: str
    dense: float
    pruned: float


@dataclass(frozen=True)
class Facts:
    """Dense and pruned side by side, beyond the main figures.

    Attributes:
        split: that both were asked about.
        paired: the same images.
        dense_classes: by class, in the order of the labels.
        pruned_classes: likewise.
        confusion: (label, prediction, images of dense, images of pruned), places of classes; pairs
            that neither network has are left out.
        sparse: bytes of the weights in a sparse container, (dense, pruned).
        memory: most bytes that one inference holds beside weights and inputs, (dense, pruned).
        batch: samples in a pass of ``memory`` and ``layers``.
        threads: of ``layers``.
        layers: in the order of the network.
    """

    split: str
    paired: Paired
    dense_classes: tuple[ClassQuality, ...]
    pruned_classes: tuple[ClassQuality, ...]
    confusion: tuple[tuple[int, ...], ...]
    sparse: tuple[int, ...]
    memory: tuple[int, ...]
    batch: int
    threads: int
    layers: tuple[LayerTime, ...]


@dataclass(frozen=True)
class Changes:
    """What became of one network, layer by layer, and how it was trained.

    Attributes:
        widths: before and after.
        zeros: by layer, where single weights were set to zero.
        history: every epoch of its trainings.
        pinned: what could not be cut.
        given_back: units that had to stay, by group.
    """

    widths: tuple[Width, ...]
    zeros: tuple[LayerZeros, ...] = ()
    history: tuple[Epoch, ...] = ()
    pinned: tuple[PinnedDim, ...] = ()
    given_back: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Result:
    """All that a run asked and found; ``facts`` is None in results of before they were kept.

    ``zeros`` are there for runs that set single weights to zero, ``branches`` for those that could
    remove residual branches; both are empty for others, and in results of before they were kept.
    """

    title: str
    asked: dict[str, Any]
    command: str
    environment: dict[str, str]
    dense: Measured
    pruned: Measured
    check: CheckRecord
    points: tuple[Point, ...] = ()
    widths: tuple[Width, ...] = ()
    history: tuple[Epoch, ...] = ()
    pinned: tuple[PinnedDim, ...] = ()
    given_back: dict[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    facts: Facts | None = None
    zeros: tuple[LayerZeros, ...] = ()
    branches: tuple[Branch, ...] = ()
    format: int = FORMAT


def save_result(result: Result, path: Path) -> None:
    """Write ``result`` as JSON, whole or not at all."""
    save_record(result, path)


def load_result(path: Path) -> Result:
    """Read a result back.

    Raises:
        CheckpointError: the file is missing, damaged or of another format.
    """
    return load_record(Result, path, FORMAT)


def save_record(record: Any, path: Path) -> None:
    """Write a record (a dataclass) as JSON with a checksum, whole or not at all.

    Raises:
        StorageError: the file cannot be written.
    """
    write_json(path, dataclasses.asdict(record))


def load_record(kind: type[R], path: Path, wanted: int) -> R:
    """Read back a record of ``kind``, whose ``format`` must be ``wanted``.

    Raises:
        CheckpointError: the file is missing, damaged or of another format.
    """
    data = read_json(path)
    found = data.get("format")
    if found != wanted:
        raise CheckpointError(f"{path}: format must be {wanted}, but got {found!r}")
    try:
        return build_record(kind, data)
    except (KeyError, TypeError) as error:
        name = kind.__name__.lower()
        raise CheckpointError(f"{path} does not hold a whole {name}: {error}") from error


def build_record(kind: type[R], data: Any) -> R:
    """Rebuild a record from what JSON made of it.

    Raises:
        KeyError: a field is unknown.
        TypeError: a field is missing, or the data are no mapping.
    """
    built: R = _build(kind, data)
    return built


def _build(kind: Any, data: Any) -> Any:
    """Rebuild a record (or tuple of records) from what JSON made of it."""
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        built: Any = kind
        return built(**{key: _build(hints[key], value) for key, value in data.items()})
    origin = typing.get_origin(kind)
    if origin is tuple:
        return tuple(_build(typing.get_args(kind)[0], value) for value in data)
    if origin in (typing.Union, types.UnionType) and data is not None:
        return _build(typing.get_args(kind)[0], data)
    return data
