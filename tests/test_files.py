"""Files are whole or absent, are on the disk before they count, and damage is found."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from secateur.checked import read_tensors, write_tensors
from secateur.errors import CheckpointError, SecateurError, StorageError
from secateur.files import (
    atomic_file,
    is_leftover,
    make_folder,
    read_json,
    with_checksum,
    write_bytes,
    write_json,
    write_text,
)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "old")
    write_text(tmp_path / "a.txt", "new\r\nümlaut\n")
    assert content(tmp_path) == {"a.txt": "new\r\nümlaut\n".encode()}


def test_an_error_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "old")

    def fail() -> None:
        with atomic_file(tmp_path / "a.txt") as written:
            written.write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert content(tmp_path) == {"a.txt": b"old"}


def test_the_order_is_write_sync_rename_sync_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    sync, replace = os.fsync, os.replace

    def synced(handle: int) -> None:
        mode = os.fstat(handle).st_mode
        size = os.fstat(handle).st_size
        calls.append("sync folder" if stat.S_ISDIR(mode) else f"sync {size} bytes")
        sync(handle)

    def replaced(source: Any, target: Any) -> None:
        calls.append(f"rename to {Path(target).name}")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", replaced)
    write_bytes(tmp_path / "a", b"1234567")
    assert calls == ["sync 7 bytes", "rename to a", "sync folder"]


def test_new_folders_are_synced_into_those_above(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    sync = os.fsync

    def recorded(handle: int) -> None:
        synced.append(Path(f"/proc/self/fd/{handle}").readlink().name)
        sync(handle)

    monkeypatch.setattr(os, "fsync", recorded)
    make_folder(tmp_path / "a" / "b" / "c")
    assert set(synced) == {"b", "a", tmp_path.name}
    make_folder(tmp_path / "a" / "b" / "c")
    assert len(synced) == 3


WRITER = """
import os, signal, sys
from pathlib import Path
from secateur.files import atomic_file
with atomic_file(Path(sys.argv[1])) as written:
    written.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("name", ["a.txt", "[a]?*%.txt", "n" * 250])
def test_what_a_killed_writer_leaves_goes_with_the_next_write(tmp_path: Path, name: str) -> None:
    done = subprocess.run([sys.executable, "-c", WRITER, str(tmp_path / name)], check=False)
    assert done.returncode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    assert is_leftover(left)
    write_text(tmp_path / "other", "")
    assert left.exists()
    write_text(tmp_path / name, "whole")
    assert content(tmp_path) == {name: b"whole", "other": b""}


def test_a_writer_that_lives_is_left_alone(tmp_path: Path) -> None:
    with atomic_file(tmp_path / "a") as first:
        first.write_text("first")
        write_text(tmp_path / "a", "second")
        assert (tmp_path / "a").read_text() == "second"
    assert content(tmp_path) == {"a": b"first"}
    # Process 1 always lives, and is not this one.
    other = tmp_path / ".a.1.0.partial"
    other.mkdir()
    write_text(tmp_path / "a", "third")
    assert other.is_dir()


def test_one_of_an_earlier_process_with_the_same_number_goes(tmp_path: Path) -> None:
    (tmp_path / f".a.{os.getpid()}.7000.partial").mkdir()
    write_text(tmp_path / "a", "x")
    assert content(tmp_path) == {"a": b"x"}


