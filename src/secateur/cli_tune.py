"""The verb ``tune``."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Annotated

import typer

from secateur.cli_shared import (
    Debug,
    Output,
    Resume,
    Seed,
    Threads,
    check_resume,
    command,
    examples,
    given,
    guarded,
    stopped,
)
from secateur.errors import InputError
from secateur.screen import bars, show_tuning

EPILOG = examples(
    "secateur tune tune.yaml",
    "secateur tune tune.yaml --trials 50 --sampler tpe --output runs/rates",
    "secateur tune runs/rates/config.yaml --resume",
)


def tune(
    run: Annotated[Path, typer.Argument(help="A YAML file; docs/tuning.md has its keys.")],
    trials: Annotated[int | None, typer.Option("--trials", help="Settings to try.")] = None,
    sampler: Annotated[
        str | None, typer.Option("--sampler", help="gp, random, grid or tpe.")
    ] = None,
    output: Output = None,
    seed: Seed = None,
    threads: Threads = None,
    resume: Resume = False,
    debug: Debug = False,
) -> None:
    """Search hyperparameters on the pruned network, train the dense one with the best.

    The trials are kept in an Optuna study (study.db). The same command with --resume goes on with
    a stopped run; given while the run is going on, it joins as a second worker.
    """
    flags = given(
        search=given(trials=trials, sampler=sampler), output=output, seed=seed, threads=threads
    )
    with guarded(debug) as going:
        missing = [name for name in ("optuna", "botorch") if not importlib.util.find_spec(name)]
        if missing:
            raise InputError(
                f"tune needs {' and '.join(missing)}, which must be installed: "
                "pip install 'secateur[tune]'"
            )
        from secateur.study.reading import merge, parse, read_mapping
        from secateur.study.store import with_output
        from secateur.tuning.config import TuneConfig
        from secateur.tuning.run import tune_run

        raw = merge(read_mapping(run), flags)
        check_resume(resume, raw.get("output"))
        config = with_output(parse(TuneConfig, raw, str(run)), "tune")
        again = str(Path(config.output or "") / "config.yaml")
        going.append(lambda: stopped(config.output, ["secateur", "tune", again, "--resume"]))
        with bars() as progress:
            tuned = tune_run(config, resume=resume, progress=progress, command=command())
        show_tuning(tuned, Path(config.output or ""))
