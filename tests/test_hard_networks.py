"""Networks whose own code depends on sizes in ways that once led to a wrong cut."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from networks import randomise
from torch import Tensor, nn

import secateur
from secateur.planning import make_plan


class Radix(nn.Module):
    """Split attention: softmax over the branches if there are several, else a sigmoid."""

    def __init__(self) -> None:
        super().__init__()
        self.radix = 2
        self.conv = nn.Conv2d(3, 8 * self.radix, 3, padding=1)
        self.gate = nn.Conv2d(8, 8 * self.radix, 1)
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        batch, _, height, width = x.shape
        x = self.conv(x).reshape(batch, self.radix, -1, height, width)
        gate = self.gate(x.sum(dim=1).mean((2, 3), keepdim=True))
        if self.radix > 1:
            gate = gate.view(batch, self.radix, -1).softmax(dim=1)
        else:
            gate = gate.flatten(1).sigmoid()
        return self.head((x * gate.view(batch, self.radix, -1, 1, 1)).sum(dim=1))


class Branches(nn.Module):
    """Res2Net: equal parts of a stated width, the last one passed on."""

    def __init__(self) -> None:
        super().__init__()
        self.width = 4
        self.wide = nn.Conv2d(3, 16, 1)
        self.parts = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1, groups=2) for _ in range(3))
        self.head = nn.Conv2d(16, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        parts = torch.split(self.wide(x), self.width, 1)
        done = [conv(part) for conv, part in zip(self.parts, parts, strict=False)]
        return self.head(torch.cat([*done, parts[3]], dim=1))


class StandardisedConv(nn.Conv2d):
    """Weights normalised over each filter by batch norm in training mode."""

    def forward(self, x: Tensor) -> Tensor:
        rows = self.weight.reshape(1, self.out_channels, -1)
        weight = F.batch_norm(rows, None, None, training=True, momentum=0.0)
        return F.conv2d(x, weight.reshape_as(self.weight), self.bias, padding=1)


class Attention(nn.Module):
    """Attention whose scale is derived from the shape; ``bias`` reads the query unscaled."""

    def __init__(self, *, bias: bool) -> None:
        super().__init__()
        self.heads, self.head_dim = 2, 6
        self.qkv = nn.Linear(10, 3 * 12)
        self.bias = nn.Parameter(torch.randn(5, 6)) if bias else None
        self.out = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        qkv = self.qkv(x).reshape(batch, length, 3, self.heads, self.head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
        if self.bias is not None:
            scores = scores + q @ self.bias.t()
        found = scores.softmax(-1) @ v
        return self.out(found.transpose(1, 2).reshape(batch, length, -1))


def weight_normed() -> nn.Module:
    first = nn.utils.parametrizations.weight_norm(nn.Conv1d(3, 8, 3, padding=1), dim=2)
    second = nn.utils.parametrizations.weight_norm(nn.Conv1d(8, 8, 3, padding=1))
    return nn.Sequential(first, nn.GELU(), second, nn.GELU(), nn.Conv1d(8, 2, 1))


def standardised() -> nn.Module:
    layers = [StandardisedConv(3, 8, 3), nn.ReLU(), StandardisedConv(8, 8, 3), nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv2d(8, 2, 1))


def image() -> Tensor:
    return torch.randn(2, 3, 8, 8, dtype=torch.float64)


CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "radix": (Radix, image),
    "branches": (Branches, image),
    "standardised": (standardised, image),
    "weight_normed": (weight_normed, lambda: torch.randn(2, 3, 9, dtype=torch.float64)),
    "scaled": (lambda: Attention(bias=False), lambda: torch.randn(2, 5, 10, dtype=torch.float64)),
    "biased": (lambda: Attention(bias=True), lambda: torch.randn(2, 5, 10, dtype=torch.float64)),
}


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("name", CASES)
def test_the_cut_is_exact(name: str, seed: int) -> None:
    build, example = CASES[name]
    model, inputs = randomise(build().double().eval(), seed), example()
    graph = secateur.trace(model, inputs)
    plan = secateur.allocate(graph, secateur.score(graph, "random", seed=seed), sparsity=0.5)
    check = secateur.verify(model, secateur.cut(model, plan), plan, inputs)
    assert check.ok
    assert check.changed


def test_a_branch_that_the_code_asks_for_stays() -> None:
    model = randomise(Radix().double().eval(), 0)
    graph = secateur.trace(model, image())
    plan = secateur.allocate(graph, secateur.score(graph, "l2"), sparsity=0.5)
    assert "radix" not in plan.attributes


def test_a_drifting_scale_goes_into_the_query_alone() -> None:
    model, inputs = CASES["scaled"][0]().double().eval(), CASES["scaled"][1]()
    graph = secateur.trace(model, inputs)
    group = next(g for g in graph.groups if g.kind == "head_dim" and len(g.slots) > 2)
    plan = make_plan(graph, {group.name: (0, 1, 2, 3)} | _values(graph, 4))
    assert {scale.name for scale in plan.scales} == {"qkv.weight", "qkv.bias"}
    for scale in plan.scales:
        assert scale.positions == tuple(range(12))
        assert scale.factor == pytest.approx((2 / 6) ** 0.5)


def _values(graph: secateur.Graph, count: int) -> dict[str, tuple[int, ...]]:
    """The fused projection states one head dimension for query, key and value."""
    return {
        g.name: tuple(range(count)) for g in graph.groups if g.kind == "head_dim" and g.size == 6
    }


def test_a_query_that_is_read_elsewhere_keeps_its_head_dimension() -> None:
    model, inputs = CASES["biased"][0]().double().eval(), CASES["biased"][1]()
    graph = secateur.trace(model, inputs)
    plan = secateur.allocate(graph, secateur.score(graph, "l2"), sparsity=0.5)
    assert not plan.scales
    assert sum(plan.given_back.values()) > 0


def test_weight_norm_keeps_the_kept_weights() -> None:
    model = weight_normed().double().eval()
    inputs = CASES["weight_normed"][1]()
    graph = secateur.trace(model, inputs)
    group = next(g for g in graph.groups if any("2.param" in s.name for s in g.slots))
    plan = make_plan(graph, {group.name: (1, 2)})
    pruned = secateur.cut(model, plan)
    kept = [i for i in range(8) if i not in (1, 2)]
    slots = {(s.name.split(".")[0], s.dim) for s in group.slots if "original1" in s.name}
    if ("0", 0) in slots:
        torch.testing.assert_close(pruned[0].weight, model[0].weight[kept])
    if ("2", 1) in slots:
        torch.testing.assert_close(pruned[2].weight, model[2].weight[:, kept])
    assert slots


def test_key_heads_are_told_from_query_heads() -> None:
    from networks import NETWORKS

    factory, inputs = NETWORKS["llama"]
    kinds = {g.kind for g in secateur.trace(factory().double(), inputs(2)).groups}
    assert kinds == {"embedding", "kv_head", "head", "head_dim", "neuron"}


def test_a_weight_normed_network_is_saved_and_loaded(tmp_path: Path) -> None:
    model, inputs = weight_normed().double().eval(), CASES["weight_normed"][1]()
    pruned = secateur.prune(model, inputs, sparsity=0.5).model
    loaded = secateur.load(secateur.save(pruned, tmp_path))
    assert torch.equal(loaded(inputs), pruned(inputs))
    assert type(loaded[0]).__name__ == "ParametrizedConv1d"


class Auxiliary(nn.Module):
    """A second classifier that runs in train mode alone."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.aux_conv = nn.Conv2d(8, 6, 1)
        self.aux_norm = nn.BatchNorm2d(6)
        self.aux_hidden = nn.Linear(6 * 4, 10)
        self.aux_head = nn.Linear(10, 5)
        self.conv = nn.Conv2d(8, 12, 3, padding=1)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        x = F.relu(self.stem(x))
        result = self.head(F.relu(self.conv(x)).mean((2, 3)))
        if not self.training:
            return result
        side = F.adaptive_avg_pool2d(F.relu(self.aux_norm(self.aux_conv(x))), 2)
        return result, self.aux_head(F.relu(self.aux_hidden(side.flatten(1))))


