"""A result as one HTML file that needs nothing else: no network, no server, no torch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from secateur.errors import InputError
from secateur.files import write_text
from secateur.report import facts_parts, figures, tables
from secateur.report.branches_parts import branches_section
from secateur.report.changes_parts import kept_section, training_section, widths_section
from secateur.report.main_table import main_table
from secateur.report.parts import Section, Shown, has_content, with_rows
from secateur.report.summary import Line, proof_of, summary
from secateur.report.zeros_parts import zeros_section
from secateur.results import Result


def write_report(result: Result, path: Path) -> Path:
    """Write ``result`` as one self-contained HTML page; the same result gives the same bytes.

    Args:
        result: what to show.
        path: the file to write, in a folder that exists; replaced whole or not at all.

    Returns:
        ``path``.

    Raises:
        InputError: ``path`` is a folder, or its folder does not exist.
    """
    return write_page(render(result), path)


def write_page(page: str, path: Path) -> Path:
    """Write a page, whole or not at all.

    Raises:
        InputError: ``path`` is a folder, or its folder does not exist.
        StorageError: the file cannot be written.
    """
    if path.is_dir():
        raise InputError(f"path must be a file, but {path} is a folder")
    if not path.parent.is_dir():
        raise InputError(f"path must lie in an existing folder, but {path.parent} does not exist")
    write_text(path, page)
    return path


def render(result: Result) -> str:
    """The page of ``result`` as HTML text."""
    good = result.check.ok and result.check.changed
    verdict = "Proved" if good else "Not proved"
    return render_page(result.title, verdict, good, summary(result), _sections(result))


def render_page(
    title: str, verdict: str, good: bool, lines: Sequence[Line], sections: Sequence[Section]
) -> str:
    """A page of its parts as HTML text; ``good`` colours the verdict."""
    drawn = any(section.figure for section in sections)
    return (
        _environment()
        .get_template("page.html.j2")
        .render(
            title=title,
            good=good,
            verdict=verdict,
            summary=lines,
            sections=sections,
            css=Markup(_file("page.css")),
            script=_script(_file("page.js")),
            plotly=_script(get_plotlyjs()) if drawn else "",
        )
    )


def _sections(result: Result) -> tuple[Section, ...]:
    """The page from top to bottom, without the parts that have nothing to show."""
    every = (
        Section("results", "Results", tables=(Shown(main_table(result)),)),
        Section(
            "accuracy",
            "Accuracy against sparsity",
            figure=figures.accuracy_figure(result),
            tables=with_rows(tables.points_table(result), folded=True),
        ),
        zeros_section(result.zeros),
        branches_section(result.branches),
        widths_section(result.widths, result.zeros),
        training_section(result.history),
        *facts_parts.facts_sections(result.facts),
        kept_section(result.pinned, result.given_back, result.zeros),
        Section(
            "proof",
            "Proof",
            texts=(proof_of(result),),
            tables=(Shown(tables.proof_table(result)),),
        ),
        Section("notes", "Notes", bullets=result.notes),
        Section(
            "repeat",
            "To repeat it",
            code=result.command,
            tables=(
                *with_rows(tables.asked_table(result.asked), folded=True),
                *with_rows(tables.environment_table(result.environment)),
            ),
        ),
    )
    return tuple(section for section in every if has_content(section))


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FunctionLoader(_file),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["together"] = _together
    environment.filters["dotted"] = _dotted
    return environment


def _file(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def _script(source: str) -> Markup:
    """Script text that cannot end its own element."""
    return Markup(re.sub(r"</(script)", r"<\\/\1", source, flags=re.IGNORECASE))


def _dotted(text: str) -> Markup:
    """Let a long dotted name break after its dots."""
    return Markup("<wbr>").join(re.split(r"(?<=\w\.)(?=\w)", text))


def _together(text: str) -> str:
    """Keep a number, its unit and its exponent on one line."""
    text = re.sub(r"(?<=\de-)(?=\d)", "\u2060", text)
    text = re.sub(r"(?<=\bbatch) (?=\d)", "\u00a0", text)
    return re.sub(r"(?<=\d) (?=(?:%|[kMGTP]?B|[kMGTP]|points|s)(?!\w))", "\u00a0", text)
