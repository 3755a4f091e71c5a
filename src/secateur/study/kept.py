"""Steps that leave their outcome in the run folder, and take it from there the next time."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from rich.progress import Progress
from torch import Tensor, nn
from torch.utils.data import DataLoader

from secateur.checked import read_tensors, write_tensors
from secateur.checkpoint import check_saveable, code_of, load, save
from secateur.data import Augment, ImageData, batches
from secateur.errors import CheckpointError, InputError
from secateur.facts import facts_from
from secateur.finetune import TrainSettings, finetune
from secateur.measure import Answers, answers, environment
from secateur.measure import judged as quality_of
from secateur.plan import Plan
from secateur.progress import say
from secateur.report import write_report, write_tables
from secateur.results import Branch, CheckRecord, Epoch, LayerZeros, Point, Quality, Result
from secateur.rounds import PrunedInRounds, Round, structure_rounds
from secateur.study import stages, store
from secateur.study.config import RunConfig, RunSettings, to_plain
from secateur.study.stages import Subject
from secateur.training import Masks, StepHook
from secateur.trust import root_of

LOGS = "logs"

NOTHING: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True)
class Run:
    """Where a run leaves things, how it shows them, and what it was called with."""

    folder: Path
    batch_size: int
    progress: Progress | None
    command: str

    def stage(self, name: str) -> Path:
        """Return the place of one stage's outcome."""
        return self.folder / store.STAGES / name


def judged(run: Run, name: str, model: nn.Module, data: ImageData, split: str) -> Quality:
    """Measure ``model`` on the ``validation`` or ``test`` split, once."""
    return quality_of(answered(run, name, model, data, split))


def answered(run: Run, name: str, model: nn.Module, data: ImageData, split: str) -> Answers:
    """Classify every image of a split, once."""

    def classify() -> dict[str, Tensor]:
        found = answers(
            model, batches(getattr(data, split), run.batch_size), split, progress=run.progress
        )
        kept = {
            "labels": torch.from_numpy(found.labels),
            "predicted": torch.from_numpy(found.predicted),
            "sure": torch.from_numpy(found.confidence),
            "loss": torch.tensor(found.loss, dtype=torch.float64),
        }
        if found.among_five is not None:
            kept["among_five"] = torch.from_numpy(found.among_five)
        return kept

    found = tensors(run, name, classify)
    return Answers(
        split=split,
        labels=found["labels"].numpy(),
        predicted=found["predicted"].numpy(),
        confidence=found["sure"].numpy(),
        among_five=found["among_five"].numpy() if "among_five" in found else None,
        loss=float(found["loss"]),
    )


def planned(run: Run, choose: Callable[[], Plan]) -> Plan:
    """Choose a plan, once."""
    return store.remembered_plan(run.folder / store.PLAN, choose)


def replanned(run: Run, plan: Plan, proved: Plan) -> Plan:
    """Keep the plan that a proof left of ``plan``, and return it."""
    if proved != plan:
        store.write_plan(run.folder / store.PLAN, proved)
    return proved


def trained(
    run: Run,
    model: nn.Module,
    data: ImageData,
    settings: TrainSettings,
    phase: str,
    augment: Augment | None = None,
    teacher: nn.Module | None = None,
    *,
    masks: Masks | None = None,
    hook: StepHook | None = None,
    trackers: Sequence[str] = (),
) -> tuple[Epoch, ...]:
    """Train ``model`` in place, on from where an earlier run stopped; 0 epochs do nothing.

    ``teacher`` is asked where the settings give it a weight; for the rest see
    :func:`secateur.finetune.finetune`.
    """
    if not settings.epochs:
        return ()
    return finetune(
        model,
        training_batches(run, data, settings, augment),
        batches(data.validation, run.batch_size),
        settings,
        phase=phase,
        folder=run.stage(phase),
        resume=True,
        teacher=teacher if settings.distill_weight else None,
        masks=masks,
        hook=hook,
        trackers=trackers,
        logs=run.folder / LOGS if trackers else None,
        progress=run.progress,
    )


def training_batches(
    run: Run, data: ImageData, settings: TrainSettings, augment: Augment | None = None
) -> DataLoader[Any]:
    """Return what a training goes through, in a new order each epoch."""
    return batches(data.train, run.batch_size, shuffle=True, seed=settings.seed, augment=augment)