def test_what_runs_in_train_mode_alone_is_cut_along_exactly() -> None:
    model = randomise(Auxiliary().double().eval())
    inputs = torch.randn(4, 3, 8, 8, dtype=torch.float64)
    graph = secateur.trace(model, inputs)
    sizes = {group.name: group.size for group in graph.groups}
    assert sizes == {"stem": 8, "aux_conv": 6, "aux_hidden": 10, "conv": 12}
    plan = make_plan(graph, {"stem": (1, 6), "aux_conv": (0, 3), "aux_hidden": (4,), "conv": (2,)})
    pruned, masked = secateur.cut(model, plan), secateur.mask(model, plan)
    assert pruned.aux_hidden.weight.shape == (9, 16)
    for found, wanted in zip(pruned.train()(inputs), masked.train()(inputs), strict=True):
        torch.testing.assert_close(found, wanted)
    assert secateur.verify(model, pruned.eval(), plan, inputs).ok


class Stated(Auxiliary):
    """The second classifier reads a number of channels that its code states."""

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        x = F.relu(self.stem(x))
        result = self.head(F.relu(self.conv(x)).mean((2, 3)))
        return (result, self.aux_conv(x.view(-1, 8, 64, 1))) if self.training else result


def test_one_sample_is_enough_to_see_what_runs_in_train_mode_alone() -> None:
    model = Auxiliary()
    model.aux_conv = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 6, 1), nn.BatchNorm2d(6))
    graph = secateur.trace(model, torch.randn(1, 3, 8, 8))
    assert not graph.notes
    stem = next(group for group in graph.groups if group.name == "stem")
    assert ("aux_conv.1.weight", 1) in {(slot.name, slot.dim) for slot in stem.slots}


