"""Five ways of pruning the course project's network, accuracy against sparsity; and a control.

    python benchmarks/five_methods.py --data ../shared/data/cifar10-jpeg --out runs/five-methods

The first five classes of CIFAR-10 (airplane, automobile, bird, cat, deer), resized to 25 x 25.
Each setting of each method is one point: its accuracy on validation (a tenth of train) and the
share of the dense network's parameters that are zero or gone. The best score of each method on
validation is then measured once on test. A stopped run goes on where it was: every finished point
is a JSON file. ``--scale`` shortens all training and data, to try the script.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.data import DataLoader

import secateur
from secateur.course_network import course_cnn
from secateur.data import Augment, ImageSet, batches, load_data
from secateur.finetune import TrainSettings
from secateur.planning import make_plan
from secateur.sparse_training import (
    select_structures,
    train_sparse,
    weight_sparsity,
    zero_smallest,
)
from secateur.sparse_training.loop import train

CLASSES = 5
WHOLE = 592_933
CONVOLUTIONS = ("features.0", "features.2", "features.6", "features.8")
DENSE = ("classifier.0",)
PUBLISHED = {"accuracy": 0.7264, "sparsity": 0.985, "score": 0.856}
SHOWN = 0.5
LOOKS = (
    ("#0072b2", "circle"), ("#d55e00", "square"), ("#e69f00", "diamond"), ("#009e73", "cross"),
    ("#cc79a7", "triangle-up"), ("#56b4e9", "x"),
)  # fmt: skip
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


def score(accuracy: float, sparsity: float) -> float:
    """The course project's: worth nothing at or below 60 % accuracy."""
    return (accuracy + sparsity) / 2 if accuracy > 0.6 else 0.0


class Task:
    """The data, and how long to train."""

    def __init__(self, folder: Path, scale: float, seed: int) -> None:
        limit = None if scale >= 1 else max(500, int(50_000 * scale))
        data = load_data(
            str(folder / "train.parquet"),
            test_source=str(folder / "test.parquet"),
            image_size=25,
            mean=MEAN,
            std=STD,
            limit=limit,
            seed=seed,
        )
        self.sets = {n: _five(getattr(data, n)) for n in ("train", "validation", "test")}
        self.scale = scale
        self.seed = seed

    def loader(self) -> DataLoader[Any]:
        augment = Augment(flip=True, shift=0.1)
        return batches(self.sets["train"], 128, shuffle=True, seed=self.seed, augment=augment)

    def settings(self, epochs: int, lr: float = 1e-3, **over: Any) -> TrainSettings:
        count = max(1, round(epochs * min(1.0, self.scale)))
        return TrainSettings(epochs=count, lr=lr, seed=self.seed, **over)

    @torch.no_grad()
    def accuracy(self, model: nn.Module, part: str = "validation") -> float:
        model.eval()
        hits = [
            (model(images).argmax(1) == labels).sum().item()
            for images, labels in batches(self.sets[part], 500)
        ]
        return sum(hits) / len(self.sets[part])


def _five(images: ImageSet) -> ImageSet:
    chosen = (images.labels < CLASSES).nonzero().squeeze(1)
    return ImageSet(
        images.store,
        images.places[chosen],
        images.labels[chosen],
        scale=images.scale,
        mean=MEAN,
        std=STD,
    )


Points = Iterator[tuple[str, nn.Module]]


def magnitude_rounds(dense: nn.Module, task: Task) -> Points:
    """Layer by layer, the smallest weights; zeros frozen while finetuning; several rounds."""
    model = copy.deepcopy(dense)
    for share in (0.5, 0.75, 0.9, 0.95, 0.97, 0.98, 0.985, 0.99):
        # The first and the last layer are small, and cost most accuracy.
        gentle = {"features.0.weight": min(share, 0.5), "classifier.3.weight": min(share, 0.7)}
        names = [n for n, p in model.named_parameters() if p.dim() > 1]
        zero_smallest(model, {n: gentle.get(n, share) for n in names})
        train_sparse(model, task.loader(), task.settings(4))
        yield f"weights {share:.1%}", model


