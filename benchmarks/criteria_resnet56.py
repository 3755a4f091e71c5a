"""Every criterion on a trained ResNet-56, cut without finetuning; and: is a mixture better?

``python benchmarks/criteria_resnet56.py --weights FILE --data FOLDER`` scores every criterion of
``CRITERIA`` on calibration images from the training split, cuts the network at each sparsity in
local and global scope, and measures accuracy on the test split with 95 % Wilson intervals. Then
it mixes an order by relevance with one by parameters. A run that was stopped goes on where it
was: every figure is kept in ``results/criteria_resnet56.json`` as soon as it is there. At the
end it writes ``docs/resnet56-criteria.md`` and its picture; ``--write-only`` does that alone.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

import secateur
from secateur.criteria import CRITERIA, Criterion, Scores, delta, interleave
from secateur.data.batches import batches
from secateur.data.load import load_data
from secateur.errors import SecateurError
from secateur.measure import environment, quality
from secateur.models import cifar_resnet, load_weights

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from criteria_page import write_page  # noqa: E402

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SPARSITIES = tuple(tenth / 10 for tenth in range(1, 10))
SEEDS = (0, 1, 2)
CHECKED = 0.5
VERIFIED_IMAGES = 64


class Job(NamedTuple):
    """One figure to measure."""

    name: str
    seed: int
    scope: str
    sparsity: float

    @property
    def key(self) -> str:
        return f"{self.name}|{self.seed}|{self.scope}|{self.sparsity:.1f}"


def mixtures(relevance: str | Criterion, parameters: str | Criterion) -> dict[str, Criterion]:
    """Name every mixture of the two orders; relevance has the first turn when they interleave."""
    found = {"interleave": interleave(relevance, parameters)}
    for tenths in range(11):
        found[f"delta {tenths / 10:.1f}"] = delta(parameters, relevance, f"{tenths / 10:.1f}")
    return found


def jobs(names: list[str], mixed: list[str], sparsities: list[float]) -> list[Job]:
    """List the work: criteria in both scopes, mixtures in one order of all units."""
    return [
        Job(name, seed, scope, sparsity)
        for name in (*names, *mixed)
        for seed in (SEEDS if name == "random" else (0,))
        for scope in (("global",) if name in mixed else ("global", "local"))
        for sparsity in sparsities
    ]


class Bench:
    """What all figures are measured with; scores are computed when they are first needed."""

    def __init__(self, args: argparse.Namespace, progress: Progress) -> None:
        self.model = cifar_resnet(56)
        load_weights(self.model, args.weights)
        self.model.eval().to(args.device)
        data = load_data(
            str(args.data), mean=MEAN, std=STD, calibration=args.calibration, limit=args.limit,
            seed=0, progress=progress,
        )  # fmt: skip
        self.test = list(batches(data.test, args.batch))
        self.calibration = list(batches(data.calibration, 64))
        self.example = self.calibration[0][0][:2].to(args.device)
        self.graph = secateur.trace(self.model, self.example)
        self.rules: dict[str, Criterion] = {name: CRITERIA[name] for name in CRITERIA}
        parts = [
            Criterion(name, lambda graph, context, name=name: self.part(name))
            for name in (args.relevance, args.parameters)
        ]
        self.rules |= mixtures(*parts)
        self.progress = progress
        self._scores: dict[tuple[str, int], Scores | str] = {}
        self.seconds: dict[str, float] = {}

    def part(self, name: str) -> Scores:
        """Return the scores of one side of a mixture: computed once for all mixtures."""
        found = self.scores(name, 0)
        if isinstance(found, str):
            raise SecateurError(found)
        return found

    def scores(self, name: str, seed: int) -> Scores | str:
        """Score by a criterion, or say why that cannot be."""
        if (name, seed) not in self._scores:
            began = time.perf_counter()
            try:
                found: Scores | str = secateur.score(
                    self.graph, self.rules[name], self.calibration, seed=seed,
                    progress=self.progress,
                )  # fmt: skip
            except SecateurError as error:
                found = str(error)
            self._scores[name, seed] = found
            self.seconds[name] = time.perf_counter() - began
        return self._scores[name, seed]

    def measure(self, job: Job, known: dict[str, dict[str, Any]]) -> dict[str, Any]:
        """Cut and classify; a plan that was measured before is not measured again."""
        scores = self.scores(job.name, job.seed)
        if isinstance(scores, str):
            return {"refused": scores}
        # A mixture's scores are places in one order: they are compared as they are.
        normalisation = "mean" if job.name in CRITERIA else "none"
        plan = secateur.allocate(
            self.graph, scores, sparsity=job.sparsity, scope=job.scope, normalisation=normalisation
        )
        removed = {name: sorted(units) for name, units in sorted(plan.removed.items()) if units}
        digest = hashlib.sha256(json.dumps(removed).encode()).hexdigest()[:16]
        found: dict[str, Any] = {
            "plan": digest,
            "channel_sparsity": sum(map(len, removed.values())) / sum(plan.sizes.values()),
            "params": plan.pruned.params / plan.dense.params,
            "macs": plan.pruned.macs / plan.dense.macs,
            "scoring_seconds": self.seconds.get(job.name, 0.0),
        }
        pruned = secateur.cut(self.model, plan)
        if job.sparsity == CHECKED and job.scope == "global" and job.seed == 0:
            images = self.test[0][0][:VERIFIED_IMAGES].to(self.example.device)
            check = secateur.verify(self.model, pruned, plan, images)
            if not check.ok:
                raise SecateurError(f"{job.key}: the cut differs from the mask by {check}")
            found["mask_error"] = check.max_error
        same = known.get(digest)
        if same is None:
            began = time.perf_counter()
            result = quality(pruned, self.test, "test", progress=self.progress)
            same = {
                "accuracy": result.accuracy, "low": result.low, "high": result.high,
                "count": result.count, "seconds": time.perf_counter() - began,
            }  # fmt: skip
        return found | {key: same[key] for key in ("accuracy", "low", "high", "count", "seconds")}


def read(path: Path, config: dict[str, Any]) -> dict[str, Any]:
    """Return what an earlier run left, which must have been asked the same."""
    if not path.exists():
        return {"config": config, "figures": {}}
    kept: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if kept["config"] != config:
        raise SystemExit(
            f"{path} holds figures of another set-up ({kept['config']}); move it away, "
            f"or name another file with --results"
        )
    return kept


def write(path: Path, kept: dict[str, Any]) -> None:
    """Replace the file in one step, so that a stop leaves a whole one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".part")
    fresh.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    fresh.replace(path)


