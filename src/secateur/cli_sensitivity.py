"""The verb ``sensitivity``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from secateur.cli_shared import (
    Arguments,
    Debug,
    ImageSize,
    Limit,
    Model,
    Output,
    Resume,
    Seed,
    Threads,
    Weights,
    check_resume,
    command,
    examples,
    file_or_model,
    given,
    guarded,
    pairs,
    stopped,
)
from secateur.screen import bars

EPILOG = examples(
    "secateur sensitivity sensitivity.yaml",
    "secateur sensitivity --model net.py:build --weights net.safetensors --data photos \\",
    "    --image-size 64 --criterion taylor --macs 0.5",
    "secateur sensitivity runs/sensitivity/config.yaml --resume",
)


def sensitivity(
    run: Annotated[
        str | None,
        typer.Argument(
            metavar="[FILE | MODEL]",
            help="A YAML file with the settings below, which flags override; or the model.",
        ),
    ] = None,
    model: Model = None,
    arguments: Arguments = None,
    weights: Weights = None,
    data: Annotated[
        str | None, typer.Option("--data", "-d", help="Source of the images, as for prune.")
    ] = None,
    image_size: ImageSize = None,
    limit: Limit = None,
    criterion: Annotated[
        str | None, typer.Option("--criterion", "-c", help="Which units of a group go first.")
    ] = None,
    sparsity: Annotated[
        float | None, typer.Option("--sparsity", help="Divide this share of units over groups.")
    ] = None,
    macs: Annotated[
        float | None, typer.Option("--macs", help="Divide this share of MACs to keep.")
    ] = None,
    params: Annotated[
        float | None, typer.Option("--params", help="Divide this share of parameters to keep.")
    ] = None,
    output: Output = None,
    seed: Seed = None,
    threads: Threads = None,
    resume: Resume = False,
    debug: Debug = False,
) -> None:
    """Cut each group alone at 10 to 90 % and measure what that does, on validation.

    Leaves a heat map (report.html) and tables. With --sparsity, --macs or --params the target is
    divided over the groups by what was measured, and the plan and the network are kept, too.
    """
    with guarded(debug) as going:
        from secateur.report.sensitivity_page import summary
        from secateur.sensitivity import SensitivityConfig, sensitivity_run
        from secateur.study.reading import merge, parse, read_mapping
        from secateur.study.store import with_output

        file, model = file_or_model(run, model)
        flags = given(
            model=model,
            weights=weights,
            data=given(source=data, image_size=image_size, limit=limit),
            criterion=criterion,
            target=given(sparsity=sparsity, macs=macs, params=params),
            output=output,
            seed=seed,
            threads=threads,
        )
        if arguments:
            flags["arguments"] = pairs(arguments)
        raw = merge(read_mapping(file) if file else {}, flags)
        check_resume(resume, raw.get("output"))
        config = with_output(parse(SensitivityConfig, raw, str(file or "")), "sensitivity")
        again = str(Path(config.output or "") / "config.yaml")
        going.append(lambda: stopped(config.output, ["secateur", "sensitivity", again, "--resume"]))
        with bars() as progress:
            found = sensitivity_run(config, resume=resume, progress=progress, command=command())
        console = Console()
        for line in summary(found):
            text = f"{line.label + ':':<17}{line.text}"
            console.print(text, markup=False, highlight=False, soft_wrap=True)
        report = Path(config.output or "") / "report.html"
        console.print(f"{'report:':<17}{report}", markup=False, highlight=False, soft_wrap=True)
