"""Stops a process at a chosen moment, and says what a power cut at that moment would leave.

A moment is the n-th operation on files (open for writing, rename, removal, new folder, flush), the
n-th call of Optuna's storage or the n-th training step. The disk is simulated: a file holds what
was flushed last, a folder lists what it listed when it was flushed. SQLite flushes by itself and
is taken to be right.
"""

from __future__ import annotations

import io
import os
import shutil
import signal
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import torch

from secateur import checked, finetune
from secateur.sparse_training import loop

WRITES = os.O_WRONLY | os.O_RDWR
STORAGE = (
    "create_new_study", "create_new_trial", "set_trial_param", "set_trial_state_values",
    "set_trial_user_attr", "set_trial_intermediate_value", "set_study_user_attr",
)  # fmt: skip


class Disk:
    """What is safe: contents and listings as they were last flushed, by inode."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.files: dict[int, bytes] = {}
        self.folders: dict[int, dict[str, tuple[int, bool]]] = {}
        self._held: list[int] = []  # so that no inode is used twice
        for folder, _, names in os.walk(root):
            self._flush_path(Path(folder))
            for name in names:
                self._flush_path(Path(folder, name))

    def _flush_path(self, path: Path) -> None:
        handle = os.open(path, os.O_RDONLY)
        self.flush(handle)
        os.close(handle)

    def flush(self, handle: int) -> None:
        """Remember what a handle's file or folder holds."""
        found = os.fstat(handle)
        if stat.S_ISDIR(found.st_mode):
            with os.scandir(handle) as entries:
                self.folders[found.st_ino] = {
                    entry.name: (entry.inode(), entry.is_dir()) for entry in entries
                }
        else:
            self.files[found.st_ino] = os.pread(handle, found.st_size, 0)
        self._held.append(os.dup(handle))

    def survive(self, target: Path, *, names_kept: bool) -> None:
        """Write what a power cut leaves.

        Args:
            target: a new folder.
            names_kept: the file system kept renames and new names in its journal and lost data
                alone; else folders are as they were last flushed.
        """
        if names_kept:
            self._copy_named(self.root, target)
        else:
            self._copy_flushed(self.root.stat().st_ino, target)
        for database in self.root.rglob("*.db*"):
            place = target / database.relative_to(self.root)
            if place.parent.is_dir() and ".partial" not in str(place):
                shutil.copyfile(database, place)

    def _copy_flushed(self, inode: int, target: Path) -> None:
        target.mkdir()
        for name, (child, is_folder) in self.folders.get(inode, {}).items():
            if is_folder:
                self._copy_flushed(child, target / name)
            else:
                (target / name).write_bytes(self.files.get(child, b""))

    def _copy_named(self, source: Path, target: Path) -> None:
        target.mkdir()
        for entry in os.scandir(source):
            if entry.is_dir():
                self._copy_named(Path(entry.path), target / entry.name)
            else:
                (target / entry.name).write_bytes(self.files.get(entry.inode(), b""))


class Moments:
    """Counts moments, and stops the process at one of them."""

    def __init__(self, root: Path, stop_at: int, cut: str, log: Path) -> None:
        self.root = str(root)
        self.count = 0
        self._stop_at = stop_at
        self._cut = cut
        self._log = log
        self._disk = Disk(root) if cut else None
        self._busy = False

    def reach(self, what: str, half: Callable[[], object] | None = None) -> None:
        """Count one moment; ``half`` leaves half of what is about to be written."""
        if self._busy:
            return
        self.count += 1
        if self.count == self._stop_at:
            self._busy = True
            self.note(f"stopped at {what}")
            if half is not None:
                half()
            if self._disk is not None:
                target = Path(self.root + ".cut")
                self._disk.survive(target, names_kept=self._cut == "data")
            os.kill(os.getpid(), signal.SIGKILL)

    def note(self, text: str) -> None:
        """Write a line to the log, which is no part of the disk."""
        with io.FileIO(str(self._log), "a") as file:
            file.write(f"{text}\n".encode())

    def audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Count renames, removals and new folders."""
        if event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir") and not self._busy:
            path = os.fsdecode(arguments[0]) if not isinstance(arguments[0], int) else ""
            inside = Path(path).absolute().is_relative_to(self.root)
            if inside or event != "os.mkdir":
                self.reach(f"{event} {path}")

    def watch(self) -> None:
        """Patch this process; it must end without a way back."""
        sync, opened, save = os.fsync, io.open, checked.save_file

        def fsync(handle: int) -> None:
            self.reach("before a flush")
            sync(handle)
            if self._disk is not None:
                self._disk.flush(handle)
            self.reach("after a flush")

        def open_(file: Any, mode: str = "r", *rest: Any, **named: Any) -> Any:
            found = opened(file, mode, *rest, **named)
            inside = isinstance(file, str | os.PathLike) and Path(
                os.fsdecode(file)
            ).absolute().is_relative_to(self.root)
            if inside and set(mode) & set("wax+"):
                self.reach(f"opened {file}")
            return found

        def save_file(tensors: Any, path: Path, *rest: Any) -> None:
            def half() -> None:
                save(tensors, path, *rest)
                content = path.read_bytes()
                path.write_bytes(content[: len(content) // 2])

            self.reach(f"writing {path.name}", half)
            save(tensors, path, *rest)

        os.fsync, io.open, checked.save_file = fsync, open_, save_file  # type: ignore[assignment]
        for name in STORAGE:
            self._around(optuna.storages.RDBStorage, name)
        self._around(torch.Tensor, "backward", before_only=True)
        for room in (finetune, loop):
            self._noted(room, "write_state", "epoch")
        sys.addaudithook(self.audit)

    def _around(self, owner: Any, name: str, *, before_only: bool = False) -> None:
        whole = getattr(owner, name)

        def call(*arguments: Any, **named: Any) -> Any:
            self.reach(f"before {name}")
            found = whole(*arguments, **named)
            if not before_only:
                self.reach(f"after {name}")
            return found

        setattr(owner, name, call)

    def _noted(self, owner: Any, name: str, text: str) -> None:
        whole = getattr(owner, name)

        def call(*arguments: Any, **named: Any) -> Any:
            found = whole(*arguments, **named)
            self.note(text)
            return found

        setattr(owner, name, call)
