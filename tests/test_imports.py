"""The direction of imports, and the size of a room, read from the source without running it."""

from __future__ import annotations

import ast
import graphlib
from collections.abc import Iterator
from pathlib import Path

import pytest

import secateur

SOURCE = Path(secateur.__file__).parent
LONGEST = 500

# A room imports from its own floor or a lower one; a room not named here stands on ENGINE.
FLOORS = (
    {
        "errors",
        "files",
        "results",
        "registry",
        "progress",
        "pareto",
        "comparison",
        "tuning_results",
        "sensitivity_results",
    },
    {"graph"},
    {"calibration", "precision", "relevance", "criteria"},
    set[str](),
    {
        "data",
        "models",
        "course_network",
        "sparse_training",
        "training_state",
        "training",
        "finetune",
        "rounds",
        "report",
    },
    {"study", "tuning", "compare", "sensitivity"},
    {
        "cli",
        "cli_compare",
        "cli_export",
        "cli_prune",
        "cli_report",
        "cli_sensitivity",
        "cli_shared",
        "cli_tune",
        "screen",
        "__main__",
    },
)
ENGINE = 3
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
HEAVY = {"torch", "accelerate", "datasets", "safetensors", "sklearn"}
FILES = sorted(SOURCE.rglob("*.py"))


def room_of(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imported(path: Path) -> Iterator[tuple[str, int]]:
    """Yield every module that a file imports anywhere, with the line."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute"
            yield node.module or "", node.lineno
            if node.module == "secateur":
                for alias in node.names:
                    yield f"secateur.{alias.name}", node.lineno


def rooms_imported(path: Path) -> Iterator[tuple[str, int]]:
    for module, line in imported(path):
        parts = module.split(".")
        if parts[0] == "secateur" and len(parts) > 1:
            yield parts[1], line


def floor_of(room: str) -> int:
    return FLOOR.get(room, ENGINE)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_go_one_way(path: Path) -> None:
    room = room_of(path)
    if room == "__init__":
        return
    wrong = [
        f"line {line}: {room} imports {other}"
        for other, line in rooms_imported(path)
        if floor_of(other) > floor_of(room)
    ]
    assert not wrong


def test_no_room_imports_itself_round_about() -> None:
    order = graphlib.TopologicalSorter[str]()
    for path in FILES:
        room = room_of(path)
        if room != "__init__":
            order.add(room, *({other for other, _ in rooms_imported(path)} - {room}))
    order.prepare()  # raises CycleError, which names the rooms


def test_reports_read_results_alone() -> None:
    found = {
        other for path in FILES if room_of(path) == "report" for other, _ in rooms_imported(path)
    }
    assert found <= {
        "report", "results", "errors", "files", "pareto", "comparison", "tuning_results",
        "sensitivity_results",
    }  # fmt: skip


@pytest.mark.parametrize(
    "room",
    [
        "report",
        "results",
        "errors",
        "files",
        "registry",
        "screen",
        "pareto",
        "comparison",
        "tuning_results",
    ],
)
def test_reports_and_records_know_no_torch(room: str) -> None:
    files = [path for path in FILES if room_of(path) == room]
    assert files
    found = {module.split(".")[0] for path in files for module, _ in imported(path)}
    assert not found & HEAVY


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_a_room_stays_small(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LONGEST
