"""Features of pictures in the places of tokens, as in models of language and vision."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secateur

PLACE = 9


class Reader(nn.Module):
    """Tokens embedded, placeholders replaced by projected features, counts checked."""

    def __init__(self, width: int, inner: int, how: str) -> None:
        super().__init__()
        self.embed, self.project = nn.Embedding(10, width), nn.Linear(5, width)
        self.up, self.down = nn.Linear(width, inner), nn.Linear(inner, width)
        self.out, self.how = nn.Linear(width, 10), how

    def forward(self, tokens: Tensor, pictures: Tensor) -> Tensor:
        h, features = self.embed(tokens), torch.tanh(self.project(pictures))
        places = (tokens == PLACE).unsqueeze(-1)
        if self.how == "counted" and not bool(places.sum() * h.shape[-1] == features.numel()):
            raise ValueError("as many features as placeholders")
        if self.how == "expanded":
            places = places.expand_as(h).to(h.device)
        h = h.masked_scatter(places, features)
        return self.out(h + self.down(torch.relu(self.up(h))))


@pytest.mark.parametrize("how", ["broadcast", "expanded", "counted"])
def test_embedding_and_features_are_cut_as_by_hand(how: str) -> None:
    torch.manual_seed(0)
    model: Any = Reader(8, 6, how).double().eval()
    tokens = torch.tensor([[1, PLACE, PLACE, 2, 3], [PLACE, 4, 5, PLACE, 6]])
    x = tokens, torch.randn(2, 2, 5, dtype=torch.float64)
    graph = secateur.trace(model, x)
    assert {g.name: g.size for g in graph.groups} == {"embed": 8, "up": 6}
    plan = secateur.allocate(graph, secateur.score(graph, "random"), sparsity=0.5)
    assert plan.given_back == {}
    wide = [u for u in range(8) if u not in plan.removed["embed"]]
    inner = [u for u in range(6) if u not in plan.removed["up"]]
    small: Any = Reader(4, 3, how).double().eval()
    with torch.no_grad():
        small.embed.weight.copy_(model.embed.weight[:, wide])
        for name, rows, columns in (
            ("project", wide, None), ("up", inner, wide), ("down", wide, inner), ("out", None, wide)
        ):  # fmt: skip
            dense, cut = model.get_submodule(name), small.get_submodule(name)
            weight = dense.weight if rows is None else dense.weight[rows]
            cut.weight.copy_(weight if columns is None else weight[:, columns])
            cut.bias.copy_(dense.bias if rows is None else dense.bias[rows])
        wanted = small(*x)
        pruned = secateur.cut(model, plan)
        assert torch.allclose(pruned(*x), wanted, rtol=1e-12, atol=1e-12)
        assert torch.allclose(secateur.mask(model, plan)(*x), wanted, rtol=1e-12, atol=1e-12)
    assert secateur.verify(model, pruned, plan, x).ok
