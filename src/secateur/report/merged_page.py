"""Several runs on one page: their networks in one table and one figure; from records alone."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from urllib.parse import quote

import plotly.graph_objects as go

from secateur.comparison import Comparison, setups
from secateur.errors import InputError
from secateur.report import comparison_page, sensitivity_page, tuning_page
from secateur.report import format as fmt
from secateur.report.cells import Cell, Column, Table
from secateur.report.cells import text_cell as _text
from secateur.report.comparison_tables import name_of, varying
from secateur.report.export import write_each
from secateur.report.figures import GREY, PALETTE, SYMBOLS, Figure, finished, safe
from secateur.report.page import render_page, write_page
from secateur.report.parts import Section, Shown
from secateur.report.stored import Record, write_run_tables
from secateur.report.summary import Line, summary
from secateur.results import Measured, Result
from secateur.sensitivity_results import Sensitivity

NOWHERE: Mapping[str, Path] = MappingProxyType({})
NO_LINKS: Mapping[str, str] = MappingProxyType({})

_EMPTY = Cell(None, "")


@dataclass(frozen=True)
class Network:
    """One pruned network of a run, beside the run's dense one; shares are of the dense network."""

    run: str
    name: str
    dense: Measured
    validation: float | None
    test: float | None
    params: float
    macs: float
    size: float
    time: float | None


def write_merged(
    runs: Mapping[str, Record], folder: Path, homes: Mapping[str, Path] = NOWHERE
) -> Path:
    """Write ``report.html`` of several runs, and every table as CSV and JSON.

    Args:
        runs: records by name.
        folder: made when it does not exist; ``networks`` and ``runs`` lie in it, and the tables of
            each run in a folder of its name.
        homes: the folder of each run by name, as far as known; the page leads to the
            ``report.html`` in it.

    Returns:
        The page.

    Raises:
        InputError: fewer than two runs, or ``folder`` is a file or the folder of a run, whose page
            would be lost.
    """
    if len(runs) < 2:
        raise InputError(f"runs must be at least two, but got {len(runs)}")
    for home in homes.values():
        if home.resolve() == folder.resolve():
            raise InputError(f"folder must be none of the runs' own, but got {folder}")
    found = tuple(network for name, record in runs.items() for network in _networks(name, record))
    links = report_links(homes, folder)
    every = (runs_table(runs, links), networks_table(found))
    write_each([table for table in every if table.rows], folder)
    for name, record in runs.items():
        write_run_tables(record, folder / name)
    return write_page(render_merged(runs, links), folder / "report.html")


def render_merged(runs: Mapping[str, Record], links: Mapping[str, str] = NO_LINKS) -> str:
    """The page of several runs as HTML text; ``links`` as :func:`report_links` gives them."""
    found = tuple(network for name, record in runs.items() for network in _networks(name, record))
    alike, verdict = _alike(found)
    sections = [
        Section(
            "networks",
            "All networks",
            texts=(verdict,),
            figure=networks_figure(found),
            tables=(Shown(networks_table(found)),) if found else (),
        ),
        Section("runs", "All runs", tables=(Shown(runs_table(runs, links)),)),
        *(
            Section(f"run-{place}", name, bullets=_told(record))
            for place, (name, record) in enumerate(runs.items(), start=1)
        ),
    ]
    title = f"{len(runs)} runs side by side"
    short = "Like for like" if alike else "Not like for like"
    return render_page(title, short, alike, _summary(runs, found, verdict), sections)


def networks_table(found: Sequence[Network]) -> Table:
    """One row a network."""
    columns = (
        Column("network", "Network"),
        Column("run", "Run"),
        Column("test", "Accuracy (test)", True),
        Column("change", "To dense", True),
        Column("validation", "Accuracy (validation)", True),
        Column("params", "Parameters", True),
        Column("macs", "MACs", True),
        Column("bytes", "Gzipped", True),
        Column("time", "Time", True),
    )
    rows = tuple(
        (
            _text(one.name),
            _text(one.run),
            _share(one.test, 2),
            _change(one),
            _share(one.validation, 2),
            _share(one.params),
            _share(one.macs),
            _share(one.size),
            _share(one.time),
        )
        for one in found
    )
    caption = "Every network; sizes and time as shares of its own run's dense network."
    return Table("networks", caption, columns, rows)


