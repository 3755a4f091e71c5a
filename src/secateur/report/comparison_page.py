"""A comparison study as one HTML file and its tables as CSV and JSON; from records alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from secateur.comparison import Comparison, Setup, Trial, area, scored, setups
from secateur.report import changes_parts, facts_parts
from secateur.report import comparison_figures as figures
from secateur.report import comparison_tables as tables
from secateur.report import format as fmt
from secateur.report import tables as tables_of
from secateur.report.export import write_each
from secateur.report.figures import Figure
from secateur.report.page import render_page, write_page
from secateur.report.parts import Section, Shown, has_content, with_rows
from secateur.report.summary import Line

TARGETS = ("sparsity", "macs", "params")
_NAMED = 3


def write_comparison(comparison: Comparison, path: Path) -> Path:
    """Write a study as one self-contained page; the same study gives the same bytes.

    Raises:
        InputError: ``path`` is a folder, or its folder does not exist.
    """
    return write_page(render_comparison(comparison), path)


def write_comparison_tables(comparison: Comparison, folder: Path) -> tuple[Path, ...]:
    """Write ``setups`` and ``trials`` (and ``failures``) as CSV and JSON; see ``write_tables``."""
    found = setups(comparison.trials)
    every = (
        tables.setups_table(comparison, found),
        tables.trials_table(comparison),
        tables.failures_table(comparison),
        *facts_parts.facts_tables(comparison.facts),
        *changes_parts.changes_tables(comparison.changes),
    )
    return write_each([table for table in every if table.rows], folder)


def render_comparison(comparison: Comparison) -> str:
    """The page of a study as HTML text."""
    found = setups(comparison.trials)
    failed = sum(bool(trial.error) for trial in comparison.trials)
    whole = len(comparison.trials)
    verdict = f"{failed} of {whole} failed" if failed else f"All {whole} trials complete"
    lines = summary(comparison, found)
    return render_page(comparison.title, verdict, not failed, lines, _sections(comparison, found))


def summary(comparison: Comparison, found: Sequence[Setup]) -> tuple[Line, ...]:
    """Five lines: asked, trials, chosen, frontier, test."""
    return (
        Line("Asked", _asked(comparison)),
        Line("Trials", _trials(comparison)),
        Line("Chosen", _chosen(comparison, found)),
        Line("Frontier", _frontier(comparison, found)),
        Line("Test", _test(comparison, found)),
    )


def _sections(comparison: Comparison, found: Sequence[Setup]) -> tuple[Section, ...]:
    folded = tables.failures_table(comparison)
    costs = ["macs", "params"]
    if any(setup.first.granularity == "weight" for setup in found):
        costs.append("bytes")
    if any(setup.latency is not None for setup in found):
        costs.append("latency")
    every = (
        *(
            _drawn(figures.pareto_figure(comparison, found, cost), f"frontier-{cost}")
            for cost in costs
        ),
        *(
            _drawn(
                figures.curves_figure(found, target, measure, mixed=mixed),
                f"asked-{target}-{measure}{'-mixed' if mixed else ''}",
            )
            for target in TARGETS
            for mixed in (False, True)
            for measure in ("accuracy", "loss")
        ),
        _drawn(figures.mixtures_figure(found), "mixed"),
        Section(
            "setups",
            "All setups",
            texts=(tables.setups_text(comparison, found),),
            tables=(Shown(tables.setups_table(comparison, found)),),
        ),
        _beside(comparison, found),
        *facts_parts.facts_sections(comparison.facts),
        *changes_parts.changes_sections(comparison.changes),
        Section("failures", "Failures", tables=with_rows(folded)),
        Section("how", "How it was measured", bullets=_how(comparison)),
        Section("notes", "Notes", bullets=comparison.notes),
        Section(
            "repeat",
            "To repeat it",
            code=comparison.command,
            tables=(
                *with_rows(tables_of.asked_table(comparison.asked), folded=True),
                *with_rows(tables_of.environment_table(comparison.environment)),
            ),
        ),
    )
    return tuple(section for section in every if section is not None and has_content(section))


def _beside(comparison: Comparison, found: Sequence[Setup]) -> Section:
    """Say whose networks the parts below are of; without content where none was looked at."""
    chosen, title = _with_number(found, comparison.chosen), "The chosen network"
    if chosen is None or comparison.facts is None:
        return Section("chosen", title)
    text = f"{_named(comparison, chosen)} stands beside the dense network in the parts below."
    return Section("chosen", title, texts=(text,))


def _drawn(figure: Figure | None, name: str) -> Section | None:
    return None if figure is None else Section(name, figure.title, figure=figure)


def _asked(comparison: Comparison) -> str:
    trials = comparison.trials
    criteria = list(dict.fromkeys(trial.criterion for trial in trials))
    names = fmt.listed(criteria, 6)
    kinds = {
        "target": len({(trial.target, trial.value) for trial in trials}),
        "seed": len({trial.seed for trial in trials}),
        **{
            {"epochs": "length of finetuning"}.get(key, key): len({getattr(t, key) for t in trials})
            for key in tables.varying(trials)
        },
    }
    counted = ", ".join(_plural(number, name) for name, number in kinds.items())
    word = "criterion" if len(criteria) == 1 else "criteria"
    same = tables.constant(trials)
    return f"{len(criteria)} {word} ({names}), {counted}{f'; {same}' if same else ''}."


def _plural(number: int, name: str) -> str:
    if number == 1:
        return f"1 {name}"
    many = {
        "recovery": "recoveries",
        "granularity": "granularities",
        "length of finetuning": "lengths of finetuning",
    }
    return f"{number} {many.get(name, f'{name}s')}"


def _trials(comparison: Comparison) -> str:
    complete = [trial for trial in comparison.trials if trial.quality is not None]
    total, middle = tables.seconds_of(comparison)
    text = (
        f"{len(complete)} of {len(comparison.trials)} complete in {fmt.duration(total)} of "
        f"computing ({fmt.duration(middle)} for the median one)"
    )
    errors = [trial.max_error for trial in complete if trial.max_error is not None]
    if errors:
        text += (
            f"; every cut equals its masked reference (largest relative error "
            f"{fmt.tiny(max(errors))})"
        )
    return f"{text}."


def _chosen(comparison: Comparison, found: Sequence[Setup]) -> str:
    rule = (
        f"at most {_points(comparison.within)} below the dense network "
        f"({fmt.percent(comparison.validation.accuracy)} on validation)"
    )
    chosen = _with_number(found, comparison.chosen)
    if chosen is None:
        best = max(found, key=lambda setup: setup.accuracy)
        return f"None: no setup is {rule}. The most accurate is {_named(comparison, best)}."
    fewest = f"the fewest {tables.COST_WORDS[comparison.cost]}"
    return f"{_named(comparison, chosen)}: {fewest} {rule}."


def _points(share: float) -> str:
    return f"{100 * share:g} point{'' if share == 0.01 else 's'}"


def _named(comparison: Comparison, setup: Setup) -> str:
    size = comparison.dense.size
    shown = tables.varying(comparison.trials)
    return (
        f"{tables.name_of(setup.first, shown)} ({fmt.percent(setup.accuracy)}, "
        f"{fmt.percent(setup.params / size.params, 1)} of the parameters, "
        f"{fmt.percent(setup.macs / size.macs, 1)} of the MACs)"
    )


def _frontier(comparison: Comparison, found: Sequence[Setup]) -> str:
    parts = []
    for cost in ("macs", "params"):
        best = [setup for setup in found if cost in setup.frontiers]
        counts = Counter(setup.first.criterion for setup in best).most_common(_NAMED)
        names = ", ".join(f"{name} {number}" for name, number in counts)
        parts.append(
            f"{len(best)} of {len(found)} for {tables.COST_WORDS[cost]} ({names}; hypervolume "
            f"{area(comparison, found, cost):.3f})"
        )
    text = f"On it are {' and '.join(parts)}."
    if comparison.score:
        best_scored = max(found, key=lambda setup: scored(comparison, setup) or 0)
        value = scored(comparison, best_scored) or 0
        name = tables.name_of(best_scored.first, tables.varying(comparison.trials))
        text += f" Best {comparison.score} score: {value:.3f}, {name}."
    return text


def _test(comparison: Comparison, found: Sequence[Setup]) -> str:
    dense = comparison.dense.quality
    tested = sum(trial.test is not None for trial in comparison.trials)
    text = (
        f"Read once, at the end, for {_plural(tested, 'trial')} and the dense network "
        f"({fmt.percent(dense.accuracy)} on {fmt.count(dense.count)} images"
    )
    chosen = _with_number(found, comparison.chosen)
    if chosen is not None and chosen.test is not None:
        change = fmt.points(chosen.test - dense.accuracy)
        return f"{text}; chosen {fmt.percent(chosen.test)}, {change})."
    return f"{text})."


def _how(comparison: Comparison) -> tuple[str, ...]:
    count = fmt.count(comparison.validation.count)
    lines = [
        f"All trials are judged on the same {count} images of the validation split; the test split "
        "is not readable before the last of them is done.",
        "Parameters are those that are left, without the weights that a mask takes; MACs are for "
        "one input, and zeros in weights save none; bytes are of the gzipped weights, without "
        "optimiser state.",
        "Hypervolume: the area below the frontier, with accuracy from 0 and cost as a share of "
        "the dense network's; 1 would be every image right for nothing.",
    ]
    if any(trial.latency is not None for trial in comparison.trials):
        lines.append(
            "Time: each network and the dense one ran in turns after all trials, with nothing "
            "else of the study running; the median share of neighbouring turns. Efficiency: "
            "speed-up over MACs reduction, 1 is the ideal."
        )
    return tuple(lines)


def _with_number(found: Sequence[Setup], number: int | None) -> Setup | None:
    def has(trials: Sequence[Trial]) -> bool:
        return any(trial.number == number for trial in trials)

    return next((setup for setup in found if has(setup.trials)), None)
