"""Files that are whole or absent, whatever stops the writer: an error, a kill, a power cut.

A file is written in a hidden folder beside its place, flushed to the disk, renamed, and its
folder flushed: after a power cut either the old or the new content is there, never an empty file.
A killed writer leaves that hidden folder (``.NAME.*.partial``); the next write of the same file
removes it. JSON documents carry a checksum of their content under ``checksum``.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import json
import os
import shutil
import stat
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from secateur.errors import CheckpointError, StorageError

CHECKSUM = "checksum"

_SUFFIX = ".partial"
_NUMBERS = itertools.count()
_OPEN: set[str] = set()
_NO_FOLDER_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.EBADF}
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a path to write to; at the end its file replaces ``path`` and is on the disk.

    The yielded path has the same file name. Where anything is raised, ``path`` stays as it was and
    nothing is left beside it.

    Args:
        path: of the file, in an existing folder.

    Raises:
        StorageError: the file cannot be written (a full disk, no permission); names it.
    """
    with storage_errors(path):
        _remove_leftovers(path)
        scratch = path.with_name(f"{_stem(path)}{os.getpid()}.{next(_NUMBERS)}{_SUFFIX}")
        _OPEN.add(scratch.name)
        try:
            scratch.mkdir()
            written = scratch / path.name
            written.touch()
            mode = written.stat().st_mode
            yield written
            # Some libraries make their files for the owner alone.
            written.chmod(stat.S_IMODE(mode))
            _sync(written)
            written.replace(path)
            sync_folder(path.parent)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
            _OPEN.discard(scratch.name)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file, whole or not at all.

    Raises:
        StorageError: it cannot be written.
    """
    with atomic_file(path) as written:
        written.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Write a file in UTF-8 with the line ends of ``text``, whole or not at all.

    Raises:
        StorageError: it cannot be written.
    """
    write_bytes(path, text.encode("utf-8"))


def make_folder(path: Path) -> None:
    """Make a folder and those above it, where they are missing, so that a power cut leaves them.

    Raises:
        StorageError: it cannot be made.
    """
    with storage_errors(path):
        missing = [path, *path.parents]
        missing = list(itertools.takewhile(lambda one: not one.exists(), missing))
        path.mkdir(parents=True, exist_ok=True)
        for one in missing:
            sync_folder(one.parent)


def is_leftover(path: Path) -> bool:
    """Tell whether a writer that was killed left this behind; it holds nothing of use."""
    return path.name.startswith(".") and path.name.endswith(_SUFFIX)


def with_checksum(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return plain data for JSON with a checksum of their content."""
    # What JSON makes of it: tuples become lists and keys strings.
    content = json.loads(json.dumps({k: v for k, v in document.items() if k != CHECKSUM}))
    return {**content, CHECKSUM: _digest(content)}


def without_checksum(document: Any, what: str) -> dict[str, Any]:
    """Return a document as it was given to :func:`with_checksum`.

    Args:
        document: what JSON held.
        what: names it in errors.

    Raises:
        CheckpointError: it is no mapping, or its content is not what was written.
    """
    if not isinstance(document, dict) or CHECKSUM not in document:
        raise CheckpointError(f"{what} is damaged: it has no {CHECKSUM!r}")
    content = {key: value for key, value in document.items() if key != CHECKSUM}
    if _digest(content) != document[CHECKSUM]:
        raise CheckpointError(f"{what} is damaged: its checksum differs")
    return content


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """Write plain data as JSON with a checksum, whole or not at all.

    Raises:
        StorageError: the file cannot be written.
    """
    write_text(path, json.dumps(with_checksum(document), indent=1) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Read what :func:`write_json` wrote.

    Raises:
        CheckpointError: the file is missing, cut short or damaged.
        StorageError: it cannot be read.
    """
    try:
        document = json.loads(read_bytes(path))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged: it is not valid JSON ({error})") from error
    return without_checksum(document, str(path))


def read_bytes(path: Path) -> bytes:
    """Read a file.

    Raises:
        CheckpointError: it does not exist.
        StorageError: it cannot be read.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} does not exist") from error
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error.strerror}") from error


def file_checksum(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@contextlib.contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Raise what the system says against a file as a StorageError that names ``path``."""
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        cure = "; free some space and go on" if error.errno in _FULL else ""
        raise StorageError(f"{path} cannot be written: {error.strerror or error}{cure}") from error


def sync_folder(folder: Path) -> None:
    """Bring what was renamed into or made in a folder to the disk."""
    if sys.platform == "win32":  # which has no handle for it
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        # Some network file systems cannot; there the server decides.
        if error.errno not in _NO_FOLDER_SYNC:
            raise
    finally:
        os.close(handle)


def _stem(path: Path) -> str:
    # Shortened, so that a long name and the suffix stay a valid name.
    return f".{path.name[:40]}."


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _remove_leftovers(path: Path) -> None:
    """Remove what a writer of the same file left that is dead."""
    stem = _stem(path)
    with os.scandir(path.parent) as entries:
        found = [entry.name for entry in entries if entry.name.startswith(stem)]
    for name in found:
        if name.endswith(_SUFFIX) and name not in _OPEN and not _alive(name[len(stem) :]):
            shutil.rmtree(path.with_name(name), ignore_errors=True)


def _alive(rest: str) -> bool:
    """Tell whether the writer may live; ``rest`` begins with the number of its process."""
    number = rest.partition(".")[0]
    if not number.isdigit() or int(number) == os.getpid():
        # One of this process that is not open was left by another with the same number.
        return False
    if sys.platform == "win32":
        return True
    try:
        os.kill(int(number), 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _digest(content: Any) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8")).hexdigest()
