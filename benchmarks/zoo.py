"""One row a network: is every cut exact, and how much of it can be cut; next to the peer.

``python benchmarks/zoo.py`` runs every network of ``tests/zoo/catalogue.py``, the
smallest first, each tool in a process of its own with a limit of time and memory, so
that one failure does not end the run, and writes ``docs/zoo.md`` and
``results/zoo.json``. A run that was stopped goes on where it was with ``--resume``;
``--tool`` runs one tool alone (``train``: a cut network runs in train mode beside the
dense one masked by hand; ``saved``: it is saved, and loaded in a fresh process), and two
such runs may write the same results side by side.
All times are those of the processor, so that other work on the machine does not count.
"""

from __future__ import annotations

import argparse
import dataclasses
import fcntl
import json
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests"))

from networks import randomise  # noqa: E402
from zoo.catalogue import CATALOGUE, CLASSES, VOCABULARY, Only, weight  # noqa: E402
from zoo.torchvision_shim import import_torchvision  # noqa: E402

TOOLS = ("secateur", "train", "saved", "torch-pruning")
STRANGERS = ("torchvision", "transformers", "zoo")
SEEDS = (0, 1, 2)
Results = dict[str, dict[str, dict[str, Any]]]


def run_secateur(name: str, budget: float) -> dict[str, Any]:
    """Prove the contract on one network, in float64: all groups at once, then each alone."""
    from exactness import prove

    case = CATALOGUE[name]
    model = randomise(case.build().double().eval())
    with tempfile.TemporaryDirectory() as folder:
        proof = prove(
            model,
            case.inputs,
            Path(folder) / "saved",
            seed=SEEDS[0],
            larger=case.larger,
            more_seeds=SEEDS[1:],
            budget=budget,
        )
    return {**dataclasses.asdict(proof), "budget": budget}


def halved(name: str) -> tuple[Any, Any, Any]:
    """Return a network, its plan for a random half of every group, and the cut network."""
    import secateur

    case = CATALOGUE[name]
    model = randomise(case.build().double().eval())
    graph = secateur.trace(model, case.inputs(2))
    plan = secateur.allocate(graph, secateur.score(graph, "random"), sparsity=0.5)
    return model, plan, secateur.cut(model, plan)


def run_train(name: str) -> dict[str, Any]:
    """Compare a cut network in train mode with the dense one, masked by hand."""
    from exactness import call
    from hand_masked import train_problem

    model, plan, pruned = halved(name)
    inputs = CATALOGUE[name].inputs(2)
    problem = train_problem(model, pruned, plan.cuts, lambda network: call(network, inputs))
    return {"problems": [problem] if problem else []}


