"""What all verbs of the command line share: options, errors on one line, how to go on."""

from __future__ import annotations

import contextlib
import shlex
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from secateur.errors import (
    InputError,
    SecateurError,
    is_out_of_memory,
    told_out_of_memory,
)

BAD_INPUT = 2
STOPPED = 130
AGAIN = ("--resume", "--retry-failed")

app = typer.Typer(
    name="secateur",
    help="Make trained PyTorch networks smaller and faster by pruning, and prove it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def examples(*lines: str) -> str:
    """Put examples below the options; the mark keeps their lines as they are."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)


Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Output = Annotated[
    str | None, typer.Option("--output", "-o", help="Run folder; by default a new one in runs/.")
]
Seed = Annotated[int | None, typer.Option("--seed", help="Of everything that is drawn.")]
Threads = Annotated[int | None, typer.Option("--threads", help="Threads that PyTorch may use.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the stopped run in the folder.")]
Arguments = Annotated[
    list[str] | None,
    typer.Option("--arg", "-a", metavar="NAME=VALUE", help="Argument of the callable; repeatable."),
]
Weights = Annotated[
    str | None,
    typer.Option("--weights", "-w", help="A safetensors file, or a .pth with a state dict."),
]
Model = Annotated[
    str | None, typer.Option("--model", "-m", help="package.module:callable or file.py:callable.")
]
ImageSize = Annotated[
    int | None, typer.Option("--image-size", help="Side in pixels that images are scaled to.")
]
Limit = Annotated[int | None, typer.Option("--limit", help="At most so many images per split.")]


@contextlib.contextmanager
def guarded(debug: bool) -> Iterator[list[Callable[[], str]]]:
    """Turn what the user can mend into one line; what is added to the list tells how to go on."""
    going: list[Callable[[], str]] = []
    try:
        yield going
    except (SecateurError, OSError) as error:
        if debug:
            traceback.print_exc()
        memory = is_out_of_memory(error)
        typer.echo(f"error: {told_out_of_memory(error) if memory else error}", err=True)
        raise typer.Exit(BAD_INPUT) from None
    except (MemoryError, RuntimeError, ImportError) as error:
        if debug or not is_out_of_memory(error):
            raise
        typer.echo(f"error: {told_out_of_memory(error)}", err=True)
        raise typer.Exit(BAD_INPUT) from None
    except KeyboardInterrupt:
        typer.echo(going[-1]() if going else "stopped", err=True)
        raise typer.Exit(STOPPED) from None


def stopped(output: str | None, command: Sequence[str]) -> str:
    """Say how to go on with a stopped run, if it had begun."""
    if (Path(output or "") / "config.yaml").is_file():
        return f"stopped; go on with: {shlex.join(command)}"
    return "stopped before the run had begun; nothing is left of it"


def check_resume(resume: bool, output: Any) -> None:
    """Refuse to resume without a folder."""
    if resume and output is None:
        raise InputError("resume needs the run folder: give --output")


def file_or_model(argument: str | None, model: str | None) -> tuple[Path | None, str | None]:
    """Tell a file of settings from a model, which may both stand before the options.

    Returns:
        The file, if one was given, and the model, if one was given in either way.

    Raises:
        InputError: the model is given twice.
    """
    if argument is None:
        return None, model
    is_file = argument.endswith((".yaml", ".yml")) or Path(argument).exists()
    if is_file or ":" not in argument:
        return Path(argument), model
    if model is not None:
        raise InputError(f"model must be given once, but got {argument!r} and {model!r}")
    return None, argument


def given(**values: Any) -> dict[str, Any]:
    """Keep what was given."""
    return {name: value for name, value in values.items() if value is not None and value != {}}


def pairs(
    texts: Sequence[str], flag: str = "arg", good: Callable[[str], object] = str.isidentifier
) -> dict[str, Any]:
    """Read ``name=value``; values are YAML, so that 3 is a number and a, b a text."""
    found: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not good(name):
            raise InputError(f"{flag} must look like name=value, but got {text!r}")
        try:
            found[name] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise InputError(f"{flag} must have a value in YAML, but got {text!r}") from error
    return found


def read_shape(text: str) -> tuple[int, ...]:
    """Read ``3x224x224``."""
    parts = text.lower().replace(",", "x").split("x")
    if not all(part.strip().isdigit() and int(part) > 0 for part in parts):
        raise InputError(f"input must look like 3x224x224, but got {text!r}")
    return tuple(int(part) for part in parts)


def command() -> str:
    """Say how to repeat what was asked; a resumed run is repeated from its beginning."""
    return shlex.join(["secateur", *(word for word in sys.argv[1:] if word not in AGAIN)])
