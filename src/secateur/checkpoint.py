"""Save and load networks without pickle: safetensors for tensors, JSON for the rest.

A folder holds ``model.safetensors`` and ``model.json``. The JSON describes every module (class and
attributes, see ``structure``). Where JSON cannot describe all, it also names the function that
builds the dense network (``factory``), whose modules are then filled. ``save`` puts the network
together again before it writes, and refuses what would come back different; ``load`` runs nothing
that the caller does not trust (see ``trust``).
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from secateur.attribute_values import WAY_OUT
from secateur.errors import CheckpointError, InputError, StorageError
from secateur.files import CHECKSUM, make_folder, with_checksum, without_checksum, write_text
from secateur.likeness import difference
from secateur.structure import Described, build, describe, names_in
from secateur.tensor_files import (
    LARGEST_HEADER,
    MOST_BRACKETS,
    read_description,
    read_expected,
    shapes,
    write_compared,
)
from secateur.tensor_records import TensorReader
from secateur.trust import Trust, Trusted, is_of_script, root_of, told

FORMAT = 1
WEIGHTS = "model.safetensors"
LAYOUT = "model.json"
_PARTS = {
    "sha256": str, "frozen": list, "training": list, "ties": dict, "modules": dict,
    "tensors": dict, "stored": dict, CHECKSUM: str,
}  # fmt: skip
_FAILURES = (
    KeyError, TypeError, AttributeError, ValueError, RuntimeError, IndexError, ArithmeticError,
    NotImplementedError, RecursionError, AssertionError, MemoryError, StopIteration,
)  # fmt: skip


def save(
    model: nn.Module,
    folder: str | Path,
    *,
    factory: str | None = None,
    arguments: Mapping[str, Any] | None = None,
    note: str | None = None,
) -> Path:
    """Write a network into a folder, if it comes back as it is.

    Args:
        model: any network, pruned or not.
        folder: made if it does not exist; files of the same names are replaced.
        factory: "package.module:callable" that builds the dense network; needed
            only where a module holds what JSON cannot describe (a lambda, say). It is called
            here, to see whether the network can be had from it.
        arguments: keyword arguments of ``factory``.
        note: what a reader of the JSON should know, stored under "note".

    Returns:
        The folder.

    Raises:
        CheckpointError: what would come back different, by its path, and the way out; nothing is
            written then.
        InputError: ``factory`` is no "module:callable", or ``arguments`` are not plain.
        StorageError: the files cannot be written.
    """
    folder = Path(folder)
    layout, described = _checked_layout(model, factory, arguments)
    if note is not None:
        layout["note"] = note
    make_folder(folder)
    layout["sha256"] = write_compared(folder / WEIGHTS, described.tensors.stored)
    write_text(folder / LAYOUT, _text(with_checksum(layout)))
    _warn_of_script(layout)
    return folder


def check_saveable(
    model: nn.Module, factory: str | None = None, arguments: Mapping[str, Any] | None = None
) -> None:
    """Refuse a network that :func:`save` would refuse, before the work on it begins.

    Raises:
        CheckpointError, InputError: as :func:`save`.
    """
    _checked_layout(model, factory, arguments)


def code_of(model: nn.Module) -> list[str]:
    """Return the packages that a network's classes and functions come from, to trust them."""
    described = describe(model, has_factory=True)
    layout = {"modules": described.modules, "tensors": described.tensors.records}
    return sorted({root_of(name) for name in names_in(layout)})


def load(folder: str | Path, *, trust: str | Iterable[Trusted] = ()) -> nn.Module:
    """Read a network back. No code of the folder's choice runs, nothing is imported for it.

    Args:
        folder: what :func:`save` wrote.
        trust: packages, modules, classes or functions that the network may use: names such as
            "my_package" or "my_package.net:Net", or the things themselves. They are imported where
            they are not yet. Without it the network may use classes of ``torch.nn`` and of
            Secateur, ``torch.nn.Module`` classes that this process has imported, and plain
            classes and functions of the caller's own imported modules. Factories and partials
            (but those of PyTorch's own functions) need trust.

    Returns:
        The network, on the CPU, with the modes and frozen parameters that it was saved with.

    Raises:
        CheckpointError: a file is missing, damaged or of another format, or what the network is
            made of is not trusted; one line.
        StorageError: a file cannot be read.
        InputError: ``trust`` is no list of names.
    """
    folder, known = Path(folder), Trust(trust)
    try:
        return _loaded(folder, known)
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{folder} holds no saved network: {error.filename} is missing"
        ) from error
    except OSError as error:
        raise StorageError(f"{folder} cannot be read: {error.strerror or error}") from error


def _loaded(folder: Path, trust: Trust) -> nn.Module:
    layout = read_description(folder / LAYOUT)
    if layout.get("format") != FORMAT:
        raise CheckpointError(f"{folder / LAYOUT}: format must be {FORMAT}")
    for key, kind in _PARTS.items():
        if not isinstance(layout.get(key), kind):
            raise CheckpointError(f"{folder / LAYOUT} is damaged: it lacks {key!r}")
    intact = _is_intact(layout)
    damage = "" if intact else f"{folder / LAYOUT} is damaged or was edited (its checksum differs)"
    try:
        base = _made_by_factory(layout, trust if intact else Trust())
        _refuse_strangers(layout, trust if intact else Trust())
        tensors = read_expected(folder / WEIGHTS, layout["stored"], layout["sha256"])
        model, _ = _rebuild(layout, tensors, trust if intact else Trust(), base)
    except CheckpointError as error:
        if intact or str(folder / WEIGHTS) in str(error):
            raise
        raise CheckpointError(f"{damage}: {error}") from error
    except _FAILURES as error:
        raise CheckpointError(f"{damage or folder} cannot be rebuilt: {told(error)}") from error
    if not intact:
        raise CheckpointError(damage)
    return model


