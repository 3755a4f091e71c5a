"""The command line: one function per verb, errors on one line, Ctrl-C that can be resumed.

Heavy imports stand inside the verbs, so that help and reports need no torch.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from secateur import cli_export, cli_report, cli_sensitivity, cli_tune
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
    from secateur.study.config import DemoConfig, RunConfig

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


@app.command(
    epilog=examples(
        "secateur prune examples/resnet56_cifar10.yaml",
        "secateur prune examples/resnet56_cifar10.yaml --epochs 3 --output runs/longer",
        "secateur prune --model net.py:build --arg classes=5 --weights net.safetensors \\",
        "    --data photos --image-size 64 --criterion taylor --macs 0.5 --epochs 2",
        "secateur prune examples/resnet56_cifar10.yaml --latency 0.5 --scope isomorphic \\",
        "    --protect kind:head --group-limit 'layer1.*=0.3'",
        "secateur prune runs/longer/config.yaml --resume",
    )
)
def prune(
    run: Annotated[
        Path | None, typer.Argument(help="A YAML file with the settings below; flags override it.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help="package.module:callable or file.py:callable."),
    ] = None,
    arguments: Arguments = None,
    weights: Weights = None,
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            "-d",
            help="Folder of images by class, parquet file or folder of them, digits, or hub:NAME.",
        ),
    ] = None,
    test_data: Annotated[
        str | None, typer.Option("--test-data", help="Another source for the test split.")
    ] = None,
    image_size: Annotated[
        int | None, typer.Option("--image-size", help="Side in pixels that images are scaled to.")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", help="Images in a batch.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", help="At most so many images per split.")
    ] = None,
    skip_unreadable: Annotated[
        bool, typer.Option("--skip-unreadable", help="Leave unreadable images out, counted.")
    ] = False,
    criterion: Annotated[
        str | None, typer.Option("--criterion", "-c", help="Which units go first.")
    ] = None,
    options: Annotated[
        list[str] | None,
        typer.Option("--option", metavar="NAME=VALUE", help="Of the criterion; repeatable."),
    ] = None,
    aggregation: Annotated[
        str | None,
        typer.Option("--aggregation", help="Over a group's slots: sum, mean, max or first."),
    ] = None,
    sparsity: Annotated[
        float | None, typer.Option("--sparsity", help="Share of units to remove, 0 <= s < 1.")
    ] = None,
    params: Annotated[
        float | None, typer.Option("--params", help="Share of parameters to keep.")
    ] = None,
    macs: Annotated[float | None, typer.Option("--macs", help="Share of MACs to keep.")] = None,
    latency: Annotated[
        float | None, typer.Option("--latency", help="Share of the time to keep, measured here.")
    ] = None,
    latency_batch: Annotated[
        int | None, typer.Option("--latency-batch", help="Images in a pass that is timed.")
    ] = None,
    scope: Annotated[
        str | None,
        typer.Option("--scope", help="What competes: local (each group), global or isomorphic."),
    ] = None,
    normalisation: Annotated[
        str | None,
        typer.Option("--normalisation", help="Of a group's scores: none, mean, max, l2 or rank."),
    ] = None,
    protect: Annotated[
        list[str] | None,
        typer.Option(
            "--protect",
            metavar="PATTERN",
            help="Groups, parameters or kind:NAME that stay whole; repeatable.",
        ),
    ] = None,
    group_limits: Annotated[
        list[str] | None,
        typer.Option(
            "--group-limit",
            metavar="PATTERN=LIMIT",
            help="Largest share to go (0.5) or fewest units to stay (8) of groups; repeatable.",
        ),
    ] = None,
    max_sparsity: Annotated[
        float | None,
        typer.Option("--max-sparsity", help="Largest share to go of every other group."),
    ] = None,
    round_to: Annotated[
        int | None, typer.Option("--round-to", help="Keep a multiple of this in each group.")
    ] = None,
    epochs: Annotated[
        int | None, typer.Option("--epochs", "-e", help="Epochs of finetuning; 0 for none.")
    ] = None,
    lr: Annotated[float | None, typer.Option("--lr", help="Learning rate of finetuning.")] = None,
    optimizer: Annotated[
        str | None, typer.Option("--optimizer", help="adam, adamw or sgd.")
    ] = None,
    output: Output = None,
    seed: Seed = None,
    threads: Threads = None,
    resume: Resume = False,
    debug: Debug = False,
) -> None:
    """Prune your network: by flags, by one YAML file, or by a file that flags override.

    Needs a model, data and exactly one of --sparsity, --params, --macs and --latency. The run
    folder then holds config.yaml, result.json, plan.json, model.safetensors, model.json and
    report.html.
    """
    flags = given(
        model=model,
        weights=weights,
        data=given(
            source=data,
            test_source=test_data,
            image_size=image_size,
            batch_size=batch_size,
            limit=limit,
            skip_unreadable=skip_unreadable or None,
        ),
        criterion=criterion,
        aggregation=aggregation,
        target=given(sparsity=sparsity, params=params, macs=macs, latency=latency),
        timing=given(batch=latency_batch),
        scope=scope,
        normalisation=normalisation,
        protect=protect,
        max_sparsity=max_sparsity,
        round_to=round_to,
        finetune=given(epochs=epochs, lr=lr, optimizer=optimizer),
        output=output,
        seed=seed,
        threads=threads,
    )
    with guarded(debug) as going:
        from secateur.study import RunConfig, prune_run
        from secateur.study.reading import merge, parse, read_mapping
        from secateur.study.store import with_output

        if arguments:
            flags["arguments"] = pairs(arguments)
        if options:
            flags["options"] = pairs(options, "option")
        if group_limits:
            flags["limits"] = pairs(group_limits, "group-limit", str)
        raw = merge(read_mapping(run) if run else {}, flags)
        check_resume(resume, raw.get("output"))
        config = with_output(parse(RunConfig, raw, str(run or "")), "prune")
        going.append(_resume_prune(config))
        with bars() as progress:
            result = prune_run(config, resume=resume, progress=progress, command=command())
        show_result(result, Path(config.output or ""))


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


def _resume_prune(config: RunConfig) -> Callable[[], str]:
    again = str(Path(config.output or "") / "config.yaml")
    return lambda: stopped(config.output, ["secateur", "prune", again, "--resume"])
