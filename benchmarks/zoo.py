"""One row a network: is every cut exact, and how much of it can be cut; next to the peer.

``python benchmarks/zoo.py`` runs every network of ``tests/zoo/catalogue.py`` in
a process of its own with a time limit, so that one failure does not end the
run, and writes ``docs/zoo.md`` and ``results/zoo.json``. A run that was stopped
goes on where it was with ``--resume``.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests"))

from networks import randomise  # noqa: E402
from zoo.catalogue import CATALOGUE, CLASSES, VOCABULARY, Only  # noqa: E402

TOOLS = ("secateur", "torch-pruning")


def run_secateur(name: str) -> dict[str, Any]:
    """Prove the contract on one network, in float64, half of every group gone."""
    from exactness import prove

    case = CATALOGUE[name]
    model = randomise(case.build().double().eval())
    with tempfile.TemporaryDirectory() as folder:
        proof = prove(model, case.inputs, Path(folder) / "saved", larger=case.larger)
    return dataclasses.asdict(proof)


def run_peer(name: str) -> dict[str, Any]:
    """Prune half of every layer with Torch-Pruning, outputs left alone, and run the result."""
    import torch_pruning

    case = CATALOGUE[name]
    model = randomise(case.build().double().eval())
    inputs = case.inputs(2)
    if isinstance(inputs, dict) and not isinstance(model, Only):
        model = Only(model, "logits")
    outputs = (CLASSES, CLASSES + 1, VOCABULARY)
    ignored = [
        module
        for module in model.modules()
        if getattr(module, "out_features", getattr(module, "out_channels", None)) in outputs
    ]
    dense = sum(p.numel() for p in model.parameters())
    start = time.perf_counter()
    pruner = torch_pruning.pruner.MagnitudePruner(
        model,
        inputs,
        importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=0.5,
        ignored_layers=ignored,
    )
    pruner.step()
    seconds = time.perf_counter() - start
    left = sum(p.numel() for p in model.parameters())
    with torch.no_grad():
        result: Any = model(**inputs) if isinstance(inputs, dict) else model(*inputs)
    if left == dense:
        raise RuntimeError("it removed nothing")
    del result
    return {"seconds": seconds, "left": left / dense}


def measure(name: str, tool: str, timeout: float) -> dict[str, Any]:
    """Run one network with one tool in a process of its own."""
    command = [sys.executable, str(HERE / "zoo.py"), "--case", name, "--tool", tool]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired:
        return {"error": f"more than {timeout:.0f} s"}
    if done.returncode:
        lines = [line for line in done.stderr.strip().splitlines() if line.strip()]
        return {"error": (lines or [f"exit {done.returncode}"])[-1][:200]}
    record: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return record


def row(name: str, ours: dict[str, Any], peer: dict[str, Any]) -> str:
    """Format one line of the table."""
    theirs = "fails" if "error" in peer else f"{peer['left']:.0%} left, {peer['seconds']:.1f} s"
    if "error" in ours:
        return f"| {name} | - | - | - | - | - | fails | - | {theirs} |"
    exact = f"{ours['max_error']:.0e}" if not ours["problems"] else "**see below**"
    left = ours["params_pruned"] / ours["params_dense"]
    cells = [
        name,
        str(ours["ops"]),
        f"{ours['seconds']:.1f}",
        str(ours["groups"]),
        f"{ours['reached']:.3f}",
        f"{left:.0%}",
        exact,
        str(ours["given_back"]),
        theirs,
    ]
    return "| " + " | ".join(cells) + " |"


def markdown(results: dict[str, dict[str, Any]]) -> str:
    """Lay the results out as one table with a summary and the failures."""
    held = [r["secateur"] for r in results.values() if not troubles(r["secateur"])]
    peers = [r["torch-pruning"] for r in results.values() if "error" not in r["torch-pruning"]]
    reached = [r["secateur"]["reached"] for r in results.values() if "reached" in r["secateur"]]
    total = len(results)
    lines = [
        "# Networks of other libraries",
        "",
        "Made by `python benchmarks/zoo.py`: a random half of every group goes at once, in",
        "float64, on random weights. A row is exact when the cut network equals the masked",
        "reference to 1e-10 (largest relative error shown), at another batch size and, where",
        "the dense network takes it, at another resolution or length; when it runs forward and",
        "backward in train mode; when it saves and loads with the same outputs; and when the",
        "dense network is left untouched. *Reached* is the share of parameters that lie on at",
        "least one group; *given back* counts the units that had to stay because the network's",
        "own code asks for it. Torch-Pruning 1.6.1 prunes half of the channels with its",
        "defaults, the output layers ignored; for it the table says whether the pruned network",
        "still runs, not whether it is right.",
        "",
        f"Exact: {len(held)} of {total}. Median share reached: "
        f"{statistics.median(reached) if reached else 0:.3f}. "
        f"Torch-Pruning's result runs: {len(peers)} of {total}.",
        "",
        "| network | operations | seconds | groups | reached | parameters left | error "
        "| given back | Torch-Pruning |",
        "|---|---|---|---|---|---|---|---|---|",
        *(row(name, r["secateur"], r["torch-pruning"]) for name, r in results.items()),
    ]
    for tool, title in (("secateur", "What did not hold"), ("torch-pruning", "Torch-Pruning")):
        found = [
            f"- {name}: {'; '.join(f'`{text}`' for text in troubles(r[tool]))}"
            for name, r in results.items()
            if troubles(r[tool])
        ]
        if found:
            lines += ["", f"## {title}", "", *found]
    return "\n".join(lines) + "\n"


def troubles(record: dict[str, Any]) -> list[str]:
    """Return what went wrong in one record."""
    return [record["error"]] if "error" in record else list(record.get("problems", ()))


def main() -> None:
    """Run one network (``--case``, ``--tool``), or all of them and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", choices=CATALOGUE, help="run this one here, print JSON")
    parser.add_argument("--tool", choices=TOOLS)
    parser.add_argument("--only", help="run networks whose name contains this")
    parser.add_argument("--timeout", type=float, default=600, help="seconds for one process")
    parser.add_argument("--resume", action="store_true", help="keep the rows of results/zoo.json")
    parser.add_argument("--output", type=Path, default=HERE / "results" / "zoo.json")
    parser.add_argument("--page", type=Path, default=HERE.parent / "docs" / "zoo.md")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.case:
        warnings.simplefilter("ignore")
        run = run_secateur if options.tool == "secateur" else run_peer
        print(json.dumps(run(options.case)))
        return
    results: dict[str, dict[str, Any]] = {}
    if options.resume and options.output.exists():
        results = json.loads(options.output.read_text())
    names = [name for name in CATALOGUE if (options.only or "") in name]
    options.output.parent.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names, 1):
        record = results.setdefault(name, {})
        for tool in TOOLS:
            if tool not in record:
                record[tool] = measure(name, tool, options.timeout)
        # After every network, so that a stopped run loses one at most.
        options.output.write_text(json.dumps(results, indent=1) + "\n")
        found = troubles(record["secateur"])
        print(f"{number}/{len(names)} {name}: {'; '.join(found) or 'exact'}", flush=True)
    ordered = {name: results[name] for name in CATALOGUE if name in results}
    options.page.parent.mkdir(parents=True, exist_ok=True)
    options.page.write_text(markdown(ordered))
    print(f"\n{options.page}")


if __name__ == "__main__":
    main()
