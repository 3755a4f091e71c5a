"""Save a pruned Hugging Face model in its own library's form, or say why that cannot be."""

from __future__ import annotations

import importlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from secateur.checkpoint import LAYOUT, save
from secateur.errors import InputError
from secateur.graph.copies import copy_model, map_tensors, named_tensors
from secateur.graph.program import tensor_leaves
from secateur.graph.tracing import check_inputs, run_model
from secateur.huggingface.configs import (
    blueprint,
    changed,
    configs_of,
    plain_of,
    pretrained_class,
    shapes,
)
from secateur.huggingface.solving import solve

CONFIG = "config.json"
TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-4}
COARSE = 1e-2
"""For half precision, whose kernels may add up in another order."""


@dataclass(frozen=True)
class Saved:
    """What was written.

    Attributes:
        folder: where.
        kind: "transformers", which ``from_pretrained`` reads, or "secateur", which
            :func:`secateur.load` reads.
        reason: why it is not "transformers"; empty where it is.
    """

    folder: Path
    kind: str
    reason: str = ""


class _Unfit(Exception):
    """The model cannot be saved in its own library's form; says why."""


def save_pretrained(model: nn.Module, folder: str | Path, example_inputs: Any) -> Saved:
    """Save a pruned model so that ``from_pretrained`` loads it, where its config can say the cut.

    The folder is only written once the saved model was loaded again and computed the same
    on the example inputs, in eval mode (relative difference at most 1e-10 in float64, 1e-4 in
    float32, 1e-2 in half precision). Where it does not, or where no config of the model's
    class has these sizes, the folder gets Secateur's own checkpoint, whose JSON says why.

    Args:
        model: a Hugging Face model, pruned or not; it is left as it was.
        folder: made if it does not exist; files of the same names are replaced.
        example_inputs: a tensor, a tuple of arguments or a dict of keyword arguments.

    Raises:
        InputError: arguments of the wrong kind, or the folder holds a network in the other form.
        CheckpointError: neither form can describe the model.
    """
    check_inputs(model, example_inputs)
    folder = Path(folder)
    try:
        with TemporaryDirectory() as scratch:
            _write(model, Path(scratch), example_inputs)
            _refuse_mixture(folder, LAYOUT)
            folder.mkdir(parents=True, exist_ok=True)
            for file in Path(scratch).iterdir():
                shutil.move(str(file), folder / file.name)
        return Saved(folder, "transformers")
    except _Unfit as error:
        reason = str(error)
    _refuse_mixture(folder, CONFIG)
    save(model, folder, note=f"not in transformers' own form: {reason}")
    return Saved(folder, "secateur", reason)


def _refuse_mixture(folder: Path, other: str) -> None:
    """Two forms in one folder share the name of the weights: one would break the other."""
    if (folder / other).exists():
        raise InputError(
            f"folder must be empty or hold a network of the same form, but {folder} has {other}"
        )


def _write(model: Any, folder: Path, example_inputs: Any) -> None:
    """Write a model and prove that what is loaded again computes the same.

    Raises:
        _Unfit: it cannot be written, or does not compute the same.
    """
    library = pretrained_class()
    if library is None or not isinstance(model, library):
        raise _Unfit(f"{type(model).__name__} is no transformers model")
    plain = plain_of(model.config)
    of = blueprint(model)
    solution = solve(of, plain, shapes(model))
    if solution.reason:
        raise _Unfit(solution.reason)
    twin: Any = copy_model(model, lambda _, tensor: tensor)
    if solution.values:
        twin.config = of.config(changed(plain, solution.values))
    try:
        with _quiet():
            twin.save_pretrained(folder)
            kind: Any = type(model)
            again = kind.from_pretrained(folder, dtype="auto")
    except (ValueError, TypeError, RuntimeError, KeyError, AttributeError) as error:
        raise _Unfit(f"transformers fails on it: {type(error).__name__}: {error}") from error
    _same_choices(model, again)
    _compare(twin.eval(), again.to(model.device).eval(), example_inputs)


def _same_choices(model: nn.Module, again: nn.Module) -> None:
    """Give the loaded model the implementations of attention and experts that are in use."""
    theirs = configs_of(again)
    for where, config in configs_of(model).items():
        for key, value in vars(config).items():
            if key.endswith("_implementation_internal") and where in theirs:
                setattr(theirs[where], key, value)


def _compare(model: nn.Module, again: nn.Module, example_inputs: Any) -> None:
    ties, others = _ties(model), _ties(again)
    if ties != others:
        name = min(set(ties.items()) ^ set(others.items()))[0]
        raise _Unfit(f"{name} is tied to another tensor in one of both models only")
    with torch.no_grad():
        results = [
            tensor_leaves(run_model(m, map_tensors(example_inputs, torch.clone)))
            for m in (again, model)
        ]
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    away = _difference(*results)
    if not away <= TOLERANCES.get(dtype, COARSE):
        raise _Unfit(
            _why_different(model, again) or f"the loaded model's outputs differ by {away:.1e}"
        )


def _ties(model: nn.Module) -> dict[str, str]:
    """Return, for every name of a tensor, its first name."""
    first = {id(tensor): name for name, tensor in named_tensors(model)}
    every = (
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    )
    return {name: first[id(tensor)] for name, tensor in every}


def _difference(found: list[Tensor], wanted: list[Tensor]) -> float:
    """Return the largest difference, relative to each output's largest magnitude."""
    if [t.shape for t in found] != [t.shape for t in wanted]:
        return float("inf")
    worst = 0.0
    for a, b in zip(found, wanted, strict=True):
        if torch.equal(a, b):
            continue
        if not a.is_floating_point() or not torch.equal(a.isfinite(), b.isfinite()):
            return float("inf")
        a, b = a[a.isfinite()].double(), b[b.isfinite()].double()
        scale = b.abs().max().clamp_min(torch.finfo(torch.float64).tiny)
        worst = max(worst, float((a - b).abs().max() / scale))
    return worst


def _why_different(model: nn.Module, again: nn.Module) -> str:
    """Name the first buffer or number that the config makes otherwise."""
    buffers = dict(again.named_buffers())
    for name, buffer in model.named_buffers():
        theirs = buffers[name].to(buffer)
        if not torch.allclose(buffer, theirs, rtol=1e-5, atol=0.0, equal_nan=True):
            return f"{name} holds other values than a model of the config computes for it"
    modules = dict(again.named_modules())
    for kind in (float, int):  # integers may be left over; few floats are
        for path, module in model.named_modules():
            for key, value in vars(module).items():
                other = vars(modules[path]).get(key)
                if type(value) is kind and type(other) is kind and other != value:
                    where = f"{path}.{key}" if path else key
                    return f"{where} is {value:.6g}, and a model of the config has {other:.6g}"
    return ""


@contextmanager
def _quiet() -> Iterator[None]:
    """Hold transformers' progress bars back."""
    logging = importlib.import_module("transformers.utils.logging")
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