def structures(norm: str, layers: tuple[str, ...]) -> Callable[[nn.Module, Task], Points]:
    def points(dense: nn.Module, task: Task) -> Points:
        example = next(iter(batches(task.sets["train"], 2)))[0]
        graph = secateur.trace(dense, example)
        scores = secateur.score(graph, norm)
        scores = {name: scores[name] for name in layers}
        shares = (
            (0.2, 0.4, 0.6, 0.8, 0.9) if layers == CONVOLUTIONS else (0.5, 0.8, 0.9, 0.95, 0.98)
        )
        for share in shares:
            model = secateur.cut(dense, secateur.allocate(graph, scores, sparsity=share))
            train(model, task.loader(), task.settings(4))
            yield f"{norm} {share:.0%}", model

    return points


def structure_selection(dense: nn.Module, task: Task) -> Points:
    """Factors by accelerated proximal gradient; cut; retrain with L1; threshold; settle."""
    example = next(iter(batches(task.sets["train"], 2)))[0]
    for strength in (0.1, 0.2):
        whole = copy.deepcopy(dense)
        graph = secateur.trace(whole, example)
        found = select_structures(
            graph,
            task.loader(),
            task.settings(6),
            # A penalty for each unit by the parameters it has: neurons weigh the most.
            strength={
                name: strength * (1.0 if name in DENSE else 0.2) for name in (*CONVOLUTIONS, *DENSE)
            },
            factor_lr=1e-2,
        )
        model = secateur.cut(whole, make_plan(graph, found.removed)) if found.removed else whole
        train_sparse(model, task.loader(), task.settings(4), strength=0.005)
        yield f"factors {strength}, L1", model
        for name, thinner in thresholds(model, task):
            yield f"factors {strength}, L1, {name}", thinner


def thresholds(model: nn.Module, task: Task) -> Points:
    """Zero the least weights in steps and settle, in place.

    Folded factors make the weights that read a layer small, so one threshold on magnitudes would
    empty the last layer; LAMP compares within layers first.
    """
    for left in (0.1, 0.05, 0.03, 0.02, 0.015, 0.01):
        weights = sum(p.numel() for p in model.parameters() if p.dim() > 1)
        share = max(0.0, 1 - left * WHOLE / weights)
        secateur.sparsify(model, "lamp", share, scope="global", inplace=True)
        train_sparse(model, task.loader(), task.settings(3))
        yield f"threshold at {left:.1%} left", model


def no_selection(dense: nn.Module, task: Task) -> Points:
    """All of structure selection but the selection: what do the thresholds do by themselves?"""
    model = copy.deepcopy(dense)
    train_sparse(model, task.loader(), task.settings(4), strength=0.005)
    yield "L1", model
    for name, thinner in thresholds(model, task):
        yield f"L1, {name}", thinner


METHODS: dict[str, Callable[[nn.Module, Task], Points]] = {
    "layer-by-layer magnitude": magnitude_rounds,
    "filters by L1": structures("l1", CONVOLUTIONS),
    "filters by L2": structures("l2", CONVOLUTIONS),
    "neurons by L2": structures("l2", DENSE),
    "structure selection": structure_selection,
    "its thresholds without selection": no_selection,
}


def trained(task: Task, out: Path) -> nn.Module:
    torch.manual_seed(task.seed)
    model, path = course_cnn(CLASSES), out / "dense.safetensors"
    if not path.exists():
        began = time.perf_counter()
        train(model, task.loader(), task.settings(30))
        save_file(model.state_dict(), path)
        write(out / "dense.json", record("dense", "dense", model, task, began))
    model.load_state_dict(load_file(path))
    return model.eval()


def record(method: str, name: str, model: nn.Module, task: Task, began: float) -> dict[str, Any]:
    accuracy, sparsity = task.accuracy(model), weight_sparsity(model, WHOLE)
    return {
        "method": method,
        "point": name,
        "accuracy": accuracy,
        "sparsity": sparsity,
        "score": score(accuracy, sparsity),
        "seconds": time.perf_counter() - began,
    }


