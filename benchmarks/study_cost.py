"""What a study costs over the bare evaluations of its networks.

    python benchmarks/study_cost.py                 # writes results/study_cost.md

Runs `examples/resnet56_six_criteria.yaml` (6 criteria, 9 sparsities, 3 seeds) in one process, trial
by trial, exactly as `secateur compare` does. After each trial the same network is classified again
over the same validation images by a plain loop of PyTorch that does nothing else. The cost is all
the study's time (set-up, scores, plans, cuts, proofs, records) over the sum of the plain loops.
A run that was stopped goes on; the study's own report stands in its folder at the end.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from pathlib import Path

import torch
from torch import nn

from secateur.compare.bench import Bench, set_up
from secateur.compare.config import CompareConfig, plain, to_yaml
from secateur.compare.database import add, close_database, open_database, recorded
from secateur.compare.making import made_again
from secateur.compare.run import DATABASE, compare_run
from secateur.compare.trials import grid
from secateur.compare.workers import one_by_one
from secateur.data import batches
from secateur.progress import track
from secateur.screen import bars
from secateur.study import store
from secateur.study.reading import parse, read_mapping
from secateur.study.stages import threads_set

HERE = Path(__file__).resolve().parent
STUDY = HERE.parent / "examples" / "resnet56_six_criteria.yaml"
RESULTS = HERE / "results" / "study_cost.md"


def bare(bench: Bench, model: nn.Module) -> tuple[float, float]:
    """Return the seconds of a plain evaluation, and its accuracy."""
    loader = batches(bench.data.validation, bench.config.data.batch_size)
    model.eval()
    right = seen = 0
    started = time.perf_counter()
    with torch.inference_mode():
        for inputs, labels in loader:
            right += int((model(inputs).argmax(dim=1) == labels).sum())
            seen += len(labels)
    return time.perf_counter() - started, right / seen


def measured(config: CompareConfig, folder: Path, resume: bool) -> dict[str, list[float]]:
    """Run what is missing of the study; return seconds of study and of plain loop, by trial."""
    path = folder / "cost.json"
    store.check_folder(folder, plain(config), resume)
    started = time.perf_counter()
    bench, _ = set_up(config, folder / store.STAGES)
    found = {"set-up": [time.perf_counter() - started, 0.0]}
    if path.is_file():
        found = json.loads(path.read_text(encoding="utf-8"))
    store.claim(folder, to_yaml(config))
    specs = grid(config)
    database = open_database(folder / DATABASE, [spec.trial for spec in specs])
    try:
        done = recorded(database)
        missing = [spec for spec in specs if spec.trial.number not in done]
        with bars() as progress:
            for spec in track(missing, "Trials", progress):
                started = time.perf_counter()
                (trial,) = one_by_one(bench, [spec])
                add(database, trial)
                took = time.perf_counter() - started
                assert trial.quality is not None, trial.error
                seconds, accuracy = bare(bench, made_again(bench, spec).model)
                assert accuracy == trial.quality.accuracy, (trial, accuracy)
                found[str(trial.number)] = [took, seconds]
                store.write_text(path, json.dumps(found))
    finally:
        close_database(database)
    return found


def page(found: dict[str, list[float]], name: str) -> str:
    setup = found["set-up"][0]
    trials = [pair for name, pair in found.items() if name != "set-up"]
    study, plain_loops = (sum(pair[i] for pair in trials) for i in (0, 1))
    over = sorted(a / b - 1 for a, b in trials)
    return "\n".join([
        "# What a study costs",
        "",
        f"{len(trials)} networks from `examples/{name}`, one process of one thread, "
        f"{platform.machine()}, PyTorch {torch.__version__}.",
        "",
        "| | seconds |",
        "|---|---|",
        f"| plain loops over the validation images | {plain_loops:.0f} |",
        f"| the study's trials: scores, plans, cuts, proofs, measures, records | {study:.0f} |",
        f"| set-up, once | {setup:.0f} |",
        f"| **cost over the plain loops** | **{(study + setup) / plain_loops - 1:.1%}** |",
        f"| half of the trials cost less than | {over[len(over) // 2]:.1%} |",
        "",
        "Trials that are the first of a criterion and seed pay for its scores.",
        "",
    ])  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--study", type=Path, default=STUDY)
    parser.add_argument("--output", type=Path, default=Path("runs/study-cost"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    asked = parser.parse_args()
    raw = {**read_mapping(asked.study), "output": str(asked.output)}
    config = parse(CompareConfig, raw, str(asked.study))
    for needed in (config.data.source, config.weights):
        if needed is not None and not Path(needed).exists():
            print(f"study_cost: nothing measured, because {needed} is not there")
            return
    resume = (asked.output / "config.yaml").is_file()
    with threads_set(config.threads):
        found = measured(config, asked.output, resume)
    text = page(found, asked.study.name)
    print(text)
    asked.results.write_text(text, encoding="utf-8")
    compare_run(config, resume=True, command="python benchmarks/study_cost.py")


if __name__ == "__main__":
    main()
