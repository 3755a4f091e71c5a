"""How a run sets single weights to zero: at once, in rounds, or while finetuning goes on."""

from __future__ import annotations

import copy

import torch
from torch import nn

from secateur.data import batches
from secateur.errors import VerificationError
from secateur.finetune import steps_per_epoch
from secateur.results import CheckRecord, Epoch
from secateur.rounds import MaskRule, all_epochs, gradual, weight_rounds
from secateur.sparse_training import Keeping, difference, train_sparse
from secateur.study import kept, stages
from secateur.study.config import RunConfig
from secateur.study.shrinking import TOLERANCE, Job, Shrunk
from secateur.study.stages import Subject
from secateur.weight_masks import Masks, apply_masks, input_dims, sparsify, zero_masks


def check_weights(config: RunConfig, subject: Subject, batch_size: int) -> None:
    """Refuse, before the folder is claimed, what this network or its data cannot do.

    Raises:
        InputError: a pattern of ``protect`` matches nothing, or ``gradual`` ends too late.
        PlanError: the network has no weights to mask.
    """
    input_dims(subject.model, protect=config.protect)
    if config.gradual is not None and config.target is not None:
        loader = batches(subject.data.train, batch_size)
        steps = config.finetune.epochs * steps_per_epoch(loader, config.finetune)
        config.gradual.schedule(config.target.given["sparsity"], steps)


def zeroed(job: Job) -> Shrunk:
    """Train sparsely where that is asked, mask, train with the zeros held, and store."""
    config, subject = job.config, job.subject
    model = copy.deepcopy(subject.model)
    if config.sparse is not None:
        _taught(job, model)
    if config.rounds.number > 1:
        history = _in_rounds(job, model)
    elif config.gradual is not None:
        history = _gradually(job, model)
    else:
        history = _at_once(job, model)
    job.keep(model)
    masks = zero_masks(model, protect=config.protect)
    check = _proof(job, model, masks)
    macs = subject.graph.cost().macs
    notes = (_told(model, masks),)
    return Shrunk(check, history, (macs, macs), notes=notes, zeros=stages.zeros(masks))


def _at_once(job: Job, model: nn.Module) -> tuple[Epoch, ...]:
    config, run, data = job.config, job.run, job.subject.data

    def choose() -> Masks:
        found = sparsify(
            model,
            config.criterion,
            None if config.target is None else config.target.given["sparsity"],
            pattern=config.pattern,
            scope=config.scope,
            calibration=batches(data.calibration, run.batch_size),
            example_inputs=job.subject.example,
            seed=config.seed,
            options=config.options,
            protect=config.protect,
            progress=run.progress,
        )
        return found.masks

    masks = kept.tensors(run, "masks", choose)
    apply_masks(model, masks)
    job.keep(model)
    job.tell("masked", "masked", model)
    return job.finetune(model, masks=masks)


def _gradually(job: Job, model: nn.Module) -> tuple[Epoch, ...]:
    config, run = job.config, job.run
    assert config.gradual is not None
    assert config.target is not None
    loader = kept.training_batches(run, job.subject.data, config.finetune)
    steps = config.finetune.epochs * steps_per_epoch(loader, config.finetune)
    schedule = config.gradual.schedule(config.target.given["sparsity"], steps)
    return job.finetune(model, hook=gradual(schedule, _rule(job)))


def _in_rounds(job: Job, model: nn.Module) -> tuple[Epoch, ...]:
    config, run, settings = job.config, job.run, job.config.finetune
    assert config.target is not None
    _, rounds = weight_rounds(
        model,
        kept.training_batches(run, job.subject.data, settings, config.data.augment),
        batches(job.subject.data.validation, run.batch_size),
        settings,
        config.rounds.targets("sparsity", config.target.given["sparsity"]),
        rule=_rule(job),
        folder=run.stage("rounds"),
        resume=True,
        teacher=job.subject.model if settings.distill_weight else None,
        each=kept.round_teller(run, config.rounds.number, "weights"),
        trackers=config.trackers,
        logs=run.folder / kept.LOGS if config.trackers else None,
        progress=run.progress,
    )
    job.tell("masked", f"after {config.rounds.number} rounds", model)
    return all_epochs(rounds)


def _rule(job: Job) -> MaskRule:
    config = job.config
    return MaskRule(
        criterion=config.criterion,
        scope=config.scope,
        protect=config.protect,
        calibration=batches(job.subject.data.calibration, job.run.batch_size),
        seed=config.seed,
    )


def _taught(job: Job, model: nn.Module) -> None:
    """Train in place with L1 on the weights."""
    sparse, run = job.config.sparse, job.run
    assert sparse is not None
    train_sparse(
        model,
        kept.training_batches(run, job.subject.data, sparse.train, job.config.data.augment),
        sparse.train,
        frozen=False,
        keeping=Keeping(run.stage("sparse"), resume=True),
        progress=run.progress,
        **sparse.given,
    )
    job.tell("sparse", "after sparse training (l1)", model)


def _proof(job: Job, model: nn.Module, masks: Masks) -> CheckRecord:
    """Compare what the folder holds with the network whose masked weights are set to zero.

    Raises:
        VerificationError: they differ.
    """
    reference = copy.deepcopy(model)
    apply_masks(reference, masks)
    stored = kept.loaded(job.run, job.subject, job.factory)
    error = difference(stored, reference, job.subject.example)
    if error > TOLERANCE:
        raise VerificationError(
            f"the saved network differs from the masked one by {error:.3g} "
            f"(tolerance {TOLERANCE:.0e})"
        )
    changed = difference(reference, job.subject.model, job.subject.example) > TOLERANCE
    return CheckRecord(error, TOLERANCE, ok=True, changed=changed, dtype="float64")


def _told(model: nn.Module, masks: Masks) -> str:
    zeros = sum(int((~mask).sum()) for mask in masks.values())
    whole = sum(mask.numel() for mask in masks.values())
    every = sum(p.numel() for p in model.parameters())
    with torch.no_grad():
        left = sum(int((p != 0).sum()) for p in model.parameters())
    return (
        f"{zeros:,} of {whole:,} weights that may be masked are zero ({zeros / whole:.2%}); "
        f"{left:,} of {every:,} parameters are not. Tensors keep their shapes, so MACs and speed "
        "are those of the dense network unless the runtime makes use of zeros."
    )
