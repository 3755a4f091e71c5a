"""How a run makes the structures of a network fewer: at once, in rounds, or as training chose."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from secateur.allocation import check_patterns
from secateur.allocation.limits import protected
from secateur.cutting import cut
from secateur.data import batches
from secateur.errors import InputError, PlanError, VerificationError
from secateur.graph import Graph, trace
from secateur.plan import Plan
from secateur.planning import make_plan
from secateur.progress import say
from secateur.recovery import recover
from secateur.results import Branch, CheckRecord, Epoch, LayerZeros
from secateur.rounds import all_epochs
from secateur.sparse_training import (
    Keeping,
    Selected,
    difference,
    readers,
    removable,
    remove_blocks,
    residual_blocks,
    select_structures,
    shrink_units,
    slim,
)
from secateur.study import kept, stages
from secateur.study.choosing import chosen, curves_of
from secateur.study.config import RunConfig
from secateur.study.fields import SEARCHED
from secateur.study.kept import Run
from secateur.study.stages import Subject, share
from secateur.study.ways import SparseSettings
from secateur.training import StepHook
from secateur.training_state import snapshot
from secateur.weight_masks import Masks

TOLERANCE = 1e-10


@dataclass(frozen=True)
class Job:
    """A run, what it is asked, the dense network, and what has been told of it so far."""

    run: Run
    config: RunConfig
    subject: Subject
    factory: str | None
    told: list[str] = field(default_factory=list)

    def tell(self, name: str, words: str, model: nn.Module, more: str = "") -> None:
        """Judge a network on validation, once, and say so."""
        found = kept.judged(self.run, f"{name}-validation", model, self.subject.data, "validation")
        self.told.append(f"{words} {found.accuracy:.2%}")
        say(self.run.progress, f"{words}: {found.accuracy:.2%} on validation{more}")

    def finetune(
        self, model: nn.Module, *, masks: Masks | None = None, hook: StepHook | None = None
    ) -> tuple[Epoch, ...]:
        """Train in place as asked, and say how it went; see :func:`secateur.study.kept.trained`."""
        config = self.config
        history = kept.trained(
            self.run,
            model,
            self.subject.data,
            config.finetune,
            "finetune",
            config.data.augment,
            self.subject.model,
            masks=masks,
            hook=hook,
            trackers=config.trackers,
        )
        if history:
            self.keep(model)
            best = max(entry.val_accuracy for entry in history)
            self.told.append(f"finetuned {best:.2%}")
            say(self.run.progress, f"finetuned: {best:.2%} on validation")
        return history

    def keep(self, model: nn.Module) -> None:
        """Save the network into the run folder."""
        kept.stored(self.run, model, self.factory, self.config.arguments)


@dataclass(frozen=True)
class Shrunk:
    """What a run has made of the network that its folder holds.

    Attributes:
        check: the proof.
        history: of all trainings.
        macs: of one sample, dense and now.
        given_back: units that had to stay, by group.
        notes: what a reader should know.
        zeros: by layer, where single weights were set to zero.
        branches: residual branches, where training could let them go.
    """

    check: CheckRecord
    history: tuple[Epoch, ...]
    macs: tuple[int, int]
    given_back: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    zeros: tuple[LayerZeros, ...] = ()
    branches: tuple[Branch, ...] = ()


def check_structures(config: RunConfig, subject: Subject, factory: str | None) -> None:
    """Refuse, before the folder is claimed, what this network cannot do.

    Raises:
        InputError: names the argument, the rule and what stands against it.
    """
    check_patterns(subject.graph, config.protect, config.limits)
    curves_of(config, subject)
    norms = [m for m in subject.model.modules() if isinstance(m, _BatchNorm)]
    if config.recover == "recalibrate" and not any(m.running_mean is not None for m in norms):
        raise InputError("recover 'recalibrate' needs batch norms with statistics, but has none")
    sparse = config.sparse
    if sparse is None:
        return
    if sparse.method == "slim" and not any(norm.affine for norm in norms):
        raise InputError("sparse.method 'slim' needs batch norms with scales, but has none")
    if sparse.strength is not None and sparse.method == "select":
        _strengths(config, subject, sparse.strength)
    if sparse.blocks is not None:
        if factory is not None:
            raise InputError(
                f"sparse.blocks must be left out with model {config.model!r}, which is saved by "
                f"its factory: that would build the blocks again; but got {sparse.blocks}"
            )
        found = removable(subject.graph, residual_blocks(subject.graph))
        if not found.found:
            reasons = "; ".join(f"{name}: {why}" for name, why in found.left.items())
            raise InputError(
                f"sparse.blocks need a residual branch that can go, but got {reasons or 'none'}"
            )


def at_once(job: Job) -> Shrunk:
    """Train sparsely where that is asked, cut, recover, train and store."""
    run, config, subject = job.run, job.config, job.subject
    sparse = config.sparse
    if sparse is not None and sparse.method == "select":
        return _selected(job, sparse)
    grows = sparse is not None and sparse.method == "grow"
    plan = kept.planned(run, lambda: chosen(run, config, subject)) if grows else None
    start = subject if sparse is None else _taught(job, sparse, plan)
    if plan is None:
        plan = kept.planned(run, lambda: chosen(run, config, start))

    def choose(whole: Sequence[str]) -> Plan:
        protect = (*config.protect, *whole)
        return chosen(run, dataclasses.replace(config, protect=protect), start)

    # A network that was trained for its plan keeps to it, and so does one that shares were
    # searched for.
    again = None if grows or config.scope == SEARCHED else choose
    pruned, proved, check = stages.provable_cut(start, plan, again, run.progress)
    plan = kept.replanned(run, plan, proved)
    # Saved before it is trained: what cannot be saved must not be found out after hours.
    job.keep(pruned)
    error = f", {share(plan)}, largest error against the masked network {check.max_error:.1e}"
    job.tell("cut", "cut", pruned, error)
    if config.recover != "none":
        _recover(job, start, pruned, plan)
    history = job.finetune(pruned)
    macs = (plan.dense.macs, plan.pruned.macs)
    return Shrunk(check, history, macs, plan.given_back, notes=plan.notes)


def in_rounds(job: Job) -> Shrunk:
    """Cut and train in turns; the proof is of all cuts as one."""
    run, config = job.run, job.config
    start = job.subject if config.sparse is None else _taught(job, config.sparse, None)
    outcome = kept.in_rounds(run, config, start, job.subject.model)
    plan = kept.planned(run, lambda: outcome.plan)
    _, check = stages.cut_and_verify(start, plan)
    job.keep(outcome.model)
    words = f"after {config.rounds.number} rounds"
    job.tell("cut", words, outcome.model, f", {share(plan)}")
    history = all_epochs(outcome.rounds)
    macs = (plan.dense.macs, plan.pruned.macs)
    return Shrunk(check, history, macs, plan.given_back, notes=plan.notes)


def _selected(job: Job, sparse: SparseSettings) -> Shrunk:
    """Cut what training with factors has driven to zero."""
    run, subject = job.run, job.subject
    start, found = _select(job, sparse)
    if not found.removed and not found.gone:
        given = ", ".join(f"{name} {value:g}" for name, value in sparse.given.items())
        raise PlanError(
            f"no factor became zero in {sparse.train.epochs} epochs ({given}); "
            "raise sparse.strength or sparse.blocks, or train longer"
        )
    plan = kept.planned(run, lambda: make_plan(start.graph, found.removed))
    pruned = remove_blocks(cut(start.model, plan), found.gone, subject.example)
    # With its factors at zero, the trained network is the masked reference itself.
    error = difference(pruned, start.model, subject.example)
    if error > TOLERANCE:
        raise VerificationError(
            f"the cut network differs from the one with its factors at zero by {error:.3g} "
            f"(tolerance {TOLERANCE:.0e})"
        )
    changed = difference(start.model, subject.model, subject.example) > TOLERANCE
    check = CheckRecord(error, TOLERANCE, ok=True, changed=changed, dtype="float64")
    job.keep(pruned)
    cost = trace(pruned, subject.example).cost()
    dense = subject.graph.cost()
    gone = f"{len(found.gone)} of {len(found.blocks)} residual branches" if found.blocks else ""
    left = (
        f"{cost.params / dense.params:.1%} of the parameters and "
        f"{cost.macs / dense.macs:.1%} of the MACs left"
    )
    job.tell("cut", "cut", pruned, f", {left}{f', {gone} gone' if gone else ''}")
    return Shrunk(
        check,
        job.finetune(pruned),
        (dense.macs, cost.macs),
        plan.given_back,
        notes=plan.notes,
        branches=_branches(found, subject.graph) if found.blocks else (),
    )


def _branches(found: Selected, graph: Graph) -> tuple[Branch, ...]:
    """Return what became of every residual branch; those without a factor come last."""
    params = {block.name: block.params for block in residual_blocks(graph).found}
    gone = {block.name for block in found.gone}
    # A factor of -0.0 is told as 0.
    had = [Branch(n, n in gone, factor + 0.0, params[n]) for n, factor in found.blocks.items()]
    left = [Branch(name, False, reason=why) for name, why in found.left.items()]
    return (*had, *left)


def _taught(job: Job, sparse: SparseSettings, plan: Plan | None) -> Subject:
    """Train a copy of the dense network as "slim" or "grow" says."""
    start = _copied(job.subject)
    run = job.run
    loader = kept.training_batches(run, start.data, sparse.train, job.config.data.augment)
    options: dict[str, Any] = {**sparse.given, "keeping": _keeping(run), "progress": run.progress}
    if sparse.method == "grow":
        assert plan is not None
        shrink_units(start.model, plan, loader, sparse.train, **options)
    else:
        slim(start.model, loader, sparse.train, **options)
    job.tell("sparse", f"after sparse training ({sparse.method})", start.model)
    return start


def _select(job: Job, sparse: SparseSettings) -> tuple[Subject, Selected]:
    start, run = _copied(job.subject), job.run
    given = sparse.given
    if sparse.strength is not None:
        given["strength"] = _strengths(job.config, start, sparse.strength)
    found = select_structures(
        start.graph,
        kept.training_batches(run, start.data, sparse.train, job.config.data.augment),
        sparse.train,
        keeping=_keeping(run),
        progress=run.progress,
        **given,
    )
    job.tell("sparse", "after sparse training (select)", start.model)
    return start, found


def _strengths(config: RunConfig, subject: Subject, strength: float) -> dict[str, float]:
    """Return the strength of every group that can have factors and is not protected."""
    spared = protected(subject.graph, config.protect)
    names = [name for name in readers(subject.graph) if name not in spared]
    if not names:
        raise InputError("sparse.strength needs a group that protect leaves, but got none")
    return dict.fromkeys(names, strength)


def _copied(subject: Subject) -> Subject:
    """Return the same with a copy of the network, which training may change."""
    model = copy.deepcopy(subject.model)
    return dataclasses.replace(subject, model=model, graph=trace(model, subject.example))


def _keeping(run: Run) -> Keeping:
    return Keeping(run.stage("sparse"), resume=True)


def _recover(job: Job, start: Subject, pruned: nn.Module, plan: Plan) -> None:
    """Bring the cut network nearer to the dense one, in place, once."""
    config, run = job.config, job.run

    def make() -> Mapping[str, Tensor]:
        calibration = batches(start.data.calibration, config.data.batch_size)
        found = recover(
            start.model, pruned, plan, calibration, config.recover, progress=run.progress
        )
        return snapshot(found.model)

    pruned.load_state_dict(kept.tensors(run, "recovered", make))
    job.keep(pruned)
    job.tell("recovered", f"recovered ({config.recover})", pruned)
