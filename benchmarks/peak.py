"""The largest resident size of this process so far."""

from __future__ import annotations

import resource
from pathlib import Path

STATUS = Path("/proc/self/status")


def peak_bytes() -> int:
    """Return it in bytes.

    Linux starts ``ru_maxrss`` of a new program at the size of whoever started it; the peak in
    ``/proc`` is the program's own.
    """
    if STATUS.is_file():
        for line in STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def peak_mebibytes() -> float:
    """Return it in MiB."""
    return peak_bytes() / 2**20
