"""Proxies of published networks: parameters and speed with 90 % of the channels gone.

    python benchmarks/proxy_sizes.py         # writes results/proxy-sizes.md

Random weights (the sizes do not depend on them), local scope: floor(0.9 x size) units of every
group go. Moura et al. have 0.23 M, 0.06 M and 3.56 M parameters left, and 7.0, 3.5 and 3.7 times
the inferences per second. Beside it: how many would be left if floor(0.1 x size) units stayed and
the inner width of attention (heads and their dimensions) were left whole, as a tool does that does
not know heads.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from torch import nn

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests"))

from zoo.torchvision_shim import import_torchvision  # noqa: E402

import secateur  # noqa: E402
from secateur.latency import paired  # noqa: E402
from secateur.planning import make_plan  # noqa: E402

SOURCE = {
    "resnet50": (23.5, 0.23, 7.0),
    "efficientnet-b0": (4.01, 0.06, 3.5),
    "beit-base": (85.77, 3.56, 3.7),
}


def network(name: str) -> nn.Module:
    import_torchvision()
    import transformers as hf

    torch.manual_seed(0)
    if name == "resnet50":
        # The library's defaults are ResNet-50's.
        return hf.ResNetForImageClassification(hf.ResNetConfig(num_labels=10))
    if name == "efficientnet-b0":
        config = hf.EfficientNetConfig(
            num_labels=10, image_size=224, width_coefficient=1.0, depth_coefficient=1.0,
            hidden_dim=1280, dropout_rate=0.2,
        )  # fmt: skip
        return hf.EfficientNetForImageClassification(config)
    # As published: a table of relative positions in every layer, and no absolute ones.
    return hf.BeitForImageClassification(
        hf.BeitConfig(num_labels=10, use_relative_position_bias=True)
    )


def headless(graph: secateur.Graph) -> float:
    """Return the millions of parameters left where floor(0.1 x size) stay and heads are whole."""
    gone = {
        group.name: range(group.size - group.size // 10)
        for group in graph.groups
        if group.kind not in ("head", "head_dim") and group.size >= 10
    }
    return make_plan(graph, gone).pruned.params / 1e6


def measured(name: str, seconds: float) -> str:
    model = network(name).eval()
    example = torch.randn(2, 3, 224, 224)
    graph = secateur.trace(model, example)
    plan = secateur.allocate(graph, secateur.score(graph, "l2"), sparsity=0.9)
    pruned = secateur.cut(model, plan)
    check = secateur.verify(model, pruned, plan, example)
    if not (check.ok and check.changed):
        raise SystemExit(f"{name}: the cut is not proved: {check}")
    before, after = (sum(p.numel() for p in one.parameters()) / 1e6 for one in (model, pruned))
    speeds = paired(
        {"dense": model, "pruned": pruned}, example, batch=1, repeats=10, threads=1,
        seconds=seconds,
    )  # fmt: skip
    dense, proxy = speeds["dense"].median, speeds["pruned"].median
    theirs = SOURCE[name]
    return (
        f"| {name} | {before:.2f} M | {after:.3f} M | {theirs[0]} M to {theirs[1]} M | "
        f"{dense:.1f} | {proxy:.1f} | x{proxy / dense:.1f} | x{theirs[2]} | "
        f"{headless(graph):.3f} M | {check.max_error:.0e} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--networks", nargs="+", default=list(SOURCE), choices=list(SOURCE))
    parser.add_argument("--seconds", type=float, default=30.0, help="of each speed measurement")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "proxy-sizes.md")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    lines = []
    for name in asked.networks:
        lines.append(measured(name, asked.seconds))
        print(lines[-1], flush=True)
    words = [
        "# Proxies with 90 % of the channels gone",
        "",
        "Random weights, batch 1, one thread, 224 x 224; dense and proxy in turns. `theirs` are "
        "the figures of Moura et al.; the error is that of the cut against its masked reference.",
        "",
        "| network | dense | proxy | theirs | IPS dense | IPS proxy | ratio | theirs | "
        "floor(0.1 x size) left, heads whole | error |",
        "|---|---|---|---|---|---|---|---|---|---|",
        *lines,
    ]
    asked.out.write_text("\n".join(words) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
