"""The page and the tables of a study, from a made-up one: none of these numbers was measured."""

from __future__ import annotations

import csv
import dataclasses
import math
from itertools import product
from pathlib import Path

import pytest

from secateur.comparison import Comparison, Trial, area, choose, scored, setups
from secateur.report import write_comparison, write_comparison_tables
from secateur.report.comparison_figures import curves_figure, mixtures_figure, pareto_figure
from secateur.report.comparison_page import render_comparison, summary
from secateur.results import (
    Changes,
    Epoch,
    LayerZeros,
    Measured,
    PinnedDim,
    Quality,
    Size,
    Width,
)


def quality(accuracy: float, split: str = "validation") -> Quality:
    return Quality(
        split, 1000, accuracy, accuracy - 0.02, accuracy + 0.02, accuracy, accuracy, accuracy,
        -math.log(accuracy),
    )  # fmt: skip


def made_up(names: int = 4, sparsities: int = 9, seeds: int = 2) -> Comparison:
    """A study whose accuracies fall with sparsity; one trial has failed."""
    every = product(range(names), range(sparsities), range(seeds))
    trials = []
    for number, (name, step, seed) in enumerate(every):
        sparsity = (step + 1) / (sparsities + 1)
        fall = (1 + name % 7) * sparsity**3
        trials.append(
            Trial(
                number=number,
                criterion=f"criterion {name}",
                granularity="channel",
                scope="global",
                target="sparsity",
                value=sparsity,
                recovery="none",
                epochs=0,
                seed=seed,
                quality=quality(0.1 + 0.8 * math.exp(-fall - 0.01 * seed)),
                params=round(1e6 * (1 - sparsity) ** 2),
                macs=round(1e8 * (1 - sparsity) ** (1.5 + 0.1 * (name % 3))),
                bytes=round(3e6 * (1 - sparsity) ** 2),
                max_error=1e-15,
                seconds=2.0,
            )
        )
    trials[3] = dataclasses.replace(trials[3], state="failed", error="<b>no</b>", quality=None)
    return Comparison(
        title="made up & compared",
        asked={"model": "net", "criteria": ["a", {"delta": ["a", "b"], "share": [0.5]}]},
        command="secateur compare study.yaml",
        environment={"python": "3.11"},
        dense=Measured(quality(0.91, "test"), Size(1_000_000, 100_000_000, 4_000_000, 3_000_000)),
        validation=quality(0.9),
        trials=tuple(trials),
        chosen=0,
        score="course-project",
    )


@pytest.fixture(scope="module")
def comparison() -> Comparison:
    return made_up()


def test_the_page_says_what_matters(comparison: Comparison) -> None:
    page = render_comparison(comparison)
    assert "<h1>made up &amp; compared</h1>" in page
    assert "1 of 72 failed" in page
    assert "&lt;b&gt;no&lt;/b&gt;" in page
    assert page.count('class="plot"') == 4
    assert len(summary(comparison, setups(comparison.trials))) == 5


def test_the_chosen_network_is_shown_layer_by_layer(comparison: Comparison, tmp_path: Path) -> None:
    alone = render_comparison(comparison)
    history = (Epoch("finetune", 1, 0.1, 0.5, 0.6, 0.8, 2.0),)
    changes = Changes(
        widths=(Width("conv", 8, 4),),
        history=history,
        pinned=(PinnedDim("fc.weight", 0, "the model's output"),),
        given_back={"conv": 2},
    )
    cut = dataclasses.replace(comparison, changes=changes)
    page = render_comparison(cut)
    assert '<section id="chosen"' not in page  # nobody looked at its answers
    for name in ("widths", "training", "kept"):
        assert f'<section id="{name}"' in page
        assert f'<section id="{name}"' not in alone
    assert "1 dimension pinned: the model&#39;s output" in page
    written = {path.name for path in write_comparison_tables(cut, tmp_path)}
    assert written >= {"widths.csv", "history.csv", "pinned.json", "given_back.csv"}
    zeros = Changes(widths=(Width("conv", 8, 8),), zeros=(LayerZeros("conv", 72, 36),))
    page = render_comparison(dataclasses.replace(comparison, changes=zeros))
    assert '<section id="zeros"' in page
    assert '<section id="widths"' not in page
    assert '<section id="kept"' not in page


