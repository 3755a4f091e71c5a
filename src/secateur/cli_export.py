"""The verb ``export``."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from secateur.cli_shared import Debug, examples, guarded, read_shape
from secateur.errors import CheckpointError, InputError
from secateur.screen import bars

if TYPE_CHECKING:
    from torch import nn

    from secateur.deployment import Exported

EPILOG = examples(
    "secateur export runs/demo --onnx net.onnx",
    "secateur export runs/prune --onnx net.onnx --trust my_package",
    "secateur export runs/prune --onnx net.onnx --program net.pt2 --batch 1 --batch 32",
    "secateur export saved-network --onnx net.onnx --input 3x224x224 --no-speed",
    "secateur export saved-bert --onnx net.onnx --tokens 128 --json",
)


def export(
    folder: Annotated[Path, typer.Argument(help="A run folder, or what secateur.save wrote.")],
    onnx: Annotated[Path | None, typer.Option("--onnx", help="The ONNX file to write.")] = None,
    program: Annotated[
        Path | None, typer.Option("--program", help="The torch.export program (.pt2) to write.")
    ] = None,
    shape: Annotated[
        str | None, typer.Option("--input", "-i", metavar="CxHxW", help="Shape of one sample.")
    ] = None,
    tokens: Annotated[
        int | None, typer.Option("--tokens", metavar="LENGTH", help="Tokens of one sample.")
    ] = None,
    inputs: Annotated[
        str | None, typer.Option("--inputs", help="file.py:callable that returns the inputs.")
    ] = None,
    trust: Annotated[
        list[str] | None,
        typer.Option("--trust", help="Package or file.py that the network may use; repeatable."),
    ] = None,
    batch: Annotated[
        list[int] | None, typer.Option("--batch", min=1, help="Batch to time; repeatable (1, 32).")
    ] = None,
    threads: Annotated[int, typer.Option("--threads", min=1, help="Threads of both runtimes.")] = 1,
    seconds: Annotated[
        float, typer.Option("--seconds", help="About how long each batch is timed.")
    ] = 5.0,
    no_speed: Annotated[bool, typer.Option("--no-speed", help="Leave the clock out.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    debug: Debug = False,
) -> None:
    """Write a saved network as an ONNX file or a torch.export program, with a free batch.

    Each file is run and compared with PyTorch at two batch sizes before it is put in place: one
    that computes something else is an error. Then PyTorch and the file are timed in turns. A run
    folder knows its data; for other folders give one of --input, --tokens and --inputs.
    """
    with guarded(debug):
        if onnx is None and program is None:
            raise InputError("onnx or program must name the file to write, but got neither")
        from secateur.deployment import export_onnx, export_program
        from secateur.latency import Timing

        model, example = saved(folder, shape, tokens, inputs, trust or ())
        timing = Timing(threads=threads, seconds=seconds)
        sizes = () if no_speed else tuple(batch or (1, 32))
        found = []
        with bars() as progress:
            for path, write in ((onnx, export_onnx), (program, export_program)):
                if path is not None:
                    found.append(
                        write(model, example, path, batches=sizes, timing=timing, progress=progress)
                    )
        if as_json:
            typer.echo(json.dumps([_plain(one) for one in found], indent=1))
        else:
            for one in found:
                typer.echo("\n".join(_said(one)))


def saved(
    folder: Path, shape: str | None, tokens: int | None, inputs: str | None, trust: Sequence[str]
) -> tuple[nn.Module, Any]:
    """Load a network, and find an example input: as given, else from the run's own data."""
    import torch

    from secateur.checkpoint import load
    from secateur.models import import_code, load_inputs
    from secateur.study.inspection import token_inputs
    from secateur.study.reading import read_mapping
    from secateur.study.stages import EXAMPLES

    given = {"input": shape, "tokens": tokens, "inputs": inputs}
    told = [name for name, value in given.items() if value is not None]
    if len(told) > 1:
        raise InputError(f"one of input, tokens and inputs must be given, but got {told}")
    settings = folder / "config.yaml"
    asked = read_mapping(settings) if settings.is_file() else {}
    try:
        model = load(folder, trust=import_code(trust))
    except CheckpointError as error:
        if "trust=" not in str(error):
            raise
        raise CheckpointError(f"{error}; here --trust my_package or --trust file.py") from error
    if shape is not None:
        return model, torch.zeros(EXAMPLES, *read_shape(shape))
    if tokens is not None:
        if tokens < 1:
            raise InputError(f"tokens must be at least 1, but got {tokens}")
        return model, token_inputs(model, tokens)
    if inputs is not None:
        return model, load_inputs(inputs)
    return model, _from_data(folder, asked)


def _from_data(folder: Path, asked: dict[str, Any]) -> Any:
    """Take a few calibration images of the run; the demo's are the digits."""
    from secateur.data import batches, load_data
    from secateur.study.config import DataSettings
    from secateur.study.reading import parse

    if "data" in asked:
        data = parse(DataSettings, asked["data"], str(folder / "config.yaml"))
        options = data.model_dump(exclude={"batch_size", "augment"})
        images = load_data(**options, seed=int(asked.get("seed", 0)))
    elif "criteria" in asked and "model" not in asked:
        images = load_data("digits", validation=0.2, seed=0)
    else:
        raise InputError(
            f"one of input, tokens and inputs must be given: {folder} does not say what its "
            "network takes"
        )
    few = next(iter(batches(images.calibration, min(2, len(images.calibration)))))
    return few[0]


def _plain(one: Exported) -> dict[str, Any]:
    speeds = [{name: vars(speed) for name, speed in turn.items()} for turn in one.speeds]
    return {**dataclasses.asdict(one), "path": str(one.path), "speeds": speeds}


def _said(one: Exported) -> list[str]:
    lines = [
        f"{one.kind}: {one.path} ({one.size / 1e6:.2f} MB)",
        f"  equals PyTorch: largest relative error {one.max_error:.1e} at batch sizes "
        f"{' and '.join(map(str, one.batches))} ({one.runtime})",
    ]
    if not one.varied:
        lines.append("  which proves nothing: the outputs are the same for every input")
    if one.left_out:
        lines.append(f"  left out: {', '.join(one.left_out)}")
    for turn in one.speeds:
        here, there = turn["pytorch"], turn["exported"]
        lines.append(
            f"  batch {here.batch}, {here.threads} thread{'s' * (here.threads > 1)}: PyTorch "
            f"{here.median:.4g} /s ({here.low:.4g} to {here.high:.4g}), exported "
            f"{there.median:.4g} /s ({there.low:.4g} to {there.high:.4g}), "
            f"x{there.median / here.median:.2f}"
        )
    return lines
