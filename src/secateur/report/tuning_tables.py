"""Typed tables of a tuning run: the best settings, the dense network before and after, trust."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from secateur.report import format as fmt
from secateur.report.cells import Cell, Column, Table
from secateur.results import Measured, Quality
from secateur.tuning_results import Estimate, Retrained, Transfer, Tried, Tuning, ranked

SHOWN = 5
_NAMES = {
    "lr": "Learning rate",
    "batch_size": "Batch size",
    "weight_decay": "Weight decay",
    "optimizer": "Optimiser",
    "label_smoothing": "Label smoothing",
}
_NONE = Cell(None, "n/a")


def title_of(name: str) -> str:
    """A hyperparameter as people call it."""
    return _NAMES.get(name, name.replace("_", " ").capitalize())


def metric_title(metric: str) -> str:
    """A metric as people call it."""
    named = {"pir": "PIR", "pir_tabulated": "PIR (tabulated form)", "f1": "F1"}
    return named.get(metric, metric.capitalize())


def said(value: Any) -> str:
    """A hyperparameter's value in a few digits."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:.3g}"


def best_table(tuning: Tuning, number: int = SHOWN) -> Table:
    """The best settings with learning rate, PIR and zeta, as the source has them."""
    best = ranked(tuning.tried, tuning.metric)[:number]
    caption = (
        f"The {len(best)} best settings on the proxy, by {metric_title(tuning.metric)} "
        f"({_when(tuning)})."
    )
    return _tried_table("best", caption, tuning, best)


def trials_table(tuning: Tuning) -> Table:
    """Every trial, in order."""
    return _tried_table("trials", "Every trial on the proxy, in order.", tuning, tuning.tried)


def _tried_table(name: str, caption: str, tuning: Tuning, tried: Sequence[Tried]) -> Table:
    keys = list(dict.fromkeys(key for one in tuning.tried for key in one.values))
    own = tuning.metric not in ("pir", "precision")
    columns = (
        Column("trial", "Trial"),
        *(Column(key, title_of(key), key != "optimizer") for key in keys),
        *((Column(tuning.metric, metric_title(tuning.metric), True),) if own else ()),
        Column("pir", "PIR", True),
        Column("zeta", "Zeta", True),
        Column("precision", "Precision", True),
        Column("seconds", "Time", True),
        Column("state", "State"),
    )
    rows = tuple(
        (
            Cell(one.number, str(one.number)),
            *(_value(one.values.get(key)) for key in keys),
            *((Cell(one.value, fmt.decimal(one.value)),) if own else ()),
            _decimal(one.pir, 4),
            _decimal(one.zeta, 2),
            _percent(one.quality.precision if one.quality else None),
            Cell(one.seconds, fmt.duration(one.seconds)),
            Cell(one.state, one.state, one.note),
        )
        for one in tried
    )
    return Table(name, caption, columns, rows)


def dense_table(tuning: Tuning) -> Table:
    """The dense network before and after, on the same test images."""
    columns = (
        Column("network", "Network"),
        Column("validation", "Accuracy (validation)", True),
        *(Column(key, title, True) for key, title in _QUALITIES),
        Column("loss", "Loss", True),
        Column("epochs", "Epochs", True),
        Column("seconds", "Time", True),
    )
    before = (
        Cell("before", "dense, before"),
        _NONE,
        *_qualities(tuning.dense.quality),
        _NONE,
        _NONE,
    )
    rows = (before, *(_after(one) for one in tuning.retrained))
    count = fmt.count(tuning.dense.quality.count)
    caption = (
        f"The dense network before and after, on the test split ({count} images). The chosen "
        "setting is the best on validation; precision, recall and F1 are macro averages."
    )
    return Table("dense", caption, columns, rows, sortable=False)


def sizes_table(tuning: Tuning) -> Table:
    """Dense network and proxy: speed and size."""
    dense, proxy = tuning.dense, tuning.proxy
    columns = (
        Column("measure", "Measure"),
        Column("dense", "Dense", True),
        Column("proxy", "Proxy", True),
        Column("times", "Proxy over dense", True),
    )
    rows = [
        _sizes("Parameters", dense.size.params, proxy.size.params, fmt.count),
        _sizes("MACs", dense.size.macs, proxy.size.macs, fmt.short),
    ]
    rows += [
        (
            Cell(f"ips-{before.batch}", f"Inferences per second, batch {before.batch}, "
                 f"{before.threads} thread{'s' * (before.threads != 1)}"),
            Cell(before.median, fmt.significant(before.median)),
            Cell(after.median, fmt.significant(after.median)),
            Cell(after.median / before.median, fmt.times(before.median, after.median)),
        )
        for before, after in zip(dense.speeds, proxy.speeds, strict=True)
    ]  # fmt: skip
    caption = "Dense network and proxy, measured in turns."
    return Table("sizes", caption, columns, tuple(rows), sortable=False)


