"""A tuning run so small that it takes a second or two; run as a program, it is a worker."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import yaml
from small_runs import write_net

from secateur.tuning.config import TuneConfig
from secateur.tuning.run import tune_run


def settings(folder: Path, **over: Any) -> dict[str, Any]:
    """Return settings of a tuning run on a few digits; ``over`` replaces keys."""
    search = {
        "trials": 4,
        "sampler": "random",
        "space": {"lr": {"type": "log", "low": 1e-4, "high": 0.1}},
        **over.pop("search", {}),
    }
    return {
        "model": write_net(folder),
        "data": {"source": "digits", "limit": 150, "batch_size": 50, "calibration": 32},
        "criterion": "l2",
        "target": {"sparsity": 0.5},
        "finetune": {"epochs": 2},
        "search": search,
        "top": 2,
        "retrain": {"epochs": 2},
        "speed": {"batches": [1], "repeats": 2, "seconds": 0.01},
        "output": str(folder / "run"),
        "seed": 3,
        "threads": 1,
        **over,
    }


def main() -> None:
    torch.set_num_threads(1)
    path = Path(sys.argv[1])
    config = TuneConfig.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    tune_run(config, resume="--resume" in sys.argv)


if __name__ == "__main__":
    main()