def test_setups_are_means_with_frontiers(comparison: Comparison) -> None:
    found = setups(comparison.trials)
    assert len(found) == 36
    assert [len(setup.trials) for setup in found[:3]] == [2, 1, 2]
    for cost in ("macs", "params", "bytes"):
        for setup in found:
            beaten = any(
                other.accuracy >= setup.accuracy
                and (other.cost(cost) or 0) <= (setup.cost(cost) or 0)
                and (other.accuracy, other.cost(cost)) != (setup.accuracy, setup.cost(cost))
                for other in found
            )
            assert (cost in setup.frontiers) == (not beaten)
    assert not any("latency" in setup.frontiers for setup in found)


def test_choices_and_scores(comparison: Comparison) -> None:
    found = setups(comparison.trials)
    chosen = choose(found, 0.9, 0.05, "macs")
    assert chosen is not None
    assert chosen.accuracy >= 0.85
    assert not any(one.macs < chosen.macs and one.accuracy >= 0.85 for one in found)
    assert choose(found, 2.0, 0.0, "macs") is None
    first = found[0]
    assert scored(comparison, first) == pytest.approx((first.accuracy + 1 - first.params / 1e6) / 2)
    assert 0 < area(comparison, found, "macs") < 1


def test_tables_hold_every_trial(comparison: Comparison, tmp_path: Path) -> None:
    written = write_comparison_tables(comparison, tmp_path)
    assert {path.name for path in written} == {
        f"{name}.{kind}" for name in ("setups", "trials", "failures") for kind in ("csv", "json")
    }
    with (tmp_path / "trials.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 72
    assert rows[3]["state"] == "failed"
    assert rows[3]["accuracy"] == ""
    assert float(rows[5]["accuracy"]) == getattr(comparison.trials[5].quality, "accuracy", None)
    assert "seconds" not in rows[0], "a table that is the same after a resume holds no times"


def test_figures_show_what_is_dominated(comparison: Comparison) -> None:
    found = setups(comparison.trials)
    figure = pareto_figure(comparison, found, "macs")
    assert figure is not None
    marks = [trace for trace in figure.spec["data"] if trace["name"].startswith("criterion")]
    large = sum(size == 11 for trace in marks for size in trace["marker"]["size"])
    assert large == sum("macs" in setup.frontiers for setup in found)
    assert pareto_figure(comparison, found, "latency") is None
    curves = curves_figure(found, "sparsity")
    assert curves is not None
    assert len(curves.spec["data"]) == 4
    assert "error_y" in curves.spec["data"][0]
    assert curves_figure(found, "macs") is None
    assert mixtures_figure(found) is None


def test_mixtures_are_drawn_by_share(comparison: Comparison) -> None:
    trials = [
        dataclasses.replace(
            comparison.trials[0], number=n, criterion=f"delta {s:g} (a, b)", share=s
        )
        for n, s in enumerate((0.0, 0.5, 1.0))
    ]
    figure = mixtures_figure(setups(trials))
    assert figure is not None
    (line,) = figure.spec["data"]
    assert line["x"] == [0.0, 0.5, 1.0]


def test_the_same_study_gives_the_same_bytes(comparison: Comparison) -> None:
    assert render_comparison(comparison) == render_comparison(comparison)


def test_one_criterion_is_told_apart_by_what_varies() -> None:
    trials = tuple(
        dataclasses.replace(trial, criterion="l2", scope=scope, epochs=epochs)
        for scope in ("local", "global")
        for epochs in (0, 1)
        for trial in made_up(names=1, sparsities=4, seeds=1).trials
        if trial.quality is not None
    )
    comparison = dataclasses.replace(made_up(), trials=trials, chosen=None)
    found = setups(trials)
    pareto, curves = pareto_figure(comparison, found, "macs"), curves_figure(found, "sparsity")
    assert pareto is not None
    assert curves is not None
    assert [trace["name"] for trace in pareto.spec["data"]] == [
        "frontier", "local", "global", "dense"
    ]  # fmt: skip
    looks = {
        trace["name"]: (trace["line"]["color"], trace["line"]["dash"])
        for trace in curves.spec["data"]
    }
    assert len(looks) == len(set(looks.values())) == 4
    assert len({color for color, _ in looks.values()}) == 2
    assert curves.caption.startswith("One colour and marker for each scope. Dashes tell the epochs")


def test_a_thousand_trials_stay_small(tmp_path: Path) -> None:
    large = made_up(names=10, sparsities=100, seeds=1)
    path = write_comparison(large, tmp_path / "report.html")
    assert len(large.trials) == 1000
    assert path.stat().st_size < 6e6
