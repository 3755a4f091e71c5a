"""From the figures of ``criteria_resnet56.py`` to a page and a picture; no torch."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

Figure = dict[str, Any]
Series = dict[float, Figure]

STRONG = ("#0b62c4", "#d1495b", "#2e8540", "#8a4fbf", "#c77700", "#00848c")
GREY = "#c4c8ce"
LEFT, TOP, WIDTH, HEIGHT, LEGEND, GAP = 64, 44, 560, 270, 240, 92


def write_page(kept: dict[str, Any], page: Path) -> None:
    """Write the page and, beside it, ``images/resnet56-criteria.svg``."""
    lines = series_of(kept)
    picture = page.parent / "images" / "resnet56-criteria.svg"
    picture.parent.mkdir(parents=True, exist_ok=True)
    picture.write_text(draw(lines, kept), encoding="utf-8")
    page.write_text("\n".join(text(lines, kept)) + "\n", encoding="utf-8")


def series_of(kept: dict[str, Any]) -> dict[tuple[str, int, str], Series]:
    """Sort the figures into (criterion, seed, scope) -> sparsity -> figure."""
    found: dict[tuple[str, int, str], Series] = {}
    for key, figure in kept["figures"].items():
        name, seed, scope, sparsity = key.split("|")
        found.setdefault((name, int(seed), scope), {})[float(sparsity)] = figure
    return found


def is_mixture(name: str) -> bool:
    return name.startswith(("delta ", "interleave"))


def mean_accuracy(series: Series) -> float:
    taken = [figure["accuracy"] for figure in series.values() if "accuracy" in figure]
    return statistics.fmean(taken) if taken else 0.0


def text(lines: dict[tuple[str, int, str], Series], kept: dict[str, Any]) -> list[str]:
    dense, config = kept["dense"], kept["config"]
    checked = [f["mask_error"] for f in kept["figures"].values() if "mask_error" in f]
    out = [
        "# Every criterion on a trained ResNet-56",
        "",
        "Made by `python benchmarks/criteria_resnet56.py`: ResNet-56 for CIFAR-10, "
        f"{dense['params']:,} parameters, {dense['units']:,} units in groups; accuracy of the "
        f"dense network on the {dense['count']:,} test images {cell(dense)} %.",
        "Units are scored on "
        f"{config['calibration']:,} images of the training split, cut at once and never "
        "finetuned; the figures are accuracies in percent on the test split, with 95 % Wilson "
        "intervals. The images are a JPEG copy of CIFAR-10, so compare them with each other only.",
        "Sparsity is the share of all units that go. In global scope a group's scores are divided "
        "by their mean before groups compete.",
    ]
    if checked:
        out.append(
            f"At sparsity 0.5 (global) {len(checked)} cut networks were compared with their "
            f"masked references: the largest relative error is {max(checked):.0e} (float64)."
        )
    out += ["", "![Accuracy against sparsity](images/resnet56-criteria.svg)"]
    for scope in ("global", "local"):
        rows = {
            (name if name != "random" else f"random, seed {seed}"): series
            for (name, seed, at), series in lines.items()
            if at == scope and not is_mixture(name)
        }
        out += ["", f"## Criteria, {scope} scope", "", *table(rows)]
    rows = {name: series for (name, _, _), series in lines.items() if is_mixture(name)}
    if rows:
        out += [
            "",
            "## Mixtures",
            "",
            f"One order by relevance (`{config['relevance']}`) and one by parameters "
            f"(`{config['parameters']}`), all units in one order (global scope). Delta 0 is the "
            "order by parameters alone, delta 1 the one by relevance alone.",
            "",
            *table(rows, ordered=False),
            "",
            *finding(rows),
        ]
    refused = {
        name: series[min(series)]["refused"]
        for (name, _, _), series in lines.items()
        if any("refused" in figure for figure in series.values())
    }
    out += [""] if refused else []
    out += [f"- `{name}` could not judge: {why}" for name, why in refused.items()]
    where = ", ".join(f"{key} {value}" for key, value in kept.get("environment", {}).items())
    return [*out, "", f"Measured with {where}."]


def cell(figure: Figure | None) -> str:
    if figure is None or "accuracy" not in figure:
        return "-"
    low, high = 100 * figure["low"], 100 * figure["high"]
    return f"{100 * figure['accuracy']:.1f} <sub>{low:.1f}-{high:.1f}</sub>"


def table(rows: dict[str, Series], *, ordered: bool = True) -> list[str]:
    """Lay out rows, the best mean first, one column a sparsity; the best of a column is bold."""
    steps = sorted({step for series in rows.values() for step in series})
    names = sorted(rows, key=lambda name: -mean_accuracy(rows[name])) if ordered else list(rows)
    best = {
        step: max((rows[name].get(step, {}).get("accuracy", -1.0) for name in names), default=-1.0)
        for step in steps
    }

    def told(figure: Figure | None, step: float) -> str:
        found = cell(figure)
        if figure is not None and figure.get("accuracy") == best[step]:
            number, _, rest = found.partition(" ")
            return f"**{number}** {rest}"
        return found

    head = ["criterion" if ordered else "order", *(f"{step:.0%}" for step in steps), "mean"]
    return [
        f"| {' | '.join(head)} |",
        f"|{'---|' * len(head)}",
        *(
            f"| {name} | {' | '.join(told(rows[name].get(step), step) for step in steps)} "
            f"| {100 * mean_accuracy(rows[name]):.1f} |"
            for name in names
        ),
    ]


def finding(rows: dict[str, Series]) -> list[str]:
    """Answer the source's question from the figures alone."""
    alone = [rows[name] for name in ("delta 0.0", "delta 1.0") if name in rows]
    mixed = {name: s for name, s in rows.items() if name not in ("delta 0.0", "delta 1.0")}
    steps = sorted(
        step
        for step in {step for series in rows.values() for step in series}
        if all("accuracy" in series.get(step, {}) for series in rows.values())
    )
    if len(alone) < 2 or not mixed or not steps:
        return ["The figures do not yet answer whether a mixture is better than either order."]

    def compare(pick: Callable[[float], Figure]) -> str:
        above = below = 0
        for step in steps:
            single = max((series[step] for series in alone), key=lambda f: f["accuracy"])
            found = pick(step)
            above += found["low"] > single["high"]
            below += found["high"] < single["low"]
        return (
            f"above the better order alone at {above} of {len(steps)} sparsities and below it at "
            f"{below} (intervals that do not overlap)"
        )

    def best(step: float) -> Figure:
        return max((series[step] for series in mixed.values()), key=lambda f: f["accuracy"])

    out = [
        "**Is a mixture better than either order alone?** Mean accuracy over the sparsities: "
        f"parameters alone {100 * mean_accuracy(rows['delta 0.0']):.1f} %, relevance alone "
        f"{100 * mean_accuracy(rows['delta 1.0']):.1f} %.",
        "",
        f"- The best of the {len(mixed)} mixtures at each sparsity, chosen on the same test images "
        f"and so in its own favour, is {compare(best)}.",
    ]
    for name in ("interleave", "delta 0.4", "delta 0.5"):
        if name in mixed:
            series = mixed[name]
            out.append(
                f"- {name}, fixed beforehand, has a mean of {100 * mean_accuracy(series):.1f} % "
                f"and is {compare(lambda step, series=series: series[step])}."
            )
    return out


