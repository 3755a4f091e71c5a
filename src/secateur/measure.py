"""How good and how large a network is, and on what it was measured.

Symbols: n images, of which k are classified rightly; p = k / n is the accuracy. The interval is
Wilson's (1927): with z the normal quantile of the wished confidence,
(p + z^2 / 2n +- z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n).
"""

from __future__ import annotations

import contextlib
import gzip
import math
import os
import platform
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from rich.progress import Progress
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional

from secateur.averages import averages
from secateur.calibration import device_of
from secateur.classification import class_logits, pair_of
from secateur.errors import InputError, SecateurError
from secateur.progress import track
from secateur.results import Quality

Z95 = 1.959963984540054
GZIP_LEVEL = 6

TOP = 5

Labels = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]
Shares = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Answers:
    """What a network answered to each image of a split, in the order of the loader.

    Attributes:
        split: its name.
        labels: int64 [n].
        predicted: int64 [n].
        confidence: float64 [n], the probability of the predicted class.
        among_five: bool [n], whether the label is among the five highest outputs; None for five
            classes or fewer, where it says nothing.
        loss: mean cross entropy.
    """

    split: str
    labels: Labels
    predicted: Labels
    confidence: Shares
    among_five: Flags | None
    loss: float

    @property
    def right(self) -> Flags:
        """Whether each prediction is right."""
        return np.equal(self.labels, self.predicted)


def answers(
    model: nn.Module,
    loader: Iterable[tuple[Tensor, Tensor]],
    split: str,
    *,
    progress: Progress | None = None,
) -> Answers:
    """Classify every image of ``loader``; see :func:`quality` for the arguments and errors."""
    device = device_of(model)
    parts: list[tuple[Tensor, Tensor, Tensor, Tensor | None]] = []
    loss, broken = 0.0, 0
    with evaluating(model):
        for batch in track(loader, f"Measuring on {split}", progress):
            inputs, labels = pair_of(batch)
            logits = class_logits(model(inputs.to(device)), labels)
            labels = labels.to(device).long()
            broken += int((~torch.isfinite(logits).all(1)).sum())
            logits = logits.double()
            loss += float(functional.cross_entropy(logits, labels, reduction="sum"))
            sure = logits.softmax(1).amax(1)
            five = None
            if logits.shape[1] > TOP:
                five = (logits.topk(TOP, 1).indices == labels.unsqueeze(1)).any(1).cpu()
            # The first of equal outputs, as argmax of the logits themselves has it.
            predicted = logits.argmax(1)
            parts.append((labels.cpu(), predicted.cpu(), sure.cpu(), five))
    count = sum(len(labels) for labels, *_ in parts)
    if count == 0:
        raise InputError(f"loader must give at least one image, but split {split!r} has none")
    if broken:
        raise SecateurError(
            f"the model's outputs are NaN or infinite for {broken} of {count} images "
            f"of split {split!r}"
        )
    truth, predictions, confidences, fives = zip(*parts, strict=True)
    known = [five for five in fives if five is not None]
    return Answers(
        split=split,
        labels=torch.cat(truth).numpy(),
        predicted=torch.cat(predictions).numpy(),
        confidence=torch.cat(confidences).numpy(),
        among_five=torch.cat(known).numpy() if known else None,
        loss=loss / count,
    )


def quality(
    model: nn.Module,
    loader: Iterable[tuple[Tensor, Tensor]],
    split: str,
    *,
    progress: Progress | None = None,
) -> Quality:
    """Classify every image of ``loader`` and say how well.

    Precision, recall and F1 are macro averages over the classes that occur among labels or
    predictions, with 95 % bootstrap intervals, and averages weighted by the labels; a class that
    is never predicted has precision 0. The loss is the mean cross entropy. The model runs where
    its parameters are, in eval mode; its modes are put back.

    Args:
        model: maps [N, ...] to logits [N, classes], or to an object with such ``logits``.
        loader: batches of (inputs, int64 labels [N]).
        split: the name of the split, for the record.
        progress: where to show how far it is.

    Raises:
        InputError: the loader is empty, the outputs are not [N, classes], or a label is beyond.
        SecateurError: outputs are NaN or infinite.
    """
    return judged(answers(model, loader, split, progress=progress))


