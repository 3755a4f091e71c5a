"""A finished small run, made once."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_runs import settings

from secateur.results import Result
from secateur.study import RunConfig, prune_run


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Result, Path]:
    """Return the result and the folder of an undisturbed run."""
    folder = tmp_path_factory.mktemp("finished")
    config = RunConfig.model_validate(settings(folder))
    return prune_run(config, command="secateur prune run.yaml"), folder / "run"
