"""Files of tensors (safetensors) from strangers: read within the memory of their own size."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from secateur.errors import CheckpointError
from secateur.files import atomic_file, file_checksum
from secateur.trust import told

LARGEST_HEADER = 32 * 2**20
MOST_BRACKETS = 10**6
"""Containers in a JSON: each may take some hundred bytes of memory for two of text."""


def write_compared(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """Write tensors, and read them back to compare every bit.

    Returns:
        The file's sha256.

    Raises:
        CheckpointError: they do not come back the same, or are of a type that no file holds.
        StorageError: the file cannot be written.
    """
    with atomic_file(path) as written:
        try:
            save_file(_apart(tensors), written)
            with safe_open(written, "pt") as file:
                for name, tensor in tensors.items():
                    if not _same_bits(file.get_tensor(name), tensor):
                        raise CheckpointError(f"{path}: {name} does not come back the same")
        except (SafetensorError, KeyError) as error:
            raise CheckpointError(f"{path} cannot be written: {told(error)}") from error
        return file_checksum(written)


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors that share no memory; copies of those that do."""
    seen: set[int] = set()
    found = {}
    for name, tensor in tensors.items():
        place = tensor.untyped_storage().data_ptr()
        found[name] = tensor.clone() if place in seen else tensor
        seen.add(place)
    return found


def _same_bits(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return not a.numel() or torch.equal(
        a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8)
    )


def shapes(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the dtype and shape of every tensor, as JSON."""
    return {
        name: [str(tensor.dtype).removeprefix("torch."), list(tensor.shape)]
        for name, tensor in tensors.items()
    }


def read_expected(path: Path, expected: Mapping[str, Any], digest: str) -> dict[str, Tensor]:
    """Read the tensors of a file, which must be those that ``shapes`` told.

    Raises:
        CheckpointError: the file is damaged, or holds others.
    """
    damaged = f"{path} is damaged or cut short"
    with _opened(path) as file:
        size = int.from_bytes(file.read(8), "little")
        header = file.read(size) if size <= LARGEST_HEADER else b""
    if file_checksum(path) != digest:
        raise CheckpointError(f"{damaged}: its checksum differs")
    if size > LARGEST_HEADER or header.count(b"{") + header.count(b"[") > MOST_BRACKETS:
        raise CheckpointError(f"{path} lists more tensors than a network has")
    found = {}
    try:
        with safe_open(path, "pt") as opened:
            if set(opened.keys()) != set(expected):
                odd = min(set(opened.keys()) ^ set(expected))
                raise CheckpointError(f"{path} does not hold the network's tensors: {odd[:200]!r}")
            for name, (dtype, shape) in expected.items():
                tensor = opened.get_tensor(name)
                if str(tensor.dtype) != f"torch.{dtype}" or list(tensor.shape) != shape:
                    raise CheckpointError(
                        f"{path}: {name[:200]} is {tuple(tensor.shape)} of {tensor.dtype}, "
                        f"but the network's is {tuple(shape)} of torch.{dtype}"
                    )
                found[name] = tensor.clone()
    except SafetensorError as error:
        raise CheckpointError(f"{damaged}: {error}") from error
    return found


def _opened(path: Path) -> BinaryIO:
    """Open a file, but no device or pipe, which would not end."""
    if not path.is_file():
        if path.exists():
            raise CheckpointError(f"{path} is no file")
        raise FileNotFoundError(2, "No such file or directory", str(path))
    return path.open("rb")


def read_description(path: Path) -> dict[str, Any]:
    """Read a JSON object within bounded memory; a key that stands twice is refused.

    Other values count as an empty object.

    Raises:
        FileNotFoundError: there is none.
        CheckpointError: it is damaged, too large or nested too deep.
    """
    with _opened(path) as file:
        content = file.read(LARGEST_HEADER + 1)
    if len(content) > LARGEST_HEADER or content.count(b"{") + content.count(b"[") > MOST_BRACKETS:
        raise CheckpointError(f"{path} is larger than the description of any network")
    try:
        found = json.loads(content.decode(), object_pairs_hook=_once)
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged: {' '.join(str(error).split())[:200]}") from error
    except RecursionError as error:
        raise CheckpointError(f"{path} is damaged: it is nested too deep") from error
    return found if isinstance(found, dict) else {}


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice")
    return found
