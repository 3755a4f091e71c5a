"""A run that was killed, cut from power or damaged ends like an undisturbed one, or says why not.

A sample here; `harness.py` in this folder takes any number.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HARNESS = Path(__file__).parent / "harness.py"

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="attempts are forks of a process")


def attempts(what: str, number: int, *kinds: str) -> list[dict[str, Any]]:
    only = [word for kind in kinds for word in ("--only", kind)]
    done = subprocess.run(
        [sys.executable, str(HARNESS), what, "--number", str(number), *only],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"asked"')]


def check(found: list[dict[str, Any]], count: int) -> None:
    assert len(found) == count
    assert [one for one in found if one["wrong"]] == []


def test_a_sample_of_kills() -> None:
    check(attempts("kills", 38, "rounds", "weights"), 4)


def test_a_sample_of_power_cuts() -> None:
    check(attempts("cuts", 38, "structures", "weights gradually"), 4)


def test_a_sample_of_damaged_files() -> None:
    check(attempts("damages", 38, "structures", "sensitivity"), 4)


@pytest.mark.slow
@pytest.mark.parametrize(("what", "number"), [("kills", 300), ("cuts", 40), ("damages", 150)])
def test_all_kinds(what: str, number: int) -> None:
    check(attempts(what, number), number)
