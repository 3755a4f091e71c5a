"""Does tuning on the proxy work? The three hypotheses on CIFAR-10, ResNet-20 and a small VGG.

    python benchmarks/tuning_cifar10.py --data ../shared/data/cifar10-jpeg --out runs/tuning-cifar10

For each network: trained for some epochs, pruned by Taylor, searched on the proxy, retrained with
the best, and settings trained on the dense network and on proxies of several sparsities. Each
network has its run folder; a stopped run goes on, and the same command in another terminal joins
as a second worker (start it once the first says "dense:"). Writes results/tuning-cifar10.md.

The defaults are meant for two cores and an hour (54 minutes with two workers): 4,000 images for
training, as many for validation and for the test, 3 epochs each.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from torch import nn

from secateur.report.tuning_page import hypotheses
from secateur.report.tuning_tables import interval
from secateur.screen import bars
from secateur.tuning.config import TuneConfig
from secateur.tuning.run import tune_run
from secateur.tuning_results import Tuning, ranked

RESULTS = Path(__file__).resolve().parent / "results" / "tuning-cifar10.md"
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "resnet20": ("secateur.models:cifar_resnet", {"depth": 20}),
    "vgg": (f"{Path(__file__).resolve()}:small_vgg", {}),
}


class SmallVGG(nn.Sequential):
    """Six convolutions of 32 to 128 channels in three blocks, batch norm, one dense layer."""

    def __init__(self, classes: int = 10) -> None:
        layers: list[nn.Module] = []
        inputs = 3
        for outputs in (32, 64, 128):
            for channels in (inputs, outputs):
                layers += [
                    nn.Conv2d(channels, outputs, 3, padding=1, bias=False),
                    nn.BatchNorm2d(outputs),
                    nn.ReLU(),
                ]
            layers.append(nn.MaxPool2d(2))
            inputs = outputs
        layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, classes)]
        super().__init__(*layers)


def small_vgg(classes: int = 10) -> SmallVGG:
    return SmallVGG(classes)


def config(asked: argparse.Namespace, name: str) -> TuneConfig:
    model, arguments = NETWORKS[name]
    return TuneConfig.model_validate({
        "model": model,
        "arguments": arguments,
        "data": {
            "source": str(asked.data), "limit": asked.images, "batch_size": 128,
            "calibration": min(512, asked.images), "validation": 0.2,
            "mean": [0.491, 0.482, 0.447], "std": [0.247, 0.243, 0.262],
        },
        "train": {"epochs": asked.train_epochs, "lr": 0.05, "optimizer": "sgd"},
        "target": {"sparsity": asked.sparsities[-1]},
        "finetune": {"epochs": asked.epochs, "optimizer": "sgd"},
        "search": {
            "trials": asked.trials,
            "space": {"lr": {"type": "log", "low": asked.low, "high": asked.high}},
            "objective": {"metric": "pir"},
        },
        "top": asked.top,
        "retrain": {"epochs": asked.retrain_epochs},
        "start": asked.start,
        "trust": {"settings": asked.settings, "sparsities": asked.sparsities},
        "speed": {"batches": [1, 32], "repeats": 20, "seconds": asked.seconds},
        "output": str(asked.out / name),
        "seed": asked.seed,
        "threads": asked.threads,
    })  # fmt: skip


def described(name: str, tuning: Tuning) -> list[str]:
    best = ranked(tuning.tried, tuning.metric)[:5]
    dense, proxy = tuning.dense, tuning.proxy
    lines = [
        f"## {name}",
        "",
        f"{dense.size.params:,} parameters dense, {proxy.size.params:,} in the proxy; "
        + ", ".join(
            f"inferences per second at batch {a.batch}: {a.median:.0f} and {b.median:.0f} "
            f"(x{b.median / a.median:.1f})"
            for a, b in zip(dense.speeds, proxy.speeds, strict=True)
        )
        + ".",
        "",
        "| learning rate | PIR | zeta |",
        "|---|---|---|",
        *(f"| {one.values['lr']:.3g} | {one.pir:.3f} | {one.zeta:.2f} |" for one in best),
        "",
        "| dense network (test) | precision | accuracy | recall | F1 |",
        "|---|---|---|---|---|",
        _row("before", dense.quality),
        *(
            _row(f"lr {one.values['lr']:.3g}{' (chosen)' if one.chosen else ''}", one.test)
            for one in tuning.retrained
        ),
        "",
        "| proxy | parameters left | Kendall | Spearman | regret | overlap | times faster |",
        "|---|---|---|---|---|---|---|",
        *(
            f"| {one.sparsity} | {one.params:.1%} | {interval(one.kendall)} | "
            f"{interval(one.spearman)} | {interval(one.regret, 3)} | {interval(one.overlap)} | "
            f"{interval(one.speedup)} |"
            for one in tuning.transfers
        ),
        "",
        *(f"- {hypotheses(one)}" for one in tuning.transfers),
        "",
    ]
    return lines


def _row(name: str, found: Any) -> str:
    if found is None:
        return f"| {name} | - | - | - | - |"
    values = (found.precision, found.accuracy, found.recall, found.f1)
    return f"| {name} | " + " | ".join(f"{value:.2%}" for value in values) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data/cifar10-jpeg"))
    parser.add_argument("--out", type=Path, default=Path("runs/tuning-cifar10"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--images", type=int, default=4000, help="of each split")
    parser.add_argument("--train-epochs", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=3, help="of a trial")
    parser.add_argument("--trials", type=int, default=24)
    parser.add_argument("--low", type=float, default=1e-5)
    parser.add_argument("--high", type=float, default=1.0)
    parser.add_argument("--top", type=int, default=2)
    parser.add_argument("--retrain-epochs", type=int, default=8)
    parser.add_argument("--settings", type=int, default=16, help="trained on both networks")
    parser.add_argument("--sparsities", type=float, nargs="+", default=[0.5, 0.75, 0.9])
    parser.add_argument("--start", default="initial", choices=("trained", "initial"))
    parser.add_argument("--seconds", type=float, default=10.0, help="of each speed measurement")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="of each worker")
    asked = parser.parse_args()
    lines = [
        "# Tuning on the proxy: CIFAR-10",
        "",
        f"{asked.images} images each for training, validation and test, {asked.trials} trials "
        f"of {asked.epochs} epochs, {asked.settings} settings trained on both networks, seed "
        f"{asked.seed}. Brackets: 95 % bootstrap intervals over the settings.",
        "",
    ]
    for name in asked.networks:
        folder = asked.out / name
        with bars() as progress:
            tuning = tune_run(
                config(asked, name),
                resume=(folder / "config.yaml").is_file(),
                progress=progress,
                command="python benchmarks/tuning_cifar10.py",
            )
        lines += described(name, tuning)
    asked.results.parent.mkdir(parents=True, exist_ok=True)
    asked.results.write_text("\n".join(lines), encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
