"""Dense and pruned side by side: the same images, classes, confusions and layers."""

from __future__ import annotations

import dataclasses
import html
from collections.abc import Sequence

import plotly.graph_objects as go

from secateur.report import format as fmt
from secateur.report.cells import Cell, Column, Table
from secateur.report.cells import text_cell as _text
from secateur.report.figures import Figure, finished, safe
from secateur.report.parts import Section, Shown
from secateur.results import ClassQuality, Facts, Paired

NAMED_CLASSES = 30
DRAWN_CLASSES = 100
"""More classes than this are left to the table of the largest confusions."""
CHANCE = 0.05
_SPOKEN = 3
_SIDES = (("dense", "dense"), ("pruned", "pruned"))


def facts_tables(facts: Facts | None) -> tuple[Table, ...]:
    """Every table of the facts that has rows; all confusions, for other programs."""
    if facts is None:
        return ()
    every = (
        images_table(facts),
        classes_table(facts),
        confusion_table(facts, of=None),
        layers_table(facts),
    )
    return tuple(table for table in every if table.rows)


def facts_sections(facts: Facts | None) -> tuple[Section, ...]:
    """The parts of the page; none where nothing is known."""
    if facts is None:
        return ()
    layers = layers_table(facts)
    return (
        Section(
            "images",
            "The same images, dense and pruned",
            texts=(paired_text(facts.paired),),
            tables=(Shown(images_table(facts)),),
        ),
        Section("classes", "Class by class", tables=(Shown(classes_table(facts)),)),
        Section(
            "confusion",
            "What is taken for what",
            figure=confusion_figure(facts),
            tables=_shown(confusion_table(facts)),
        ),
        Section(
            "layers", "Time layer by layer", texts=(_layers_text(facts),), tables=_shown(layers)
        ),
    )


def _shown(table: Table) -> tuple[Shown, ...]:
    return (Shown(table, folded=True),) if table.rows else ()


def paired_text(paired: Paired) -> str:
    """McNemar's test in a sentence or two."""
    text = (
        f"Of {fmt.count(paired.count)} images, {fmt.count(paired.lost)} were right before and are "
        f"wrong after, {fmt.count(paired.won)} the other way round "
        f"({fmt.points(paired.change)}). McNemar's test: p = {fmt.tiny(paired.p_value)}; "
    )
    if paired.p_value < CHANCE:
        return f"{text}the two networks differ by more than chance explains (5 % level)."
    return f"{text}chance alone may explain the difference (5 % level)."


def images_table(facts: Facts) -> Table:
    """How many images both, one or neither gets right."""
    paired = facts.paired
    right = sum(pair[2] for pair in facts.confusion if pair[0] == pair[1])
    both = right - paired.lost
    rows = {
        "Right in both": both,
        "Right before, wrong after": paired.lost,
        "Wrong before, right after": paired.won,
        "Wrong in both": paired.count - both - paired.lost - paired.won,
    }
    columns = (Column("images", "Images"), Column("count", "Number", True), _share_column())
    body = tuple(
        (_text(name), Cell(number, fmt.count(number)), _share(number, paired.count))
        for name, number in rows.items()
    )
    caption = f"Images of the {facts.split} split."
    return Table("images", caption, columns, body, sortable=False)


def _share_column() -> Column:
    return Column("share", "Share", True)


def classes_table(facts: Facts) -> Table:
    """Precision, recall and F1 of every class, dense and pruned."""
    measures = (("recall", "Recall"), ("precision", "Precision"), ("f1", "F1"))
    columns = (
        Column("class", "Class"),
        Column("images", "Images", True),
        *(
            Column(f"{side}_{key}", f"{title}, {word}", True)
            for key, title in measures
            for side, word in _SIDES
        ),
    )
    rows = tuple(
        (
            _text(before.name),
            Cell(before.count, fmt.count(before.count)),
            *(_quality(one, key) for key, _ in measures for one in (before, after)),
        )
        for before, after in zip(facts.dense_classes, facts.pruned_classes, strict=True)
    )
    caption = (
        f"Every class of the {facts.split} split; recall with its 95 % interval (Wilson). A class "
        "that is never predicted has no precision."
    )
    return Table("classes", caption, columns, rows)


def _quality(one: ClassQuality, key: str) -> Cell:
    value = getattr(one, key)
    if value is None:
        return Cell(None, "none")
    if key == "recall" and one.low is not None and one.high is not None:
        low, high = fmt.percent(one.low, 1), fmt.percent(one.high, 1)
        detail = f"{low.removesuffix(' %')} to {high}"
        return Cell(value, fmt.percent(value, 1), detail, (one.low, one.high))
    return Cell(value, fmt.percent(value, 1))


