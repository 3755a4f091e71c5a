"""Structures in turns of cutting and finetuning.

Between two rounds the network is cut for real, and each round's training starts a new optimiser:
tensors of other shapes have no use for the moments of the old ones, and a network held masked
until the end could not be trained where norms or products run over the kept units alone. Gradual
pruning of structures is therefore many short rounds ("cubic", say), each of whole epochs.

Every round plans on the dense network: its units that are gone go first, and the target counts
from there. So the last round removes exactly as much as one shot at the same target would.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from rich.progress import Progress
from torch import Tensor, nn
from torch.utils.data import DataLoader

from secateur.allocation import allocate, check_target
from secateur.calibration import Batches
from secateur.checked import digest
from secateur.criteria import Criterion
from secateur.cutting import cut
from secateur.errors import InputError
from secateur.finetune import finetune
from secateur.graph import Graph, trace
from secateur.graph.copies import clone_model
from secateur.plan import Plan
from secateur.planning import make_plan
from secateur.pruning import proved_cut
from secateur.rounds import state
from secateur.rounds.judging import criterion_name, judge
from secateur.rounds.rewinding import check_weights
from secateur.rounds.state import Round, Standing
from secateur.training import TrainSettings
from secateur.training_state import snapshot

M = TypeVar("M", bound=nn.Module)

Units = Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class PrunedInRounds(Generic[M]):
    """What rounds of cutting gave.

    Attributes:
        model: the pruned network.
        plan: all that was removed, as one plan for the dense network.
        plans: of each round, for the network of the round before.
        rounds: the records.
    """

    model: M
    plan: Plan
    plans: tuple[Plan, ...]
    rounds: tuple[Round, ...]


def structure_rounds(
    model: M,
    example_inputs: Any,
    train_loader: DataLoader[Any],
    validation_loader: DataLoader[Any],
    settings: TrainSettings | Sequence[TrainSettings],
    targets: Sequence[float],
    *,
    target: str = "sparsity",
    criterion: str | Criterion = "l2",
    calibration: Batches | None = None,
    seed: int = 0,
    scoring: Mapping[str, Any] | None = None,
    allocation: Mapping[str, Any] | None = None,
    rewind: Mapping[str, Tensor] | None = None,
    phase: str = "round",
    folder: Path | None = None,
    resume: bool = False,
    teacher: nn.Module | None = None,
    each: Callable[[Round, nn.Module], None] | None = None,
    trackers: Sequence[Any] = (),
    logs: Path | None = None,
    progress: Progress | None = None,
) -> PrunedInRounds[M]:
    """Cut and finetune in rounds; ``model`` is left as it was.

    Args:
        model: the dense network.
        example_inputs: a tensor, a tuple of arguments or a dict of keyword arguments.
        train_loader: see :func:`secateur.finetune.finetune`, as are the ones not named here.
        validation_loader: to choose each round's best epoch by.
        settings: of each round's training: one for all rounds, or one a round.
        targets: of each round, counted on the dense network, never giving units back; see
            :func:`secateur.schedule.sparsities` and :func:`secateur.schedule.kept`.
        target: what they are: "sparsity" (removed), "params" or "macs" (kept).
        criterion: which units go first, judged anew in each round; "reconstruction" is one, too.
        calibration: (inputs, labels) batches, for criteria that need data.
        seed: for criteria that draw.
        scoring: further arguments of :func:`secateur.score` ("aggregation", "options" ...).
        allocation: further arguments of :func:`secateur.allocate` ("scope", "round_to" ...).
        rewind: weights (a state dict of the dense network) that the kept units start each
            round from again: a lottery ticket of structures.
        phase: the word used in progress and in the records; the round's number follows.
        folder: where each round leaves what a stopped call needs to go on.
        resume: go on with what ``folder`` holds; ``model`` must be as at the first call.
        teacher: see ``finetune``.
        each: told of each round as it ends, with the network as it is then.
        trackers: see ``finetune``; each round is a run of its own for them.
        logs: the folder for trackers that write files.
        progress: where to show how far it is.

    Raises:
        InputError: a target out of range or one that gives units back, ``rewind`` of another
            network, or what ``finetune`` refuses.
        TraceError: the model fails on its example input.
        PlanError: nothing can be cut, or a target is out of reach.
        VerificationError: a cut network differs from its masked reference.
        CheckpointError: what the folder holds is damaged.
        SecateurError: a loss is not a number.
    """
    _check_targets(target, targets)
    if rewind is not None:
        check_weights(model, rewind)
    trainings = state.each_settings(settings, len(targets))
    asked = {
        "target": target,
        "targets": list(targets),
        "criterion": criterion_name(criterion),
        "score_seed": seed,
        "scoring": {key: repr(value) for key, value in sorted((scoring or {}).items())},
        "allocation": {key: repr(value) for key, value in sorted((allocation or {}).items())},
        "rewind": None if rewind is None else digest(rewind),
        "settings": [dataclasses.asdict(entry) for entry in trainings],
        "teacher": None if teacher is None else digest(snapshot(teacher)),
    }
    standing = state.begin(folder, resume, asked)
    dense = trace(model, example_inputs)
    alive = {group.name: list(range(group.size)) for group in dense.groups}
    now, plans, rounds = model, list[Plan](), tuple[Round, ...]()
    if standing is not None:
        plans, rounds = [Plan.from_json(text) for text in standing.plans], standing.rounds
        for plan in plans:
            now, alive = cut(now, plan), _after(alive, plan)
        if plans:
            now.load_state_dict(standing.weights)
            now.eval()
    for number, share in enumerate(targets[len(rounds) :], start=len(rounds) + 1):
        graph = trace(now, example_inputs)
        scores = judge(graph, criterion, calibration, seed=seed, scoring=scoring)
        limits: dict[str, Any] = {target: share, **(allocation or {})}
        wished = allocate(dense, _dense_scores(scores, alive, dense), **limits)
        proved = proved_cut(graph, make_plan(graph, _new(wished.removed, alive)), progress=progress)
        plan, cut_now = proved.plan, proved.model
        plans.append(plan)
        alive = _after(alive, plan)
        now = cut_now if rewind is None else _rewound(model, rewind, plans)
        history = finetune(
            now,
            train_loader,
            validation_loader,
            trainings[number - 1],
            phase=f"{phase} {number}",
            folder=state.training_folder(folder, number),
            resume=resume,
            teacher=teacher,
            trackers=trackers,
            logs=None if logs is None else logs / f"round-{number}",
            progress=progress,
        )
        removed = 1 - plan.pruned.params / dense.cost().params
        rounds += (Round(number, share, removed, history),)
        texts = tuple(entry.to_json() for entry in plans)
        state.keep(folder, Standing(rounds, snapshot(now), plans=texts), asked)
        if each is not None:
            each(rounds[-1], now)
    gone = _in_dense_units(dense, plans)
    return PrunedInRounds(now, make_plan(dense, gone), tuple(plans), rounds)


def _check_targets(target: str, targets: Sequence[float]) -> None:
    if target not in ("sparsity", "params", "macs"):
        raise InputError(f"target must be one of sparsity, params, macs, but got {target!r}")
    if not targets:
        raise InputError("targets must name at least one round, but got none")
    for value in targets:
        check_target(target, value)
    if sorted(targets, reverse=target != "sparsity") != list(targets):
        raise InputError(f"targets must never give back what is gone, but got {list(targets)}")


def _dense_scores(scores: Mapping[str, Tensor], alive: Units, dense: Graph) -> dict[str, Tensor]:
    """Put scores of the units that are left in their places among all of the dense network's.

    A unit that is gone comes below them all. It gets minus the mean of the others, which leaves
    the mean of absolutes, by which the global scope divides, as it is.
    """
    placed = {}
    for name, values in scores.items():
        if len(values) != len(alive.get(name, ())):
            continue
        mean, lowest = float(values.abs().mean()), min(float(values.min()), 0.0)
        whole = torch.full((dense.by_name[name].size,), lowest - mean, dtype=torch.float64)
        whole[list(alive[name])] = values.to(torch.float64)
        placed[name] = whole
    return placed


def _new(wished: Units, alive: Units) -> dict[str, tuple[int, ...]]:
    """Return what of ``wished`` is not gone yet, counted among the units that are left."""
    found = {}
    for name, units in wished.items():
        place = {unit: number for number, unit in enumerate(alive[name])}
        new = tuple(place[unit] for unit in units if unit in place)
        # A round never takes the last unit, whatever an earlier one had to leave.
        found[name] = new[: len(alive[name]) - 1]
    return {name: units for name, units in found.items() if units}


def _in_dense_units(dense: Graph, plans: Sequence[Plan]) -> dict[str, tuple[int, ...]]:
    """Return all that the plans remove, one after the other, in units of the dense network."""
    alive: Units = {group.name: range(group.size) for group in dense.groups}
    gone: dict[str, tuple[int, ...]] = {}
    for plan in plans:
        for name, units in plan.removed.items():
            gone[name] = gone.get(name, ()) + tuple(alive[name][unit] for unit in units)
        alive = _after(alive, plan)
    return gone


def _after(alive: Units, plan: Plan) -> dict[str, list[int]]:
    left = {}
    for name, units in alive.items():
        gone = set(plan.removed.get(name, ()))
        left[name] = [unit for place, unit in enumerate(units) if place not in gone]
    return left


def _rewound(model: M, weights: Mapping[str, Tensor], plans: Sequence[Plan]) -> M:
    """Return the network of early weights after all cuts."""
    now: M = clone_model(model)
    now.load_state_dict(dict(weights))
    for plan in plans:
        now = cut(now, plan)
    return now
