"""Trace-to-cut time and peak memory, side by side with Torch-Pruning.

``python benchmarks/peer.py`` runs every case of both tools in its own process,
one thread, in turn (A B A B), and writes ``results/peer.json`` and
``results/peer.md``. Both tools remove half of the channels of every group by
their L2 norm; the classifier's outputs stay. The clock starts with a built
model and ends with a cut one: for Secateur trace, score, allocate and cut; for
Torch-Pruning the construction of its pruner and one ``step``. Every process
first prunes one tiny network, so that imports are charged to nobody.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peak import peak_mebibytes
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests"))

from zoo.torchvision_shim import import_torchvision  # noqa: E402

NETWORKS = (
    "resnet18",
    "resnet50",
    "vgg16_bn",
    "densenet121",
    "densenet201",
    "efficientnet_b7",
    "mobilenet_v2",
    "convnext_tiny",
)
DEPTHS = (10, 20, 40, 80)
TOOLS = ("secateur", "torch-pruning")
CURVES = tuple(f"{family}-{depth}" for family in ("dense", "residual") for depth in DEPTHS)


class OpCounter(TorchDispatchMode):
    """Counts the operations that pass by."""

    count = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


class Residual(nn.Module):
    """A basic block of constant width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.body(x))


def build(case: str) -> tuple[nn.Module, Tensor, nn.Module]:
    """Build a case: the model, its example image and its classifier layer."""
    torch.manual_seed(0)
    family, _, depth = case.partition("-")
    if family == "residual":
        blocks = [Residual(32) for _ in range(int(depth))]
        head = nn.Linear(32, 10)
        stem = nn.Conv2d(3, 32, 3, padding=1)
        model: nn.Module = nn.Sequential(stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)
        return model.eval(), torch.randn(1, 3, 32, 32), head
    models = import_torchvision().models
    if family == "dense":
        model = models.DenseNet(8, (int(depth),), 16, num_classes=10)
        return model.eval(), torch.randn(1, 3, 64, 64), model.classifier
    model = models.get_model(case, weights=None).eval()
    head = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    return model, torch.randn(1, 3, 224, 224), head


def cut_secateur(model: nn.Module, image: Tensor, head: nn.Module) -> nn.Module:
    """Prune with Secateur, as a user would."""
    import secateur

    graph = secateur.trace(model, image)
    plan = secateur.allocate(graph, secateur.score(graph, "l2"), sparsity=0.5)
    return secateur.cut(model, plan)


def cut_peer(model: nn.Module, image: Tensor, head: nn.Module) -> nn.Module:
    """Prune with Torch-Pruning, in place."""
    import torch_pruning

    pruner = torch_pruning.pruner.MagnitudePruner(
        model,
        image,
        importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=0.5,
        ignored_layers=[head],
    )
    pruner.step()
    return model


CUTS: dict[str, Callable[[nn.Module, Tensor, nn.Module], nn.Module]] = {
    "secateur": cut_secateur,
    "torch-pruning": cut_peer,
}


def count_ops(case: str) -> int:
    """Count the operations of one forward pass of a case, each call into PyTorch's core one."""
    model, image, _ = build(case)
    counter = OpCounter()
    with torch.no_grad(), counter:
        model(image)
    return counter.count


def run_case(case: str, tool: str) -> dict[str, Any]:
    """Measure one case in this process; nothing here is shared between tools."""
    torch.set_num_threads(1)
    CUTS[tool](*build("residual-1"))
    model, image, head = build(case)
    dense = sum(p.numel() for p in model.parameters())
    with torch.no_grad():
        # The peer and we both run the network once; this pass is not charged to either.
        model(image)
    # A full collection walks all that torch imported and would hit either tool by chance.
    gc.collect()
    gc.freeze()
    before = peak_mebibytes()
    start, worked = time.perf_counter(), time.process_time()
    pruned = CUTS[tool](model, image, head)
    seconds, cpu = time.perf_counter() - start, time.process_time() - worked
    peak = peak_mebibytes()
    with torch.no_grad():
        runs = bool(torch.isfinite(pruned.eval()(image)).all())
    return {
        "seconds": seconds,
        "cpu_seconds": cpu,
        "peak_mib": peak,
        "added_mib": peak - before,
        "ops": count_ops(case),
        "params_dense": dense,
        "params_pruned": sum(p.numel() for p in pruned.parameters()),
        "runs": runs,
    }


def measure(case: str, tool: str, timeout: float) -> dict[str, Any]:
    """Run one case of one tool in a process of its own; a failure is a result, too."""
    command = [sys.executable, str(HERE / "peer.py"), "--case", case, "--tool", tool]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired:
        return {"error": f"more than {timeout:.0f} s"}
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1]}
    record: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return record


