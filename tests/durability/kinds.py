"""Every kind of run, so small that it takes about a second; all paths are relative."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from small_runs import write_net, write_residual

NET = "net.py:build"
DATA = {"source": "digits", "limit": 150, "batch_size": 32, "calibration": 32}
PRUNE: dict[str, Any] = {
    "model": NET,
    "data": DATA,
    "criterion": "l2",
    "target": {"sparsity": 0.5},
    "finetune": {"epochs": 2, "lr": 0.01},
    "speed": {"batches": [1], "repeats": 2, "seconds": 0.01},
    "output": "run",
    "seed": 3,
    "threads": 1,
}
SPARSE = {"epochs": 2, "lr": 0.02, "optimizer": "sgd"}
FACTORS = {"factor_lr": 0.2, "momentum": 0.0, "train": {**SPARSE, "epochs": 3}}
WEIGHTS = {**PRUNE, "granularity": "weight", "criterion": "l1", "target": {"sparsity": 0.7}}

KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "structures": ("prune", {**PRUNE, "recover": "least_squares"}),
    "rounds": ("prune", {**PRUNE, "rounds": {"schedule": "geometric", "number": 2}}),
    "select": ("prune", {**PRUNE, "target": None,
                         "sparse": {"method": "select", "strength": 0.8, **FACTORS}}),
    "blocks": ("prune", {**PRUNE, "target": None, "model": "residual_net.py:build",
                         "sparse": {"method": "select", "blocks": 0.8, **FACTORS}}),
    "slim in rounds": ("prune", {**PRUNE, "sparse": {"method": "slim", "train": SPARSE},
                                 "rounds": {"schedule": "linear", "number": 2}}),
    "grow": ("prune", {**PRUNE, "sparse": {"method": "grow", "grow": 0.05, "every": 2,
                                           "train": SPARSE}}),
    "searched": ("prune", {**PRUNE, "target": {"macs": 0.5}, "scope": "search",
                           "search": {"trials": 8}, "finetune": {"epochs": 1}}),
    "distilled": ("prune", {**PRUNE, "finetune": {"epochs": 2, "distill_weight": 0.5}}),
    "weights": ("prune", WEIGHTS),
    "weights in rounds": ("prune", {**WEIGHTS, "rounds": {"schedule": "linear", "number": 2}}),
    "weights gradually": ("prune", {**WEIGHTS, "gradual": {"frequency": 1},
                                    "finetune": {"epochs": 3, "lr": 0.01}}),
    "weights l1": ("prune", {**WEIGHTS, "sparse": {"method": "l1", "strength": 0.01,
                                                   "train": SPARSE}}),
    "compare": ("compare", {
        "model": NET, "data": {**DATA, "limit": 100, "batch_size": 50, "calibration": 20},
        "criteria": ["l1", "taylor"], "sparsities": [0.25, 0.5], "epochs": [0, 1],
        "choose": {"within": 0.5}, "output": "run", "threads": 1,
    }),
    "compare schedules": ("compare", {
        "model": NET, "data": {**DATA, "limit": 100, "batch_size": 50, "calibration": 20},
        "criteria": ["l1"], "sparsities": [0.5], "granularities": ["channel", "weight"],
        "epochs": [2], "schedules": ["one-shot", {"schedule": "linear", "number": 2}],
        "choose": {"within": 0.9}, "output": "run", "threads": 1,
    }),
    "compare searches": ("compare", {
        "model": NET, "data": {**DATA, "limit": 100, "batch_size": 50, "calibration": 20},
        "criteria": ["l1"], "macs": [0.5], "scopes": ["search", "local"],
        "search": {"trials": 6}, "recoveries": ["none", "bias"],
        "choose": {"within": 0.9}, "output": "run", "threads": 1,
    }),
    "sensitivity": ("sensitivity", {
        "model": NET, "data": {**DATA, "limit": 120, "batch_size": 64, "calibration": 20},
        "criterion": "taylor", "sparsities": [0.05, 0.5, 0.9], "target": {"macs": 0.5},
        "output": "run", "threads": 1,
    }),
    "tune": ("tune", {
        "model": NET, "data": {**DATA, "batch_size": 50}, "criterion": "l2",
        "target": {"sparsity": 0.5}, "finetune": {"epochs": 2},
        "search": {"trials": 4, "sampler": "random",
                   "space": {"lr": {"type": "log", "low": 1e-4, "high": 0.1}}},
        "top": 2, "retrain": {"epochs": 2}, "output": "run", "seed": 3, "threads": 1,
        "speed": {"batches": [1], "repeats": 2, "seconds": 0.01},
        "trust": {"settings": 4, "epochs": 1, "resamples": 100},
    }),
    "tune early": ("tune", {
        "model": NET, "data": {**DATA, "batch_size": 50}, "criterion": "l2",
        "target": {"sparsity": 0.5}, "finetune": {"epochs": 3}, "train": {"epochs": 1},
        "search": {"trials": 4, "sampler": "tpe", "initial": 2, "objective": {"metric": "loss"},
                   "early_stopping": {"first": 1, "factor": 2},
                   "space": {"lr": {"type": "log", "low": 1e-4, "high": 0.1}}},
        "top": 1, "retrain": {"epochs": 1}, "output": "run", "seed": 3, "threads": 1,
        "speed": {"batches": [1], "repeats": 2, "seconds": 0.01},
    }),
    "demo": ("demo", {}),
}  # fmt: skip


def prepare(kind: str, folder: Path) -> list[str]:
    """Write what a run of a kind needs into ``folder``; return its command line."""
    verb, settings = KINDS[kind]
    write_net(folder)
    write_residual(folder)
    if verb == "demo":
        return ["demo", "--output", "run", "--threads", "1"]
    (folder / "run.yaml").write_text(yaml.safe_dump(settings))
    return [verb, "run.yaml"]