def run_saved(name: str) -> dict[str, Any]:
    """Cut half of a network, save it, and compare what a fresh process makes of the folder."""
    from exactness import outputs
    from safetensors.torch import save_file

    import secateur
    from secateur.checkpoint import code_of

    _, _, pruned = halved(name)
    inputs = CATALOGUE[name].inputs(2)
    trust = [root for root in code_of(pruned) if root in STRANGERS]
    with tempfile.TemporaryDirectory() as scratch:
        folder, wanted = Path(scratch) / "saved", Path(scratch) / "wanted.safetensors"
        start = time.process_time()
        secateur.save(pruned, folder)
        seconds = time.process_time() - start
        found = {str(i): tensor.contiguous() for i, tensor in enumerate(outputs(pruned, inputs))}
        save_file(found, wanted)
        command = [sys.executable, str(HERE / "zoo.py"), "--case", name, "--tool", "loaded"]
        done = subprocess.run(
            [*command, "--folder", str(folder), "--trust", *trust],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    if done.returncode:
        lines = [line for line in done.stderr.strip().splitlines() if line.strip()]
        raise RuntimeError((lines or [f"exit {done.returncode}"])[-1][:200])
    error = float(done.stdout.splitlines()[-1])
    problems = [] if error == 0 else [f"outputs differ by {error:.1e}"]
    return {"seconds": seconds, "trust": trust, "max_error": error, "problems": problems}


def run_loaded(name: str, folder: Path, trust: list[str]) -> float:
    """Load a network in this fresh process; return how far its outputs are from what they were."""
    from exactness import outputs, relative_error
    from safetensors.torch import load_file

    import secateur

    if trust:  # transformers imports torchvision, too
        import_torchvision()
    model = secateur.load(folder, trust=trust)
    wanted = load_file(folder.parent / "wanted.safetensors")
    inputs = CATALOGUE[name].inputs(2)
    return relative_error(outputs(model, inputs), [wanted[str(i)] for i in range(len(wanted))])


def run_peer(name: str) -> dict[str, Any]:
    """Prune half of every layer with Torch-Pruning, outputs left alone, and run the result."""
    import torch_pruning

    case = CATALOGUE[name]
    model = case.build().eval()
    inputs = as_floats(case.inputs(2))
    if isinstance(inputs, dict) and not isinstance(model, Only):
        model = Only(model, case.output or "logits")
    outputs = (CLASSES, CLASSES + 1, VOCABULARY)
    ignored = [
        module
        for module in model.modules()
        if getattr(module, "out_features", getattr(module, "out_channels", None)) in outputs
    ]
    dense = sum(p.numel() for p in model.parameters())
    start = time.process_time()
    pruner = torch_pruning.pruner.MagnitudePruner(
        model,
        inputs,
        importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=0.5,
        ignored_layers=ignored,
    )
    pruner.step()
    seconds = time.process_time() - start
    left = sum(p.numel() for p in model.parameters())
    with torch.no_grad():
        result: Any = model(**inputs) if isinstance(inputs, dict) else model(*inputs)
    if left == dense:
        raise RuntimeError("it removed nothing")
    del result
    return {"seconds": seconds, "left": left / dense}


def as_floats(inputs: Any) -> Any:
    """Return inputs in the precision that networks come in."""
    if isinstance(inputs, dict):
        return {key: as_floats(value) for key, value in inputs.items()}
    if isinstance(inputs, tuple):
        return tuple(as_floats(value) for value in inputs)
    return inputs.float() if inputs.is_floating_point() else inputs


def measure(name: str, tool: str, options: argparse.Namespace) -> dict[str, Any]:
    """Run one network with one tool in a process of its own."""
    command = [sys.executable, str(HERE / "zoo.py"), "--case", name, "--tool", tool]
    for key in ("budget", "timeout", "memory"):
        command += [f"--{key}", str(getattr(options, key))]
    start = resource.getrusage(resource.RUSAGE_CHILDREN)
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            timeout=20 * options.timeout,  # one that sleeps uses no processor
        )
    except subprocess.TimeoutExpired:
        return {"error": f"more than {20 * options.timeout:.0f} s"}
    end = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode in (-signal.SIGXCPU, -signal.SIGKILL):
        return {"error": f"more than {options.timeout:.0f} s"}
    if done.returncode:
        lines = [line for line in done.stderr.strip().splitlines() if line.strip()]
        return {"error": (lines or [f"exit {done.returncode}"])[-1][:200]}
    record: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    if options.jobs == 1:  # else other processes end meanwhile
        record["whole"] = end.ru_utime + end.ru_stime - start.ru_utime - start.ru_stime
    return record


def read(path: Path) -> Results:
    """Return the results of earlier runs, nothing where there are none."""
    found: Results = json.loads(path.read_text()) if path.exists() else {}
    return found


def keep(path: Path, name: str, tool: str, record: dict[str, Any]) -> None:
    """Add one record to the file, whole or not at all, beside other runs that do the same."""
    lock = Path(tempfile.gettempdir()) / f"{path.name}.lock"
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        results = read(path)
        results.setdefault(name, {})[tool] = record
        ordered = {name: results[name] for name in CATALOGUE if name in results}
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(ordered, indent=1) + "\n")
        partial.replace(path)


def their_cell(peer: dict[str, Any] | None) -> str:
    """Say in a few words what the peer did."""
    if peer is None:
        return "not run"
    return "fails" if "error" in peer else f"{peer['left']:.0%} left, {peer['seconds']:.1f} s"


def told_cell(record: dict[str, Any] | None) -> str:
    """Say whether a comparison held, or why not."""
    if record is None:
        return "not run"
    return "; ".join(troubles(record)) or "yes"


def alone_cell(alone: dict[str, Any]) -> str:
    """Say how many groups were exact by themselves, and how many of those stay."""
    stay = f" ({alone['stay']} stay)" if alone["stay"] else ""
    sample = f" of {alone['groups']}" if alone["tried"] < alone["groups"] else ""
    return f"{alone['exact']}/{alone['tried']}{sample}{stay}"


