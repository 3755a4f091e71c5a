"""Tensors and sets of files that are whole or recognised as not.

A safetensors file of one stage has the checksum of its tensors in its own header. Of a set, the
tensors are written first and the JSON with their checksums last: a set without it was never
finished, and one whose checksums differ was damaged afterwards.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from secateur.errors import CheckpointError, InputError, StorageError
from secateur.files import (
    CHECKSUM,
    atomic_file,
    file_checksum,
    read_json,
    write_json,
)


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors as safetensors with their checksum, whole or not at all.

    Args:
        path: of the file, in an existing folder.
        tensors: of any device; those that share memory are written each by itself.

    Raises:
        StorageError: the file cannot be written.
    """
    found = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
    _save(path, found, {CHECKSUM: digest(found)})


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read what :func:`write_tensors` wrote.

    Raises:
        CheckpointError: the file is missing, cut short or damaged.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist")
    try:
        with safe_open(path, "pt") as file:
            checksum = (file.metadata() or {}).get(CHECKSUM)
            found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path} is damaged ({error}); delete it to make it again") from error
    if digest(found) != checksum:
        raise CheckpointError(
            f"{path} is damaged (its checksum differs); delete it to make it again"
        )
    return found


def write_checked(
    path: Path,
    document: Mapping[str, Any],
    parts: Mapping[str, Mapping[str, Tensor]],
    others: tuple[str, ...] = (),
) -> None:
    """Write tensors beside ``path`` and then the document, which lists their checksums.

    Args:
        path: of the JSON, in an existing folder.
        document: plain data; "files" is added to it.
        parts: {file name: {name: tensor}}.
        others: names of files that are there already and belong to the set.

    Raises:
        StorageError: a file cannot be written.
    """
    folder = path.parent
    for name, tensors in parts.items():
        _save(folder / name, tensors)
    checksums = {name: file_checksum(folder / name) for name in (*parts, *others)}
    write_json(path, {**document, "files": checksums})


def read_document(path: Path, format_: int) -> dict[str, Any]:
    """Read the JSON of a set, whatever its files are like.

    Raises:
        CheckpointError: it is cut short, damaged, no such document or of another format.
    """
    document = read_json(path)
    if document.get("format") != format_:
        raise CheckpointError(
            f"{path}: format must be {format_}, but got {document.get('format')!r}"
        )
    return document


def read_checked(path: Path, format_: int) -> dict[str, Any]:
    """Read the JSON of a set whose files are all whole.

    Raises:
        CheckpointError: it, or one of its files, is missing, cut short or damaged.
    """
    document = read_document(path, format_)
    for name, expected in document["files"].items():
        part = path.parent / name
        if not part.is_file() or file_checksum(part) != expected:
            raise CheckpointError(f"{part} is missing or cut short (its checksum differs)")
    return document


def same_settings(folder: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse to go on with other settings than were begun with.

    Raises:
        InputError: names the first that differs.
    """
    for key in sorted({*before, *now}):
        if before.get(key) != now.get(key):
            raise InputError(
                f"resume needs the settings that {folder} was begun with: "
                f"{key} was {before.get(key)!r}, but got {now.get(key)!r}"
            )


def digest(tensors: Mapping[str, Tensor]) -> str:
    """Return a checksum of names, shapes and values, to tell whether two are the same."""
    found = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().to("cpu").contiguous()
        found.update(f"{name} {value.dtype} {tuple(value.shape)};".encode())
        found.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def _save(
    path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None
) -> None:
    with atomic_file(path) as written:
        try:
            save_file(dict(tensors), written, metadata)
        except SafetensorError as error:
            raise StorageError(f"{path} cannot be written: {error}") from error
