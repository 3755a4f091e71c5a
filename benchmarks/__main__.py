"""``python -m benchmarks`` (``make bench``): trace-to-cut time and memory beside the peer's.

The zoo of other libraries' networks takes an hour or more and has its own
command: ``python benchmarks/zoo.py``.
"""

from __future__ import annotations

import runpy
from pathlib import Path

runpy.run_path(str(Path(__file__).with_name("peer.py")), run_name="__main__")
