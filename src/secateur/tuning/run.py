"""Tune a network on its pruned proxy, from settings to a finished folder; a stopped run goes on.

Any number of workers may carry out one run: the first starts it, others join with ``resume``.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress
from torch import nn

from secateur.allocation import allocate
from secateur.criteria import score
from secateur.data import batches, load_data
from secateur.measure import environment
from secateur.plan import Plan
from secateur.progress import say
from secateur.report.tuning_page import write_tuning
from secateur.results import CheckRecord, Measured, Quality
from secateur.study import kept, stages, store
from secateur.study.config import to_plain, to_yaml
from secateur.study.kept import Run
from secateur.study.stages import Subject, share
from secateur.tuning import dense as big
from secateur.tuning.attempts import Bench
from secateur.tuning.config import TrustSettings, TuneConfig
from secateur.tuning.encoding import decode, encode
from secateur.tuning.search import Hunt, opened, saturated, search
from secateur.tuning.sharing import alone
from secateur.tuning.space import Space, active, build_space
from secateur.tuning.surrogate import band, design, fit
from secateur.tuning.trust import transfer
from secateur.tuning_results import (
    FILE,
    Band,
    Retrained,
    Transfer,
    Tried,
    Tuning,
    load_tuning,
    ranked,
    save_tuning,
)

PLACES = 121


@dataclass(frozen=True)
class Proxy:
    """A pruned network, its plan and the proof."""

    network: nn.Module
    plan: Plan
    check: CheckRecord


def tune_run(
    config: TuneConfig,
    *,
    resume: bool = False,
    progress: Progress | None = None,
    command: str = "",
) -> Tuning:
    """Search on the proxy, train the dense network with the best, and file everything.

    Args:
        config: what is asked.
        resume: go on with the run that the folder holds, or join the workers at it.
        progress: where to show how far it is.
        command: how to repeat it, for the record.

    Raises:
        InputError: the folder holds another run, or anything that was given does not fit.
        TraceError: the model fails on its example input.
        PlanError: nothing can be cut, or the target is out of reach.
        SecateurError: no setting trains the proxy, or a measurement is no number.
    """
    config = store.with_output(config, "tune")
    folder = Path(config.output or "")
    store.check_folder(folder, to_plain(config), resume)
    if (done := _over(folder)) is not None:
        return done
    run = Run(folder, config.data.batch_size, progress, command)
    with stages.threads_set(config.threads):
        return _tune(run, config)


def _tune(run: Run, config: TuneConfig) -> Tuning:
    model = stages.build(config.model, config.arguments, config.weights, config.seed)
    initial = copy.deepcopy(model) if config.weights is None else None
    options = config.data.model_dump(exclude={"batch_size", "augment"})
    data = load_data(**options, seed=config.seed, progress=run.progress)
    subject = stages.inspect_subject(model, data)
    factory = kept.factory_for(config.model, config.arguments, model)
    store.claim(run.folder, to_yaml(config))
    with alone(run.folder, "prepare"):
        kept.trained(run, model, data, config.train, "train", config.data.augment)
        before_dense = kept.judged(run, "dense-validation", model, data, "validation")
        proxy = _proxy(run, config, subject, config.target.given, "plan")
        before = kept.judged(run, "proxy-validation", proxy.network, data, "validation")
    config.search.objective.check_before(before)
    say(
        run.progress,
        f"dense: {before_dense.accuracy:.2%} on validation; proxy: {share(proxy.plan)}, "
        f"precision {before.precision:.4f} before training",
    )
    bench = Bench(data, config.finetune, run.batch_size, config.data.augment, run.progress)
    space = build_space(config.search.space, config.finetune)
    with opened(run.folder, config.search, space, config.seed, before) as hunt:
        tried = search(hunt, bench, proxy.network)
        best = ranked(tried, config.search.objective.metric)[: config.top]
        start = _start(config, model, initial)
        retrained = big.retrain(run.folder, bench, start, best, config.retraining)
        transfers = _trust(run, config, subject, bench, proxy, start, space)
        with alone(run.folder, "finish"):
            if (done := _over(run.folder)) is not None:
                return done
            tuning = _concluded(
                run, config, subject, proxy, before, hunt, (tried, retrained, transfers), factory
            )
            save_tuning(tuning, run.folder / FILE)
            write_tuning(tuning, run.folder / store.REPORT)
            _tidy(run.folder)
    return tuning


def _proxy(
    run: Run, config: TuneConfig, subject: Subject, target: dict[str, Any], name: str
) -> Proxy:
    """Cut the dense network once, and prove the cut."""

    def choose(whole: Sequence[str] = ()) -> Plan:
        scores = score(
            subject.graph,
            config.criterion,
            batches(subject.data.calibration, run.batch_size),
            seed=config.seed,
            options=config.options,
            progress=run.progress,
        )
        return allocate(subject.graph, scores, **target, scope=config.scope, protect=whole)

    plan = store.remembered_plan(run.stage(f"{name}.json"), choose)
    return Proxy(*stages.provable_cut(subject, plan, choose, run.progress))


def _start(config: TuneConfig, model: nn.Module, initial: nn.Module | None) -> nn.Module:
    """Return the network that every training of the dense one begins with."""
    if config.start == "trained":
        return model
    device = next(model.parameters()).device
    if initial is None:
        initial = stages.build(config.model, config.arguments, None, config.seed)
    return initial.to(device)


def _trust(
    run: Run,
    config: TuneConfig,
    subject: Subject,
    bench: Bench,
    proxy: Proxy,
    start: nn.Module,
    space: Space,
) -> tuple[Transfer, ...]:
    """Train settings that are spread over the space on the dense network and on each proxy."""
    asked = config.trust
    if asked is None:
        return ()
    proxies = _proxies(run, config, subject, proxy, asked)
    epochs = asked.epochs or config.finetune.epochs
    bench = dataclasses.replace(bench, base=dataclasses.replace(bench.base, epochs=epochs))
    # Another seed than the search's: the settings are not those that the search began with.
    settings = [active(space, one) for one in design(space, asked.settings, config.seed + 1)]
    objective = config.search.objective
    networks = {"dense": start, **{f"proxy-{n}": one.network for n, one in enumerate(proxies)}}
    found = big.pairs(run.folder, bench, networks, settings, objective)
    labels = _labels(config, asked)
    return tuple(
        transfer(
            found[f"proxy-{place}"],
            sparsity=labels[place],
            params=one.plan.pruned.params / one.plan.dense.params,
            metric=big.metric_of(objective),
            tolerance=asked.tolerance,
            resamples=asked.resamples,
            seed=config.seed,
        )
        for place, one in enumerate(proxies)
    )


def _proxies(
    run: Run, config: TuneConfig, subject: Subject, proxy: Proxy, asked: TrustSettings
) -> list[Proxy]:
    if not asked.sparsities:
        return [proxy]
    with alone(run.folder, "prepare"):
        return [
            _proxy(run, config, subject, {"sparsity": sparsity}, f"plan-{sparsity:g}")
            for sparsity in asked.sparsities
        ]


def _labels(config: TuneConfig, asked: TrustSettings) -> list[str]:
    if asked.sparsities:
        return [f"{100 * sparsity:g} % of the units removed" for sparsity in asked.sparsities]
    ((name, value),) = config.target.given.items()
    if name == "sparsity":
        return [f"{100 * value:g} % of the units removed"]
    return [f"{100 * value:g} % of the {name} kept"]


def _concluded(
    run: Run,
    config: TuneConfig,
    subject: Subject,
    proxy: Proxy,
    before: Quality,
    hunt: Hunt,
    found: tuple[tuple[Tried, ...], tuple[Retrained, ...], tuple[Transfer, ...]],
    factory: str | None,
) -> Tuning:
    """Measure on the test split, read here for the first time, and store the chosen network."""
    tried, retrained, transfers = found
    objective = config.search.objective
    judged = _on_test(run, config, subject, retrained)
    dense, small = _measured(run, config, subject, proxy)
    chosen = next((one for one in judged if one.chosen), None)
    if chosen is not None:
        best = big.with_weights(run.folder, copy.deepcopy(subject.model), chosen.number)
        kept.stored(run, best, factory, config.arguments)
    notes = [f"{config.top} settings with the best {objective.metric} were taken to the dense "
             f"network, which began with its {config.start} weights."]  # fmt: skip
    if told := saturated(tried, objective):
        notes.append(told)
    if chosen is None:
        notes.append("None of them trained the dense network: each ended in a loss that is none.")
    return Tuning(
        title=f"{config.model.rpartition(':')[2]} tuned on its proxy",
        asked=to_plain(config),
        command=run.command,
        environment=environment(),
        metric=objective.metric,
        at=str(objective.at),
        before=before,
        dense=dense,
        proxy=small,
        check=proxy.check,
        tried=tried,
        retrained=judged,
        search_seconds=sum(one.seconds for one in tried),
        band=along(hunt, tried, config.seed),
        transfers=transfers,
        notes=(*notes, *subject.graph.notes),
    )


def _on_test(
    run: Run, config: TuneConfig, subject: Subject, retrained: Sequence[Retrained]
) -> tuple[Retrained, ...]:
    """Judge every retrained network on test; the chosen one is the best on validation."""
    there = [one for one in retrained if one.validation is not None]
    by_loss = config.retrain.best_by == "loss"
    best = max(
        there,
        key=lambda one: (
            0.0 if by_loss or one.validation is None else one.validation.accuracy,
            -one.validation.loss if one.validation else 0.0,
        ),
        default=None,
    )
    network = copy.deepcopy(subject.model)
    found = []
    for one in retrained:
        if one.validation is None:
            found.append(one)
            continue
        big.with_weights(run.folder, network, one.number)
        test = kept.judged(run, f"test-{one.number:04d}", network, subject.data, "test")
        found.append(dataclasses.replace(one, test=test, chosen=one is best))
    return tuple(found)


def _measured(
    run: Run, config: TuneConfig, subject: Subject, proxy: Proxy
) -> tuple[Measured, Measured]:
    """Measure dense network and proxy as they were before any setting was tried."""
    dense = kept.judged(run, "dense-test", subject.model, subject.data, "test")
    small = kept.judged(run, "proxy-test", proxy.network, subject.data, "test")
    speeds = stages.speeds(
        subject.model,
        proxy.network,
        subject.example,
        sizes=config.speed.batches,
        repeats=config.speed.repeats,
        seconds=config.speed.seconds,
        threads=config.threads or 1,
        progress=run.progress,
    )
    return (
        stages.measured(subject.model, proxy.plan.dense.macs, dense, speeds[0]),
        stages.measured(proxy.network, proxy.plan.pruned.macs, small, speeds[1]),
    )


def along(hunt: Hunt, tried: Sequence[Tried], seed: int) -> Band | None:
    """Return the surrogate along the learning rate (or the first number), at the best trial.

    It is fitted to all trials afterwards, whichever sampler chose them; None without a number.
    """
    best = next(iter(ranked(tuple(tried), hunt.objective.metric)), None)
    numbers = [name for name, one in hunt.space.items() if hasattr(one.distribution, "low")]
    numbers.sort(key=lambda name: name != "lr")
    name = next((one for one in numbers if best and one in best.values), None)
    if best is None or name is None:
        return None
    sign = -1.0 if hunt.objective.metric == "loss" else 1.0
    space = hunt.space
    points = torch.tensor([encode(space, one.values) for one in tried], dtype=torch.double)
    values = torch.tensor([sign * one.value for one in tried], dtype=torch.double)
    surrogate = fit(points, values, seed)
    one = {name: space[name]}
    places = [decode(one, [step / (PLACES - 1)])[name] for step in range(PLACES)]
    rows = [encode(space, {**best.values, name: place}) for place in places]
    mean, deviation = band(surrogate, torch.tensor(rows, dtype=torch.double))
    return Band(
        name=name,
        log=bool(getattr(space[name].distribution, "log", False)),
        places=tuple(float(place) for place in places),
        mean=tuple((sign * mean).tolist()),
        deviation=tuple(deviation.tolist()),
    )


def _over(folder: Path) -> Tuning | None:
    """Return the tuning of a run that is over, its report drawn anew; else None."""
    if not (folder / FILE).is_file():
        return None
    tuning = load_tuning(folder / FILE)
    write_tuning(tuning, folder / store.REPORT)
    return tuning


def _tidy(folder: Path) -> None:
    """Drop the weights that only a stopped run needs; who still waits needs the records."""
    for path in (folder / store.STAGES).glob("retrain-*.safetensors"):
        path.unlink(missing_ok=True)
