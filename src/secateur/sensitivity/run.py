"""Cut each group alone, judge on validation, and divide a target by what was found.

The folder holds ``config.yaml``, in the end ``sensitivity.json``, ``report.html``, the tables as
CSV and JSON, and with a target the plan and the network of the allocation. While the run goes on,
each finished cell is a file in ``stages/``, so that a stopped run does nothing twice.
"""

from __future__ import annotations

import dataclasses
import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from rich.progress import Progress
from torch import Tensor, nn

from secateur.allocation import allocate, check_patterns
from secateur.allocation.limits import SLACK, protected
from secateur.allocation.predicted import loss_scores, predicted_loss
from secateur.checked import read_tensors, write_tensors
from secateur.compare.bench import Sealed
from secateur.criteria import score
from secateur.cutting import cut
from secateur.data import batches, load_data
from secateur.data.images import ImageSet
from secateur.errors import PlanError, VerificationError
from secateur.graph import Graph
from secateur.measure import environment, quality
from secateur.plan import Plan
from secateur.planning import make_plan
from secateur.progress import say, track
from secateur.report import write_sensitivity, write_sensitivity_tables
from secateur.results import Quality
from secateur.sensitivity.config import SensitivityConfig, plain, to_yaml
from secateur.sensitivity_results import (
    FILE,
    Allocation,
    Cell,
    GroupEntry,
    Sensitivity,
    load_sensitivity,
    save_sensitivity,
)
from secateur.study import kept, stages, store
from secateur.study.stages import Subject

Scores = Mapping[str, Tensor]


@dataclass(frozen=True)
class _Found:
    """One cell with the proof of its cut; the first cut of each group is proved."""

    group: str
    sparsity: float
    removed: int
    accuracy: float
    loss: float
    max_error: float


@dataclass(frozen=True)
class _Run:
    config: SensitivityConfig
    subject: Subject
    folder: Path
    progress: Progress | None

    def stage(self, name: str) -> Path:
        return self.folder / store.STAGES / name

    def judge(self, model: nn.Module) -> Quality:
        loader = batches(self.subject.data.validation, self.config.data.batch_size)
        return quality(model, loader, "validation")


def sensitivity_run(
    config: SensitivityConfig,
    *,
    resume: bool = False,
    progress: Progress | None = None,
    command: str = "",
) -> Sensitivity:
    """Measure what each group's cut alone does to accuracy and loss on validation.

    The test split is not read. With a target, an allocation by
    :func:`secateur.allocation.predicted.loss_scores` is made and measured beside local and global
    scope, and its plan and network are left in the folder.

    Args:
        config: what is asked.
        resume: go on with the run that the folder holds.
        progress: where to show how far it is.
        command: how to repeat it, for the record.

    Raises:
        InputError: the folder holds another run, or what was given does not fit.
        TraceError: the model fails on its example input.
        PlanError: nothing can be cut, or the target is out of reach.
        VerificationError: a cut network differs from its masked reference.
    """
    config = store.with_output(config, "sensitivity")
    folder = Path(config.output or "")
    store.check_folder(folder, plain(config), resume)
    if (folder / FILE).is_file():
        return _reported(folder, load_sensitivity(folder / FILE))
    with stages.threads_set(config.threads):
        model = stages.build(config.model, config.arguments, config.weights, config.seed)
        options = config.data.model_dump(exclude={"batch_size", "augment"})
        data = load_data(**options, seed=config.seed, progress=progress)
        data = dataclasses.replace(data, test=cast(ImageSet, Sealed()))
        subject = stages.inspect_subject(model, data)
        check_patterns(subject.graph, config.protect, {})
        factory = None
        if config.target.given:
            factory = kept.factory_for(config.model, config.arguments, model)
        store.claim(folder, to_yaml(config))
        return _measure(_Run(config, subject, folder, progress), factory, command)


def _measure(run: _Run, factory: str | None, command: str) -> Sensitivity:
    graph, config = run.subject.graph, run.config
    (dense,) = store.remembered_records(
        run.stage("dense.json"), Quality, lambda: [run.judge(run.subject.model)]
    )
    say(run.progress, f"dense: {dense.accuracy:.2%} on {dense.count} images of validation")
    scores = _scores(run)
    spared = protected(graph, config.protect)
    names = [group.name for group in graph.groups if group.name not in spared]
    every = [(place, name, s) for place, name in enumerate(names) for s in config.sparsities]
    cells: list[_Found] = []
    for place, name, sparsity in track(every, "Cutting groups alone", run.progress):
        cells.append(_cell(run, scores, dense, cells, place, name, sparsity))
    found = Sensitivity(
        title=f"{config.model.rpartition(':')[2]}: sensitivity of {len(names)} groups",
        asked=plain(config),
        command=command,
        environment=environment(),
        dense=dense,
        groups=tuple(_entry(graph, name) for name in names),
        sparsities=config.sparsities,
        cells=tuple(
            Cell(one.group, one.sparsity, one.removed, one.accuracy, one.loss) for one in cells
        ),
        max_error=max(one.max_error for one in cells),
        notes=tuple(graph.notes),
    )
    if config.target.given:
        found = dataclasses.replace(found, allocations=_allocated(run, scores, found, factory))
    save_sensitivity(found, run.folder / FILE)
    shutil.rmtree(run.folder / store.STAGES, ignore_errors=True)
    return _reported(run.folder, found)


