"""The verb ``prune``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

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
from secateur.errors import InputError, unknown_name
from secateur.screen import bars, show_result

if TYPE_CHECKING:
    from secateur.study.config import RunConfig

GRADUAL = "gradual"

EPILOG = examples(
    "secateur prune examples/resnet56_cifar10.yaml",
    "secateur prune examples/resnet56_cifar10.yaml --epochs 3 --output runs/longer",
    "secateur prune --model net.py:build --arg classes=5 --weights net.safetensors \\",
    "    --data photos --image-size 64 --criterion taylor --macs 0.5 --epochs 2",
    "secateur prune examples/resnet56_cifar10.yaml --latency 0.5 --scope isomorphic \\",
    "    --protect kind:head --group-limit 'layer1.*=0.3'",
    "secateur prune examples/resnet56_cifar10.yaml --criterion reconstruction \\",
    "    --recover least_squares --epochs 0 --output runs/untrained",
    "secateur prune examples/resnet56_weights.yaml --schedule geometric --rounds 3",
    "secateur prune runs/longer/config.yaml --resume",
)


def prune(
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
    image_size: ImageSize = None,
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", help="Images in a batch.")
    ] = None,
    limit: Limit = None,
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
        typer.Option(
            "--scope",
            help="What competes: local (each group), global or isomorphic; or sensitivity, search.",
        ),
    ] = None,
    curves: Annotated[
        str | None,
        typer.Option("--curves", help="Run folder of `sensitivity`, for that scope."),
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
    granularity: Annotated[
        str | None,
        typer.Option("--granularity", help="structure (tensors get smaller) or weight (zeros)."),
    ] = None,
    pattern: Annotated[
        str | None,
        typer.Option("--pattern", metavar="N:M", help="Of weights: N of each M inputs stay."),
    ] = None,
    schedule: Annotated[
        str | None,
        typer.Option(
            "--schedule", help="one-shot, linear, geometric, cubic, or gradual (weights)."
        ),
    ] = None,
    rounds: Annotated[
        int | None, typer.Option("--rounds", help="Turns of removing and finetuning.")
    ] = None,
    frequency: Annotated[
        int | None, typer.Option("--frequency", help="Steps between removals, with gradual.")
    ] = None,
    recover: Annotated[
        str | None,
        typer.Option("--recover", help="Without training: none, bias, recalibrate, least_squares."),
    ] = None,
    sparse: Annotated[
        str | None,
        typer.Option("--sparse", help="Train first with method select, slim, grow or l1."),
    ] = None,
    strength: Annotated[
        float | None, typer.Option("--strength", help="Of the penalty of sparse training.")
    ] = None,
    block_strength: Annotated[
        float | None,
        typer.Option("--block-strength", help="The same for whole residual branches (select)."),
    ] = None,
    sparse_epochs: Annotated[
        int | None, typer.Option("--sparse-epochs", help="Epochs of sparse training.")
    ] = None,
    epochs: Annotated[
        int | None, typer.Option("--epochs", "-e", help="Epochs of finetuning; 0 for none.")
    ] = None,
    lr: Annotated[float | None, typer.Option("--lr", help="Learning rate of finetuning.")] = None,
    optimizer: Annotated[
        str | None, typer.Option("--optimizer", help="adam, adamw or sgd.")
    ] = None,
    tracker: Annotated[
        list[str] | None,
        typer.Option("--tracker", help="Told of finetuning: tensorboard ...; repeatable."),
    ] = None,
    output: Output = None,
    seed: Seed = None,
    threads: Threads = None,
    resume: Resume = False,
    debug: Debug = False,
) -> None:
    """Prune your network: by flags, by one YAML file, or by a file that flags override.

    Needs a model, data and exactly one of --sparsity, --params, --macs, --latency and --pattern;
    --sparse select needs none of them, as what its training drives to zero goes. The run folder
    then holds config.yaml, result.json, plan.json, model.safetensors, model.json and report.html.
    """
    with guarded(debug) as going:
        from secateur.study import RunConfig, prune_run
        from secateur.study.reading import merge, parse, read_mapping
        from secateur.study.store import with_output

        file, model = file_or_model(run, model)
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
            curves=curves,
            normalisation=normalisation,
            protect=protect,
            max_sparsity=max_sparsity,
            round_to=round_to,
            granularity=granularity,
            pattern=pattern,
            recover=recover,
            sparse=given(
                method=sparse,
                strength=strength,
                blocks=block_strength,
                train=given(epochs=sparse_epochs),
            ),
            trackers=tracker,
            finetune=given(epochs=epochs, lr=lr, optimizer=optimizer),
            output=output,
            seed=seed,
            threads=threads,
        )
        if arguments:
            flags["arguments"] = pairs(arguments)
        if options:
            flags["options"] = pairs(options, "option")
        if group_limits:
            flags["limits"] = pairs(group_limits, "group-limit", str)
        raw = merge(read_mapping(file) if file else {}, flags)
        raw = scheduled(without_old_target(raw, flags), schedule, rounds, frequency)
        check_resume(resume, raw.get("output"))
        config = with_output(parse(RunConfig, raw, str(file or "")), "prune")
        going.append(_again(config))
        with bars() as progress:
            result = prune_run(config, resume=resume, progress=progress, command=command())
        show_result(result, Path(config.output or ""))


def without_old_target(raw: dict[str, Any], flags: Mapping[str, Any]) -> dict[str, Any]:
    """Drop the file's target or pattern where a flag says how much goes in another way."""
    selects = flags.get("sparse", {}).get("method") == "select"
    dropped = set()
    if "target" not in flags and ("pattern" in flags or selects):
        dropped.add("target")
    if "pattern" not in flags and ("target" in flags or selects):
        dropped.add("pattern")
    return {key: value for key, value in raw.items() if key not in dropped}


def scheduled(
    raw: dict[str, Any], schedule: str | None, rounds: int | None, frequency: int | None
) -> dict[str, Any]:
    """Return the settings with what --schedule, --rounds and --frequency say.

    Raises:
        InputError: they do not go together, or the schedule is unknown.
    """
    from secateur.schedule import SCHEDULES

    merged = dict(raw)
    if schedule is not None and schedule not in (*SCHEDULES, GRADUAL):
        raise unknown_name("schedule", schedule, [*SCHEDULES, GRADUAL])
    if schedule == GRADUAL:
        if rounds is not None:
            raise InputError(f"rounds must be left out with --schedule gradual, but got {rounds}")
        merged.pop("rounds", None)
        merged["gradual"] = merged.get("gradual") or {}
    elif schedule is not None or rounds is not None:
        held = raw.get("rounds")
        before = dict(held) if isinstance(held, Mapping) else {}
        merged["rounds"] = {**before, **given(schedule=schedule, number=rounds)}
        if schedule == "one-shot":
            merged["rounds"] = {"schedule": schedule, **given(number=rounds)}
        elif "number" not in merged["rounds"]:
            raise InputError(f"rounds must be given with --schedule {schedule}, but got none")
        merged.pop("gradual", None)
    if frequency is not None:
        if "gradual" not in merged:
            raise InputError(
                f"frequency must be left out without --schedule gradual, but got {frequency}"
            )
        merged["gradual"] = {**(merged["gradual"] or {}), "frequency": frequency}
    return merged


def _again(config: RunConfig) -> Callable[[], str]:
    path = str(Path(config.output or "") / "config.yaml")
    return lambda: stopped(config.output, ["secateur", "prune", path, "--resume"])