def trust_table(tuning: Tuning) -> Table:
    """One row for each proxy that was measured against the dense network."""
    columns = (
        Column("proxy", "Proxy"),
        Column("params", "Parameters left", True),
        Column("settings", "Settings", True),
        Column("kendall", "Kendall's tau-b", True),
        Column("chance", "By chance (p)", True),
        Column("spearman", "Spearman's rho", True),
        Column("regret", "Regret", True),
        Column("rank", "Rank of its choice", True),
        Column("overlap", "Good on both", True),
        Column("speedup", "Times faster", True),
    )
    rows = tuple(_trust_row(one) for one in tuning.transfers)
    caption = (
        "Settings trained on proxy and dense network. In brackets: 95 % bootstrap intervals over "
        "the settings. The regret is what the proxy's best setting loses on the dense network, "
        "on validation; 'good on both' is the share of settings that are good on both among those "
        "good on either."
    )
    return Table("trust", caption, columns, rows)


def pairs_table(tuning: Tuning) -> Table:
    """Every setting that was trained on both."""
    keys = list(
        dict.fromkeys(key for one in tuning.transfers for pair in one.pairs for key in pair.values)
    )
    columns = (
        Column("proxy", "Proxy"),
        *(Column(key, title_of(key), key != "optimizer") for key in keys),
        Column("on_proxy", "On the proxy", True),
        Column("on_dense", "On the dense network", True),
    )
    rows = tuple(
        (
            Cell(one.sparsity, one.sparsity),
            *(_value(pair.values.get(key)) for key in keys),
            Cell(pair.proxy, fmt.decimal(pair.proxy)),
            Cell(pair.dense, fmt.decimal(pair.dense)),
        )
        for one in tuning.transfers
        for pair in one.pairs
    )
    return Table("pairs", "Every setting that was trained on both networks.", columns, rows)


def interval(one: Estimate, digits: int = 2) -> str:
    """A figure with its interval in words."""
    if one.value is None:
        return "cannot be told"
    text = fmt.decimal(one.value, digits)
    if one.low is None or one.high is None:
        return text
    return f"{text} ({fmt.decimal(one.low, digits)} to {fmt.decimal(one.high, digits)})"


_QUALITIES = (
    ("accuracy", "Accuracy"),
    ("precision", "Precision"),
    ("recall", "Recall"),
    ("f1", "F1"),
)


def _when(tuning: Tuning) -> str:
    words = {
        "last": "after the last epoch",
        "best": "of the best epoch",
        "area": "as the area under its curve",
    }
    return words.get(tuning.at, f"after epoch {tuning.at}")


def _after(one: Retrained) -> tuple[Cell, ...]:
    name = f"setting of trial {one.number}"
    detail = "chosen" if one.chosen else one.note
    if one.validation is None or one.test is None:
        empty = tuple(_NONE for _ in range(len(_QUALITIES) + 1))
        return (Cell(name, name, detail), _NONE, *empty, _NONE, _NONE)
    return (
        Cell(name, name, detail),
        _percent(one.validation.accuracy),
        *_qualities(one.test),
        Cell(len(one.history), str(len(one.history))),
        Cell(one.seconds, fmt.duration(one.seconds)),
    )


def _qualities(quality: Quality) -> tuple[Cell, ...]:
    low, high = fmt.percent(quality.low).removesuffix(" %"), fmt.percent(quality.high)
    first = Cell(quality.accuracy, fmt.percent(quality.accuracy), f"{low} to {high}",
                 (quality.low, quality.high))  # fmt: skip
    rest = (_percent(getattr(quality, key)) for key, _ in _QUALITIES[1:])
    return (first, *rest, Cell(quality.loss, fmt.decimal(quality.loss)))


def _trust_row(one: Transfer) -> tuple[Cell, ...]:
    return (
        Cell(one.sparsity, one.sparsity),
        _percent(one.params),
        Cell(len(one.pairs), str(len(one.pairs))),
        _estimate(one.kendall),
        _NONE if one.chance is None else Cell(one.chance, fmt.tiny(one.chance)),
        _estimate(one.spearman),
        _estimate(one.regret, 4),
        Cell(one.rank, f"{one.rank} of {len(one.pairs)}"),
        _estimate(one.overlap),
        _estimate(one.speedup),
    )


def _estimate(one: Estimate, digits: int = 2) -> Cell:
    if one.value is None:
        return Cell(None, "n/a")
    if one.low is None or one.high is None:
        return Cell(one.value, fmt.decimal(one.value, digits))
    spread = f"{fmt.decimal(one.low, digits)} to {fmt.decimal(one.high, digits)}"
    return Cell(one.value, fmt.decimal(one.value, digits), spread, (one.low, one.high))


def _sizes(label: str, dense: int, proxy: int, say: Any) -> tuple[Cell, ...]:
    share = proxy / dense if dense else None
    return (
        Cell(label, label),
        Cell(dense, say(dense)),
        Cell(proxy, say(proxy)),
        Cell(share, fmt.percent(share) if share is not None else "n/a"),
    )


def _value(value: Any) -> Cell:
    return Cell(None, "") if value is None else Cell(value, said(value))


def _decimal(value: float | None, digits: int) -> Cell:
    return _NONE if value is None else Cell(value, fmt.decimal(value, digits))


def _percent(value: float | None) -> Cell:
    return _NONE if value is None else Cell(value, fmt.percent(value))


def measured_ratio(dense: Measured, proxy: Measured) -> float | None:
    """How many times the proxy's inferences per second are the dense network's, at batch 1."""
    pairs = zip(dense.speeds, proxy.speeds, strict=True)
    return next((after.median / before.median for before, after in pairs if before.median), None)
