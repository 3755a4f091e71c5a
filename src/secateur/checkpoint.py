"""Save and load networks without pickle: safetensors for tensors, JSON for the rest.

A folder holds ``model.safetensors`` and ``model.json``. The JSON either
describes every module (class and plain attributes, see ``structure``) or names
the function that builds the dense network (``factory``), whose tensors and
integer attributes are then replaced by the saved ones.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor, nn

from secateur.cutting import declare_sizes
from secateur.errors import CheckpointError, InputError
from secateur.graph.attributes import set_held
from secateur.graph.copies import integer_attributes, named_tensors
from secateur.structure import build, describe, import_object

FORMAT = 1
WEIGHTS = "model.safetensors"
LAYOUT = "model.json"


def save(
    model: nn.Module,
    folder: str | Path,
    *,
    factory: str | None = None,
    arguments: Mapping[str, Any] | None = None,
    note: str | None = None,
) -> Path:
    """Write a network into a folder.

    Args:
        model: any network, pruned or not.
        folder: made if it does not exist; files of the same names are replaced.
        factory: "package.module:callable" that builds the dense network; needed
            only where a module holds what JSON cannot describe (a lambda, say).
        arguments: keyword arguments of ``factory``.
        note: what a reader of the JSON should know, stored under "note".

    Returns:
        The folder.

    Raises:
        CheckpointError: a module cannot be described and no ``factory`` is given.
        InputError: ``factory`` is no "module:callable".
    """
    folder = Path(folder)
    if factory is not None and ":" not in factory:
        raise InputError(f"factory must be 'package.module:callable', but got {factory!r}")
    tensors, ties = _tensors(model)
    layout: dict[str, Any] = {"format": FORMAT, "ties": ties}
    if note is not None:
        layout["note"] = note
    if factory is None:
        layout["modules"] = describe(model, tensors)
    else:
        layout["factory"] = {"name": factory, "arguments": _plain(arguments or {})}
        layout["attributes"] = integer_attributes(model)
    layout["frozen"] = [name for name, p in model.named_parameters() if not p.requires_grad]
    layout["training"] = [name for name, module in model.named_modules() if module.training]
    folder.mkdir(parents=True, exist_ok=True)
    content = safetensors.torch.save(tensors)
    layout["sha256"] = hashlib.sha256(content).hexdigest()
    _replace(folder / WEIGHTS, content)
    _replace(folder / LAYOUT, json.dumps(layout, indent=1).encode())
    return folder


def load(folder: str | Path) -> nn.Module:
    """Read a network back; only classes and functions that its JSON names are imported.

    Raises:
        CheckpointError: a file is missing, damaged or of another format, or a
            class cannot be found.
    """
    folder = Path(folder)
    try:
        layout = json.loads((folder / LAYOUT).read_text(encoding="utf-8"))
        content = (folder / WEIGHTS).read_bytes()
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{folder} holds no saved network: {error.filename} is missing"
        ) from error
    except ValueError as error:
        raise CheckpointError(f"{folder / LAYOUT} is damaged: {error}") from error
    if not isinstance(layout, dict) or layout.get("format") != FORMAT:
        raise CheckpointError(f"{folder / LAYOUT}: format must be {FORMAT}")
    missing = {"sha256", "frozen", "training", "ties"} - set(layout)
    if missing:
        raise CheckpointError(f"{folder / LAYOUT} is damaged: it lacks {sorted(missing)[0]!r}")
    training = set(layout["training"])
    if hashlib.sha256(content).hexdigest() != layout["sha256"]:
        raise CheckpointError(f"{folder / WEIGHTS} is damaged or cut short: its checksum differs")
    try:
        tensors = safetensors.torch.load(content)
    except SafetensorError as error:
        raise CheckpointError(f"{folder / WEIGHTS} is damaged: {error}") from error
    try:
        model = _rebuild(layout, tensors)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise CheckpointError(f"{folder} cannot be rebuilt: {error!r}") from error
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in set(layout["frozen"]))
    for name, module in model.named_modules():
        module.training = name in training
    return model


def _plain(arguments: Mapping[str, Any]) -> dict[str, Any]:
    try:
        json.dumps(dict(arguments))
    except TypeError as error:
        raise InputError(f"arguments must be plain values that JSON can hold: {error}") from error
    return dict(arguments)


def _tensors(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return every tensor once, by name, and the other names of tied ones."""
    tensors: dict[str, Tensor] = {}
    first: dict[int, str] = {}
    for name, tensor in named_tensors(model):
        tensors[name] = tensor.detach().contiguous().clone()
        first[id(tensor)] = name
    ties = {}
    for listing in (
        model.named_parameters(remove_duplicate=False),
        model.named_buffers(remove_duplicate=False),
    ):
        for name, tensor in listing:
            if first[id(tensor)] != name:
                ties[name] = first[id(tensor)]
    return tensors, ties


def _rebuild(layout: dict[str, Any], tensors: dict[str, Tensor]) -> nn.Module:
    if "factory" not in layout:
        return build(layout["modules"], tensors, layout["ties"])
    factory = import_object(layout["factory"]["name"])
    model = factory(**layout["factory"]["arguments"])
    if not isinstance(model, nn.Module):
        raise CheckpointError(f"{layout['factory']['name']} does not build a torch.nn.Module")
    made = {id(tensor): _like(tensor, tensors[name]) for name, tensor in named_tensors(model)}
    for module in model.modules():
        for table in (module._parameters, module._buffers):
            for key, tensor in table.items():
                if tensor is not None:
                    table[key] = made[id(tensor)]  # type: ignore[assignment]
    now = integer_attributes(model)
    set_held(model, {p: v for p, v in layout["attributes"].items() if now.get(p) != v})
    declare_sizes(model)
    return model


def _like(old: Tensor, new: Tensor) -> Tensor:
    if isinstance(old, nn.Parameter):
        return nn.Parameter(new, requires_grad=old.requires_grad)
    return new


def _replace(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(content)
    partial.replace(path)
