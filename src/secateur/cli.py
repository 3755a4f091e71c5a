"""The command line: one function per verb, errors on one line, Ctrl-C that can be resumed.

Heavy imports stand inside the verbs, so that help and reports need no torch.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from secateur import cli_export, cli_prune, cli_report, cli_sensitivity, cli_tune
from secateur.cli_compare import EPILOG, compare
from secateur.cli_shared import (
    Arguments,
    Debug,
    Output,
    Resume,
    Seed,
    Threads,
    Weights,
    app,
    check_resume,
    command,
    examples,
    given,
    guarded,
    pairs,
    read_shape,
    stopped,
)
from secateur.screen import bars, show_inspection, show_result

if TYPE_CHECKING:
    from secateur.study.config import DemoConfig

__all__ = ["app", "main"]


@app.command(
    epilog=examples(
        "secateur demo",
        "secateur demo --seed 1 --output runs/demo-seed-1",
        "secateur demo --output runs/demo --resume",
    )
)
def demo(
    output: Output = None,
    seed: Seed = None,
    threads: Threads = None,
    resume: Resume = False,
    debug: Debug = False,
) -> None:
    """Prune a network on the handwritten digits of scikit-learn, in about a minute.

    Trains a small convolutional network, compares criteria at several sparsities, cuts by the
    best one, proves that the cut is right, and measures both networks on the test split.
    """
    flags = given(output=output, seed=seed, threads=threads)
    with guarded(debug) as going:
        from secateur.study import DemoConfig, demo_run
        from secateur.study.reading import parse
        from secateur.study.store import with_output

        config = with_output(parse(DemoConfig, flags, ""), "demo")
        going.append(_resume_demo(config))
        check_resume(resume, output)
        with bars() as progress:
            result = demo_run(config, resume=resume, progress=progress, command=command())
        show_result(result, Path(config.output or ""))


app.command(epilog=cli_prune.EPILOG)(cli_prune.prune)


@app.command(
    epilog=examples(
        "secateur inspect secateur.models:digits_cnn --input 1x8x8",
        "secateur inspect secateur.models:cifar_resnet --arg depth=20 --input 3x32x32",
        "secateur inspect torchvision.models:resnet50 --input 3x224x224 --json",
        "secateur inspect hf:distilbert-base-uncased --tokens 128",
        "secateur inspect hf:folder-with-config-json --tokens 128 --meta",
    )
)
def inspect(
    model: Annotated[
        str, typer.Argument(help="package.module:callable, file.py:callable or hf:FOLDER-OR-NAME.")
    ],
    shape: Annotated[
        str | None, typer.Option("--input", "-i", metavar="CxHxW", help="Shape of one sample.")
    ] = None,
    tokens: Annotated[
        int | None, typer.Option("--tokens", metavar="LENGTH", help="Tokens of one sample.")
    ] = None,
    inputs: Annotated[
        str | None, typer.Option("--inputs", help="file.py:callable that returns the inputs.")
    ] = None,
    arguments: Arguments = None,
    weights: Weights = None,
    meta: Annotated[bool, typer.Option("--meta", help="Build shapes alone, no weights.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, nothing shortened.")] = False,
    debug: Debug = False,
) -> None:
    """Show what can be cut from a network: its groups, and what is pinned and why.

    Needs one of --input, --tokens and --inputs. The shares say how much of the parameters and
    MACs goes when one unit of the group stays.
    """
    with guarded(debug):
        from secateur.study.inspection import inspected

        size = read_shape(shape) if shape is not None else None
        named = pairs(arguments or [])
        found = inspected(model, named, weights, size, tokens=tokens, inputs=inputs, meta=meta)
        if as_json:
            typer.echo(json.dumps(found, indent=1))
        else:
            show_inspection(found)


app.command(epilog=EPILOG)(compare)
app.command(epilog=cli_tune.EPILOG)(cli_tune.tune)
app.command(epilog=cli_export.EPILOG)(cli_export.export)
app.command(epilog=cli_sensitivity.EPILOG)(cli_sensitivity.sensitivity)
app.command(epilog=cli_report.EPILOG)(cli_report.report)


def main() -> None:
    """Run the command line."""
    app()


def _resume_demo(config: DemoConfig) -> Callable[[], str]:
    parts = ["secateur", "demo", "--output", str(config.output)]
    if config.seed:
        parts += ["--seed", str(config.seed)]
    if config.threads != type(config)().threads:
        parts += ["--threads", str(config.threads)]
    return lambda: stopped(config.output, [*parts, "--resume"])
