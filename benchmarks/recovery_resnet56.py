"""Recovery without training, and with a little, on ResNet-56 for CIFAR-10 at half its MACs.

    python benchmarks/recovery_resnet56.py --data ../shared/data/cifar10-jpeg \
        --weights ../shared/weights/resnet56-cifar10.safetensors --out runs/recovery

Calibration images come from train; the seed decides which. Only channels inside residual blocks
are cut. The rows with epochs train the network as it was cut, on the 45,000 images that are not
validation, and take the best epoch on validation; ``--plans "nothing cut" --methods "1 epoch"``
does so with the dense network, to tell what these images bring by themselves. Each finished row is
a JSON file; a stopped run goes on. Accuracy is on the test split; ``table.md`` has the mean over
seeds and each seed's.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

import secateur
from secateur.data import Augment, ImageData, ImageSet, batches, load_data
from secateur.finetune import TrainSettings, finetune
from secateur.models import cifar_resnet, load_weights
from secateur.planning import make_plan
from secateur.recovery import reconstruction_scores, recover

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PLANS = ("l2", "reconstruction", "nothing cut")
METHODS = (
    "none", "bias", "recalibrate", "least_squares", "least_squares:every layer", "1 epoch",
    "3 epochs",
)  # fmt: skip


@torch.no_grad()
def accuracy(model: nn.Module, images: ImageSet) -> float:
    model.eval()
    loader = batches(images, 500)
    return sum((model(x).argmax(1) == y).sum().item() for x, y in loader) / len(images)


def prepared(asked: argparse.Namespace, plan_name: str, seed: int) -> dict[str, Any]:
    """Choose and cut: what all methods start from."""
    data = load_data(
        str(asked.data / "train.parquet"), test_source=str(asked.data / "test.parquet"),
        mean=MEAN, std=STD, calibration=asked.images, seed=seed,
    )  # fmt: skip
    model = cifar_resnet(56)
    load_weights(model, asked.weights)
    model.eval()
    calibration = list(batches(data.calibration, 128))
    graph = secateur.trace(model, calibration[0][0][:2])
    # The residual groups reach through a whole stage: cutting them costs far more.
    inner = [group.name for group in graph.groups if len(group.slots) < 20]
    if plan_name == "nothing cut":
        plan = make_plan(graph, {})
        return {"data": data, "model": model, "plan": plan, "pruned": model,
                "calibration": calibration}  # fmt: skip
    if plan_name == "reconstruction":
        scores = reconstruction_scores(graph, calibration, inner)
    else:
        scores = {n: v for n, v in secateur.score(graph, plan_name).items() if n in inner}
    plan = secateur.allocate(graph, scores, macs=asked.macs, scope=asked.scope)
    pruned = secateur.cut(model, plan)
    return {"data": data, "model": model, "plan": plan, "pruned": pruned,
            "calibration": calibration}  # fmt: skip


def trained(pruned: nn.Module, data: ImageData, epochs: int, seed: int) -> nn.Module:
    model = copy.deepcopy(pruned)
    loader = batches(data.train, 128, shuffle=True, seed=seed, augment=Augment())
    settings = TrainSettings(
        epochs=epochs, lr=0.02, optimizer="sgd", nesterov=True, weight_decay=5e-4, seed=seed
    )
    finetune(model, loader, batches(data.validation, 500), settings)
    return model


def measured(asked: argparse.Namespace, method: str, made: dict[str, Any]) -> dict[str, Any]:
    began = time.perf_counter()
    result, plan = made["pruned"], made["plan"]
    if "epoch" in method:
        result = trained(result, made["data"], int(method.split()[0]), made["seed"])
    elif method != "none":
        name, _, every = method.partition(":")
        result = recover(
            made["model"], result, plan, made["calibration"], name, every_layer=bool(every)
        ).model
    seconds = time.perf_counter() - began
    return {
        "plan": made["plan_name"], "seed": made["seed"], "method": method, "images": asked.images,
        "split": asked.split,
        "macs": plan.pruned.macs / plan.dense.macs,
        "params": plan.pruned.params / plan.dense.params,
        "seconds": seconds, "accuracy": accuracy(result, getattr(made["data"], asked.split)),
    }  # fmt: skip


def write(path: Path, found: dict[str, Any]) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(found, indent=1))
    partial.replace(path)
    print(json.dumps(found), flush=True)


def table(rows: list[dict[str, Any]], dense: float) -> str:
    """Return mean and spread over the seeds, a line for each plan and method."""
    lines = [
        "| scores | method | accuracy (mean of seeds) | each seed | points below dense | seconds |",
        "|---|---|---|---|---|---|",
    ]
    for plan in PLANS:
        for method in METHODS:
            mine = [r for r in rows if (r["plan"], r["method"]) == (plan, method)]
            if mine:
                values = [r["accuracy"] for r in sorted(mine, key=lambda r: r["seed"])]
                mean = statistics.fmean(values)
                each = ", ".join(f"{v:.1%}" for v in values)
                seconds = statistics.median(r["seconds"] for r in mine)
                lines.append(
                    f"| {plan} | {method} | {mean:.1%} | {each} | {100 * (dense - mean):.1f} "
                    f"| {seconds:.0f} |"
                )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data/cifar10-jpeg"))
    parser.add_argument(
        "--weights", type=Path, default=Path("../shared/weights/resnet56-cifar10.safetensors")
    )
    parser.add_argument("--out", type=Path, default=Path("runs/recovery"))
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--macs", type=float, default=0.5)
    parser.add_argument("--scope", default="global")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--split", choices=("validation", "test"), default="test")
    parser.add_argument("--plans", nargs="*", choices=PLANS, default=list(PLANS[:2]))
    parser.add_argument("--methods", nargs="*", choices=METHODS, default=list(METHODS))
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    for path in (asked.data / "train.parquet", asked.weights):
        if not path.exists():
            raise SystemExit(f"looked for {path.resolve()}: not there")
    torch.set_num_threads(asked.threads)
    asked.out.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    dense: float | None = None
    if (known := asked.out / f"dense-{asked.split}.json").exists():
        dense = json.loads(known.read_text())["accuracy"]
    for plan_name in asked.plans:
        for seed in asked.seeds:
            made: dict[str, Any] = {}
            for method in asked.methods:
                setting = f"{plan_name}-{asked.scope}-{asked.macs}-{asked.images}-{asked.split}"
                path = asked.out / f"{setting}-{seed}-{method.replace(' ', '-')}.json"
                if not path.exists():
                    made = made or prepared(asked, plan_name, seed)
                    made |= {"plan_name": plan_name, "seed": seed}
                    if dense is None:
                        dense = accuracy(made["model"], getattr(made["data"], asked.split))
                        write(known, {"accuracy": dense})
                    write(path, measured(asked, method, made))
                rows.append(json.loads(path.read_text()))
                assert dense is not None
                (asked.out / "table.md").write_text(table(rows, dense))


if __name__ == "__main__":
    main()
