"""Studies in folders of any name, on full disks and with too little memory: one line each."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from compare.studies import asked
from typer.testing import CliRunner

from secateur.cli import app
from secateur.comparison import load_comparison
from secateur.errors import CheckpointError, InputError, StorageError, is_out_of_memory
from secateur.study.databases import check_file, close_storage, database_errors, open_storage


def run(*words: object) -> tuple[int, str]:
    found = CliRunner().invoke(app, [str(word) for word in words])
    if found.exception is not None and not isinstance(found.exception, SystemExit):
        raise found.exception
    return found.exit_code, found.output.strip().splitlines()[-1]


@pytest.mark.parametrize("name", ["100 % done", "what?", "{SCHEMA}", "a#b&c=d", "ümlaut 日本"])
def test_a_study_may_lie_in_a_folder_of_any_name(tmp_path: Path, name: str) -> None:
    path = tmp_path / name / "study.db"
    path.parent.mkdir()
    storage = open_storage(path)
    number = storage.create_new_study([], "x")
    close_storage(storage)
    assert path.is_file()
    again = open_storage(path)
    assert again.get_study_id_from_name("x") == number
    close_storage(again)
    assert [one.name for one in path.parent.iterdir()] == ["study.db"]


def test_a_whole_comparison_in_such_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "100 % {of}?"
    folder.mkdir()
    settings = asked(folder, criteria=["l1"], sparsities=[0.5])
    (folder / "s.yaml").write_text(yaml.safe_dump(settings))
    assert run("compare", folder / "s.yaml")[0] == 0
    assert load_comparison(folder / "study" / "comparison.json").chosen == 0


def test_a_path_too_long_for_sqlite_is_told_in_bytes(tmp_path: Path) -> None:
    deep = tmp_path.joinpath(*["d" * 100] * 5)
    deep.mkdir(parents=True)
    with pytest.raises(InputError, match=r"output must be a shorter path: .* may have 500 bytes"):
        open_storage(deep / "study.db")
    settings = asked(tmp_path, criteria=["l1"], sparsities=[0.5], output=str(deep / "study"))
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(settings))
    status, told = run("compare", tmp_path / "s.yaml")
    assert status == 2
    assert told.startswith("error: output must be a shorter path")


def test_prune_goes_where_sqlite_cannot(tmp_path: Path) -> None:
    from small_runs import settings

    deep = tmp_path.joinpath(*["d" * 100] * 6)
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(settings(tmp_path, output=str(deep / "run"))))
    assert run("prune", tmp_path / "r.yaml")[0] == 0
    assert (deep / "run" / "result.json").is_file()


@pytest.mark.parametrize("content", [b"no database", bytes(5000), b"SQLite format 3\0" + b"x" * 99])
def test_what_is_no_database_is_told(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "study.db"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"study\.db is damaged \(.*\); do this"):
        check_file(path, "do this")


@pytest.mark.parametrize("words", ["database or disk is full", "disk I/O error"])
def test_a_disk_is_no_damage(tmp_path: Path, words: str) -> None:
    def fail() -> None:
        with database_errors(tmp_path / "study.db", ""):
            raise sqlite3.OperationalError(words)

    with pytest.raises(StorageError, match=rf"study\.db cannot be written: {words}"):
        fail()


FULL = """
import resource, sys
from secateur.cli import app
from secateur.compare import bench, making, run

def limit(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

size, when = int(sys.argv[1]), sys.argv[2]
if when == "from the start":
    limit(size)
else:
    whole = making.quality
    making.quality = lambda *given, **named: (whole(*given, **named), limit(size))[0]
app(sys.argv[3:])
"""


@pytest.mark.parametrize(
    ("size", "when"), [(60_000, "from the start"), (1_000, "after the first training")]
)
def test_a_full_disk_ends_a_study_and_fails_no_trial(tmp_path: Path, size: int, when: str) -> None:
    settings = asked(tmp_path, criteria=["l1"], sparsities=[0.25, 0.5], epochs=[1])
    path = tmp_path / "s.yaml"
    path.write_text(yaml.safe_dump(settings))
    line = [sys.executable, "-c", FULL, str(size), when, "compare", str(path)]
    found = subprocess.run(line, capture_output=True, text=True, timeout=120, check=False)
    assert found.returncode == 2, found.stderr
    assert "Traceback" not in found.stderr
    (told,) = [one for one in found.stderr.splitlines() if one.startswith("error:")]
    assert "cannot be written" in told
    assert str(tmp_path / "study") in told
    again = run("compare", path, "--resume")
    assert again[0] == 0, again
    trials = load_comparison(tmp_path / "study" / "comparison.json").trials
    assert [one.error for one in trials] == ["", ""]


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate "
            "memory: you tried to allocate 400 bytes. Error code 12 (Cannot allocate memory)"
        ),
        RuntimeError("could not create a primitive descriptor for a matmul primitive"),
        RuntimeError("could not create a memory object"),
        RuntimeError("std::bad_alloc"),
        RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        OSError(12, "Cannot allocate memory"),
    ],
)
def test_too_little_memory_is_one_line(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert is_out_of_memory(error)
    from small_runs import settings

    from secateur import study

    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(study, "prune_run", fail)
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(settings(tmp_path)))
    status, told = run("prune", tmp_path / "r.yaml")
    assert status == 2
    assert told.startswith("error: there is too little memory")


def test_other_errors_are_not_taken_for_it() -> None:
    for error in (RuntimeError("shape mismatch"), ValueError("out of memory of what"), KeyError()):
        assert not is_out_of_memory(error)
