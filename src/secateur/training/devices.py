"""Where and how precisely a training computes, and who is told of it: accelerate's part."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.tracking import GeneralTracker, get_available_trackers
from accelerate.utils import LoggerType
from torch import Tensor, nn

from secateur.classification import class_logits
from secateur.errors import InputError, unknown_name
from secateur.graph.tracing import run_model


def accelerator_for(precision: str, trackers: Sequence[Any], logs: Path | None) -> Accelerator:
    """Make accelerate's helper, once for each training.

    Args:
        precision: "no", "fp16" or "bf16".
        trackers: names that accelerate knows ("tensorboard"), or its tracker objects.
        logs: the folder for trackers that write files.

    Raises:
        InputError: the device lacks the precision, or a tracker cannot be had.
    """
    for tracker in trackers:
        if check_tracker(tracker) and logs is None:
            name = getattr(tracker, "name", tracker)
            raise InputError(f"tracker {name!r} needs a folder for logs")
    state = AcceleratorState._shared_state
    if state and state.get("_mixed_precision") != precision:
        # Else accelerate refuses a second training of another precision in the same process.
        AcceleratorState._reset_state()
    try:
        accelerator = Accelerator(
            mixed_precision=precision, log_with=list(trackers) or None, project_dir=logs
        )
    except ValueError as error:
        raise InputError(
            f"mixed_precision must be one that this device has, but got {precision!r}: {error}"
        ) from error
    if precision == "fp16" and accelerator.device.type == "cpu":
        raise InputError("mixed_precision 'fp16' needs a GPU, but this training runs on the CPU")
    return accelerator


@contextmanager
def tracked(accelerator: Accelerator, name: str, asked: Mapping[str, Any]) -> Iterator[None]:
    """Open the trackers of a training and close them, whatever happens."""
    plain = {k: v for k, v in asked.items() if isinstance(v, str | int | float | bool)}
    accelerator.init_trackers(name, config=plain)
    try:
        yield
    finally:
        for tracker in accelerator.trackers:
            tracker.finish()


@contextmanager
def at_home(model: nn.Module) -> Iterator[None]:
    """Bring the model back to the device that it came from, if it was on one.

    Attributes that accelerate gives it go, too: else they would be saved with it.
    """
    devices = {parameter.device for parameter in model.parameters()}
    own = set(vars(model))
    try:
        yield
    finally:
        for name in set(vars(model)) - own:
            if "accelerate" in name:
                delattr(model, name)
        if len(devices) == 1:
            model.to(next(iter(devices)))


class Teacher:
    """A network that answers and learns nothing; as a context, it is put back as it was."""

    def __init__(self, model: nn.Module, accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        self._model = model

    def __enter__(self) -> Teacher:
        self._stack = contextlib.ExitStack()
        self._stack.enter_context(at_home(self._model))
        for module in self._model.modules():
            self._stack.callback(setattr, module, "training", module.training)
        self._model.eval().to(self._accelerator.device)
        return self

    def __exit__(self, *_: Any) -> None:
        self._stack.close()

    @torch.no_grad()
    def logits(self, inputs: Any, labels: Tensor) -> Tensor:
        """Return the teacher's logits, in float32.

        Raises:
            InputError: its outputs are no logits of classes.
        """
        with self._accelerator.autocast():
            return class_logits(run_model(self._model, inputs), labels).float()


def check_tracker(tracker: Any) -> bool:
    """Refuse a tracker that cannot be had; return whether it writes into a folder.

    Args:
        tracker: a name that accelerate knows, or its tracker object.

    Raises:
        InputError: an unknown name, or its package is not installed.
    """
    if isinstance(tracker, GeneralTracker):
        return bool(tracker.requires_logging_directory)
    known = {kind.value for kind in LoggerType} - {"all"}
    if str(tracker) not in known:
        raise unknown_name("trackers", str(tracker), known)
    if str(tracker) not in {LoggerType(kind).value for kind in get_available_trackers()}:
        raise InputError(f"trackers name {str(tracker)!r}, but its package is not installed")
    return str(tracker) == "tensorboard"
