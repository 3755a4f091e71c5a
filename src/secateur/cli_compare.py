"""The verb ``compare``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from secateur.cli_shared import (
    Debug,
    Output,
    Resume,
    Threads,
    check_resume,
    command,
    examples,
    given,
    guarded,
    stopped,
)
from secateur.screen import bars, show_comparison, show_dry_run

EPILOG = examples(
    "secateur compare study.yaml",
    "secateur compare study.yaml --dry-run",
    "secateur compare study.yaml --workers 4 --output runs/orders",
    "secateur compare runs/orders/config.yaml --resume --retry-failed",
)


def compare(
    study: Annotated[Path, typer.Argument(help="A YAML file; docs/compare.md has its keys.")],
    output: Output = None,
    workers: Annotated[
        int, typer.Option("--workers", min=1, help="Processes that run trials.")
    ] = 1,
    threads: Threads = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="With --resume: do failed trials again.")
    ] = False,
    dry: Annotated[
        bool, typer.Option("--dry-run", help="List the trials, estimate the time, and stop.")
    ] = False,
    resume: Resume = False,
    debug: Debug = False,
) -> None:
    """Compare criteria, sparsities, recoveries and more on one network.

    Every combination is one trial, judged on validation and kept in an Optuna study (study.db).
    The test split is read once, at the end, for what is reported.
    """
    flags = given(output=output, threads=threads)
    with guarded(debug) as going:
        from secateur.compare import CompareConfig, compare_run, dry_run
        from secateur.study.reading import merge, parse, read_mapping
        from secateur.study.store import with_output

        raw = merge(read_mapping(study), flags)
        check_resume(resume, raw.get("output"))
        config = parse(CompareConfig, raw, str(study))
        if dry:
            with bars() as progress:
                found = dry_run(config, progress)
            show_dry_run(found.trials, (found.least / workers, found.seconds / workers), workers)
            return
        config = with_output(config, "compare")
        again = str(Path(config.output or "") / "config.yaml")
        going.append(lambda: stopped(config.output, ["secateur", "compare", again, "--resume"]))
        with bars() as progress:
            compared = compare_run(
                config,
                resume=resume,
                retry_failed=retry_failed,
                workers=workers,
                progress=progress,
                command=command(),
            )
        show_comparison(compared, Path(config.output or ""))