def _scores(run: _Run) -> dict[str, Tensor]:
    """Score once; the next time they are read."""
    path = run.stage("scores.safetensors")
    if not path.is_file():
        config = run.config
        found = score(
            run.subject.graph,
            config.criterion,
            batches(run.subject.data.calibration, config.data.batch_size),
            seed=config.seed,
            aggregation=config.aggregation,
            options=config.options,
            progress=run.progress,
        )
        write_tensors(path, found)
    return read_tensors(path)


def _cell(
    run: _Run,
    scores: Scores,
    dense: Quality,
    before: list[_Found],
    place: int,
    name: str,
    sparsity: float,
) -> _Found:
    """Measure one cell, once; a cut that takes as many units as the one before is the same."""
    graph = run.subject.graph
    size = graph.by_name[name].size
    count = min(math.floor(sparsity * size + SLACK), size - 1)
    last = before[-1] if before and before[-1].group == name else None

    def measure() -> list[_Found]:
        if count == 0:
            return [_Found(name, sparsity, 0, dense.accuracy, dense.loss, 0.0)]
        if last is not None and last.removed == count:
            return [dataclasses.replace(last, sparsity=sparsity)]
        order = scores[name].double().argsort(stable=True).tolist()
        try:
            plan = make_plan(graph, {name: order[:count]})
        except PlanError:
            # The model's own code needs all of them: nothing goes, and nothing changes.
            return [_Found(name, sparsity, 0, dense.accuracy, dense.loss, 0.0)]
        if last is None or last.max_error == 0.0:
            try:
                pruned, check = stages.cut_and_verify(run.subject, plan)
            except VerificationError as fault:
                say(run.progress, f"group {name} stays whole: {fault}")
                return [_Found(name, sparsity, 0, dense.accuracy, dense.loss, 0.0)]
            error = check.max_error
        else:
            pruned, error = cut(run.subject.model, plan), last.max_error
        judged = run.judge(pruned)
        gone = len(plan.removed.get(name, ()))
        return [_Found(name, sparsity, gone, judged.accuracy, judged.loss, error)]

    path = run.stage(f"cell-{place}-{sparsity:g}.json")
    (found,) = store.remembered_records(path, _Found, measure)
    return found


def _entry(graph: Graph, name: str) -> GroupEntry:
    group, whole = graph.by_name[name], graph.cost()
    least = graph.cost({name: tuple(range(1, group.size))})
    return GroupEntry(
        name,
        group.kind,
        group.size,
        (whole.macs - least.macs) / max(whole.macs, 1),
        (whole.params - least.params) / max(whole.params, 1),
    )


def _allocated(
    run: _Run, scores: Scores, found: Sensitivity, factory: str | None
) -> tuple[Allocation, ...]:
    """Divide the target by sensitivity, and beside it by local and global scope; keep the first."""
    graph, config = run.subject.graph, run.config
    curves = found.curves()
    mine = {name: scores[name] for name in curves}
    ((target, value),) = config.target.given.items()
    asked: dict[str, Any] = {target: value}
    saving = "units" if target == "sparsity" else target
    divisions = {
        "sensitivity": lambda: allocate(
            graph, loss_scores(graph, mine, curves, saving), **asked, scope="global",
            normalisation="none",
        ),
        "local": lambda: allocate(graph, mine, **asked, scope="local"),
        "global": lambda: allocate(graph, mine, **asked, scope="global"),
    }  # fmt: skip
    results = []
    for rule, divide in divisions.items():
        pruned, plan, _ = stages.provable_cut(run.subject, divide(), progress=run.progress)
        (judged,) = store.remembered_records(
            run.stage(f"allocation-{rule}.json"),
            Quality,
            lambda net=pruned: [run.judge(net)],  # type: ignore[misc]
        )
        results.append(_division(rule, plan, curves, judged))
        if rule == "sensitivity":
            store.write_plan(run.folder / store.PLAN, plan)
            own = kept.Run(run.folder, config.data.batch_size, run.progress, "")
            kept.stored(own, pruned, factory, config.arguments)
    return tuple(results)


def _division(
    rule: str, plan: Plan, curves: Mapping[str, list[tuple[int, float]]], judged: Quality
) -> Allocation:
    removed = {name: len(units) for name, units in plan.removed.items() if name in curves}
    return Allocation(
        rule=rule,
        removed=removed,
        macs=plan.pruned.macs / plan.dense.macs,
        params=plan.pruned.params / plan.dense.params,
        predicted=predicted_loss(curves, removed),
        quality=judged,
    )


def _reported(folder: Path, found: Sensitivity) -> Sensitivity:
    """Draw the report of a finished run, and hand the record on."""
    write_sensitivity(found, folder / store.REPORT)
    write_sensitivity_tables(found, folder)
    return found
