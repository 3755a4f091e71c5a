"""The cost of a relevance pass, beside Zennit's and a plain forward-backward pass.

All run the same torchvision network on the same batch, alpha-2 beta-1 in every
weighted layer, down to the input, on one thread. Times are taken in turns in one
process (A B C A B C ...) as processor seconds, so that other work on the machine
counts less. Memory is the largest resident size of a process of its own for each,
what it had before the passes in brackets. Ours counts the recording of the network
in its first pass (memory) and not in the later ones (time), as with many batches.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peak import peak_mebibytes
from torch import Tensor, nn

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "tests"), str(HERE.parent / "tests" / "relevance")]

from passes import ours, worst  # noqa: E402
from zennits_passes import zennit_composite, zennits  # noqa: E402
from zoo.torchvision_shim import import_torchvision  # noqa: E402

from secateur.relevance import Settings, stream  # noqa: E402

NETWORKS = ("vgg16", "resnet50")
SIZES = (64, 128, 224)
BATCH = 8
WAYS = ("secateur", "zennit", "plain")


def build(network: str, size: int) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    model = import_torchvision().models.get_model(network, weights=None).eval()
    return model, torch.randn(BATCH, 3, size, size)


def secateur_passes(model: nn.Module, image: Tensor, passes: int) -> list[float]:
    """Run passes down to every place; return the processor seconds of each."""
    marks = []

    def batches() -> Any:
        for _ in range(passes):
            marks.append(time.process_time())
            yield image, None

    stream(model, batches(), None, Settings(), lambda plan, found: None)
    marks.append(time.process_time())
    return [after - before for before, after in itertools.pairwise(marks)]


def canonizers() -> tuple[Any, ...]:
    from zennit.torchvision import ResNetBasicBlockCanonizer, ResNetBottleneckCanonizer

    return ResNetBasicBlockCanonizer(), ResNetBottleneckCanonizer()


def best_logit(logits: Tensor) -> Tensor:
    best = logits.detach().argmax(1, keepdim=True)
    return torch.zeros_like(logits).scatter_(1, best, logits.detach().gather(1, best))


def zennit_pass(model: nn.Module, image: Tensor) -> None:
    from zennit.attribution import Gradient

    composite = zennit_composite("alpha-beta", *canonizers(), exact=False)
    with Gradient(model, composite) as attributor:
        attributor(image.clone().requires_grad_(), best_logit)


def plain_pass(model: nn.Module, image: Tensor) -> None:
    """Run forward, and backward to the weights and the input."""
    model.zero_grad(set_to_none=True)
    logits = model(image.clone().requires_grad_())
    logits.backward(best_logit(logits))
    model.zero_grad(set_to_none=True)


def timed(run: Callable[[], object]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def time_case(network: str, size: int, repeats: int) -> dict[str, Any]:
    """Time the three in turns, after one pass of each that does not count."""
    model, image = build(network, size)
    others = {
        "zennit": partial(zennit_pass, model, image),
        "plain": partial(plain_pass, model, image),
    }
    for run in others.values():
        run()
    times: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(repeats):
        # The first pass records the network; the second is what every later batch costs.
        first, later = secateur_passes(model, image, 2)
        times["secateur"].append(later)
        times.setdefault("first", []).append(first)
        for way, run in others.items():
            times[way].append(timed(run))
    return {way: statistics.median(found) for way, found in times.items()}


def memory_case(network: str, size: int, way: str) -> dict[str, float]:
    """Run two passes of one way; return the largest resident size, and that before."""
    build("resnet18", 32)
    model, image = build(network, size)
    before = peak_mebibytes()
    for _ in range(1 if way == "secateur" else 2):
        if way == "secateur":
            secateur_passes(model, image, 2)
        else:
            (zennit_pass if way == "zennit" else plain_pass)(model, image)
    return {"peak": peak_mebibytes(), "before": before}


def error_case(network: str, size: int) -> dict[str, float]:
    """Return the largest relative differences at any layer, for two images.

    "merged": from Zennit with a batch norm that is the identity once merged, in float64;
    "as it comes": from Zennit otherwise; "ours" and "zennit": of float32 from float64.
    """
    model, image = build(network, size)
    images, settings = image[:2], Settings()
    single, _ = ours(model, images, settings)
    peer = zennits(model, images, "alpha-beta", *canonizers())
    model, images = model.double(), images.double()
    exact, _ = ours(model, images, settings)
    exact_peer = zennits(model, images, "alpha-beta", *canonizers())
    as_it_comes = zennits(model, images, "alpha-beta", *canonizers(), exact=False)
    return {
        "merged": worst(exact, exact_peer),
        "as it comes": worst(exact, as_it_comes),
        "ours": worst(single, exact),
        "zennit": worst(peer, exact_peer),
    }


def child(*arguments: object) -> Any:
    """Run one case in a process of its own."""
    command = [sys.executable, str(HERE / "relevance.py"), "--case", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


CASES: dict[str, Callable[..., Any]] = {
    "time": lambda network, size, repeats: time_case(network, int(size), int(repeats)),
    "memory": lambda network, size, way: memory_case(network, int(size), way),
    "error": lambda network, size: error_case(network, int(size)),
}


def row(network: str, size: int, repeats: int) -> str:
    times = child("time", network, size, repeats)
    memory = {way: child("memory", network, size, way) for way in WAYS}
    error = child("error", network, min(size, 64))
    cells = [
        network,
        f"{BATCH} x {size}",
        *(f"{times[way]:.2f}" for way in WAYS),
        f"{times['secateur'] / times['zennit']:.2f}",
        f"{times['secateur'] / times['plain']:.2f}",
        f"{times['zennit'] / times['plain']:.2f}",
        f"{times['first'] / times['secateur']:.2f}",
        *(f"{memory[way]['peak']:.0f} ({memory[way]['before']:.0f})" for way in WAYS),
        *(f"{value:.0e}" for value in error.values()),
    ]
    return "| " + " | ".join(cells) + " |"


def page(rows: list[str], repeats: int) -> str:
    from importlib.metadata import version

    tools = ", ".join(f"{name} {version(name)}" for name in ("torch", "torchvision", "zennit"))
    head = (
        "network", "images", "Secateur s", "Zennit s", "plain s", "Secateur / Zennit",
        "Secateur / plain", "Zennit / plain", "first batch / later", "Secateur MiB",
        "Zennit MiB", "plain MiB", "difference", "difference as it comes",
        "Secateur float32", "Zennit float32",
    )  # fmt: skip
    lines = [
        "# A relevance pass beside Zennit's",
        "",
        f"Made by `python benchmarks/relevance.py`: Python {platform.python_version()}, {tools},",
        f"one thread, float32, untrained weights, median of {repeats} in turns, processor seconds.",
        "Alpha-2 beta-1 in every weighted layer, from the predicted logit down to the input;",
        "plain is one forward and backward pass to weights and input. Memory is the largest",
        "resident size of a process of its own (in brackets: before the passes). Differences are",
        "relative, in norm, the largest over all layers, of two images of 64 x 64, float64: from",
        "Zennit with a batch norm that is the identity once merged, and from Zennit as it comes",
        "(which divides by sqrt(1 + 1e-5) once more); the last two are each tool's own rounding,",
        "its float32 from its float64, which sums near zero magnify in networks without training.",
        "",
        "| " + " | ".join(head) + " |",
        "|" + "---|" * len(head),
        *rows,
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run one case (``--case``), or all of them and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", nargs="+")
    parser.add_argument("--networks", nargs="*", default=NETWORKS)
    parser.add_argument("--sizes", nargs="*", type=int, default=SIZES)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, default=HERE / "results")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.case:
        print(json.dumps(CASES[options.case[0]](*options.case[1:])))
        return
    rows = []
    for size in options.sizes:
        for network in options.networks:
            rows.append(row(network, size, options.repeats))
            print(rows[-1], flush=True)
            options.output.mkdir(parents=True, exist_ok=True)
            (options.output / "relevance.md").write_text(page(rows, options.repeats))


if __name__ == "__main__":
    main()