def write(path: Path, found: dict[str, Any]) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(found, indent=1))
    partial.replace(path)
    print(json.dumps(found), flush=True)


def run_method(method: str, dense: nn.Module, task: Task, out: Path) -> None:
    """Run one method; it is repeated from its start unless all its points are there."""
    folder = out / method.replace(" ", "-")
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / "done").exists():
        return
    began = time.perf_counter()
    best = 0.0
    for number, (name, model) in enumerate(METHODS[method](dense, task)):
        found = record(method, name, model, task, began)
        write(folder / f"point-{number:02d}.json", found)
        if found["score"] > best:
            best = found["score"]
            test = task.accuracy(model, "test")
            # Read by nobody until the run is over: the choice is made on validation.
            write(folder / "best.json", {**found, "test_accuracy": test,
                                         "test_score": score(test, found["sparsity"])})  # fmt: skip
    (folder / "done").touch()


def report(out: Path) -> None:
    figure = go.Figure()
    points = [json.loads(path.read_text()) for path in sorted(out.glob("*/point-*.json"))]
    front: list[dict[str, Any]] = []
    for p in sorted(points, key=lambda p: -p["sparsity"]):
        if p["accuracy"] > max([SHOWN, *(other["accuracy"] for other in front)]):
            front.append(p)
    left, accuracy = [1 - p["sparsity"] for p in front], [p["accuracy"] for p in front]
    figure.add_scatter(
        x=left, y=accuracy, mode="lines", name="Pareto frontier", line={"shape": "vh", "width": 6,
        "color": "#d9dde3"},
    )  # fmt: skip
    for method, (color, symbol) in zip(METHODS, LOOKS, strict=True):
        mine = [p for p in points if p["method"] == method]
        figure.add_scatter(
            x=[1 - p["sparsity"] for p in mine], y=[p["accuracy"] for p in mine], name=method,
            mode="markers", marker={"color": color, "symbol": symbol, "size": 9},
        )  # fmt: skip
    figure.add_scatter(
        x=[1 - PUBLISHED["sparsity"]], y=[PUBLISHED["accuracy"]], mode="markers", name="published",
        marker={"symbol": "star", "size": 14, "color": "black"},
    )  # fmt: skip
    figure.update_xaxes(
        title="parameters left (share of 592,933)", type="log", tickformat="~%", range=[0, -2.1],
        tickvals=[1, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01],
    )  # fmt: skip
    figure.update_yaxes(title="accuracy on validation", tickformat=".0%", range=[SHOWN, 0.9])
    figure.update_layout(template="plotly_white", margin={"t": 30})
    figure.write_html(out / "pareto.html", include_plotlyjs=True)
    best = [json.loads(path.read_text()) for path in sorted(out.glob("*/best.json"))]
    lines = [
        "| method | sparsity | accuracy (test) | score (test) | seconds |",
        "|---|---|---|---|---|",
    ]
    for b in sorted(best, key=lambda b: b["test_score"]):
        lines.append(
            f"| {b['method']}: {b['point']} | {b['sparsity']:.2%} | {b['test_accuracy']:.2%} "
            f"| {b['test_score']:.4f} | {b['seconds']:.0f} |"
        )
    (out / "table.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data/cifar10-jpeg"))
    parser.add_argument("--out", type=Path, default=Path("runs/five-methods"))
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    if not (asked.data / "train.parquet").exists():
        raise SystemExit(f"looked for train.parquet in {asked.data.resolve()}: not there")
    torch.set_num_threads(asked.threads)
    asked.out.mkdir(parents=True, exist_ok=True)
    task = Task(asked.data, asked.scale, asked.seed)
    dense = trained(task, asked.out)
    for method in asked.methods:
        run_method(method, dense, task, asked.out)
    report(asked.out)


if __name__ == "__main__":
    main()