def draw(lines: dict[tuple[str, int, str], Series], kept: dict[str, Any]) -> str:
    """Draw one panel a scope, and one of the mixtures, as a small SVG."""
    panels: list[tuple[str, list[tuple[str, Series, str, bool]]]] = []
    for scope in ("global", "local"):
        mine = {n: s for (n, seed, at), s in lines.items() if at == scope and seed == 0}
        mine = {n: s for n, s in mine.items() if not is_mixture(n) and mean_accuracy(s)}
        if not mine:
            continue
        judged = sorted((n for n in mine if n != "random"), key=lambda n: -mean_accuracy(mine[n]))
        drawn = [(n, mine[n], GREY, False) for n in judged[len(STRONG) :]]
        drawn += [(n, mine[n], STRONG[i], False) for i, n in enumerate(judged[: len(STRONG)])]
        if "random" in mine:
            drawn.append(("random", mine["random"], "#333333", True))
        panels.append((f"Criteria, {scope} scope", drawn))
    mixed = {n: s for (n, _, _), s in lines.items() if is_mixture(n) and mean_accuracy(s)}
    if mixed:
        panels.append(
            (
                "Mixtures of relevance and parameters",
                [(n, s, shade(n), n == "interleave") for n, s in mixed.items()],
            )
        )
    height = TOP + len(panels) * (HEIGHT + GAP)
    parts = [panel(i, title, drawn, kept["dense"]) for i, (title, drawn) in enumerate(panels)]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {LEFT + WIDTH + LEGEND} {height}" '
        'font-family="system-ui, sans-serif" font-size="13">\n'
        f'<rect width="100%" height="100%" fill="white"/>\n{"".join(parts)}</svg>\n'
    )


