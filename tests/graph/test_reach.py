"""How much of a network no group reaches, and the reasons that the trace gives."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import secateur


class Fixed(nn.Module):
    """Every second width is written down in the code."""

    def __init__(self, width: int, blocks: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(width) for _ in range(blocks))
        self.a, self.b, self.c = nn.Linear(4, 40), nn.Linear(40, 40), nn.Linear(40, 4)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.c(self.b(self.a(x).relu()).relu())


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.a, self.b = nn.Linear(4, width), nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        return self.b(h.view(-1, 5, 20).tanh().reshape(h.shape))


def test_what_pins_much_is_said_by_weight() -> None:
    model = Fixed(100, 3).eval()
    graph = secateur.trace(model, torch.randn(2, 4))
    total = sum(p.numel() for p in model.parameters())
    # The first block's matrix, the biases of the blocks' wide sides, the bias of the output.
    pinned = 400 + 3 * 100 + 4
    assert len(graph.notes) == 1
    note = graph.notes[0]
    assert note.startswith(f"{pinned / total:.1%} of the parameters lie on no group and stay (")
    assert "size 5 is fixed in the model's code" in note or "size 20 is fixed" in note
    assert "in blocks.0 and 2 more" in note
    result = secateur.prune(model, torch.randn(2, 4), sparsity=0.5)
    assert note in result.plan.notes


def test_at_most_three_reasons_the_gravest_first() -> None:
    class Many(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(4, 10 * n) for n in range(1, 6))

        def forward(self, x: Tensor) -> Tensor:
            outs = [layer(x).view(-1, 5, 2 * n) for n, layer in enumerate(self.layers, 1)]
            return torch.cat([out.flatten(1).sum(1) for out in outs])

    (note,) = secateur.trace(Many().eval(), torch.randn(2, 4)).notes
    assert note.startswith("100.0% of the parameters")
    assert note.count("%: ") <= 3


def test_nothing_is_said_of_a_network_that_is_reached() -> None:
    model = nn.Sequential(
        nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4)
    )
    result = secateur.prune(model.eval(), torch.randn(2, 4), sparsity=0.5)
    assert result.plan.notes == ()
