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
from importlib import metadata
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from rich.progress import Progress
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional

from secateur.errors import InputError, SecateurError
from secateur.progress import track
from secateur.results import Quality

Z95 = 1.959963984540054
GZIP_LEVEL = 6

Labels = npt.NDArray[np.int64]


def quality(
    model: nn.Module,
    loader: Iterable[tuple[Tensor, Tensor]],
    split: str,
    *,
    progress: Progress | None = None,
) -> Quality:
    """Classify every image of ``loader`` and say how well.

    Precision, recall and F1 are macro averages over the classes that occur among labels or
    predictions; a class that is never predicted has precision 0. The loss is the mean cross
    entropy. The model runs where its parameters are, in eval mode; its modes are put back.

    Args:
        model: maps [N, ...] to logits [N, classes], or to an object with such ``logits``.
        loader: batches of (inputs, int64 labels [N]).
        split: the name of the split, for the record.
        progress: where to show how far it is.

    Raises:
        InputError: the loader is empty, the outputs are not [N, classes], or a label is beyond.
        SecateurError: outputs are NaN or infinite.
    """
    labels, predicted, loss = _classify(model, loader, split, progress)
    hits = int((labels == predicted).sum())
    low, high = wilson(hits, len(labels))
    precision, recall, f1 = _macro(labels, predicted)
    return Quality(
        split=split,
        count=len(labels),
        accuracy=hits / len(labels),
        low=low,
        high=high,
        precision=precision,
        recall=recall,
        f1=f1,
        loss=loss,
    )


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
    tensors: dict[str, Tensor] = {}
    seen: set[tuple[int, tuple[int, ...], tuple[int, ...]]] = set()
    for name, value in model.state_dict().items():
        place = (value.data_ptr(), tuple(value.shape), value.stride())
        if value.numel() and place in seen:
            continue
        seen.add(place)
        tensors[name] = value.detach().to("cpu", copy=True).contiguous()
    raw = save(tensors)
    return len(raw), len(gzip.compress(raw, GZIP_LEVEL, mtime=0))


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


def device_of(model: nn.Module) -> torch.device:
    """Return where the model's first parameter or buffer is; the CPU if it has none."""
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return torch.device("cpu")


def _classify(
    model: nn.Module,
    loader: Iterable[tuple[Tensor, Tensor]],
    split: str,
    progress: Progress | None,
) -> tuple[Labels, Labels, float]:
    """Run the model over the loader: labels [n], predictions [n] and the mean cross entropy."""
    device = device_of(model)
    truth: list[Tensor] = []
    predicted: list[Tensor] = []
    loss, broken = 0.0, 0
    with evaluating(model):
        for inputs, labels in track(loader, f"Measuring on {split}", progress):
            logits = _logits(model(inputs.to(device)), labels)
            labels = labels.to(device)
            broken += int((~torch.isfinite(logits).all(1)).sum())
            loss += float(functional.cross_entropy(logits.double(), labels, reduction="sum"))
            truth.append(labels.cpu())
            predicted.append(logits.argmax(1).cpu())
    count = sum(len(labels) for labels in truth)
    if count == 0:
        raise InputError(f"loader must give at least one image, but split {split!r} has none")
    if broken:
        raise SecateurError(
            f"the model's outputs are NaN or infinite for {broken} of {count} images "
            f"of split {split!r}"
        )
    return torch.cat(truth).numpy(), torch.cat(predicted).numpy(), loss / count


def _logits(output: object, labels: Tensor) -> Tensor:
    """Find the logits [N, classes] in what the model returned."""
    logits = getattr(output, "logits", output)
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(labels):
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(output).__name__
        raise InputError(f"model must return logits [{len(labels)}, classes], but gave {shape}")
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < logits.shape[1]:
        raise InputError(
            f"model must have one output per class, but it has {logits.shape[1]} "
            f"and labels go from {int(labels.min())} to {int(labels.max())}"
        )
    return logits


def _macro(labels: Labels, predicted: Labels) -> tuple[float, float, float]:
    # scikit-learn takes a second to import; whoever only asks for sizes need not wait.
    from sklearn.metrics import precision_recall_fscore_support

    precision, recall, f1, _ = precision_recall_fscore_support(
        labels, predicted, average="macro", zero_division=0
    )
    return float(precision), float(recall), float(f1)


def _processor() -> str:
    """Name the processor; what ``platform`` says on Linux is empty or just the architecture."""
    listing = Path("/proc/cpuinfo")
    if listing.is_file():
        for line in listing.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()