def row(name: str, record: dict[str, Any]) -> str:
    """Format one line of the table."""
    ours, theirs = record.get("secateur"), their_cell(record.get("torch-pruning"))
    compared = [told_cell(record.get(tool)) for tool in ("train", "saved")]
    if ours is None or "error" in ours:
        said = "fails" if ours else "not run"
        cells = [name, *"-----", said, "-", "-", *compared, theirs]
        return "| " + " | ".join(cells) + " |"
    left = ours["params_pruned"] / ours["params_dense"]
    cells = [
        name,
        str(ours["ops"]),
        f"{ours['seconds']:.1f}",
        str(ours["groups"]),
        f"{ours['reached']:.3f}",
        f"{left:.0%}",
        f"{ours['max_error']:.0e}" if not ours["problems"] else "**see below**",
        alone_cell(ours["alone"]),
        str(ours["given_back"]),
        *compared,
        theirs,
    ]
    return "| " + " | ".join(cells) + " |"


def count_line(library: str, results: Results) -> str:
    """Summarise the networks of one library."""
    ours = [r["secateur"] for r in results.values() if "secateur" in r]
    peers = [r["torch-pruning"] for r in results.values() if "torch-pruning" in r]
    held = sum(not troubles(record) for record in ours)
    compared = {
        tool: [r[tool] for r in results.values() if tool in r] for tool in ("train", "saved")
    }
    same = {
        tool: f"{sum(not troubles(record) for record in records)} of {len(records)}"
        for tool, records in compared.items()
    }
    runs = sum("error" not in record for record in peers)
    return (
        f"- {library}: exact {held} of {len(ours)}; in train mode equal to the network masked by "
        f"hand {same['train']}; saved and loaded in a fresh process with the same outputs "
        f"{same['saved']}; "
        f"Torch-Pruning's result runs {runs} of {len(peers)}."
    )


def markdown(results: Results) -> str:
    """Lay the results out as one table with a summary and the failures."""
    ours = {n: r["secateur"] for n, r in results.items() if "reached" in r.get("secateur", {})}
    reached = [record["reached"] for record in ours.values()]
    alone = [record["alone"] for record in ours.values()]
    minutes = sum(record.get("whole", 0.0) for record in ours.values()) / 60
    budgets = sorted({f"{r['budget']:g}" for r in ours.values() if "budget" in r}, key=float)
    earlier = [name for name, record in ours.items() if "budget" not in record]
    libraries = dict.fromkeys(name.partition("/")[0] for name in results)
    lines = [
        "# Networks of other libraries",
        "",
        "Made by `python benchmarks/zoo.py`: a random half of every group goes at once, in",
        "float64, on random weights. A row is exact when the cut network equals the masked",
        "reference to 1e-10 (largest relative error shown), at another batch size and, where",
        "the dense network takes it, at another resolution or length; when it runs forward and",
        "backward in train mode; when it saves and loads with the same outputs; when the",
        f"dense network is left untouched; when {len(SEEDS)} random choices of units are exact;",
        "and when a random half of each group *alone* is exact. *Reached* is the share of",
        "parameters that lie on at least one group; *given back* counts the units that had to",
        "stay because the network's own code asks for it, and beside *alone* stand the groups",
        "that it does not let go without others (a plan says so). Where every group alone would",
        f"take more than {' or '.join(budgets)} seconds, an even sample of them was tried.",
        "Seconds are those of the processor, for trace, score, allocate and cut. *Train mode*: in",
        "train mode (dropout off, batch norms by their running statistics) the cut network equals",
        "to 1e-10 the dense one masked by hand, by none of Secateur's code: all removed positions",
        "of its parameters are zero, its norms and routers run on the units that stay",
        "(`tests/hand_masked.py`). *Saved*: the cut network was saved, loaded in a fresh",
        "process that trusts its library, and its outputs there are the same to the last bit, or",
        "the reason why not. Torch-Pruning 1.6.1 prunes half of the channels with",
        "its defaults, in float32, the output layers ignored; for it the table says whether the",
        "pruned network still runs, not whether it is right.",
        "",
        *(
            count_line(library, {n: r for n, r in results.items() if n.startswith(library + "/")})
            for library in libraries
        ),
        f"- Median share reached: {statistics.median(reached) if reached else 0:.3f}, "
        f"least {min(reached, default=0):.3f}.",
        f"- Groups alone: {sum(a['exact'] for a in alone)} exact of "
        f"{sum(a['tried'] for a in alone)} tried, {sum(a['groups'] for a in alone)} in all.",
        f"- All proofs took {minutes:.0f} minutes of one core.",
        *([f"- Not proved anew, of an earlier version: {', '.join(earlier)}."] if earlier else []),
        "",
        "| network | operations | seconds | groups | reached | parameters left | error | alone "
        "| given back | train mode | saved | Torch-Pruning |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
        *(row(name, record) for name, record in results.items()),
    ]
    low = {name: record for name, record in ours.items() if record["reached"] < 0.9}
    if low:
        lines += [
            "",
            "## Reached below 0.9",
            "",
            "Shares of parameters on no group, by reason.",
            "",
        ]
    for name, record in low.items():
        shares = [f"{share:.1%} {reason}" for reason, share in record["unreached"].items()]
        lines.append(f"- {name} ({record['reached']:.3f}): {'; '.join(shares[:4])}")
    titles = {
        "secateur": "What did not hold",
        "train": "Train mode",
        "saved": "Saved",
        "torch-pruning": "Torch-Pruning",
    }
    for tool, title in titles.items():
        found = [
            f"- {name}: {'; '.join(f'`{text}`' for text in troubles(r[tool])[:6])}"
            for name, r in results.items()
            if tool in r and troubles(r[tool])
        ]
        if found:
            lines += ["", f"## {title}", "", *found]
    return "\n".join(lines) + "\n"


