from __future__ import annotations

import json
from pathlib import Path

import pytest
from torch import nn

import secateur
from secateur.errors import CheckpointError, InputError


@pytest.mark.parametrize("key", ["sha256", "frozen", "training", "ties", "modules"])
def test_a_layout_without_a_part_is_refused(tmp_path: Path, key: str) -> None:
    saved = secateur.save(nn.Sequential(nn.Linear(3, 6)), tmp_path)
    layout = json.loads((saved / "model.json").read_text())
    del layout[key]
    (saved / "model.json").write_text(json.dumps(layout))
    with pytest.raises(CheckpointError):
        secateur.load(saved)


def test_factory_arguments_that_json_cannot_hold_are_refused(tmp_path: Path) -> None:
    with pytest.raises((InputError, CheckpointError)):
        secateur.save(nn.Linear(3, 4), tmp_path / "run", factory="a:b", arguments={"act": object()})
