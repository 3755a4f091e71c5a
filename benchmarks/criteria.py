"""The time of every criterion, as multiples of a plain forward and backward pass.

``python benchmarks/criteria.py`` runs the plain pass and a criterion in turn (A B A B)
on the same batches with one thread, and writes ``results/criteria.md``. The plain pass
is the network in eval mode, the mean cross entropy and its backward pass. Seconds are
those of the processor, so that other work on the machine does not count. Tracing is not
counted: a graph is scored many times.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import secateur
from secateur.criteria import CRITERIA
from secateur.models import cifar_resnet

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests"))

from zoo.torchvision_shim import import_torchvision  # noqa: E402

LIMIT = 1.1
Batch = tuple[Tensor, Tensor]


def plain(model: nn.Module, batches: list[Batch]) -> None:
    for inputs, labels in batches:
        model.zero_grad(set_to_none=True)
        F.cross_entropy(model(inputs), labels).backward()


def seconds(action: Callable[[], object]) -> float:
    start = time.process_time()
    action()
    return time.process_time() - start


def in_turn(first: Callable[[], object], second: Callable[[], object], repeats: int) -> list[float]:
    """Return the median seconds of two actions that run A B A B, after one run to warm up."""
    first()
    second()
    pairs = [(seconds(first), seconds(second)) for _ in range(repeats)]
    return [statistics.median(times) for times in zip(*pairs, strict=True)]


def network(name: str) -> tuple[nn.Module, int]:
    """Return a network and the size of its images; weights do not change the time."""
    if name == "resnet56-cifar10":
        return cifar_resnet(56), 32
    return import_torchvision().models.get_model(name), 224


def measure(
    name: str, criteria: list[str], batch: int, number: int, repeats: int
) -> list[tuple[str, float, float]]:
    torch.manual_seed(0)
    model, size = network(name)
    model.eval()
    for parameter in model.parameters():
        if parameter.dim() == 1:  # fresh norms are all alike, which is refused
            nn.init.uniform_(parameter, 0.5, 1.5)
    batches = [
        (torch.randn(batch, 3, size, size), torch.randint(0, 10, (batch,))) for _ in range(number)
    ]
    graph = secateur.trace(model, batches[0][0][:1])
    rows = []
    for rule in criteria:
        judge = lambda rule=rule: secateur.score(graph, rule, calibration=batches)  # noqa: E731
        bare, own = in_turn(lambda: plain(model, batches), judge, repeats)
        print(f"{name} {rule}: {bare:.2f} s plain, {own:.2f} s, {own / bare:.2f} x", flush=True)
        rows.append((rule, bare, own))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=HERE / "results/criteria.md")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    taylor = measure("resnet56-cifar10", ["taylor"], 32, 4, 3 * chosen.repeats)
    others = [rule for rule in CRITERIA if rule != "taylor"]
    many = measure("resnet56-cifar10", others, 32, 1, chosen.repeats)
    large = measure("resnet50", ["taylor", "l2", "fpgm"], 8, 1, max(3, chosen.repeats // 2))
    text = [
        "# Criteria beside a plain forward and backward pass",
        "",
        f"Made by `python benchmarks/criteria.py`: Python {platform.python_version()}, torch "
        f"{torch.__version__}, one thread, medians of runs in turn, seconds of the processor.",
        "",
    ]
    for title, rows in (
        ("`resnet56-cifar10`, four batches of 32 images of 32 x 32", taylor),
        ("`resnet56-cifar10`, one batch of 32 images of 32 x 32", many),
        ("`resnet50` of torchvision, one batch of 8 images of 224 x 224", large),
    ):
        text += [
            f"{title}:",
            "",
            "| criterion | plain s | criterion s | ratio |",
            "|---|---|---|---|",
        ]
        text += [
            f"| {rule} | {bare:.2f} | {own:.2f} | {own / bare:.2f} x |" for rule, bare, own in rows
        ]
        text.append("")
    chosen.out.write_text("\n".join(text), encoding="utf-8")
    worst = max(own / bare for rule, bare, own in (*taylor, *large) if rule == "taylor")
    print(f"taylor: at most {worst:.2f} x, the limit is {LIMIT} x")
    raise SystemExit(worst > LIMIT)


if __name__ == "__main__":
    main()