def test_what_train_mode_pins_is_pinned() -> None:
    model = Stated().eval()
    graph = secateur.trace(model, torch.randn(2, 3, 8, 8))
    assert {group.name for group in graph.groups} == {"conv"}
    why = {(pin.name, pin.dim): pin.reason for pin in graph.pinned}
    assert why["stem.weight", 0] == (
        "aten.view in the model (train mode): size 8 is fixed in the model's code"
    )


class ChannelsLast(nn.Module):
    """Pooling gives a channels-last tensor its layout by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).contiguous(memory_format=torch.channels_last)
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


def test_pooling_of_a_channels_last_tensor_lets_channels_go() -> None:
    model, inputs = ChannelsLast().double(), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    graph = secateur.trace(model, inputs)
    assert [(group.name, group.size) for group in graph.groups] == [("conv", 8)]
    assert secateur.prune(model, inputs, sparsity=0.5).check.ok


class Counted(nn.Module):
    """Parts of a bias found by counting its elements."""

    def __init__(self) -> None:
        super().__init__()
        self.both = nn.Linear(6, 16)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        bias = self.both.bias.clone()
        half = bias.numel() // 2
        bias[half : 2 * half].zero_()
        left, right = F.linear(x, self.both.weight, bias).chunk(2, dim=-1)
        return self.head(left * right)


def test_parts_found_by_counting_elements_are_cut_alike() -> None:
    model, inputs = Counted().double(), torch.randn(2, 6, dtype=torch.float64)
    graph = secateur.trace(model, inputs)
    assert [(group.name, group.size) for group in graph.groups] == [("both", 8)]
    assert secateur.prune(model, inputs, sparsity=0.5).check.ok


def test_as_many_experts_stay_as_the_router_chooses() -> None:
    from networks import NETWORKS

    factory, inputs = NETWORKS["moe_stacked"]
    model = randomise(factory().double().eval())
    graph = secateur.trace(model, inputs(2))
    experts = next(group for group in graph.groups if group.kind == "expert")
    assert {(slot.name, slot.dim) for slot in experts.slots} == {
        ("router.weight", 0), ("rise", 0), ("fall", 0)
    }  # fmt: skip
    plan = make_plan(graph, {experts.name: (3, 0, 2)})
    assert plan.removed == {experts.name: (3, 0)}
    assert plan.given_back == {experts.name: 1}
    assert secateur.verify(model, secateur.cut(model, plan), plan, inputs(2)).ok


class Hard(nn.Module):
    """Each sample goes to one expert: the code finds it by its number, in one of several ways."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.router = nn.Linear(6, 4)
        self.weights = nn.Parameter(torch.zeros(4, 6, 5))
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        shares = self.router(x).softmax(-1)
        best = shares.argmax(-1)
        if self.way == "index":
            chosen = self.weights[best]
        elif self.way == "select":
            chosen = self.weights.index_select(0, best)
        elif self.way == "one_hot":
            one = F.one_hot(best, self.weights.shape[0]).to(x.dtype)
            chosen = torch.einsum("ne,eio->nio", one, self.weights)
        elif self.way == "compared":
            chosen = self.weights[0] * (best == 0)[:, None, None] + self.weights[best]
        else:
            chosen = self.weights[(best + 1) % 4]
        share = shares.gather(1, best[:, None])
        return self.head(torch.bmm(x[:, None], chosen)[:, 0] * share)