def tensors(run: Run, name: str, make: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return tensors that a stage made, once."""
    path = run.stage(f"{name}.safetensors")
    if not path.is_file():
        write_tensors(path, make())
    return read_tensors(path)


def round_teller(run: Run, total: int, what: str) -> Callable[[Round, nn.Module], None]:
    """Return what says how each round went."""

    def tell(done: Round, now: nn.Module) -> None:
        best = max((entry.val_accuracy for entry in done.history), default=None)
        on = "" if best is None else f", {best:.2%} on validation"
        left = f"{1 - done.removed:.1%} of the {what} left{on}"
        say(run.progress, f"round {done.number} of {total}: {left}")

    return tell


def in_rounds(
    run: Run, config: RunConfig, subject: Subject, teacher: nn.Module
) -> PrunedInRounds[nn.Module]:
    """Cut and finetune in turns, on from where an earlier run stopped."""
    data, settings = subject.data, config.finetune
    assert config.target is not None
    ((target, share),) = config.target.given.items()
    return structure_rounds(
        subject.model,
        subject.example,
        training_batches(run, data, settings, config.data.augment),
        batches(data.validation, run.batch_size),
        settings,
        config.rounds.targets(target, share),
        target=target,
        criterion=config.criterion,
        calibration=batches(data.calibration, run.batch_size),
        seed=config.seed,
        scoring=scoring(config),
        allocation={
            "scope": config.scope,
            "normalisation": config.normalisation,
            "round_to": config.round_to,
            "protect": config.protect,
            "limits": config.limits,
            "max_sparsity": config.max_sparsity,
        },
        folder=run.stage("rounds"),
        resume=True,
        teacher=teacher if settings.distill_weight else None,
        each=round_teller(run, config.rounds.number, "parameters"),
        trackers=config.trackers,
        logs=run.folder / LOGS if config.trackers else None,
        progress=run.progress,
    )


def scoring(config: RunConfig) -> dict[str, Any]:
    """Return how units are scored, as :func:`secateur.score` takes it."""
    return {"aggregation": config.aggregation, "options": config.options}


def factory_for(reference: str, arguments: Mapping[str, Any], model: nn.Module) -> str | None:
    """Return what must build the network again when it is loaded; None if JSON describes it.

    Raises:
        CheckpointError: it cannot be saved, and would not come back from ``reference`` either.
        InputError: JSON cannot describe it, and ``reference`` is a file, which cannot be imported.
    """
    try:
        check_saveable(model)
    except CheckpointError as error:
        if stages.from_file(reference):
            raise InputError(
                f"model {reference!r} cannot be saved from a file, name it as "
                f"package.module:callable: {error}"
            ) from error
        check_saveable(model, reference, arguments)
        return reference
    return None


def stored(
    run: Run, model: nn.Module, factory: str | None = None, arguments: Mapping[str, Any] = NOTHING
) -> None:
    """Save the network into the run folder; ``factory`` is what :func:`factory_for` returned."""
    save(model, run.folder, factory=factory, arguments=arguments if factory else None)


def trust_note(model: nn.Module, factory: str | None) -> list[str]:
    """Say whose code a new process must trust to load the network; nothing where that is none."""
    used = {*code_of(model), *([root_of(factory)] if factory else [])}
    strange = sorted(used - {"torch", "secateur", *sys.stdlib_module_names})
    if not strange:
        return []
    return [f"In a new process: secateur.load(folder, trust={strange})."]


def loaded(run: Run, subject: Subject, factory: str | None = None) -> nn.Module:
    """Return the network that the run folder holds; it may use what the dense one does."""
    trust = [*code_of(subject.model), *([root_of(factory)] if factory else [])]
    return load(run.folder, trust=trust).to(subject.example.device)


def concluded(
    run: Run,
    config: RunSettings,
    subject: Subject,
    macs: tuple[int, int],
    check: CheckRecord,
    *,
    title: str,
    history: Sequence[Epoch],
    notes: Sequence[str],
    given_back: Mapping[str, int] = NOTHING,
    points: Sequence[Point] = (),
    zeros: Sequence[LayerZeros] = (),
    branches: Sequence[Branch] = (),
    factory: str | None = None,
) -> Result:
    """Measure both networks on the test split, read here for the first time, and file it all.

    What is measured as the pruned network is what the run folder holds; ``macs`` are those of the
    dense and of the pruned network.
    """
    pruned = loaded(run, subject, factory)
    threads = config.threads or 1
    answered_test = (
        answered(run, "dense-test", subject.model, subject.data, "test"),
        answered(run, "pruned-test", pruned, subject.data, "test"),
    )
    dense_quality, pruned_quality = map(quality_of, answered_test)
    classes, example = subject.data.classes, subject.example
    facts = facts_from(subject.model, pruned, answered_test, classes, example, threads=threads)
    dense_speeds, pruned_speeds = stages.speeds(
        subject.model,
        pruned,
        subject.example,
        sizes=config.speed.batches,
        repeats=config.speed.repeats,
        seconds=config.speed.seconds,
        threads=threads,
        progress=run.progress,
    )
    result = Result(
        title=title,
        asked=to_plain(config),
        command=run.command,
        environment=environment(),
        dense=stages.measured(subject.model, macs[0], dense_quality, dense_speeds),
        pruned=stages.measured(pruned, macs[1], pruned_quality, pruned_speeds),
        check=check,
        points=tuple(points),
        widths=stages.widths(subject.model, pruned),
        history=tuple(history),
        pinned=stages.pinned(subject.graph),
        given_back=dict(given_back),
        notes=tuple(dict.fromkeys((*notes, *subject.graph.notes))),
        facts=facts,
        zeros=tuple(zeros),
        branches=tuple(branches),
    )
    store.finish(run.folder, result)
    return reported(run.folder, result)


def reported(folder: Path, result: Result) -> Result:
    """Draw the report of a finished run, and hand the result on."""
    write_report(result, folder / store.REPORT)
    write_tables(result, folder)
    return result
