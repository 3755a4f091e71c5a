"""Sizes of proxies that a paper gives: ours beside them, and where the difference comes from."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

import secateur

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import proxy_sizes


@pytest.mark.filterwarnings("default")
@pytest.mark.zoo
@pytest.mark.parametrize("name", proxy_sizes.SOURCE)
def test_sizes_of_moura_et_al(name: str) -> None:
    """At most theirs, rounded as they do; BEiT's is theirs to the digit with attention whole."""
    dense, theirs, _ = proxy_sizes.SOURCE[name]
    model = proxy_sizes.network(name).eval()
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(dense, abs=0.05)
    graph = secateur.trace(model, torch.randn(2, 3, 224, 224))
    plan = secateur.allocate(graph, secateur.score(graph, "l2"), sparsity=0.9)
    assert plan.pruned.params / 1e6 < theirs + 0.02
    if name == "beit-base":
        assert proxy_sizes.headless(graph) == pytest.approx(theirs, abs=0.005)
