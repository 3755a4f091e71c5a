"""Analysis and planning take work that grows with the network, not with its square.

Work is counted, not timed: calls of the engine's own functions, atoms made, and
elements of axes that the union-find looks at. Each is compared with what the network
itself holds: pairs of an operation and a tensor that it reads, and the sizes of the
dimensions of those tensors. A dense block reads all that came before it, so that its
own sizes grow with the square of its depth; the work for each of them must not grow.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import secateur
from secateur.graph.axes import Axes
from secateur.planning import make_plan

SOURCE = str(Path(secateur.__file__).parent)


class Chain(nn.Module):
    """Convolutions one after the other: as many groups as layers."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = F.relu(layer(x))
        return x


class Residual(nn.Module):
    """Additions around every block: one group that grows with every block."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(4, 6, 1)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(6, 5, 1), nn.BatchNorm2d(5), nn.ReLU(), nn.Conv2d(5, 6, 1))
            for _ in range(depth)
        )
        self.head = nn.Conv2d(6, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


class Dense(nn.Module):
    """Every layer reads the outputs of all before it."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(4 + 2 * i, 2, 1) for i in range(depth))
        self.head = nn.Conv2d(4 + 2 * depth, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        found = [x]
        for layer in self.layers:
            found.append(F.relu(layer(torch.cat(found, 1))))
        return self.head(torch.cat(found, 1))


class Attention(nn.Module):
    """Self-attention blocks: heads, head dimensions, sizes in the code and drifting scales."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.embed = nn.Conv2d(4, 8, 1)
        self.qkv = nn.ModuleList(nn.Linear(8, 24) for _ in range(depth))
        self.out = nn.ModuleList(nn.Linear(8, 8) for _ in range(depth))
        self.heads = 2
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2)
        for qkv, out in zip(self.qkv, self.out, strict=True):
            b, n, _ = x.shape
            q, k, v = qkv(x).reshape(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
            weights = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(-1)
            x = x + out((weights @ v).transpose(1, 2).reshape(b, n, -1))
        return self.head(x)


class Shared(nn.Module):
    """One layer run again and again."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.first, self.again, self.last = (nn.Conv2d(n, 4, 1) for n in (4, 4, 4))
        self.depth = range(depth)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for _ in self.depth:
            x = F.relu(self.again(x))
        return self.last(x)


@dataclass
class Work:
    """What one analysis took, and what the network asks for."""

    calls: int = 0
    elements: int = 0
    atoms: int = 0
    pairs: int = 0
    sizes: int = 0


def counted(action: Callable[[], Any], work: Work, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run ``action``; add the engine's calls and the elements that it looks at to ``work``."""
    roots = Axes._roots

    def watched(self: Axes, atoms: Any) -> Any:
        work.elements += atoms.size
        return roots(self, atoms)

    def profile(frame: Any, event: str, _: Any) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(SOURCE):
            work.calls += 1

    before = sys.getprofile()
    with monkeypatch.context() as patch:
        patch.setattr(Axes, "_roots", watched)
        sys.setprofile(profile)
        try:
            return action()
        finally:
            sys.setprofile(before)


def measure(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> tuple[Work, Work]:
    """Return the work of an analysis and that of a plan that cuts every group."""
    model = model.eval()
    analysis, planning = Work(), Work()
    graph = counted(lambda: secateur.trace(model, torch.zeros(1, 4, 4, 4)), analysis, monkeypatch)
    removed = {group.name: (0,) for group in graph.groups if group.size > 1}
    counted(lambda: make_plan(graph, removed), planning, monkeypatch)
    program = graph.program
    for node in program.nodes:
        refs = node.refs
        analysis.pairs += len(refs) + len(node.outs)
        analysis.sizes += sum(sum(program.shape(ref)) for ref in refs)
    analysis.atoms = graph.layout.units
    planning.pairs, planning.sizes = analysis.pairs, analysis.sizes
    return analysis, planning


FAMILIES: dict[str, type[nn.Module]] = {
    "chain": Chain,
    "residual": Residual,
    "dense": Dense,
    "attention": Attention,
    "shared": Shared,
}


@pytest.mark.parametrize("name", FAMILIES)
def test_work_grows_no_faster_than_the_network(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    family = FAMILIES[name]
    small, large = (measure(family(depth), monkeypatch) for depth in (8, 32))
    for less, more in zip(small, large, strict=True):
        assert more.calls / more.pairs <= 1.2 * less.calls / less.pairs
        assert more.elements / more.sizes <= 1.2 * less.elements / less.sizes + 0.1
    assert large[0].pairs > 3 * small[0].pairs


def test_the_count_sees_a_square(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guard the guard: work that grows with the square of the depth must be noticed."""
    works = []
    for depth in (8, 32):
        work = Work()
        axes = Axes()

        def walk(axes: Axes = axes, depth: int = depth) -> None:
            made = [axes.fresh(4) for _ in range(depth)]
            for first in made:
                for second in made:
                    axes.unify(first, second, "a test")

        counted(walk, work, monkeypatch)
        works.append(work)
    assert works[1].calls > 10 * works[0].calls
