"""What was asked and what came out, in five lines or a few more."""

from __future__ import annotations

from dataclasses import dataclass

from secateur.report import format as fmt
from secateur.report.branches_parts import branches_text
from secateur.report.tables import flatten
from secateur.report.zeros_parts import zeros_text
from secateur.results import CheckRecord, Quality, Result

# What a reader wants to know first; the rest of the settings stand at the end of the page.
_FIRST = (
    "model",
    "weights",
    "data",
    "source",
    "criterion",
    "criteria",
    "scope",
    "scopes",
    "sparsity",
    "sparsities",
    "macs",
    "params",
    "round_to",
    "epochs",
)
_LONGEST = 60
_MOST_NAMES = 3


@dataclass(frozen=True)
class Line:
    """One line of the summary."""

    label: str
    text: str


def summary(result: Result) -> tuple[Line, ...]:
    """Asked, chosen, accuracy, size and speed, proof; zeros and branches for runs that have any."""
    zeros, branches = zeros_text(result.zeros), branches_text(result.branches)
    return (
        Line("Asked", _asked(result)),
        Line("Chosen", _chosen(result)),
        Line("Accuracy", _accuracy(result.dense.quality, result.pruned.quality)),
        *((Line("Zeros", zeros),) if zeros else ()),
        *((Line("Branches", branches),) if branches else ()),
        Line("Size and speed", _size_and_speed(result)),
        Line("Proof", proof_of(result)),
    )


def proof_of(result: Result) -> str:
    """The check of a run in one sentence."""
    return proof(result.check, zeroed=bool(result.zeros))


def proof(check: CheckRecord, *, zeroed: bool = False) -> str:
    """The check in one sentence; it never calls a failed or an empty check a proof.

    With ``zeroed`` nothing was cut: the saved network is compared with the masked one.
    """
    made, done = ("The saved network", "masks") if zeroed else ("The cut network", "cut")
    found = f"largest relative error {fmt.tiny(check.max_error)}"
    limit = f"tolerance {fmt.tiny(check.tolerance)}, {check.dtype}"
    if not check.ok:
        why = check.reason or f"{made.lower()} differs from its masked reference"
        return f"FAILED: {why} ({found}; {limit})."
    if not check.changed:
        return (
            f"Says nothing: the {done} did not change the output, so agreeing is empty ({found}; "
            f"{limit})."
        )
    notes = "".join(f" Note: {note}." for note in check.notes)
    return f"{made} computes what its masked reference computes ({found}; {limit}).{notes}"


def _asked(result: Result) -> str:
    settings = [(name, text) for name, text in flatten(result.asked) if text != "none"]
    ranks = {name: rank for rank, name in enumerate(_FIRST)}
    named = sorted(
        (pair for pair in settings if _last(pair[0]) in ranks or pair[0] == "seed"),
        key=lambda pair: ranks.get(_last(pair[0]), len(ranks)),
    )
    shown = [_setting(name, text) for name, text in named or settings[:6]]
    return "; ".join(shown) + "." if shown else "No settings were recorded."


def _setting(name: str, text: str) -> str:
    # Of the three targets only sparsity is the share removed.
    kept = " kept" if _last(name) in ("macs", "params") else ""
    return f"{_readable(name)} {_cut(text)}{kept}"


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _readable(name: str) -> str:
    return name.replace("_", " ").replace(".", " ")


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


def _chosen(result: Result) -> str:
    chosen = [point for point in result.points if point.chosen]
    if not result.points:
        return "Nothing was compared: the plan follows the settings alone."
    total = len(result.points)
    networks = "1 network" if total == 1 else f"{fmt.count(total)} networks"
    if not chosen:
        return f"None of the {networks} compared was marked as chosen."
    names = [
        f"{point.criterion}, {point.scope} scope, at {fmt.percent(point.sparsity, 1)} sparsity "
        f"({fmt.percent(point.accuracy)} on {point.split})"
        for point in chosen
    ]
    return f"{fmt.listed(names, _MOST_NAMES)}, out of {networks} compared."


def _accuracy(dense: Quality, pruned: Quality) -> str:
    change = fmt.points(pruned.accuracy - dense.accuracy)
    text = f"{fmt.percent(dense.accuracy)} dense, {fmt.percent(pruned.accuracy)} pruned ({change})"
    if (dense.split, dense.count) != (pruned.split, pruned.count):
        return f"{text}; measured on different images, so not like for like."
    overlap = pruned.low <= dense.high and dense.low <= pruned.high
    return (
        f"{text} on {fmt.count(dense.count)} images of the {dense.split} split; the 95 % intervals "
        f"{'overlap' if overlap else 'do not overlap'}."
    )


def _size_and_speed(result: Result) -> str:
    before, after = result.dense.size, result.pruned.size
    parts = [
        f"parameters {fmt.short(before.params)} to {fmt.short(after.params)} "
        f"({fmt.relative(before.params, after.params)})",
        f"MACs {fmt.short(before.macs)} to {fmt.short(after.macs)} "
        f"({fmt.relative(before.macs, after.macs)})",
    ]
    dense = {(speed.batch, speed.threads): speed for speed in result.dense.speeds}
    for speed in sorted(result.pruned.speeds, key=lambda one: (one.batch, one.threads)):
        paired = dense.get((speed.batch, speed.threads))
        if paired is not None:
            gain = fmt.times(paired.median, speed.median)
            parts.append(f"speed {gain} at batch {fmt.count(speed.batch)}")
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}."