def runs_table(runs: Mapping[str, Record], links: Mapping[str, str] = NO_LINKS) -> Table:
    """One row a run: what it was, where its own report lies, and on what it was measured."""
    columns = (
        Column("run", "Run"),
        *((Column("report", "Report"),) if links else ()),
        Column("title", "Title"),
        Column("dense_test", "Dense (test)", True),
        Column("dense_params", "Dense parameters", True),
        Column("dense_macs", "Dense MACs", True),
        Column("processor", "Measured on"),
        Column("command", "Command"),
    )
    rows = []
    for name, record in runs.items():
        dense = record.dense if isinstance(record, Result | Comparison) else None
        where = record.environment
        rows.append(
            (
                _text(name),
                *((_leading(name, links.get(name)),) if links else ()),
                _text(record.title),
                _EMPTY if dense is None else _share(dense.quality.accuracy, 2),
                _EMPTY if dense is None else Cell(dense.size.params, fmt.count(dense.size.params)),
                _EMPTY if dense is None else Cell(dense.size.macs, fmt.short(dense.size.macs)),
                _text(f"{where.get('processor', 'unknown')}, {where.get('threads', '?')} threads"),
                _text(record.command),
            )
        )
    caption = "Every run, with the way to its own report." if links else "Every run."
    return Table("runs", caption, columns, tuple(rows))


def report_links(homes: Mapping[str, Path], folder: Path) -> dict[str, str]:
    """Where each run's own page is as seen from a page in ``folder``, for those that have one.

    The links are relative, so they still lead there after all has been moved together.
    """
    pages = {name: home / "report.html" for name, home in homes.items()}
    return {name: _link(page, folder) for name, page in pages.items() if page.is_file()}


def _link(page: Path, folder: Path) -> str:
    try:
        seen = os.path.relpath(page, folder)
    except ValueError:  # on another drive, which no relative path leads to
        return page.absolute().as_uri()
    return quote(os.fsencode(Path(seen).as_posix()))


def _leading(name: str, link: str | None) -> Cell:
    if link is None:
        return _EMPTY
    return Cell(link, "Open", link=link, spoken=f"Open the report of {name}")


def networks_figure(found: Sequence[Network]) -> Figure | None:
    """Accuracy on test against MACs, one colour a run; None without networks measured there."""
    known = [one for one in found if one.test is not None]
    if not known:
        return None
    figure = go.Figure()
    runs = list(dict.fromkeys(one.run for one in known))
    for rank, run in enumerate(runs):
        mine = sorted((one for one in known if one.run == run), key=lambda one: one.macs)
        figure.add_scatter(
            name=safe(run),
            mode="markers",
            marker={
                "color": PALETTE[rank % len(PALETTE)],
                "symbol": SYMBOLS[rank % len(SYMBOLS)],
                "size": 10,
            },
            x=[100 * one.macs for one in mine],
            y=[100 * (one.test or 0) for one in mine],
            customdata=[[safe(one.name), fmt.percent(one.params, 1)] for one in mine],
            hovertemplate=(
                f"<b>{safe(run)}</b><br>%{{customdata[0]}}<br>accuracy %{{y:.2f}} % at "
                "%{x:.1f} % of the MACs, %{customdata[1]} of the parameters<extra></extra>"
            ),
        )
    dense = list(dict.fromkeys(100 * one.dense.quality.accuracy for one in known))
    figure.add_scatter(
        name="dense",
        mode="markers",
        marker={"symbol": "star", "size": 14, "color": GREY},
        x=[100] * len(dense),
        y=dense,
        hovertemplate="dense, %{y:.2f} %<extra></extra>",
    )
    figure.update_layout(
        xaxis={
            "title": {"text": "MACs, share of the dense network"},
            "ticksuffix": " %",
            "rangemode": "tozero",
        },
        yaxis={"title": {"text": "Accuracy on test"}, "ticksuffix": " %"},
        hovermode="closest",
        legend={"itemsizing": "constant"},
    )
    caption = "One colour and marker for each run; the star is its dense network."
    return finished("networks", "Accuracy against MACs", caption, 480, figure)


