"""Sets of files that are whole or recognised as not: tensors, and a JSON with their checksums.

The tensors are written first, each by rename, and the JSON last: a set without it was never
finished, and one whose checksums differ was damaged afterwards.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from secateur.errors import CheckpointError, InputError


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
        CheckpointError: a file could not be written.
    """
    folder = path.parent
    checksums = {name: _save_tensors(folder / name, tensors) for name, tensors in parts.items()}
    checksums |= {name: _checksum(folder / name) for name in others if name not in checksums}
    content = json.dumps({**document, "files": checksums}, indent=1) + "\n"
    partial = path.with_name(path.name + ".partial")
    partial.write_text(content, encoding="utf-8")
    partial.replace(path)


def read_document(path: Path, format_: int) -> dict[str, Any]:
    """Read the JSON of a set, whatever its files are like.

    Raises:
        CheckpointError: it is cut short, no such document or of another format.
    """
    try:
        document = dict(json.loads(path.read_bytes()))
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{path} is cut short or not a checkpoint") from error
    if document.get("format") != format_:
        raise CheckpointError(
            f"{path}: format must be {format_}, but got {document.get('format')!r}"
        )
    return document


def read_checked(path: Path, format_: int) -> dict[str, Any]:
    """Read the JSON of a set whose files are all whole.

    Raises:
        CheckpointError: it, or one of its files, is missing or cut short.
    """
    document = read_document(path, format_)
    for name, expected in document["files"].items():
        part = path.parent / name
        if not part.is_file() or _checksum(part) != expected:
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


def _save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> str:
    partial = path.with_name(path.name + ".partial")
    try:
        save_file(dict(tensors), partial)
    except SafetensorError as error:
        partial.unlink(missing_ok=True)
        raise CheckpointError(f"{path} could not be written: {error}") from error
    checksum = _checksum(partial)
    partial.replace(path)
    return checksum


def _checksum(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
