"""Typed tables of a comparison: one row a setup, one a trial, one a failure."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from secateur.comparison import Comparison, Setup, Trial, scored
from secateur.report import format as fmt
from secateur.report.cells import Cell, Column, Table
from secateur.report.cells import text_cell as _text

COST_WORDS = {"macs": "MACs", "params": "parameters", "bytes": "bytes", "latency": "time"}
"""How texts call the costs."""
_VARYING = (
    ("granularity", "Granularity"),
    ("scope", "Scope"),
    ("recovery", "Recovery"),
    ("epochs", "Epochs"),
    ("schedule", "Schedule"),
)
_EMPTY = Cell(None, "")


def asked_of(trial: Trial) -> str:
    """The target in words: what goes, or what is kept."""
    share = fmt.percent(trial.value, 1)
    if trial.target == "sparsity":
        return f"{share} gone"
    return f"{share} of {COST_WORDS[trial.target]} kept"


def name_of(trial: Trial, shown: Sequence[str] = ()) -> str:
    """Name a setup: its criterion, what of the rest varies, and its target."""
    rest = [said(trial, key) for key in shown]
    return ", ".join([trial.criterion, *rest, asked_of(trial)])


def said(trial: Trial, key: str) -> str:
    """One of the settings that may vary, in words."""
    value = getattr(trial, key)
    if key == "epochs":
        return "1 epoch" if value == 1 else f"{value} epochs"
    return {"none": "no recovery"}.get(value, value) if key == "recovery" else str(value)


def varying(trials: Sequence[Trial]) -> tuple[str, ...]:
    """Return which settings have more than one value."""
    return tuple(key for key, _ in _VARYING if len({getattr(one, key) for one in trials}) > 1)


def constant(trials: Sequence[Trial]) -> str:
    """Say in words what is the same for all trials."""
    same = [key for key, _ in _VARYING if key not in varying(trials)]
    return ", ".join(
        f"{said(trials[0], key)} {key}" if key in ("scope", "granularity") else said(trials[0], key)
        for key in same
    )


def setups_table(comparison: Comparison, setups: Sequence[Setup]) -> Table:
    """One row a setup: how good, how large, and for which costs it is on the frontier."""
    trials = [setup.first for setup in setups]
    titles = dict(_VARYING)
    shown = varying(trials) if trials else ()
    timed = any(setup.latency is not None for setup in setups)
    tested = any(setup.test is not None for setup in setups)
    several = any(len(setup.trials) > 1 for setup in setups)
    columns = (
        Column("criterion", "Criterion"),
        *(Column(key, titles[key], key == "epochs") for key in shown),
        Column("value", "Asked", True),
        Column("accuracy", "Accuracy (validation)", True),
        *((Column("test_accuracy", "Accuracy (test)", True),) if tested else ()),
        Column("loss", "Loss", True),
        Column("params", "Parameters", True),
        Column("macs", "MACs", True),
        Column("bytes", "Gzipped", True),
        *((Column("latency", "Time", True),) if timed else ()),
        *((Column("efficiency", "Efficiency", True),) if timed else ()),
        *((Column("score", "Score", True),) if comparison.score else ()),
        Column("frontier", "Frontier"),
    )
    size = comparison.dense.size
    wholes = {"params": size.params, "macs": size.macs, "bytes": size.bytes_gzip}
    rows = []
    for setup in setups:
        trial = setup.first
        row = [
            _text(trial.criterion),
            *(Cell(getattr(trial, key), str(getattr(trial, key))) for key in shown),
            Cell(trial.value, asked_of(trial)),
            _accuracy(setup, several),
            *((_test(setup),) if tested else ()),
            Cell(setup.loss, fmt.decimal(setup.loss)),
            *(_share(float(setup.cost(key) or 0), whole) for key, whole in wholes.items()),
            *((_time(setup), _efficiency(comparison, setup)) if timed else ()),
            *((_score(comparison, setup),) if comparison.score else ()),
            _frontier(comparison, setup),
        ]
        rows.append(tuple(row))
    return Table("setups", "Every setup, in the order of the grid.", columns, tuple(rows))


def trials_table(comparison: Comparison) -> Table:
    """Every trial with every figure, for other programs; the same after a stop and a resume."""
    columns = (
        Column("number", "Trial", True),
        Column("criterion", "Criterion"),
        Column("granularity", "Granularity"),
        Column("scope", "Scope"),
        Column("target", "Target"),
        Column("value", "Value", True),
        Column("recovery", "Recovery"),
        Column("epochs", "Epochs", True),
        Column("schedule", "Schedule"),
        Column("seed", "Seed", True),
        Column("state", "State"),
        Column("accuracy", "Accuracy", True),
        Column("top5", "Top-5", True),
        Column("precision", "Precision", True),
        Column("recall", "Recall", True),
        Column("f1", "F1", True),
        Column("loss", "Loss", True),
        Column("ece", "Calibration error", True),
        Column("test_accuracy", "Accuracy (test)", True),
        Column("params", "Parameters", True),
        Column("macs", "MACs", True),
        Column("bytes_gzip", "Gzipped", True),
        Column("bytes_sparse", "Sparse container", True),
        Column("latency", "Time", True),
        Column("max_error", "Largest error", True),
        Column("error", "Error"),
    )
    rows = tuple(_trial(trial) for trial in comparison.trials)
    return Table("trials", "Every trial.", columns, rows)


def failures_table(comparison: Comparison) -> Table:
    """The trials that failed, and why."""
    columns = (Column("trial", "Trial"), Column("error", "Error"))
    shown = varying(comparison.trials)
    rows = tuple(
        (_text(f"{name_of(trial, shown)}, seed {trial.seed}"), _text(trial.error))
        for trial in comparison.trials
        if trial.error
    )
    return Table("failures", "Trials that failed, and why.", columns, rows)


def setups_text(comparison: Comparison, setups: Sequence[Setup]) -> str:
    """Say how to read the table of setups."""
    if not setups:
        return "No trial is complete."
    seeds = max(len(setup.trials) for setup in setups)
    mean = f" Means over {seeds} seeds, with the least and the greatest." if seeds > 1 else ""
    size = comparison.dense.size
    return (
        f"All are {constant([setup.first for setup in setups])}.{mean} Shares are of the "
        f"dense network: {fmt.percent(comparison.validation.accuracy)} on validation, "
        f"{fmt.count(size.params)} parameters, {fmt.short(size.macs)} MACs, "
        f"{fmt.size(size.bytes_gzip)} gzipped. On the frontier is what no other setup beats in "
        "accuracy and that cost. Asked is the share of units (or weights) to go, or what is kept."
    )


def _accuracy(setup: Setup, several: bool) -> Cell:
    text = fmt.percent(setup.accuracy)
    if not several:
        quality = setup.first.quality
        bounds = None if quality is None else (quality.low, quality.high)
        return Cell(setup.accuracy, text, bounds=bounds)
    low, high = fmt.percent(setup.low), fmt.percent(setup.high)
    detail = f"{low.removesuffix(' %')} to {high}"
    return Cell(setup.accuracy, text, detail, (setup.low, setup.high))


def _test(setup: Setup) -> Cell:
    return _EMPTY if setup.test is None else Cell(setup.test, fmt.percent(setup.test))


def _share(value: float, whole: int) -> Cell:
    return Cell(value, fmt.percent(value / whole, 1) if whole else "n/a")


def _time(setup: Setup) -> Cell:
    return _EMPTY if setup.latency is None else Cell(setup.latency, fmt.percent(setup.latency, 1))


def _efficiency(comparison: Comparison, setup: Setup) -> Cell:
    """Speed-up over the reduction of MACs."""
    whole = comparison.dense.size.macs
    if not setup.latency or not whole:
        return _EMPTY
    value = setup.macs / whole / setup.latency
    return Cell(value, fmt.decimal(value, 2))


def _score(comparison: Comparison, setup: Setup) -> Cell:
    found = scored(comparison, setup)
    return _EMPTY if found is None else Cell(found, fmt.decimal(found))


def _frontier(comparison: Comparison, setup: Setup) -> Cell:
    names = [COST_WORDS[cost] for cost in setup.frontiers]
    chosen = comparison.chosen in [trial.number for trial in setup.trials]
    text = ", ".join([*(["chosen"] if chosen else []), *names])
    return Cell(text, text)


def _trial(trial: Trial) -> tuple[Cell, ...]:
    quality = trial.quality
    known = quality is not None
    qualities = (
        getattr(quality, key, None)
        for key in ("accuracy", "top5", "precision", "recall", "f1", "loss", "ece")
    )
    plain = (
        trial.number, trial.criterion, trial.granularity, trial.scope, trial.target, trial.value,
        trial.recovery, trial.epochs, trial.schedule, trial.seed, trial.state, *qualities,
        trial.test.accuracy if trial.test else None,
        *((trial.params, trial.macs, trial.bytes, trial.sparse or None) if known else (None,) * 4),
        trial.latency, trial.max_error, trial.error,
    )  # fmt: skip
    return tuple(Cell(value, "" if value is None else str(value)) for value in plain)


def seconds_of(comparison: Comparison) -> tuple[float, float]:
    """Return the seconds of all trials together, and of the median one."""
    found = [trial.seconds for trial in comparison.trials]
    return (sum(found), statistics.median(found)) if found else (0.0, 0.0)