def judged(found: Answers) -> Quality:
    """Reduce answers to their figures; see :func:`quality`."""
    hits = int(found.right.sum())
    count = len(found.labels)
    low, high = wilson(hits, count)
    means = averages(found.labels, found.predicted)
    return Quality(
        split=found.split,
        count=count,
        accuracy=hits / count,
        low=low,
        high=high,
        precision=means.precision,
        recall=means.recall,
        f1=means.f1,
        loss=found.loss,
        top5=None if found.among_five is None else float(found.among_five.mean()),
        ece=calibration_error(found.confidence, found.right),
        weighted_precision=means.weighted_precision,
        weighted_f1=means.weighted_f1,
        precision_low=means.precision_span[0],
        precision_high=means.precision_span[1],
        recall_low=means.recall_span[0],
        recall_high=means.recall_span[1],
        f1_low=means.f1_span[0],
        f1_high=means.f1_span[1],
    )


def calibration_error(confidence: Shares, right: Flags, bins: int = 15) -> float:
    """Return the expected calibration error of Guo et al. (2017).

    Images are sorted into ``bins`` of equal width by the probability of the predicted class; the
    error is the mean distance of accuracy and mean probability, weighted by the images in a bin.

    Args:
        confidence: float [n], in [0, 1].
        right: bool [n], whether the prediction is.
        bins: how many.
    """
    place = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    gaps = np.bincount(place, weights=right - confidence, minlength=bins)
    return float(np.abs(gaps).sum() / len(right))


def wilson(hits: int, count: int, z: float = Z95) -> tuple[float, float]:
    """Return Wilson's interval for a share of ``hits`` in ``count`` (95 % by default).

    Raises:
        InputError: not 0 <= hits <= count, or count is 0.
    """
    if not 0 <= hits <= count or count == 0:
        raise InputError(
            f"hits must be in [0, count] with count > 0, but got hits={hits}, count={count}"
        )
    share = hits / count
    middle = share + z * z / (2 * count)
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    scale = 1 + z * z / count
    # Exact at the ends, where rounding could leave the interval without its own share.
    low = 0.0 if hits == 0 else (middle - half) / scale
    high = 1.0 if hits == count else (middle + half) / scale
    return low, high


def weight_bytes(model: nn.Module) -> tuple[int, int]:
    """Return the bytes of the model's weights as a safetensors file, raw and gzipped (level 6).

    Parameters and persistent buffers, each shared tensor once, no optimiser state: the same
    content in the same container for every network.
    """
    raw = save(_stored(model))
    return len(raw), len(gzip.compress(raw, GZIP_LEVEL, mtime=0))


def sparse_bytes(model: nn.Module) -> int:
    """Return the bytes of the same content in a sparse container.

    A safetensors file in which each tensor is stored as it is, or as one bit an element and the
    values that are not zero, whichever is smaller.
    """
    kept: dict[str, Tensor] = {}
    for name, tensor in _stored(model).items():
        there = tensor.reshape(-1) != 0
        bits = -(-tensor.numel() // 8)
        if bits + int(there.sum()) * tensor.element_size() < tensor.numel() * tensor.element_size():
            kept[f"{name}.bits"] = torch.from_numpy(np.packbits(there.numpy()))
            kept[f"{name}.values"] = tensor.reshape(-1)[there]
        else:
            kept[name] = tensor
    shapes = {name: ",".join(map(str, t.shape)) for name, t in _stored(model).items()}
    return len(save(kept, metadata=shapes))


def _stored(model: nn.Module) -> dict[str, Tensor]:
    """Return what a weight file holds: each shared tensor once, on the CPU."""
    tensors: dict[str, Tensor] = {}
    seen: set[tuple[int, tuple[int, ...], tuple[int, ...]]] = set()
    for name, value in model.state_dict().items():
        place = (value.data_ptr(), tuple(value.shape), value.stride())
        if value.numel() and place in seen:
            continue
        seen.add(place)
        tensors[name] = value.detach().to("cpu", copy=True).contiguous()
    return tensors


def environment() -> dict[str, str]:
    """Say what the figures were taken with: versions, processor and threads; no host names."""
    found = {
        "secateur": metadata.version("secateur"),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "platform": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": str(os.cpu_count() or 1),
        "threads": str(torch.get_num_threads()),
    }
    if torch.cuda.is_available():
        found["accelerator"] = torch.cuda.get_device_name()
    return found


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put ``model`` in eval mode, without gradients; each module's own mode comes back."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def _processor() -> str:
    """Name the processor; what ``platform`` says on Linux is empty or just the architecture."""
    listing = Path("/proc/cpuinfo")
    if listing.is_file():
        for line in listing.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()