def summarise(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Reduce the repeats of one tool on one case to medians (or the first error)."""
    failed = [run["error"] for run in runs if "error" in run]
    if failed:
        return {"error": failed[0]}
    measured = ("seconds", "cpu_seconds", "peak_mib", "added_mib")
    medians = {key: statistics.median(run[key] for run in runs) for key in measured}
    spread = [min(run["seconds"] for run in runs), max(run["seconds"] for run in runs)]
    fixed = {key: runs[0][key] for key in ("ops", "params_dense", "params_pruned", "runs")}
    return {**medians, "spread": spread, "repeats": len(runs), **fixed}


def cell(record: dict[str, Any], key: str, form: str) -> str:
    """Format one number of a record, or its error."""
    return "failed" if "error" in record else format(record[key], form)


def ratio(record: dict[str, Any], other: dict[str, Any]) -> str:
    """Format how many times the processor time the other tool takes."""
    if "error" in record or "error" in other:
        return "-"
    return f"{other['cpu_seconds'] / record['cpu_seconds']:.1f} x"


def markdown(results: dict[str, Any]) -> str:
    """Lay the results out as two tables: networks, then the curve over depth."""
    lines = [
        "# Trace to cut, Secateur and Torch-Pruning",
        "",
        f"Made by `python benchmarks/peer.py`: {results['about']}.",
        "Median of the repeats; each is a process of its own, the tools in turn. Seconds are those",
        "of the processor (one thread; the clock's are in `peer.json`), so that other work on the",
        "machine does not count. Memory is the largest resident size of the process and, in",
        "brackets, what the pruning itself added to it.",
        "",
        "| network | parameters | Secateur s | Torch-Pruning s | ratio | Secateur MiB (added) "
        "| Torch-Pruning MiB (added) | left by Secateur | left by Torch-Pruning |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for case, pair in results["cases"].items():
        ours, peer = pair["secateur"], pair["torch-pruning"]
        known = peer if "error" in ours else ours
        if case == CURVES[0]:
            lines += [
                "",
                "Growth with depth: blocks of one family, with the operations of a forward pass.",
                "",
                "| network | parameters | Secateur s | Torch-Pruning s | ratio "
                "| operations | Secateur ms an operation |",
                "|---|---|---|---|---|---|---|",
            ]
        row = [
            case,
            cell(known, "params_dense", ","),
            cell(ours, "cpu_seconds", ".2f"),
            cell(peer, "cpu_seconds", ".2f"),
            ratio(ours, peer),
        ]
        if case in CURVES:
            each = "-" if "error" in ours else f"{1000 * ours['cpu_seconds'] / ours['ops']:.2f}"
            row += [cell(ours, "ops", ","), each]
        else:
            for record in (ours, peer):
                added = "" if "error" in record else f" ({record['added_mib']:.0f})"
                row.append(cell(record, "peak_mib", ".0f") + added)
            row += [cell(ours, "params_pruned", ","), cell(peer, "params_pruned", ",")]
        lines.append("| " + " | ".join(row) + " |")
    errors = [
        f"- {case}, {tool}: `{pair[tool]['error']}`"
        for case, pair in results["cases"].items()
        for tool in TOOLS
        if "error" in pair[tool]
    ]
    if errors:
        lines += ["", "Failures:", "", *errors]
    return "\n".join(lines) + "\n"


def about() -> str:
    """Name the versions the numbers belong to."""
    from importlib.metadata import version

    parts = [f"{name} {version(name)}" for name in ("torch", "torchvision", "torch-pruning")]
    return f"Python {platform.python_version()}, " + ", ".join(parts) + ", one thread"


def main() -> None:
    """Run one case (``--case``, ``--tool``), or all of them and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", help="run this one case in this process, print JSON")
    parser.add_argument("--tool", choices=TOOLS)
    parser.add_argument("--only", nargs="*", help="cases to run (default: all)")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--timeout", type=float, default=900, help="seconds for one process")
    parser.add_argument("--output", type=Path, default=HERE / "results")
    options = parser.parse_args()
    if options.case:
        print(json.dumps(run_case(options.case, options.tool)))
        return
    cases = options.only or (*NETWORKS, *CURVES)
    results: dict[str, Any] = {"about": about(), "cases": {}}
    for case in cases:
        runs: dict[str, list[dict[str, Any]]] = {tool: [] for tool in TOOLS}
        for _ in range(options.repeats):
            for tool in TOOLS:
                # A tool that failed or ran out of time would only do so again.
                if not any("error" in run for run in runs[tool]):
                    runs[tool].append(measure(case, tool, options.timeout))
        pair = {tool: summarise(runs[tool]) for tool in TOOLS}
        results["cases"][case] = pair
        print(
            f"{case:16s}",
            *(f"{tool} {cell(pair[tool], 'cpu_seconds', '.2f')} s" for tool in TOOLS),
            ratio(pair["secateur"], pair["torch-pruning"]),
            flush=True,
        )
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "peer.json").write_text(json.dumps(results, indent=1) + "\n")
    table = markdown(results)
    (options.output / "peer.md").write_text(table)
    print("\n" + table)


if __name__ == "__main__":
    main()