def shade(name: str) -> str:
    """Blue for the order by parameters, orange for the one by relevance."""
    if not name.startswith("delta "):
        return "#333333"
    share = float(name.split()[1])
    low, high = (11, 98, 196), (230, 120, 0)
    mix = [round(a + share * (b - a)) for a, b in zip(low, high, strict=True)]
    return "#{:02x}{:02x}{:02x}".format(*mix)


def panel(
    number: int, title: str, drawn: list[tuple[str, Series, str, bool]], dense: Figure
) -> str:
    top = TOP + number * (HEIGHT + GAP)

    def x(sparsity: float) -> float:
        return LEFT + sparsity * WIDTH

    def y(accuracy: float) -> float:
        return top + (1 - accuracy) * HEIGHT

    out = [f'<text x="{LEFT}" y="{top - 16}" font-size="15" font-weight="600">{title}</text>\n']
    for tenth in range(0, 11, 2):
        share, at = tenth / 10, y(tenth / 10)
        out.append(f'<path d="M{LEFT} {at:.1f}h{WIDTH}" stroke="#e6e8eb"/>\n')
        out.append(f'<text x="{LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">{share:.0%}</text>\n')
        out.append(
            f'<text x="{x(share):.1f}" y="{top + HEIGHT + 18}" text-anchor="middle">'
            f"{share:.0%}</text>\n"
        )
    out.append(
        f'<text x="{LEFT + WIDTH / 2}" y="{top + HEIGHT + 36}" text-anchor="middle">'
        "share of units cut; accuracy on test, bars: 95 %</text>\n"
    )
    start = {"accuracy": dense["accuracy"], "low": dense["low"], "high": dense["high"]}
    legend = top + 6
    listed = sorted(drawn, key=lambda entry: -mean_accuracy(entry[1]))
    if title.startswith("Mixtures"):
        listed = drawn
    for name, series, colour, dashed in drawn:
        points = {0.0: start} | {s: f for s, f in sorted(series.items()) if "accuracy" in f}
        path = " ".join(f"{x(s):.1f},{y(f['accuracy']):.1f}" for s, f in points.items())
        dash = ' stroke-dasharray="5 4"' if dashed else ""
        thick = 1.2 if colour == GREY else 2
        out.append(
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{thick}"'
            f"{dash}><title>{escape(name)}</title></polyline>\n"
        )
        if colour != GREY:
            bars = "".join(
                f"M{x(s):.1f} {y(f['low']):.1f}V{y(f['high']):.1f}" for s, f in points.items()
            )
            out.append(f'<path d="{bars}" stroke="{colour}" stroke-width="1.5"/>\n')
    others = 0
    for name, _, colour, dashed in listed:
        if colour == GREY:
            others += 1
            continue
        dash = ' stroke-dasharray="5 4"' if dashed else ""
        out.append(legend_entry(legend, colour, dash, name))
        legend += 20
    if others:
        out.append(legend_entry(legend, GREY, "", f"{others} other criteria"))
    return "".join(out)


def legend_entry(top: float, colour: str, dash: str, name: str) -> str:
    left = LEFT + WIDTH + 18
    return (
        f'<path d="M{left} {top}h22" stroke="{colour}" stroke-width="3"{dash}/>'
        f'<text x="{left + 30}" y="{top + 4}">{escape(name)}</text>\n'
    )
