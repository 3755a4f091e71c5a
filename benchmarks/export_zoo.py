"""One row a network: cut in half, exported and compared; and with half of its weights at zero.

``python benchmarks/export_zoo.py`` takes the networks of ``tests/deployment/export_cases.py`` and
writes ``results/export_zoo.md`` after each of them; with ``--only`` the page's other rows stay.
No clock is read.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import platform
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "tests"), str(HERE.parent / "tests" / "deployment")]

from export_cases import CASES, ExportCase  # noqa: E402

from secateur.deployment import Exported, export_onnx, export_program  # noqa: E402
from secateur.errors import ExportError  # noqa: E402

PACKAGES = ("torch", "onnxruntime", "torchvision", "transformers")
HEAD = """# Real networks as files

Made by `python benchmarks/export_zoo.py`: {versions}.
Half of every group is cut by l2 (`secateur.prune(model, example, sparsity=0.5)`, random weights;
images of 64 pixels, small configurations of transformers with a padded sentence). The cut network
is exported by `export_onnx` and `export_program`; *weights at zero* is the dense network with half
of its single weights at zero (`secateur.sparsify`), exported to ONNX. The error is the largest
difference between an output and PyTorch's, relative to that output's largest magnitude, in
float32 at batch sizes 1 and 3; above 1e-4 there is no file. *Same* says that the samples' outputs
are too alike for the comparison to prove anything. A number without a reason beside it is ok.

| network | parameters | cut | ONNX bytes | error | program bytes | error | weights at zero \
| error | left out |
|---|---|---|---|---|---|---|---|---|---|
"""


def attempt(
    export: Callable[[nn.Module, Any, Path], Exported], model: nn.Module, example: Any, path: Path
) -> tuple[str, str, tuple[str, ...]]:
    """Return bytes, error and what is left out; in place of the error the reason of a failure."""
    try:
        done = export(model, example, path)
    except ExportError as error:
        return "-", " ".join(str(error).replace("|", "/").split()), ()
    finally:
        path.unlink(missing_ok=True)
    return f"{done.size:,}", f"{done.max_error:.1e}{'' if done.varied else ' same'}", done.left_out


def row(name: str, case: ExportCase, folder: Path) -> str:
    """Prune and export one network, and lay out its line of the table."""
    dense = case.dense()
    cut = case.halved(dense).model
    onnx = attempt(export_onnx, cut, case.example, folder / "net.onnx")
    program = attempt(export_program, cut, case.example, folder / "net.pt2")
    zeros = attempt(export_onnx, case.zeroed(dense), case.example, folder / "zeros.onnx")
    sizes = [f"{sum(p.numel() for p in model.parameters()):,}" for model in (dense, cut)]
    missing = ", ".join(dict.fromkeys(onnx[2] + program[2]))
    return f"| {' | '.join([name, *sizes, *onnx[:2], *program[:2], *zeros[:2], missing])} |"


def page(rows: Mapping[str, str]) -> str:
    """Lay out all rows."""
    versions = [f"{name} {importlib.import_module(name).__version__}" for name in PACKAGES]
    told = ", ".join([f"Python {platform.python_version()}", *versions])
    return HEAD.format(versions=told) + "".join(f"{rows[n]}\n" for n in CASES if n in rows)


def known(path: Path) -> dict[str, str]:
    """Return the rows of an earlier run by the name of their network."""
    lines = path.read_text().splitlines() if path.exists() else []
    named = {line.split("|")[1].strip(): line for line in lines if line.startswith("|")}
    return {name: line for name, line in named.items() if name in CASES}


def main() -> None:
    """Run every network, or those that ``--only`` names a part of, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", help="networks whose name contains one of these")
    parser.add_argument("--output", type=Path, default=HERE / "results" / "export_zoo.md")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    rows = known(options.output) if options.only else {}
    for name, case in CASES.items():
        if options.only and not any(part in name for part in options.only):
            continue
        with tempfile.TemporaryDirectory() as folder:
            rows[name] = row(name, case, Path(folder))
        gc.collect()
        options.output.write_text(page(rows))
        print(rows[name], flush=True)


if __name__ == "__main__":
    main()
