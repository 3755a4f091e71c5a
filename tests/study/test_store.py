"""Who owns a run folder, and what is kept in it."""

from __future__ import annotations

from pathlib import Path

import pytest

from secateur.errors import CheckpointError, InputError
from secateur.results import Width
from secateur.study import store


def claimed(folder: Path, text: str = "seed: 1\noutput: here\n") -> Path:
    store.claim(folder, text)
    return folder


def test_the_first_free_folder(tmp_path: Path) -> None:
    assert store.free_folder(tmp_path / "demo") == tmp_path / "demo"
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo-2").mkdir()
    assert store.free_folder(tmp_path / "demo") == tmp_path / "demo-3"


class TestCheckFolder:
    def test_a_new_or_empty_one_is_free(self, tmp_path: Path) -> None:
        store.check_folder(tmp_path, {}, resume=False)
        store.check_folder(tmp_path / "new", {}, resume=False)

    def test_another_run(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="holds another run"):
            store.check_folder(claimed(tmp_path), {"seed": 1}, resume=False)

    def test_something_else(self, tmp_path: Path) -> None:
        (tmp_path / "thesis.txt").write_text("")
        with pytest.raises(InputError, match="holds something else"):
            store.check_folder(tmp_path, {}, resume=False)
        with pytest.raises(InputError, match="holds something else"):
            store.check_folder(tmp_path / "thesis.txt", {}, resume=False)

    def test_resume_needs_a_run(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="resume needs a folder that holds a run"):
            store.check_folder(tmp_path, {}, resume=True)

    def test_resume_needs_the_same_settings(self, tmp_path: Path) -> None:
        folder = claimed(tmp_path)
        store.check_folder(folder, {"seed": 1, "output": "by/another/path"}, resume=True)
        with pytest.raises(InputError, match="seed was 1, but got 2"):
            store.check_folder(folder, {"seed": 2}, resume=True)


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="output must be writable"):
        store.claim(tmp_path / "file" / "run", "")


def test_what_is_remembered_is_made_once(tmp_path: Path) -> None:
    made = []

    def make() -> list[Width]:
        made.append(1)
        return [Width("conv", 8, 4)]

    path = tmp_path / "widths.json"
    first = store.remembered_records(path, Width, make)
    assert first == store.remembered_records(path, Width, make) == (Width("conv", 8, 4),)
    assert made == [1]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("text", ["[{", '[{"layer": 1}]', "3"])
def test_damaged_records_are_named(text: str, tmp_path: Path) -> None:
    path = tmp_path / "widths.json"
    path.write_text(text)
    with pytest.raises(CheckpointError, match=r"widths\.json is damaged"):
        store.remembered_records(path, Width, list)