def known_plans(kept: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for figure in kept["figures"].values():
        if "plan" in figure:
            yield figure["plan"], figure


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", type=Path, required=True, help="resnet56-cifar10.safetensors")
    parser.add_argument("--data", type=Path, required=True, help="folder with the parquet files")
    parser.add_argument("--results", type=Path, default=HERE / "results/criteria_resnet56.json")
    parser.add_argument("--page", type=Path, default=HERE.parent / "docs/resnet56-criteria.md")
    parser.add_argument("--criteria", nargs="*", default=list(CRITERIA), help="names; all of them")
    parser.add_argument("--sparsities", nargs="*", type=float, default=list(SPARSITIES))
    parser.add_argument("--relevance", default="lrp" if "lrp" in CRITERIA else "taylor_activation")
    parser.add_argument("--parameters", default="l2")
    parser.add_argument("--no-mixtures", action="store_true")
    parser.add_argument("--calibration", type=int, default=512, help="images from train")
    parser.add_argument("--limit", type=int, help="at most so many images per split, for a trial")
    parser.add_argument("--batch", type=int, default=125)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--write-only", action="store_true", help="write the page from the results")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    for name in (*args.criteria, args.relevance, args.parameters):
        CRITERIA[name]  # an unknown name is an error before any work
    torch.set_num_threads(args.threads)
    config = {
        "weights": args.weights.name, "calibration": args.calibration, "limit": args.limit,
        "relevance": args.relevance, "parameters": args.parameters,
    }  # fmt: skip
    kept = read(args.results, config)
    mixed = [] if args.no_mixtures else list(mixtures(args.relevance, args.parameters))
    todo = [
        job for job in jobs(args.criteria, mixed, args.sparsities) if job.key not in kept["figures"]
    ]
    if not args.write_only and (todo or "dense" not in kept):
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        with Progress(*columns, TimeRemainingColumn()) as progress:
            bench = Bench(args, progress)
            if "dense" not in kept:
                result = quality(bench.model, bench.test, "test", progress=progress)
                cost = bench.graph.cost()
                kept["dense"] = {
                    "accuracy": result.accuracy, "low": result.low, "high": result.high,
                    "count": result.count, "params": cost.params, "macs": cost.macs,
                    "units": sum(group.size for group in bench.graph.groups),
                }  # fmt: skip
                kept["environment"] = environment()
                write(args.results, kept)
            plans = dict(known_plans(kept))
            for job in progress.track(todo, description="Figures"):
                figure = bench.measure(job, plans)
                kept["figures"][job.key] = figure
                if "plan" in figure:
                    plans[figure["plan"]] = figure
                write(args.results, kept)
                told = figure.get("refused") or f"{figure['accuracy']:.4f}"
                progress.console.print(f"{job.key:44} {told}")
    write_page(kept, args.page)


if __name__ == "__main__":
    main()