@pytest.fixture
def small_files() -> Any:
    """Let files grow to 20 kB only; a write beyond that fails as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.usefixtures("small_files")
@pytest.mark.parametrize(
    "write",
    [
        lambda path: write_text(path, "x" * 30_000),
        lambda path: write_json(path, {"x": "x" * 30_000}),
        lambda path: write_tensors(path, {"x": torch.ones(30_000)}),
    ],
)
def test_a_full_disk_names_the_file_and_leaves_nothing(tmp_path: Path, write: Any) -> None:
    write_text(tmp_path / "a", "old")
    with pytest.raises(StorageError, match=r"/a cannot be written: .*[Ff]ile too large") as told:
        write(tmp_path / "a")
    assert isinstance(told.value, SecateurError)
    assert isinstance(told.value, OSError)
    assert "\n" not in str(told.value)
    assert content(tmp_path) == {"a": b"old"}


def test_no_space_for_a_sync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="No space left on device; free some space and go on"):
        write_text(tmp_path / "a", "x")
    assert not content(tmp_path)


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"no/a cannot be written: No such file"):
        write_text(tmp_path / "no" / "a", "x")
    write_text(tmp_path / "file", "")
    with pytest.raises(StorageError, match=r"file/sub cannot be written"):
        make_folder(tmp_path / "file" / "sub")


def test_files_have_the_usual_mode(tmp_path: Path) -> None:
    (tmp_path / "usual").touch()
    write_tensors(tmp_path / "x.safetensors", {"x": torch.ones(3)})
    assert (tmp_path / "x.safetensors").stat().st_mode == (tmp_path / "usual").stat().st_mode


DOCUMENT = {"a": 1.5, "b": [1, None, float("inf")], "c": {"d": "text"}, "e": (1, 2), "f": 1e-300}


def test_json_comes_back(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", DOCUMENT)
    assert read_json(tmp_path / "x.json") == {**DOCUMENT, "e": [1, 2]}
    assert with_checksum(with_checksum(DOCUMENT)) == with_checksum(DOCUMENT)
    # Another layout is the same content.
    path = tmp_path / "x.json"
    path.write_text(json.dumps(json.loads(path.read_text()), indent=4, sort_keys=True))
    assert read_json(path) == {**DOCUMENT, "e": [1, 2]}


def damages(content: bytes) -> dict[str, bytes]:
    """Every way a file may be hurt, bit by bit and whole."""
    half = len(content) // 2
    flips = {
        f"bit {bit} of byte {place}": content[:place]
        + bytes([content[place] ^ (1 << bit)])
        + content[place + 1 :]
        for place in range(len(content))
        for bit in (0, 3, 6)
    }
    return {
        **flips,
        "empty": b"",
        "half": content[:half],
        "zeros": bytes(len(content)),
        "half zeros": content[:half] + bytes(len(content) - half),
        "longer": content + b"{}",
    }


def outcome(read: Callable[[], Any], path: Path) -> Any:
    """Return what is read, or "refused" where the error names the file."""
    try:
        return read()
    except CheckpointError as error:
        return "refused" if str(path) in str(error) else f"told badly: {error}"


def test_no_damage_of_json_is_silent(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    write_json(path, DOCUMENT)
    expected = read_json(path)
    for what, hurt in damages(path.read_bytes()).items():
        path.write_bytes(hurt)
        # A flip in the space between is no damage.
        assert outcome(lambda: read_json(path), path) in (expected, "refused"), what


def test_no_damage_of_tensors_is_silent(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    tensors = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(True)}
    write_tensors(path, tensors)
    found = 0
    for what, hurt in damages(path.read_bytes()).items():
        path.write_bytes(hurt)
        again = outcome(lambda: read_tensors(path), path)
        found += again == "refused"
        if again != "refused":
            assert again.keys() == tensors.keys(), what
            assert all(again[name].equal(tensors[name]) for name in tensors), what
    assert found > 500


def test_tensors_that_share_memory_are_written(tmp_path: Path) -> None:
    whole = torch.arange(6.0).reshape(2, 3)
    write_tensors(tmp_path / "x", {"a": whole, "b": whole.T, "c": whole[0]})
    again = read_tensors(tmp_path / "x")
    assert again["b"].equal(whole.T)
    assert again["c"].equal(whole[0])


def test_missing_files_are_told(tmp_path: Path) -> None:
    for read in (read_json, read_tensors):
        with pytest.raises(CheckpointError, match="does not exist"):
            read(tmp_path / "no")