@pytest.mark.parametrize("way", ["index", "select", "one_hot"])
def test_an_expert_found_by_its_number_can_go(way: str) -> None:
    model, inputs = randomise(Hard(way).double()), torch.randn(9, 6, dtype=torch.float64)
    graph = secateur.trace(model, inputs)
    assert {(group.kind == "expert", group.size) for group in graph.groups} == {
        (True, 4), (False, 5)
    }  # fmt: skip
    pruned = secateur.prune(model, inputs, sparsity=0.5)
    assert pruned.model.weights.shape == (2, 6, 3)
    assert pruned.check.ok


@pytest.mark.parametrize("way", ["compared", "shifted"])
def test_experts_whose_numbers_mean_more_stay(way: str) -> None:
    model, inputs = randomise(Hard(way).double()), torch.randn(9, 6, dtype=torch.float64)
    graph = secateur.trace(model, inputs)
    assert "expert" not in {group.kind for group in graph.groups}
    assert [group.size for group in graph.groups] == [5]
    assert secateur.prune(model, inputs, sparsity=0.5).check.ok


class Shaped(nn.Module):
    """One channel is taken for its shape alone, and the width is made a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.rise = nn.Linear(6, 8)
        self.key = nn.Linear(6, 8)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        query, key = self.rise(x), self.key(x)
        places = torch.arange(query[:, :, -1].shape[1], dtype=x.dtype)
        scale = torch.sqrt(torch.tensor(query.size(-1), dtype=torch.float) * 3)
        scores = query @ (key.transpose(-1, -2) / scale.to(x.dtype)) + places
        return scores.softmax(-1) @ self.head(x[..., :1].expand(*x.shape[:2], 8))


def test_a_width_made_a_tensor_is_folded_into_the_weights() -> None:
    model, inputs = randomise(Shaped().double()), torch.randn(2, 7, 6, dtype=torch.float64)
    graph = secateur.trace(model, inputs)
    assert [(group.kind, group.size) for group in graph.groups] == [("head_dim", 8)]
    plan = make_plan(graph, {graph.groups[0].name: (1, 5, 7)})
    assert plan.scales
    assert secateur.verify(model, secateur.cut(model, plan), plan, inputs).ok
