"""Single weights in turns of masking and finetuning, or gradually while training goes on.

What is masked stays masked: its weights are zero from then on, so no score can bring them back.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress
from torch import Tensor, nn
from torch.utils.data import DataLoader

from secateur.calibration import Batches
from secateur.checked import digest
from secateur.criteria.elements import element_scores
from secateur.errors import InputError
from secateur.finetune import finetune
from secateur.rounds import state
from secateur.rounds.rewinding import check_weights
from secateur.rounds.state import Round, Standing
from secateur.schedule import Cubic, cubic
from secateur.training import Masks, StepHook, TrainSettings
from secateur.training_state import snapshot
from secateur.weight_masks import competing_scores, input_dims, lowest_masked


@dataclass(frozen=True)
class MaskRule:
    """Which weights go first.

    Attributes:
        criterion: element-wise; "l1" is magnitude.
        scope: "local", every layer loses the same share of its weights, or "global".
        protect: globs of parameters or modules that stay whole.
        include: globs of other parameters that may be masked.
        calibration: (inputs, labels) batches, for criteria that need data.
        seed: for criteria that draw.
    """

    criterion: str = "l1"
    scope: str = "local"
    protect: tuple[str, ...] = ()
    include: tuple[str, ...] = ()
    calibration: Batches | None = None
    seed: int = 0

    @property
    def asked(self) -> dict[str, Any]:
        """What tells this rule from another, ready for JSON."""
        return {
            "criterion": self.criterion,
            "scope": self.scope,
            "protect": list(self.protect),
            "include": list(self.include),
            "mask_seed": self.seed,
        }


def next_masks(
    model: nn.Module,
    rule: MaskRule,
    sparsity: float,
    masks: Masks,
    layers: Sequence[str] | None = None,
) -> dict[str, Tensor]:
    """Return masks that remove more: ``sparsity`` of the weights, those of ``masks`` first.

    Args:
        model: the network as it is now.
        rule: which weights go first.
        sparsity: share of the maskable weights that the new masks take, counted from the
            dense network: floor(sparsity x n) of each layer, or of all together.
        masks: what is masked already.
        layers: parameters to mask now; the masks of the others stay. None for all.
    """
    names = input_dims(model, protect=rule.protect, include=rule.include)
    found = element_scores(model, rule.criterion, rule.calibration, seed=rule.seed)
    wanted = {name: found[name] for name in names if layers is None or name in layers}
    scores = competing_scores(model, wanted)
    first = {
        # What is gone stays gone, also where a criterion would draw or the weight scores zero.
        name: values.masked_fill(~masks[name].to(values.device), -torch.inf)
        if name in masks
        else values
        for name, values in scores.items()
    }
    chosen = lowest_masked(first, sparsity, rule.scope)
    return {**masks, **{name: mask.cpu() for name, mask in chosen.items()}}


def gradual(schedule: Cubic, rule: MaskRule | None = None) -> StepHook:
    """Return a hook for ``finetune`` that masks weights while training goes on.

    Gradual pruning of Zhu and Gupta (2017), with one difference: they leave a masked weight
    its value and may take it back at a later update; here it is zero and stays so.

    Args:
        schedule: sparsity by optimiser step; ``finetune`` refuses one that ends after the
            training, and looks for the best epoch among those that follow its end.
        rule: which weights go first; magnitude within each layer by default.
    """
    rule = rule or MaskRule()
    updates = frozenset(schedule.updates)

    def after(model: nn.Module, step: int, masks: Masks) -> Masks | None:
        if step not in updates:
            return None
        return next_masks(model, rule, cubic(schedule, step), masks)

    return StepHook(after, schedule.end, {**dataclasses.asdict(schedule), **rule.asked})


def weight_rounds(
    model: nn.Module,
    train_loader: DataLoader[Any],
    validation_loader: DataLoader[Any],
    settings: TrainSettings | Sequence[TrainSettings],
    sparsities: Sequence[float],
    *,
    rule: MaskRule | None = None,
    one_layer_at_a_time: bool = False,
    rewind: Mapping[str, Tensor] | None = None,
    phase: str = "round",
    folder: Path | None = None,
    resume: bool = False,
    teacher: nn.Module | None = None,
    each: Callable[[Round, nn.Module], None] | None = None,
    trackers: Sequence[Any] = (),
    logs: Path | None = None,
    progress: Progress | None = None,
) -> tuple[Masks, tuple[Round, ...]]:
    """Mask and finetune ``model`` in place, in rounds, the zeros frozen.

    Args:
        model: the dense network; it is left with the best weights of the last round.
        train_loader: see :func:`secateur.finetune.finetune`, as are the ones not named here.
        validation_loader: to choose each round's best epoch by.
        settings: of each round's training: one for all rounds, or one a round.
        sparsities: share of the maskable weights that is gone after each round, never
            falling; see :func:`secateur.schedule.sparsities`.
        rule: which weights go first; magnitude within each layer by default.
        one_layer_at_a_time: finetune after each layer, from the first to the last, instead
            of once after all: a schedule of n rounds makes n x layers of them.
        rewind: weights (a state dict of the dense network) that each round starts from
            again, in place of those that the round before ended with: a lottery ticket.
        phase: the word used in progress and in the records; the round's number follows.
        folder: where each round leaves what a stopped call needs to go on.
        resume: go on with what ``folder`` holds; ``model`` must be as at the first call.
        teacher: see ``finetune``.
        each: told of each round as it ends, with the network as it is then.
        trackers: see ``finetune``; each round is a run of its own for them.
        logs: the folder for trackers that write files.
        progress: where to show how far it is.

    Returns:
        The masks, {parameter name: bool tensor, True keeps}, and one record per round.

    Raises:
        InputError: sparsities out of range or falling, ``rewind`` of another network, or
            what ``finetune`` refuses.
        CheckpointError: what the folder holds is damaged.
        SecateurError: a loss is not a number.
    """
    rule = rule or MaskRule()
    _check_shares(sparsities)
    if rewind is not None:
        check_weights(model, rewind)
    names = list(input_dims(model, protect=rule.protect, include=rule.include))
    parts = [[name] for name in names] if one_layer_at_a_time else [names]
    steps = [(share, part) for share in sparsities for part in parts]
    trainings = state.each_settings(settings, len(sparsities))
    asked = {
        **rule.asked,
        "sparsities": list(sparsities),
        "one_layer_at_a_time": one_layer_at_a_time,
        "rewind": None if rewind is None else digest(rewind),
        "settings": [dataclasses.asdict(entry) for entry in trainings],
        "teacher": None if teacher is None else digest(snapshot(teacher)),
    }
    standing = state.begin(folder, resume, asked)
    masks: Masks = {}
    rounds: tuple[Round, ...] = ()
    if standing is not None:
        model.load_state_dict(standing.weights)
        model.eval()
        masks, rounds = standing.masks, standing.rounds
    for number, (share, part) in enumerate(steps[len(rounds) :], start=len(rounds) + 1):
        masks = next_masks(model, rule, share, masks, part)
        if rewind is not None:
            model.load_state_dict(dict(rewind))
        history = finetune(
            model,
            train_loader,
            validation_loader,
            trainings[(number - 1) // len(parts)],
            phase=f"{phase} {number}",
            folder=state.training_folder(folder, number),
            resume=resume,
            teacher=teacher,
            masks=masks,
            trackers=trackers,
            logs=None if logs is None else logs / f"round-{number}",
            progress=progress,
        )
        rounds += (Round(number, share, _removed(masks, model, names), history),)
        state.keep(folder, Standing(rounds, snapshot(model), dict(masks)), asked)
        if each is not None:
            each(rounds[-1], model)
    return masks, rounds


def _removed(masks: Masks, model: nn.Module, names: Sequence[str]) -> float:
    parameters = dict(model.named_parameters())
    maskable = sum(parameters[name].numel() for name in names)
    return sum(int((~mask).sum()) for mask in masks.values()) / maskable


def _check_shares(shares: Sequence[float]) -> None:
    if not shares:
        raise InputError("sparsities must name at least one round, but got none")
    if not all(0 <= share < 1 for share in shares):
        raise InputError(f"sparsities must satisfy 0 <= sparsity < 1, but got {list(shares)}")
    if sorted(shares) != list(shares):
        raise InputError(f"sparsities must never fall, but got {list(shares)}")
