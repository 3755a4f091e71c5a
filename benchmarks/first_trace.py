"""What the first trace of a process costs.

    python benchmarks/first_trace.py                # writes results/first_trace.md

Each measurement starts a fresh process that imports torch and secateur alone, and traces ResNet-56
twice: a script pays for the first trace what nobody who has imported torchvision before sees. Ends
with an error where the first one takes more than half a second of processor time.
"""

from __future__ import annotations

import platform
import statistics
import subprocess
import sys
from pathlib import Path

RESULTS = Path(__file__).resolve().parent / "results" / "first_trace.md"
MOST = 0.5
PROCESSES = 5

SCRIPT = """
import time
import torch
import secateur
from secateur.models import cifar_resnet

network, image = cifar_resnet(56).eval(), torch.randn(1, 3, 32, 32)
for _ in range(2):
    started = time.process_time()
    secateur.trace(network, image)
    print(time.process_time() - started)
print(torch.__version__)
"""


def measured() -> tuple[float, float, str]:
    """Return seconds of processor time of the first and second trace, and PyTorch's version."""
    run = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    first, second, version = run.stdout.split()
    return float(first), float(second), version


def main() -> int:
    """Measure, write the page and say whether the first trace is quick enough."""
    found = [measured() for _ in range(PROCESSES)]
    first, second = (statistics.median(times) for times in list(zip(*found, strict=True))[:2])
    lines = [
        "# The first trace of a process",
        "",
        f"ResNet-56, processor time in seconds, median of {PROCESSES} fresh processes that had "
        f"imported torch and secateur alone; at most {MOST} s are allowed for the first trace.",
        "",
        "| trace | seconds |",
        "|---|---|",
        f"| first | {first:.3f} |",
        f"| second | {second:.3f} |",
        "",
        f"PyTorch {found[0][2]}, Python {platform.python_version()}, {platform.machine()}.",
    ]
    RESULTS.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))
    return int(first > MOST)


if __name__ == "__main__":
    sys.exit(main())