def confusion_table(facts: Facts, of: int | None = 40) -> Table:
    """Which class is taken for which, the most frequent of the pruned network first."""
    names = [one.name for one in facts.dense_classes]
    pairs = [pair for pair in facts.confusion if of is None or pair[0] != pair[1]]
    if of is not None:
        pairs = sorted(pairs, key=lambda pair: (-pair[3], -pair[2], pair[:2]))[:of]
    columns = (
        Column("label", "Class"),
        Column("predicted", "Taken for"),
        Column("dense", "Images, dense", True),
        Column("pruned", "Images, pruned", True),
    )
    rows = tuple(
        (
            _text(names[label]),
            _text(names[predicted]),
            Cell(before, fmt.count(before)),
            Cell(after, fmt.count(after)),
        )
        for label, predicted, before, after in pairs
    )
    caption = "Every pair of class and prediction."
    if of is not None:
        caption = f"The {len(rows)} most frequent confusions of the pruned network."
    return Table("confusion", caption, columns, rows)


def confusion_figure(facts: Facts) -> Figure | None:
    """The pruned network's confusion matrix, dense counts on hover; None for many classes."""
    names = [one.name for one in facts.dense_classes]
    if len(names) > DRAWN_CLASSES:
        return None
    dense = [[0] * len(names) for _ in names]
    pruned = [[0] * len(names) for _ in names]
    for label, predicted, before, after in facts.confusion:
        dense[label][predicted], pruned[label][predicted] = before, after
    places = list(range(len(names)))
    # Right answers would take the whole scale; what goes wrong is what there is to see.
    wrong = [
        [None if i == j else 100 * pruned[i][j] / max(sum(pruned[i]), 1) for j in places]
        for i in places
    ]
    most = max((value for row in wrong for value in row if value is not None), default=0.0)
    figure = go.Figure(
        go.Heatmap(
            x=places,
            y=places,
            z=wrong,
            text=[
                [
                    f"{safe(names[i])} taken for {safe(names[j])}<br>{dense[i][j]} images dense, "
                    f"{pruned[i][j]} pruned ({100 * pruned[i][j] / max(sum(pruned[i]), 1):.1f} % "
                    "of the class)"
                    for j in places
                ]
                for i in places
            ],
            hovertemplate="%{text}<extra></extra>",
            colorscale="Cividis",
            zmin=0,
            zmax=max(most, 1.0),
            xgap=1,
            ygap=1,
            colorbar={"ticksuffix": " %", "thickness": 12, "title": {"text": ""}},
        )
    )
    labels = [safe(html.unescape(name[:14])) for name in names]
    named = len(names) <= NAMED_CLASSES
    axis = {"showgrid": False, "zeroline": False, "showticklabels": named}
    ticks = {"tickvals": places, "ticktext": labels} if named else {}
    figure.update_layout(
        xaxis={**axis, **ticks, "title": {"text": "Predicted"}, "tickangle": -45},
        yaxis={**axis, **ticks, "title": {"text": "Class"}, "autorange": "reversed"},
    )
    caption = (
        "Mistakes of the pruned network: one row a class, one column a prediction, coloured by the "
        "share of the class; right answers, on the diagonal, are left empty. Point at a field for "
        "the dense network's count."
    )
    worst = confusion_table(facts, of=_SPOKEN).rows
    spoken = "; ".join(
        f"{a.text} for {b.text}, {c.text} to {d.text} images" for a, b, c, d in worst
    )
    drawn = finished("confusion", "What is taken for what", caption, 520, figure)
    return dataclasses.replace(drawn, details=f"Most frequent, dense to pruned: {spoken}.")


def layers_table(facts: Facts) -> Table:
    """Median time of every layer that takes any, in the order of the network."""
    columns = (
        Column("layer", "Layer"),
        Column("dense", "Dense", True),
        Column("pruned", "Pruned", True),
        Column("speed_up", "Speed-up", True),
    )
    rows = tuple(
        (
            _text(one.layer or "(whole)"),
            Cell(one.dense, _micro(one.dense)),
            Cell(one.pruned, _micro(one.pruned)),
            Cell(one.dense / one.pruned, fmt.times(one.pruned, one.dense))
            if one.pruned
            else Cell(None, "n/a"),
        )
        for one in facts.layers
        if one.dense or one.pruned
    )
    plural = "thread" if facts.threads == 1 else "threads"
    caption = (
        f"Median time of each layer in a pass, batch {fmt.count(facts.batch)}, {facts.threads} "
        f"{plural}; what runs between layers is not in it."
    )
    return Table("layers", caption, columns, rows)


def _layers_text(facts: Facts) -> str:
    before = sum(one.dense for one in facts.layers)
    after = sum(one.pruned for one in facts.layers)
    gains: Sequence[str] = [
        f"{one.layer} {_micro(one.dense)} to {_micro(one.pruned)}"
        for one in sorted(facts.layers, key=lambda one: one.pruned - one.dense)[:_SPOKEN]
        if one.pruned < one.dense
    ]
    text = f"All layers together: {_micro(before)} to {_micro(after)} a pass"
    return f"{text}; most is saved in {'; '.join(gains)}." if gains else f"{text}."


def _micro(seconds: float) -> str:
    return f"{fmt.significant(1e3 * seconds)} ms"


def _share(number: int, whole: int) -> Cell:
    return Cell(number / whole, fmt.percent(number / whole, 1)) if whole else Cell(None, "n/a")