def _checked_layout(
    model: nn.Module, factory: str | None, arguments: Mapping[str, Any] | None
) -> tuple[dict[str, Any], Described]:
    """Describe a network, and see whether it comes back from the description.

    Raises:
        CheckpointError, InputError: as :func:`save`.
    """
    if factory is not None and ":" not in factory:
        raise InputError(f"factory must be 'package.module:callable', but got {factory!r}")
    described = describe(model, has_factory=factory is not None)
    layout: dict[str, Any] = {"format": FORMAT}
    if factory is not None:
        layout["factory"] = {"name": factory, "arguments": _plain(arguments or {})}
    stored = described.tensors.stored
    names = {id(tensor): name for tensor, name in described.tensors.all()}
    layout |= {
        "ties": described.ties,
        "frozen": [
            names[id(p)] for p, _ in described.tensors.all()
            if isinstance(p, nn.Parameter) and not p.requires_grad
        ],
        "training": described.training,
        "stored": shapes(stored),
        "tensors": described.tensors.records,
        "modules": described.modules,
    }  # fmt: skip
    text = _text(layout)
    if len(text) > LARGEST_HEADER or text.count("{") + text.count("[") > MOST_BRACKETS:
        raise CheckpointError(f"the network has more parts than one file may list; {WAY_OUT}")
    again = json.loads(text)
    trust = Trust([root_of(name) for name in {*names_in(again), *([factory] if factory else [])}])
    way_out = WAY_OUT if factory is None else f"{factory} must build the network that was cut"
    try:
        with torch.random.fork_rng(devices=[]):
            base = _made_by_factory(again, trust)
        other, other_names = _rebuild(again, stored, trust, base)
    except _FAILURES as error:
        raise CheckpointError(
            f"the network cannot be put together again: {told(error)}; {way_out}"
        ) from error
    found = difference(model, other, names, other_names, has_factory=factory is not None)
    if found is not None:
        raise CheckpointError(f"the network would not come back as it is: {found}; {way_out}")
    return layout, described


def _made_by_factory(layout: Mapping[str, Any], trust: Trust) -> nn.Module | None:
    if "factory" not in layout:
        return None
    name = layout["factory"]["name"]
    if not trust.names(str(name)):
        raise CheckpointError(
            f"{str(name)[:200]} is refused: it is a factory, which runs; if you know where the "
            f"folder comes from, load(folder, trust=[{root_of(str(name))[:200]!r}])"
        )
    factory = trust.find(name, alias=True)
    model = factory(**layout["factory"]["arguments"])
    if not isinstance(model, nn.Module):
        raise CheckpointError(f"{name} does not build a torch.nn.Module")
    return model


def _refuse_strangers(layout: Mapping[str, Any], trust: Trust) -> None:
    """Say at once all that a network needs trust for.

    Raises:
        CheckpointError: names the first, and counts the others.
    """
    if "factory" in layout:
        return
    trust.add_packages(entry["class"] for entry in layout["modules"].values())
    refused: dict[str, CheckpointError] = {}
    for name in sorted(names_in(layout)):
        try:
            trust.find(name)
        except CheckpointError as error:
            refused[name] = error
    if not refused:
        return
    first = next(iter(refused.values()))
    roots = sorted({root_of(name) for name in refused})
    if len(roots) == 1 or any("trust=" not in str(error) for error in refused.values()):
        raise first
    raise CheckpointError(f"{first}; in all trust={roots[:10]}")


def _rebuild(
    layout: Mapping[str, Any], stored: Mapping[str, Tensor], trust: Trust, base: nn.Module | None
) -> tuple[nn.Module, dict[int, str]]:
    """Return the network, and the names of its tensors by identity."""
    used: set[str] = set()

    def take(name: str) -> Tensor:
        used.add(name)
        return stored[name]

    tensors = TensorReader(take, layout["tensors"], frozenset(layout["frozen"]))
    training = frozenset(layout["training"])
    model = build(layout["modules"], tensors, layout["ties"], training, trust, base)
    if used != set(stored):
        raise CheckpointError(f"{min(set(stored) - used)[:200]!r} is a tensor of no module")
    return model, tensors.names()


def _plain(arguments: Mapping[str, Any]) -> dict[str, Any]:
    try:
        json.dumps(dict(arguments))
    except TypeError as error:
        raise InputError(f"arguments must be plain values that JSON can hold: {error}") from error
    return dict(arguments)


def _is_intact(layout: Mapping[str, Any]) -> bool:
    try:
        without_checksum(layout, LAYOUT)
    except CheckpointError:
        return False
    return True


def _text(layout: Mapping[str, Any]) -> str:
    """Lay the JSON out with one module a line."""
    modules = ",\n".join(
        f"  {json.dumps(name)}: {json.dumps(entry)}" for name, entry in layout["modules"].items()
    )
    lines = [
        f" {json.dumps(key)}: {json.dumps(value)}"
        for key, value in layout.items()
        if key != "modules"
    ]
    lines.append(' "modules": {\n' + modules + "\n }")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _warn_of_script(layout: Mapping[str, Any]) -> None:
    found = sorted(filter(is_of_script, names_in(layout)))
    if found:
        module = found[0].partition(":")[0]
        warnings.warn(
            f"the network uses {found[0]} of the running script: elsewhere it is loaded with "
            f"load(folder, trust=[{module!r}]), which imports the script, so that its work must "
            "stand under if __name__ == '__main__'; or put the class into a module",
            stacklevel=3,
        )
