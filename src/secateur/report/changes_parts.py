"""What became of a network: widths of its layers, training, what was pinned or given back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from secateur.report import figures, tables
from secateur.report.cells import Table
from secateur.report.parts import Section, with_rows
from secateur.report.zeros_parts import zeros_section, zeros_table
from secateur.results import Changes, Epoch, LayerZeros, PinnedDim, Width


def changes_tables(changes: Changes | None) -> tuple[Table, ...]:
    """Every table of the changes that has rows."""
    if changes is None:
        return ()
    every = (
        tables.widths_table(changes.widths),
        zeros_table(changes.zeros),
        tables.history_table(changes.history),
        tables.given_back_table(changes.given_back),
        tables.pinned_table(changes.pinned),
    )
    return tuple(table for table in every if table.rows)


def changes_sections(changes: Changes | None) -> tuple[Section, ...]:
    """The parts of the page; none where nothing is known."""
    if changes is None:
        return ()
    return (
        zeros_section(changes.zeros),
        widths_section(changes.widths, changes.zeros),
        training_section(changes.history),
        kept_section(changes.pinned, changes.given_back, changes.zeros),
    )


def widths_section(widths: Sequence[Width], zeros: Sequence[LayerZeros] = ()) -> Section:
    """Without content where single weights went and nothing was cut."""
    name, title = "widths", "Widths before and after"
    if zeros and all(one.dense == one.pruned for one in widths):
        return Section(name, title)
    return Section(
        name,
        title,
        figure=figures.widths_figure(widths),
        tables=with_rows(tables.widths_table(widths), folded=True),
    )


def training_section(history: Sequence[Epoch]) -> Section:
    """Without content where nothing was trained."""
    return Section(
        "training",
        "Training",
        figure=figures.training_figure(history),
        tables=with_rows(tables.history_table(history), folded=True),
    )


def kept_section(
    pinned: Sequence[PinnedDim], given_back: Mapping[str, int], zeros: Sequence[LayerZeros] = ()
) -> Section:
    """What stands against cutting; without content where single weights went."""
    name, title = "kept", "Pinned and given back"
    if zeros:
        return Section(name, title)
    texts = []
    if not given_back:
        texts.append("Every unit that was marked for removal was removed.")
    if not pinned:
        texts.append("Nothing was pinned: every dimension could be cut.")
    return Section(
        name,
        title,
        texts=tuple(texts),
        bullets=_reasons(pinned),
        tables=(
            *with_rows(tables.given_back_table(given_back)),
            *with_rows(tables.pinned_table(pinned), folded=True),
        ),
    )


def _reasons(pinned: Sequence[PinnedDim]) -> tuple[str, ...]:
    """How many dimensions each reason pins, most first."""
    counts = Counter(pin.reason for pin in pinned)
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return tuple(
        f"{number} {'dimension' if number == 1 else 'dimensions'} pinned: {reason}"
        for reason, number in ordered
    )