def troubles(record: dict[str, Any]) -> list[str]:
    """Return what went wrong in one record."""
    return [record["error"]] if "error" in record else list(record.get("problems", ()))


def wanted(options: argparse.Namespace) -> list[tuple[str, str]]:
    """Return the networks and tools to run, the smallest network first."""
    known = read(options.output) if options.resume or options.retry else {}
    names = [n for n in CATALOGUE if not options.only or any(part in n for part in options.only)]
    runs = []
    for name in sorted(names, key=weight):
        for tool in (options.tool,) if options.tool else TOOLS:
            record = known.get(name, {}).get(tool)
            if record is None or (options.retry and troubles(record)):
                runs.append((name, tool))
    return runs


def main() -> None:
    """Run one network (``--case``, ``--tool``), or all of them and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", choices=CATALOGUE, help="run this one here, print JSON")
    parser.add_argument("--tool", choices=(*TOOLS, "loaded"), help="run this one alone")
    parser.add_argument("--folder", type=Path, help="a saved network, for the tool 'loaded'")
    parser.add_argument("--trust", nargs="*", default=[], help="packages that it may use")
    parser.add_argument("--only", nargs="*", help="run networks whose name contains one of these")
    parser.add_argument("--budget", type=float, default=60, help="seconds for groups alone")
    parser.add_argument("--timeout", type=float, default=600, help="seconds for one process")
    parser.add_argument("--memory", type=float, default=16, help="GiB for one process")
    parser.add_argument("--jobs", type=int, default=1, help="networks at a time")
    parser.add_argument("--resume", action="store_true", help="keep the rows of results/zoo.json")
    parser.add_argument("--retry", action="store_true", help="keep those that went well")
    parser.add_argument("--page-only", action="store_true", help="write the page, run nothing")
    parser.add_argument("--output", type=Path, default=HERE / "results" / "zoo.json")
    parser.add_argument("--page", type=Path, default=HERE.parent / "docs" / "zoo.md")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.case:
        warnings.simplefilter("ignore")
        seconds = int(options.timeout)
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))
        resource.setrlimit(resource.RLIMIT_AS, (int(options.memory * 2**30),) * 2)
        runs: dict[str, Callable[[], Any]] = {
            "secateur": lambda: run_secateur(options.case, options.budget),
            "train": lambda: run_train(options.case),
            "saved": lambda: run_saved(options.case),
            "loaded": lambda: run_loaded(options.case, options.folder, options.trust),
            "torch-pruning": lambda: run_peer(options.case),
        }
        print(json.dumps(runs[options.tool]()))
        return
    options.output.parent.mkdir(parents=True, exist_ok=True)
    if not (options.resume or options.retry or options.page_only or options.only or options.tool):
        options.output.unlink(missing_ok=True)
    runs = [] if options.page_only else wanted(options)

    def work(run: tuple[str, str]) -> None:
        # After every network, so that a stopped run loses one at most.
        record = measure(*run, options)
        keep(options.output, *run, record)
        print(*run, "; ".join(troubles(record)) or "well", flush=True)

    pool = ThreadPoolExecutor(options.jobs)
    try:
        list(pool.map(work, runs))
    finally:
        pool.shutdown(cancel_futures=True)
    options.page.parent.mkdir(parents=True, exist_ok=True)
    options.page.write_text(markdown(read(options.output)))
    print(f"\n{options.page}")


if __name__ == "__main__":
    main()
