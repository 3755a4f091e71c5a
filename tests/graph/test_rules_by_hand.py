"""Operations between two layers, against the same network cut by hand.

``middle`` is what stands between layer ``a`` (6 outputs) and layer ``b``. The reference
indexes the weights by hand and runs ``middle`` on the kept channels alone; it knows nothing
of the algebra, the masks or the cut. ``read`` gives the inputs of ``b`` that go with a unit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import secateur
from secateur.graph.flow import RULES
from secateur.planning import make_plan

LIMIT = 1e-10
SIZE = 6


class Net(nn.Module):
    """Layer ``a``, ``middle``, layer ``b``; the layers are convolutions or dense."""

    def __init__(self, middle: Callable[[Tensor], Tensor], dense: bool) -> None:
        super().__init__()
        self.middle = middle
        self.a: nn.Module = nn.Linear(5, SIZE) if dense else nn.Conv2d(3, SIZE, 3, padding=1)
        with torch.no_grad():
            y = self.middle(self.a(example(dense).float()))
        flat = dense or y.dim() < 4
        self.b = nn.Linear(y.shape[-1], 4) if flat else nn.Conv2d(y.shape[1], 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.middle(self.a(x)))


def example(dense: bool) -> Tensor:
    torch.manual_seed(1)
    return torch.randn(*((2, 4, 5) if dense else (2, 3, 8, 8)), dtype=torch.float64)


def same(unit: int) -> Sequence[int]:
    return (unit,)


@dataclass
class Between:
    """An operation that leaves all six units free, or the first ``free`` of them."""

    middle: Callable[[Tensor], Tensor]
    read: Callable[[int], Iterable[int]] = same
    dense: bool = False
    free: int = SIZE


def by_hand(model: Any, x: Tensor, gone: Sequence[int], read: Callable[[int], Any]) -> Tensor:
    """Run the network with the rows of ``a`` and the columns of ``b`` indexed."""
    keep = [u for u in range(SIZE) if u not in gone]
    weight, bias = model.a.weight[keep], model.a.bias[keep]
    dense = isinstance(model.a, nn.Linear)
    h = F.linear(x, weight, bias) if dense else F.conv2d(x, weight, bias, padding=1)
    lost = {p for u in gone for p in read(u)}
    columns = [p for p in range(model.b.weight.shape[1]) if p not in lost]
    run = F.linear if isinstance(model.b, nn.Linear) else F.conv2d
    return run(model.middle(h), model.b.weight[:, columns], model.b.bias)


def places(image: Tensor) -> Tensor:
    theta = torch.tensor([[0.8, 0.3, 0.1], [-0.2, 0.9, 0.0]], dtype=image.dtype)
    return F.affine_grid(theta.expand(image.shape[0], 2, 3), image.shape, align_corners=False)


def unpooled(h: Tensor) -> Tensor:
    values, where = F.max_pool2d(h, 2, return_indices=True)
    return F.max_unpool2d(torch.tanh(values), where, 2)


def scattered(h: Tensor) -> Tensor:
    values, where = F.adaptive_max_pool2d(h, 4, return_indices=True)
    space = h.new_zeros(h.shape[0], h.shape[1], 64)
    return space.scatter(2, where.flatten(2), values.flatten(2)).view(h.shape)


def pooled_elsewhere(h: Tensor) -> Tensor:
    _, where = F.max_pool2d(h, 2, return_indices=True)
    return (h * 2).flatten(2).gather(2, where.flatten(2)).view(where.shape)


def causal_channels(h: Tensor) -> Tensor:
    rows = h.flatten(2)
    return ((rows @ rows.transpose(1, 2)).tril() @ rows).view(h.shape)


def written(h: Tensor) -> Tensor:
    h = h.clone()
    h[:, :, 2:4] = 0.25
    return h


def by_mask(h: Tensor) -> Tensor:
    return h[torch.tensor([[True, False, True, True], [False, False, True, True]])]


def replaced(h: Tensor) -> Tensor:
    rows = torch.tensor([[True, False, True, True], [False, False, True, True]])
    return h.masked_scatter(rows[..., None].expand_as(h), torch.tanh(h).flatten(0, 1))


def spectral(h: Tensor) -> Tensor:
    found = torch.fft.rfft2(h) * torch.view_as_complex(torch.ones(8, 5, 2, dtype=h.dtype))
    return torch.fft.irfft2(found, s=h.shape[-2:])


def standardised(h: Tensor) -> Tensor:
    std, mean = torch.std_mean(h, 1, keepdim=True)
    return (h - mean) / std


def identity_mixed(h: Tensor) -> Tensor:
    return torch.einsum("nchw,cd->ndhw", h, torch.eye(h.shape[1], dtype=h.dtype) * 2)


def ranked_tokens(h: Tensor) -> Tensor:
    order = h.norm(dim=-1).argsort(1)[..., None]
    return h.gather(1, order.expand_as(h))


CASES: dict[str, Between] = {
    # values by rank, over the kept units
    "max": Between(lambda h: h - h.max(1, keepdim=True)[0]),
    "max.values": Between(lambda h: h - torch.max(h, dim=1).values.unsqueeze(1)),
    "min": Between(lambda h: h - h.min(1, keepdim=True).values),
    "median": Between(lambda h: h - h.median(1, keepdim=True)[0]),
    "median_of_all": Between(lambda h: h - h.median()),
    "nanmedian": Between(lambda h: h - h.nanmedian(1, keepdim=True)[0]),
    "nanmedian_of_all": Between(lambda h: h - h.nanmedian()),
    "kthvalue": Between(lambda h: h - h.kthvalue(2, 1, keepdim=True)[0]),
    "mode": Between(lambda h: h * h.round().mode(1, keepdim=True)[0]),
    "aminmax": Between(lambda h: h - torch.aminmax(h, dim=1, keepdim=True).max),
    "aminmax_of_all": Between(lambda h: (h - h.min()) / (torch.aminmax(h).max - h.min())),
    "topk_summed": Between(lambda h: h * h.topk(2, 1)[0].sum(1, keepdim=True)),
    "prod": Between(lambda h: h * h.prod(1, keepdim=True)),
    "count_nonzero": Between(lambda h: h * torch.count_nonzero(h > 0, dim=1).unsqueeze(1)),
    "std": Between(lambda h: h / h.std(1, keepdim=True)),
    "std_of_all": Between(lambda h: h / h.std()),
    "standardised": Between(standardised),
    # cumulations: the kept units before each
    "cumsum": Between(lambda h: h.cumsum(1)),
    "cumprod": Between(lambda h: h.cumprod(1)),
    "logcumsumexp": Between(lambda h: h.logcumsumexp(1)),
    "cummax": Between(lambda h: h.cummax(1).values),
    "cummin": Between(lambda h: h.cummin(1).values),
    # along space, channels pass
    "sort_space": Between(lambda h: h.sort(dim=2, stable=True)[0]),
    "argsort_space": Between(lambda h: h.gather(2, h.argsort(2))),
    "kthvalue_space": Between(lambda h: h.kthvalue(3, 2)[0].unsqueeze(2)),
    "quantile_space": Between(lambda h: h - h.quantile(0.3, 2, keepdim=True)),
    "cummax_space": Between(lambda h: h.cummax(-1)[0]),
    "flip_space": Between(lambda h: h.flip(2, 3)),
    # norms and distances
    "normalize": Between(lambda h: F.normalize(h, dim=1)),
    "normalize_p1": Between(lambda h: F.normalize(h, p=1, dim=1)),
    "normalize_last": Between(lambda h: F.normalize(h, dim=-1), dense=True),
    "normalize_named": Between(lambda h: F.normalize(input=h, dim=1)),
    "divided_by_its_norm": Between(lambda h: h / h.norm(dim=1, keepdim=True).clamp_min(1e-12)),
    "largest_norm": Between(
        lambda h: h / torch.linalg.vector_norm(h, float("inf"), dim=1, keepdim=True)
    ),
    "expand_as": Between(lambda h: h / h.norm(dim=1, keepdim=True).expand_as(h)),
    "broadcast_tensors": Between(
        lambda h: torch.mul(*torch.broadcast_tensors(h, h.mean(1, keepdim=True)))
    ),
    "renorm": Between(lambda h: h.renorm(2, 0, 0.5)),
    "cosine_similarity": Between(
        lambda h: h * F.cosine_similarity(h, h.mean((2, 3), keepdim=True), dim=1).unsqueeze(1)
    ),
    "pairwise_distance": Between(
        lambda h: h * F.pairwise_distance(h, h.flip(1), keepdim=True), dense=True
    ),
    "cdist": Between(lambda h: torch.cdist(h, torch.tanh(h)) @ h, dense=True),
    "cdist_p3": Between(lambda h: torch.cdist(h, torch.tanh(h), p=3.0) @ h, dense=True),
    "cdist_of_many": Between(
        lambda h: (torch.cdist(r := h.flatten(2).mT, torch.tanh(r)) @ r).mT.view_as(h)
    ),
    "dist": Between(lambda h: h * torch.dist(h, torch.tanh(h))),
    "mse_loss": Between(lambda h: h * F.mse_loss(h, torch.tanh(h))),
    "huber_loss": Between(lambda h: h * F.huber_loss(h, torch.tanh(h), reduction="none")),
    # space
    "unpooled": Between(unpooled),
    "scattered_by_pooling": Between(scattered),
    "gathered_by_pooling": Between(pooled_elsewhere),
    "pool_of_one": Between(lambda h: F.max_pool2d(F.avg_pool2d(h, 1), 1, 1)),
    "circular_pad": Between(lambda h: F.pad(h, (1, 1, 2, 2), mode="circular")),
    "grid_sample": Between(lambda h: F.grid_sample(h, places(h), align_corners=False)),
    "patches": Between(
        lambda h: F.unfold(h, 3, padding=1).transpose(1, 2),
        lambda u: range(9 * u, 9 * u + 9),
    ),
    "patches_put_together": Between(
        lambda h: F.fold(torch.tanh(F.unfold(h, (3, 2))), h.shape[-2:], (3, 2))
    ),
    "windows": Between(lambda h: h.unfold(2, 3, 2).amax(-1)),
    "rot90": Between(lambda h: torch.rot90(h, 1, (2, 3))),
    "spectrum": Between(spectral),
    "index_fill": Between(lambda h: h.index_fill(2, torch.tensor([0, 3]), 0.5)),
    "filled_by_slice": Between(written),
    "scatter_reduce": Between(
        lambda h: torch.zeros_like(h).scatter_reduce(
            2, torch.zeros_like(h, dtype=torch.long), h, "amax", include_self=False
        )
    ),
    "bucketize": Between(
        lambda h: h * torch.bucketize(h, torch.tensor([-0.5, 0.1, 0.7], dtype=h.dtype))
    ),
    "in_place": Between(lambda h: F.gelu(h.abs_().copysign_(torch.sin(h))).clamp_max_(2)),
    # order of the units
    "flip": Between(lambda h: h.flip(1), lambda u: (5 - u,)),
    "roll": Between(lambda h: h.roll(2, 1), lambda u: (u + 2,), free=4),
    "rows_and_columns_below": Between(causal_channels),
    "diagonal": Between(
        lambda h: torch.einsum("nchw,ndhw->ncd", h, h).diagonal(dim1=1, dim2=2)[:, None] * 0.1
    ),
    "trace": Between(
        lambda h: h * torch.einsum("nchw,ndhw->cd", h, h).trace() / 100,
    ),
    "diag_embed": Between(
        lambda h: (torch.diag_embed(h.mean((2, 3))) @ h.flatten(2)).view(h.shape)
    ),
    "eye": Between(identity_mixed),
    "all_by_number": Between(lambda h: h[:, torch.arange(h.shape[1])]),
    "all_by_number_selected": Between(lambda h: h.index_select(1, torch.arange(h.size(1)))),
    "all_by_number_in_space": Between(
        lambda h: h[:, torch.arange(h.shape[1])[:, None], torch.tensor([0, 3])[None]]
    ),
    # tokens
    "tokens_by_mask": Between(by_mask, dense=True),
    "tokens_replaced_by_mask": Between(replaced, dense=True),
    "tokens_ranked": Between(ranked_tokens, dense=True),
    "repeat_interleave": Between(
        lambda h: h.repeat_interleave(2, -1), lambda u: (2 * u, 2 * u + 1), dense=True
    ),
    "kronecker": Between(
        lambda h: torch.kron(h, torch.ones(1, 1, 2, dtype=h.dtype)),
        lambda u: (2 * u, 2 * u + 1),
        dense=True,
    ),
}


def network(case: Between) -> nn.Module:
    torch.manual_seed(0)
    model = Net(case.middle, case.dense).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    return model


def error(found: Tensor, wanted: Tensor) -> float:
    assert found.shape == wanted.shape
    return float((found - wanted).abs().max() / wanted.abs().max())


@pytest.mark.parametrize("name", CASES)
def test_units_are_free_and_cut_as_by_hand(name: str) -> None:
    case = CASES[name]
    model, x = network(case), example(case.dense)
    graph = secateur.trace(model, x)
    (group,) = graph.groups
    assert group.size == case.free
    assert {f"{s.name}:{s.dim}" for s in group.slots} == {
        "a.weight:0", "a.bias:0", "b.weight:1"
    }  # fmt: skip
    (rows,) = (s.units for s in group.slots if s.name == "a.bias")
    assert rows.tolist() == [*range(case.free), *[-1] * (SIZE - case.free)]
    moved = 0.0
    for gone in (*((u,) for u in range(case.free)), (0, 3), (1, 2, 3)):
        plan = make_plan(graph, {group.name: gone})
        assert plan.removed == {group.name: gone}
        pruned, masked = secateur.cut(model, plan), secateur.mask(model, plan)
        with torch.no_grad():
            wanted = by_hand(model, x, gone, case.read)
            assert error(pruned(x), wanted) <= LIMIT
            assert error(masked(x), wanted) <= LIMIT
            if wanted.shape == (dense := model(x)).shape:
                moved = max(moved, error(dense, wanted))
        assert secateur.verify(model, pruned, plan, x).ok
    assert moved > 1e-3


class Branches(nn.Module):
    """Two convolutions, a chain of operations behind each, their sum, a third convolution."""

    def __init__(self, left: Sequence[str], right: Sequence[str]) -> None:
        super().__init__()
        self.a, self.c = nn.Conv2d(3, SIZE, 3, padding=1), nn.Conv2d(3, SIZE, 3, padding=1)
        self.b, self.chains = nn.Conv2d(SIZE, 4, 1), (left, right)

    def joined(self, *branches: Tensor) -> Tensor:
        for number, chain in enumerate(self.chains):
            for name in chain:
                branches = tuple(
                    CASES[name].middle(h) if k == number else h for k, h in enumerate(branches)
                )
        return torch.tanh(torch.stack(branches).sum(0))

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.joined(self.a(x), self.c(x)))


def keeps_shape(case: Between) -> bool:
    x = torch.randn(2, SIZE, 8, 8)
    return not case.dense and case.middle(x.clone()).shape == x.shape


@pytest.mark.parametrize("seed", range(40))
def test_chains_of_operations_are_cut_as_by_hand(seed: int) -> None:
    random = Random(seed)
    names = [name for name, case in CASES.items() if keeps_shape(case)]
    left, right = ([random.choice(names) for _ in range(random.randint(1, 3))] for _ in range(2))
    torch.manual_seed(seed)
    model: Any = Branches(left, right).double().eval()
    x = example(False)
    graph = secateur.trace(model, x)
    scores = secateur.score(graph, "random", seed=seed)
    try:
        plan = secateur.allocate(graph, scores, sparsity=0.5)
    except secateur.SecateurError:
        pytest.skip("no unit can go: two operations ask for different things")
    rows = {
        name: [u for u in range(SIZE) if u not in plan.cuts.get(f"{name}.weight", {}).get(0, ())]
        for name in ("a", "c")
    }
    gone = plan.cuts["b.weight"][1] if "b.weight" in plan.cuts else ()
    columns = [u for u in range(SIZE) if u not in gone]
    with torch.no_grad():
        parts = (
            F.conv2d(x, layer.weight[rows[name]], layer.bias[rows[name]], padding=1)
            for name, layer in (("a", model.a), ("c", model.c))
        )
        wanted = F.conv2d(model.joined(*parts), model.b.weight[:, columns], model.b.bias)
        for found in (secateur.cut(model, plan)(x), secateur.mask(model, plan)(x)):
            torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9, equal_nan=True)


STUCK: dict[str, tuple[str, Callable[[Tensor], Tensor]]] = {
    "ranks": ("positions along it are returned", lambda h: h.sort(1)[0]),
    "numbers": ("positions along it are returned", lambda h: h.gather(1, h.argsort(1))),
    "quantile": ("positions along it are returned", lambda h: h - h.quantile(0.3, 1, True)),
    "counted_with": ("numbers of positions", lambda h: h * h.median(1, keepdim=True)[1]),
    "running_counted_with": ("numbers of positions", lambda h: h * h.cummax(1).indices),
    "distinct": ("it has no rule", lambda h: h * torch.unique(h).mean()),
    "edges": ("numbers of its positions", lambda h: (
        h * torch.bucketize(h, h[0, :, 0, 0].contiguous()))),
    "whole_roll": ("positions are reordered", lambda h: h.roll(2)),
    "half_roll": ("size 3 is fixed", lambda h: h.roll(3, 1)),
    "off_the_diagonal": ("compared with columns", lambda h: (
        torch.einsum("nchw,ndhw->ncd", h, h).tril(1) @ h.flatten(2)).view(h.shape)),
    "windows_of_channels": ("windows are taken", lambda h: h.unfold(1, 2, 2).mean(-1)),
    "channel_spectrum": ("transformed to a spectrum", lambda h: torch.fft.fft(h, dim=1).real),
    "elements_by_mask": ("by their order", lambda h: h.masked_scatter(h > 0, torch.tanh(h))),
    "some_by_number": ("holds positions", lambda h: h[:, torch.arange(h.shape[1] - 1)]),
    "counted": ("numbers of positions", lambda h: (
        h * torch.arange(h.shape[1], dtype=h.dtype)[:, None, None])),
    "listed": ("the code in the model reads its values", lambda h: (
        h * sum(h.median(1).indices[0, 0].tolist()))),
}  # fmt: skip


@pytest.mark.parametrize("name", STUCK)
def test_what_depends_on_numbers_of_units_stays(name: str) -> None:
    reason, middle = STUCK[name]
    graph = secateur.trace(network(Between(middle)), example(False))
    pins = {pin.name: pin for pin in graph.pinned if pin.dim == 0}
    assert reason in pins["a.weight"].reason
    for group in graph.groups:  # what is left beside the pin
        plan = make_plan(graph, {group.name: (0,)})
        check = secateur.verify(graph.model, secateur.cut(graph.model, plan), plan, example(False))
        assert check.ok


POSITIONS: dict[str, Callable[[Tensor], Any]] = {
    "argmax": lambda h: h.argmax(-1),
    "argmin": lambda h: h.argmin(-1),
    "max": lambda h: h.max(-1).indices,
    "min": lambda h: h.min(-1)[1],
    "median": lambda h: h.median(-1).indices,
    "nanmedian": lambda h: h.nanmedian(-1).indices,
    "kthvalue": lambda h: h.kthvalue(2, -1).indices,
    "mode": lambda h: h.round().mode(-1).indices,
    "topk": lambda h: h.topk(2, -1).indices,
    "cummax": lambda h: h.cummax(-1).indices,
    "cummin": lambda h: h.cummin(-1).indices,
    "sort": lambda h: h.sort(-1).indices,
    "argsort": lambda h: h.argsort(-1),
    "nonzero": lambda h: h[0, 0].nonzero(),
    "unique": lambda h: torch.unique(h.argmax(-1)),
    "one_by_one": lambda h: h.argmax(-1).view(-1)[0],
    "moved": lambda h: h.median(-1, keepdim=True).indices.transpose(0, 1).squeeze(-1),
    "as_numbers": lambda h: h.median(-1).indices.to(torch.float64) + 1,
    "all": lambda h: torch.arange(h.shape[-1]),
}


class Leaving(nn.Module):
    """Two dense layers; what is between them leaves the network, too."""

    def __init__(self, found: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.a, self.b, self.found = nn.Linear(5, SIZE), nn.Linear(SIZE, 4), found

    def forward(self, x: Tensor) -> Any:
        h = torch.tanh(self.a(x))
        return self.b(h), self.found(h)


@pytest.mark.parametrize("name", POSITIONS)
def test_positions_that_leave_the_network_pin_what_they_count(name: str) -> None:
    graph = secateur.trace(Leaving(POSITIONS[name]).double(), example(True))
    assert graph.groups == ()


class LookUp(nn.Module):
    """The unit that ``choose`` finds in ``a`` is looked up in ``c``."""

    def __init__(self, choose: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.c, self.choose = nn.Linear(5, SIZE), nn.Linear(5, SIZE), choose
        self.b = nn.Linear(1, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.c(x).gather(-1, self.choose(self.a(x))))


@pytest.mark.parametrize(
    "choose",
    [
        lambda h: h.max(-1, keepdim=True)[1],
        lambda h: h.median(-1, keepdim=True)[1],
        lambda h: h.kthvalue(3, -1, keepdim=True)[1],
        lambda h: h.topk(1, -1)[1],
        lambda h: h.argmin(-1, keepdim=True),
    ],
)
def test_positions_that_look_up_couple_both(choose: Callable[[Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    model, x = LookUp(choose).double(), example(True)
    graph = secateur.trace(model, x)
    (group,) = graph.groups
    assert {s.name for s in group.slots} == {"a.weight", "a.bias", "c.weight", "c.bias"}
    plan = make_plan(graph, {group.name: (0,)})
    pruned = secateur.cut(model, plan)
    assert secateur.verify(model, pruned, plan, x).ok
    keep = [1, 2, 3, 4, 5]
    with torch.no_grad():
        chosen = choose(F.linear(x, model.a.weight[keep], model.a.bias[keep]))
        wanted = model.b(F.linear(x, model.c.weight[keep], model.c.bias[keep]).gather(-1, chosen))
        assert error(pruned(x), wanted) <= LIMIT


@pytest.mark.parametrize(
    "failure", [KeyError("dim"), AttributeError("key"), StopIteration(), ZeroDivisionError()]
)
def test_a_form_that_a_rule_does_not_know_pins(
    failure: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(flow: Any, node: Any) -> None:
        raise failure

    monkeypatch.setitem(RULES._entries, "aten.cumsum", fails)
    graph = secateur.trace(network(CASES["cumsum"]), example(False))
    assert graph.groups == ()
    reasons = [pin.reason for pin in graph.pinned if (pin.name, pin.dim) == ("a.weight", 0)]
    assert "aten.cumsum in the model: its rule does not cover this form" in reasons[0]