def _networks(run: str, record: Record) -> Iterator[Network]:
    if isinstance(record, Result):
        yield _of_result(run, record)
    elif isinstance(record, Comparison):
        yield from _of_comparison(run, record)


def _of_result(run: str, record: Result) -> Network:
    before, after = record.dense.size, record.pruned.size
    tested = record.pruned.quality.split == "test"
    return Network(
        run=run,
        name=record.title,
        dense=record.dense,
        validation=None if tested else record.pruned.quality.accuracy,
        test=record.pruned.quality.accuracy if tested else None,
        params=after.params / before.params,
        macs=after.macs / before.macs,
        size=after.bytes_gzip / before.bytes_gzip,
        time=_time(record),
    )


def _time(record: Result) -> float | None:
    """Time at the least batch that both were measured at."""
    after = {(one.batch, one.threads): one.median for one in record.pruned.speeds}
    for one in sorted(record.dense.speeds, key=lambda one: (one.batch, one.threads)):
        if after.get((one.batch, one.threads)):
            return one.median / after[one.batch, one.threads]
    return None


def _of_comparison(run: str, record: Comparison) -> Iterator[Network]:
    """The chosen setup and those on the frontier for MACs."""
    every = setups(record.trials)
    shown = varying([setup.first for setup in every]) if every else ()
    size = record.dense.size
    for setup in every:
        chosen = record.chosen in [trial.number for trial in setup.trials]
        if not chosen and "macs" not in setup.frontiers:
            continue
        yield Network(
            run=run,
            name=name_of(setup.first, shown) + (" (chosen)" if chosen else ""),
            dense=record.dense,
            validation=setup.accuracy,
            test=setup.test,
            params=setup.params / size.params,
            macs=setup.macs / size.macs,
            size=setup.bytes / size.bytes_gzip,
            time=setup.latency,
        )


def _alike(found: Sequence[Network]) -> tuple[bool, str]:
    """Whether all networks come from the same dense one, measured on as many images."""
    if not found:
        return True, "None of these runs made a network to compare."
    dense = {
        (
            one.dense.quality.accuracy,
            one.dense.quality.count,
            one.dense.size.params,
            one.dense.size.macs,
        )
        for one in found
    }
    if len(dense) == 1:
        return True, "All networks come from the same dense network, judged on the same test split."
    return False, (
        f"Not like for like: the runs have {len(dense)} different dense networks or test splits. "
        "Compare changes to dense, not accuracies."
    )


def _summary(
    runs: Mapping[str, Record], found: Sequence[Network], verdict: str
) -> tuple[Line, ...]:
    tested = [one for one in found if one.test is not None]
    lines = [Line("Runs", f"{', '.join(runs)}."), Line("Compared", verdict)]
    if tested:
        best = max(tested, key=lambda one: (one.test or 0, -one.macs))
        small = min(tested, key=lambda one: (one.macs, -(one.test or 0)))
        lines += [Line("Most accurate", _named(best)), Line("Fewest MACs", _named(small))]
    lines.append(Line("Networks", f"{len(found)}, of which {len(tested)} are measured on test."))
    return tuple(lines)


def _named(one: Network) -> str:
    return (
        f"{one.name} of {one.run}: {fmt.percent(one.test or 0)} on test, "
        f"{fmt.percent(one.macs, 1)} of the MACs, {fmt.percent(one.params, 1)} of the parameters."
    )


def _told(record: Record) -> tuple[str, ...]:
    """What the run's own page says first."""
    if isinstance(record, Result):
        lines = summary(record)
    elif isinstance(record, Comparison):
        lines = comparison_page.summary(record, setups(record.trials))
    elif isinstance(record, Sensitivity):
        lines = sensitivity_page.summary(record)
    else:
        lines = tuning_page.summary(record)
    return tuple(f"{line.label}: {line.text}" for line in lines)


def _share(value: float | None, digits: int = 1) -> Cell:
    return _EMPTY if value is None else Cell(value, fmt.percent(value, digits))


def _change(one: Network) -> Cell:
    if one.test is None or one.dense.quality.split != "test":
        return _EMPTY
    change = one.test - one.dense.quality.accuracy
    return Cell(change, fmt.points(change))
