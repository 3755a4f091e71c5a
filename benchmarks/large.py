"""Trace, analyse and plan a 7-billion-parameter Llama without its weights: seconds and memory.

``python benchmarks/large.py`` builds the network on the meta device, halves hidden and
intermediate width and the heads of every layer, cuts it, and writes ``results/large.md``.
"""

from __future__ import annotations

import json
import platform
import sys
import time
from pathlib import Path
from typing import Any

import torch
from peak import peak_bytes

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests"))

from zoo.catalogue import import_transformers  # noqa: E402

import secateur  # noqa: E402
from secateur.planning import make_plan  # noqa: E402

TOKENS = 16


def measure() -> dict[str, Any]:
    """Run every step once; seconds on the wall, of the processor, and the process's peak memory."""
    transformers = import_transformers()
    config = transformers.LlamaConfig()
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(config).eval()
    steps: dict[str, tuple[float, float]] = {}
    start = time.perf_counter(), time.process_time()

    def done(name: str) -> None:
        nonlocal start
        now = time.perf_counter(), time.process_time()
        steps[name] = now[0] - start[0], now[1] - start[1]
        start = now

    ids = torch.arange(2 * TOKENS).reshape(2, TOKENS)
    graph = secateur.trace(model, {"input_ids": ids, "use_cache": False})
    done("trace and analyse")
    gone = {
        group.name: tuple(range(group.size // 2))
        for group in graph.groups
        if group.size > 1 and group.kind != "head_dim"
    }
    plan = make_plan(graph, gone)
    done("plan, the config's new sizes with it")
    pruned = secateur.cut(model, plan)
    done("cut")
    return {
        "steps": steps,
        "groups": len(graph.groups),
        "dense": plan.dense.params,
        "pruned": sum(p.numel() for p in pruned.parameters()),
        "planned": plan.pruned.params,
        "config": {
            name: getattr(pruned.config, name)
            for name in ("hidden_size", "intermediate_size", "num_attention_heads", "head_dim")
        },
        "notes": list(plan.notes),
        "peak_gb": peak_bytes() / 1e9,
    }


def page(found: dict[str, Any]) -> str:
    """Write what was measured for a person."""
    rows = [f"| {name} | {wall:.1f} | {cpu:.1f} |" for name, (wall, cpu) in found["steps"].items()]
    totals = [sum(pair[i] for pair in found["steps"].values()) for i in (0, 1)]
    sizes = ", ".join(f"`{name}` {value}" for name, value in found["config"].items())
    return "\n".join(
        [
            "# A 7-billion-parameter Llama without its weights",
            "",
            f"`python benchmarks/large.py`, one thread, torch {torch.__version__}, "
            f"{platform.machine()}. `LlamaConfig()` of transformers on the meta device: "
            f"{found['dense']:,} parameters, {found['groups']} groups.",
            "",
            "| step | seconds | processor seconds |",
            "|---|---:|---:|",
            *rows,
            f"| all | {totals[0]:.1f} | {totals[1]:.1f} |",
            "",
            f"Peak memory of the process, libraries included: {found['peak_gb']:.2f} GB.",
            f"Half of every width and of the heads gone: {found['pruned']:,} parameters, as "
            f"planned; the pruned model's config says {sizes}.",
            "",
        ]
    )


def main() -> None:
    """Measure and write the page; ``--json`` prints what was found instead."""
    torch.set_num_threads(1)
    found = measure()
    if "--json" in sys.argv[1:]:
        print(json.dumps(found))
        return
    target = HERE / "results" / "large.md"
    target.write_text(page(found), encoding="utf-8")
    print(target.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
