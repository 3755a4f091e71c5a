"""Recovery without training, on ResNet-56 for CIFAR-10 at half its MACs.

    python benchmarks/recovery_resnet56.py --data ../shared/data/cifar10-jpeg \
        --weights ../shared/weights/resnet56-cifar10.safetensors --out runs/recovery

Calibration images come from train; the seed decides which. Only channels inside residual blocks
are cut. Each finished row is a JSON file; a stopped run goes on. Accuracy is on the test split.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

import secateur
from secateur.data import ImageSet, batches, load_data
from secateur.models import cifar_resnet, load_weights
from secateur.recovery import reconstruction_scores, recover

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PLANS = ("l2", "reconstruction")
METHODS = ("none", "bias", "recalibrate", "least_squares", "least_squares:every layer")


@torch.no_grad()
def accuracy(model: nn.Module, images: ImageSet) -> float:
    model.eval()
    loader = batches(images, 500)
    return sum((model(x).argmax(1) == y).sum().item() for x, y in loader) / len(images)


def row(asked: argparse.Namespace, plan_name: str, seed: int) -> list[dict[str, Any]]:
    data = load_data(
        str(asked.data / "train.parquet"), test_source=str(asked.data / "test.parquet"),
        mean=MEAN, std=STD, calibration=asked.images, seed=seed,
    )  # fmt: skip
    judged = getattr(data, asked.split)
    model = cifar_resnet(56)
    load_weights(model, asked.weights)
    calibration = list(batches(data.calibration, 128))
    graph = secateur.trace(model, calibration[0][0][:2])
    # The residual groups reach through a whole stage: cutting them costs far more.
    inner = [group.name for group in graph.groups if len(group.slots) < 20]
    if plan_name == "reconstruction":
        scores = reconstruction_scores(graph, calibration, inner)
    else:
        scores = {n: v for n, v in secateur.score(graph, plan_name).items() if n in inner}
    plan = secateur.allocate(graph, scores, macs=asked.macs, scope=asked.scope)
    pruned = secateur.cut(model, plan)
    dense = accuracy(model, judged)
    found = []
    for method in METHODS:
        began = time.perf_counter()
        result = pruned
        if method != "none":
            name, _, every = method.partition(":")
            result = recover(model, pruned, plan, calibration, name, every_layer=bool(every)).model
        seconds = time.perf_counter() - began
        found.append({
            "plan": plan_name, "seed": seed, "method": method, "images": asked.images,
            "split": asked.split, "dense": dense,
            "macs": plan.pruned.macs / plan.dense.macs,
            "params": plan.pruned.params / plan.dense.params,
            "seconds": seconds, "accuracy": accuracy(result, judged),
        })  # fmt: skip
        print(json.dumps(found[-1]), flush=True)
    return found


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
    parser.add_argument("--plans", nargs="*", choices=PLANS, default=list(PLANS))
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    for path in (asked.data / "train.parquet", asked.weights):
        if not path.exists():
            raise SystemExit(f"looked for {path.resolve()}: not there")
    torch.set_num_threads(asked.threads)
    asked.out.mkdir(parents=True, exist_ok=True)
    for plan_name in asked.plans:
        for seed in asked.seeds:
            name = f"{plan_name}-{asked.scope}-{asked.macs}-{asked.images}-{asked.split}-{seed}"
            path = asked.out / f"{name}.json"
            if not path.exists():
                found = row(asked, plan_name, seed)
                partial = path.with_suffix(".partial")
                partial.write_text(json.dumps(found, indent=1))
                partial.replace(path)


if __name__ == "__main__":
    main()
