"""The verb ``report``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from secateur.cli_shared import Debug, examples, guarded
from secateur.errors import InputError

EPILOG = examples(
    "secateur report runs/demo",
    "secateur report runs/prune runs/compare --output runs/both",
)


def report(
    folders: Annotated[
        list[Path], typer.Argument(metavar="FOLDER...", help="Folders of finished runs.")
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder of the merged page (runs/report)."),
    ] = None,
    debug: Debug = False,
) -> None:
    """Draw report.html again from stored results, or one page of several runs.

    Every table is written beside it as CSV and JSON. Nothing is measured, and torch is not needed.
    """
    with guarded(debug):
        from secateur.report.merged_page import write_merged
        from secateur.report.stored import draw_again, load_run

        if len(folders) == 1:
            if output is not None:
                raise InputError("output must not be given for one folder: its page is drawn in it")
            typer.echo(f"report: {draw_again(folders[0])}")
            return
        homes = dict(zip(_names(folders), folders, strict=True))
        records = {name: load_run(folder) for name, folder in homes.items()}
        typer.echo(f"report: {write_merged(records, output or Path('runs') / 'report', homes)}")


def _names(folders: Sequence[Path]) -> list[str]:
    """Name runs by the ends of their paths, as long as it takes to tell them apart."""
    parts = [folder.resolve().parts for folder in folders]
    if len(set(parts)) < len(parts):
        raise InputError(f"folders must be named once each, but got {[str(f) for f in folders]}")
    length = 1
    while len({part[-length:] for part in parts}) < len(parts):
        length += 1
    return ["-".join(part.strip("/") for part in one[-length:]) for one in parts]
