"""A tuning run as one HTML file and its tables as CSV and JSON; from records alone."""

from __future__ import annotations

from pathlib import Path

from secateur.report import format as fmt
from secateur.report import tables as tables_of
from secateur.report import tuning_figures as figures
from secateur.report import tuning_tables as tables
from secateur.report.export import write_each
from secateur.report.figures import Figure
from secateur.report.page import render_page, write_page
from secateur.report.parts import Section, Shown, has_content, with_rows
from secateur.report.summary import Line, proof
from secateur.tuning_results import Transfer, Tuning, ranked


def write_tuning(tuning: Tuning, path: Path) -> Path:
    """Write a tuning run as one self-contained page; the same run gives the same bytes.

    Raises:
        InputError: ``path`` is a folder, or its folder does not exist.
    """
    return write_page(render_tuning(tuning), path)


def write_tuning_tables(tuning: Tuning, folder: Path) -> tuple[Path, ...]:
    """Write every table as CSV and JSON; see ``write_tables``."""
    every = (
        tables.best_table(tuning),
        tables.dense_table(tuning),
        tables.sizes_table(tuning),
        tables.trials_table(tuning),
        tables.trust_table(tuning),
        tables.pairs_table(tuning),
    )
    return write_each([table for table in every if table.rows], folder)


def render_tuning(tuning: Tuning) -> str:
    """The page of a tuning run as HTML text."""
    gain = _gain(tuning)
    better = gain is not None and gain > 0
    verdict = "Better than before" if better else "Not better than before"
    return render_page(tuning.title, verdict, better, summary(tuning), _sections(tuning))


def summary(tuning: Tuning) -> tuple[Line, ...]:
    """Five lines: proxy, search, chosen, test, trust."""
    return (
        Line("Proxy", _proxy(tuning)),
        Line("Search", _search(tuning)),
        Line("Chosen", _chosen(tuning)),
        Line("Test", _test(tuning)),
        Line("Trust", " ".join(hypotheses(one) for one in tuning.transfers) or _UNTRUSTED),
    )


def hypotheses(one: Transfer) -> str:
    """The three hypotheses of the source as measured answers, in words."""
    shown = one.kendall.low is not None and one.kendall.low > 0
    better = shown and one.chance is not None and one.chance < CHANCE
    order = "settings transfer" if better else "that settings transfer is not shown"
    return (
        f"{one.sparsity} ({len(one.pairs)} settings): (a) {order}: Kendall's tau-b "
        f"{tables.interval(one.kendall)}{_chance(one)}, the proxy's choice is number {one.rank} "
        f"on the dense network and loses {tables.interval(one.regret, 4)} of {one.metric}; "
        f"(b) a setting costs {tables.interval(one.speedup)} times less on the proxy; "
        f"(c) the good ranges overlap by {tables.interval(one.overlap)}."
    )


def _chance(one: Transfer) -> str:
    return "" if one.chance is None else f", by chance with p = {fmt.tiny(one.chance)}"


CHANCE = 0.05
_UNTRUSTED = (
    "Not measured: whether settings transfer on this network is not known from this run (the "
    "key trust measures it)."
)


def _sections(tuning: Tuning) -> tuple[Section, ...]:
    every = (
        Section("best", "Best settings", tables=(Shown(tables.best_table(tuning)),)),
        Section("dense", "Dense network", tables=(Shown(tables.dense_table(tuning)),)),
        _drawn(figures.surrogate_figure(tuning)),
        _drawn(figures.trials_figure(tuning), tables_of_trials(tuning)),
        _drawn(
            figures.transfer_figure(tuning),
            (*with_rows(tables.trust_table(tuning)),
             *with_rows(tables.pairs_table(tuning), folded=True)),
        ),
        Section("sizes", "Dense network and proxy", tables=(Shown(tables.sizes_table(tuning)),)),
        Section("proof", "Proof", texts=(proof(tuning.check),)),
        Section("notes", "Notes", bullets=tuning.notes),
        Section(
            "repeat",
            "To repeat it",
            code=tuning.command,
            tables=(
                *with_rows(tables_of.asked_table(tuning.asked), folded=True),
                *with_rows(tables_of.environment_table(tuning.environment)),
            ),
        ),
    )  # fmt: skip
    return tuple(section for section in every if section is not None and has_content(section))


def tables_of_trials(tuning: Tuning) -> tuple[Shown, ...]:
    """All trials, folded."""
    return with_rows(tables.trials_table(tuning), folded=True)


def _drawn(figure: Figure | None, shown: tuple[Shown, ...] = ()) -> Section | None:
    if figure is None:
        return None
    return Section(f"{figure.name}-drawn", figure.title, figure=figure, tables=shown)


def _proxy(tuning: Tuning) -> str:
    dense, proxy = tuning.dense.size, tuning.proxy.size
    text = (
        f"{fmt.short(proxy.params)} of {fmt.short(dense.params)} parameters and "
        f"{fmt.percent(proxy.macs / dense.macs, 1)} of the MACs"
    )
    ratio = tables.measured_ratio(tuning.dense, tuning.proxy)
    return text + (f"; {fmt.significant(ratio)} times the speed." if ratio else ".")


def _search(tuning: Tuning) -> str:
    states = [one.state for one in tuning.tried]
    rest = [
        f"{states.count(state)} {words}"
        for state, words in (("stopped", "stopped early"), ("diverged", "diverged"))
        if state in states
    ]
    told = f" ({', '.join(rest)})" if rest else ""
    return f"{len(states)} trials in {fmt.duration(tuning.search_seconds)} of training{told}."


def _chosen(tuning: Tuning) -> str:
    chosen = next((one for one in tuning.retrained if one.chosen), None)
    if chosen is None:
        return "None: no setting trained the dense network."
    setting = ", ".join(
        f"{tables.title_of(name).lower()} {tables.said(value)}"
        for name, value in chosen.values.items()
    )
    order = [one.number for one in ranked(tuning.tried, tuning.metric)]
    place = order.index(chosen.number) + 1
    return f"{setting} (number {place} on the proxy, best on validation)."


def _test(tuning: Tuning) -> str:
    chosen = next((one for one in tuning.retrained if one.chosen), None)
    before = tuning.dense.quality.accuracy
    if chosen is None or chosen.test is None:
        return f"Accuracy {fmt.percent(before)} before; nothing after."
    after = chosen.test.accuracy
    return (
        f"Accuracy {fmt.percent(before)} before, {fmt.percent(after)} after "
        f"({fmt.points(after - before)}) on {fmt.count(chosen.test.count)} images."
    )


def _gain(tuning: Tuning) -> float | None:
    chosen = next((one for one in tuning.retrained if one.chosen), None)
    if chosen is None or chosen.test is None:
        return None
    return chosen.test.accuracy - tuning.dense.quality.accuracy
