"""The main table of a result: dense against pruned, in quality, size and speed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from secateur.report import format as fmt
from secateur.report.cells import Cell, Column, Table
from secateur.report.cells import text_cell as _text
from secateur.results import Facts, Measured, Quality, Result, Size, Speed

_SIDES = (Column("dense", "Dense", True), Column("pruned", "Pruned", True))
_NOT_MEASURED = Cell(None, "not measured")


def main_table(result: Result) -> Table:
    """Dense against pruned: quality, size and speed."""
    dense, pruned = result.dense, result.pruned
    rows = [
        *_quality_rows(dense.quality, pruned.quality),
        *_size_rows(dense, pruned),
        *_facts_rows(result.facts),
    ]
    before, after = _by_setting(dense.speeds), _by_setting(pruned.speeds)
    rows += [
        _speed_row(setting, before.get(setting), after.get(setting))
        for setting in sorted({*before, *after})
    ]
    rows += [
        _efficiency_row(setting, before[setting], after[setting], dense.size, pruned.size)
        for setting in sorted({*before} & {*after})
        if dense.size.macs and before[setting].median
    ]
    columns = (Column("measure", "Measure"), *_SIDES, Column("change", "Change", True))
    return Table("results", _main_caption(result), columns, tuple(rows), sortable=False)


def _main_caption(result: Result) -> str:
    dense, pruned = result.dense.quality, result.pruned.quality
    if (dense.split, dense.count) == (pruned.split, pruned.count):
        where = f"on the {dense.split} split ({fmt.count(dense.count)} images)"
    else:
        where = (
            f"dense on {dense.split} ({fmt.count(dense.count)} images), pruned on "
            f"{pruned.split} ({fmt.count(pruned.count)} images): not like for like"
        )
    text = (
        f"Dense and pruned, measured {where}. Accuracy with its 95 % interval (Wilson); "
        "precision, recall and F1 are macro averages, their intervals from the bootstrap; MACs are "
        "for one input"
    )
    turns = sorted({speed.repeats for speed in (*result.dense.speeds, *result.pruned.speeds)})
    if turns:
        counts = " or ".join(fmt.count(one) for one in turns)
        text += f"; speeds are medians of {counts} turns, with their quartiles"
    return text + "."


def _quality_rows(dense: Quality, pruned: Quality) -> list[tuple[Cell, ...]]:
    def share(label: str, read: Callable[[Quality], float]) -> tuple[Cell, ...]:
        before, after = read(dense), read(pruned)
        return (
            _text(label),
            Cell(before, fmt.percent(before)),
            Cell(after, fmt.percent(after)),
            Cell(after - before, fmt.points(after - before)),
        )

    def bounded(label: str, name: str, low: str, high: str) -> tuple[Cell, ...]:
        said, *values, change = share(label, lambda one: float(getattr(one, name)))
        spans = [(getattr(one, low), getattr(one, high)) for one in (dense, pruned)]
        return (said, *map(_bounded, values, spans), change)

    loss = (
        _text("Loss"),
        Cell(dense.loss, fmt.decimal(dense.loss)),
        Cell(pruned.loss, fmt.decimal(pruned.loss)),
        Cell(pruned.loss - dense.loss, fmt.difference(pruned.loss - dense.loss)),
    )
    # Results of before these were measured have none.
    five = dense.top5 is not None and pruned.top5 is not None
    weighted = dense.weighted_f1 is not None and pruned.weighted_f1 is not None
    calibrated = dense.ece is not None and pruned.ece is not None
    return [
        bounded("Accuracy", "accuracy", "low", "high"),
        *([share("Top-5 accuracy", lambda one: one.top5 or 0.0)] if five else []),
        *(
            bounded(label, name, f"{name}_low", f"{name}_high")
            for label, name in (("Precision", "precision"), ("Recall", "recall"), ("F1", "f1"))
        ),
        *(
            [
                share("Precision, weighted", lambda one: one.weighted_precision or 0.0),
                share("F1, weighted", lambda one: one.weighted_f1 or 0.0),
            ]
            if weighted
            else []
        ),
        loss,
        *([share("Calibration error", lambda one: one.ece or 0.0)] if calibrated else []),
    ]


def _bounded(cell: Cell, span: tuple[float | None, float | None]) -> Cell:
    low, high = span
    if low is None or high is None:
        return cell
    detail = f"{fmt.percent(low).removesuffix(' %')} to {fmt.percent(high)}"
    return Cell(cell.value, cell.text, detail, (low, high))


def _size_rows(dense: Measured, pruned: Measured) -> list[tuple[Cell, ...]]:
    before, after = dense.size, pruned.size

    return [
        _size_row("Parameters", before.params, after.params, fmt.count),
        _size_row("MACs", before.macs, after.macs, fmt.short),
        _size_row("Weight file, raw", before.bytes_raw, after.bytes_raw, fmt.size),
        _size_row("Weight file, gzipped", before.bytes_gzip, after.bytes_gzip, fmt.size),
    ]


def _facts_rows(facts: Facts | None) -> list[tuple[Cell, ...]]:
    if facts is None:
        return []
    batch = f"Memory at its peak, batch {fmt.count(facts.batch)}"
    return [
        _size_row("Weight file, sparse container", facts.sparse[0], facts.sparse[1], fmt.size),
        _size_row(batch, facts.memory[0], facts.memory[1], fmt.size),
    ]


def _size_row(label: str, old: int, new: int, say: Callable[[int], str]) -> tuple[Cell, ...]:
    change = new / old - 1 if old else None
    return (
        _text(label),
        Cell(old, say(old)),
        Cell(new, say(new)),
        Cell(change, fmt.relative(old, new)),
    )


def _efficiency_row(
    setting: tuple[int, int], dense: Speed, pruned: Speed, before: Size, after: Size
) -> tuple[Cell, ...]:
    """Speed-up over the reduction of MACs: 1 where all that was saved is saved in time."""
    batch, _ = setting
    value = pruned.median / dense.median * after.macs / before.macs
    label = f"Speed-up over MACs reduction, batch {fmt.count(batch)} (1 is the ideal)"
    return (_text(label), Cell(None, ""), Cell(value, fmt.decimal(value, 2)), Cell(None, ""))


def _by_setting(speeds: Sequence[Speed]) -> dict[tuple[int, int], Speed]:
    return {(speed.batch, speed.threads): speed for speed in speeds}


def _speed_row(
    setting: tuple[int, int], dense: Speed | None, pruned: Speed | None
) -> tuple[Cell, ...]:
    batch, threads = setting
    plural = "thread" if threads == 1 else "threads"
    label = f"Inferences per second, batch {fmt.count(batch)}, {threads} {plural}"
    change = Cell(None, "n/a")
    if dense is not None and pruned is not None and dense.median:
        change = Cell(pruned.median / dense.median, fmt.times(dense.median, pruned.median))
    return (_text(label), _speed_cell(dense), _speed_cell(pruned), change)


def _speed_cell(speed: Speed | None) -> Cell:
    if speed is None:
        return _NOT_MEASURED
    spread = f"{fmt.significant(speed.low)} to {fmt.significant(speed.high)}"
    return Cell(speed.median, fmt.significant(speed.median), spread, (speed.low, speed.high))
