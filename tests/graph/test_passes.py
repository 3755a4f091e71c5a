"""Passes beside the traced one: train mode, further examples, other methods, unreached code.

The reference is the dense network with the input slices of removed units set to zero by hand.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import secateur
from secateur.errors import InputError, PlanError, TraceError
from secateur.planning import make_plan


def example(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def made(model: nn.Module, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    model = model.double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.5)
    return model


def masked_by_hand(model: nn.Module, plan: secateur.Plan) -> Any:
    """Zero the slices of weights that read removed units, as a person would."""
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for name, parameter in twin.named_parameters():
            gone = plan.cuts.get(name, {}).get(1)
            if gone and parameter.dim() > 1:
                parameter[:, list(gone)] = 0
    return twin


def agree(pruned: nn.Module, reference: nn.Module, *calls: Any, method: str = "forward") -> None:
    """Compare both networks in eval and in train mode."""
    for training in (False, True):
        for call in calls:
            with torch.no_grad():
                found = getattr(copy.deepcopy(pruned).train(training), method)(**call)
                wanted = getattr(copy.deepcopy(reference).train(training), method)(**call)
            found, wanted = (v if isinstance(v, tuple) else (v,) for v in (found, wanted))
            for one, other in zip(found, wanted, strict=True):
                torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)


class DeepSupervision(nn.Module):
    """One head reads three depths in train mode, and one in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 12, 3), nn.Conv2d(12, 12, 3), nn.Conv2d(12, 12, 3)
        self.head = nn.Conv2d(12, 2, 1)

    def forward(self, x: Tensor) -> Any:
        a = torch.relu(self.a(x))
        b = torch.relu(self.b(a))
        c = torch.relu(self.c(b))
        if self.training:
            return self.head(c), self.head(b), self.head(a)
        return self.head(c)


class JoinedLoss(nn.Module):
    """An auxiliary loss on two depths, joined, with a classifier of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(6, 10), nn.Linear(10, 8), nn.Linear(8, 3)
        self.side = nn.Linear(18, 3)

    def forward(self, x: Tensor) -> Any:
        a = torch.relu(self.a(x))
        b = torch.relu(self.b(a))
        if self.training:
            return self.head(b), self.side(torch.cat([a, b], 1))
        return self.head(b)


class OrderedLoss(nn.Module):
    """Train mode compares the units of two layers that eval mode keeps apart."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Any:
        a = torch.relu(self.a(x))
        b = torch.relu(self.b(a))
        return (self.head(b), (a * b) @ self.head.weight.t()) if self.training else self.head(b)


class StochasticDepth(nn.Module):
    """Train mode runs without its middle layer."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.a(x))
        if not self.training:
            x = torch.relu(self.b(x))
        return self.head(x)


class ByGradients(nn.Module):
    """With gradients, as in training, two layers share one head."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Any:
        a = torch.relu(self.a(x))
        b = torch.relu(self.b(a))
        return (self.head(b), self.head(a)) if torch.is_grad_enabled() else self.head(b)


class Dropped(nn.Module):
    """Dropout in all its forms, which neutral train mode switches off."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.drop = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.5)
        self.b, self.head = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(torch.relu(self.norm(self.a(x))))
        x = F.dropout(torch.relu(self.b(x)), 0.5, self.training)
        return self.head(torch.dropout(x, 0.3, self.training))


TRAINING = [DeepSupervision, JoinedLoss, OrderedLoss, StochasticDepth]


@pytest.mark.parametrize("kind", TRAINING)
def test_train_mode_equals_the_network_masked_by_hand(kind: Any) -> None:
    model = made(kind())
    x = example(4, 3, 9, 9) if kind is DeepSupervision else example(4, 6)
    pruned = secateur.prune(model, x, sparsity=0.5)
    assert pruned.plan.removed
    assert not pruned.plan.notes
    agree(pruned.model, masked_by_hand(model, pruned.plan), {"x": x})
    assert [one.label for one in pruned.check.passes] == ["", "train mode"]


def test_what_gradients_switch_is_followed() -> None:
    model, x = made(ByGradients()), example(4, 6)
    pruned = secateur.prune(model, x, sparsity=0.5)
    found, wanted = pruned.model(x), masked_by_hand(model, pruned.plan)(x)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)


def test_a_difference_in_train_mode_alone_is_no_proof() -> None:
    model, x = made(DeepSupervision()), example(2, 3, 9, 9)
    plan = make_plan(secateur.trace(model, x), {"a": (0, 3)})
    wrong = secateur.cut(model, plan)
    check = secateur.verify(model, wrong, plan, x)
    assert check.ok

    def wrong_in_train_mode(x: Tensor) -> Any:
        found = DeepSupervision.forward(wrong, x)
        return (*found[:2], torch.zeros_like(found[2])) if wrong.training else found

    wrong.forward = wrong_in_train_mode
    check = secateur.verify(model, wrong, plan, x)
    assert not check.ok
    assert [one.max_error <= check.tolerance for one in check.passes] == [True, False]


def test_dropout_and_batch_statistics_are_no_other_pass() -> None:
    graph = secateur.trace(made(Dropped()), example(1, 6))
    assert [path for _, path in graph.passes] == [0, 0]
    assert [(group.name, group.size) for group in graph.groups] == [("a", 8), ("b", 8)]


class Queue(nn.Module):
    """Features are compared with a queue of old ones in train mode alone."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.head = nn.Linear(6, 8), nn.Linear(8, 3)
        self.register_buffer("queue", torch.randn(8, 16))

    def forward(self, x: Tensor) -> Any:
        a = torch.relu(self.a(x))
        if not self.training:
            return self.head(a)
        scores = a @ self.queue
        self.queue[:, : x.size(0)] = a.detach().t()
        return self.head(a), scores


class Centre(nn.Module):
    """A running mean of features, updated in train mode alone."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.head = nn.Linear(6, 8), nn.Linear(8, 3)
        self.register_buffer("centre", torch.zeros(8))

    def forward(self, x: Tensor) -> Tensor:
        a = torch.relu(self.a(x))
        if self.training:
            self.centre.mul_(0.9).add_(a.detach().mean(0), alpha=0.1)
        return self.head(a)


class Codebook(nn.Module):
    """Vector quantisation whose codebook moves in train mode alone."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.inner, self.head = nn.Linear(6, 10), nn.Linear(10, 4), nn.Linear(4, 3)
        self.register_buffer("book", torch.randn(4, 16))
        self.register_buffer("count", torch.ones(16))
        self.register_buffer("mean", self.book.clone())

    def forward(self, x: Tensor) -> Tensor:
        z = self.inner(torch.relu(self.a(x)))
        nearest = z.pow(2).sum(1, keepdim=True) - 2 * z @ self.book + self.book.pow(2).sum(0)
        chosen = nearest.argmin(1)
        if self.training:
            hot = F.one_hot(chosen, self.book.shape[1]).to(z.dtype)
            self.count.mul_(0.9).add_(hot.sum(0), alpha=0.1)
            self.mean.mul_(0.9).add_(z.t() @ hot, alpha=0.1)
            self.book.copy_(self.mean / self.count)
        return self.head(z + (F.embedding(chosen, self.book.t()) - z).detach())


@pytest.mark.parametrize(
    ("kind", "touched"), [(Queue, {"queue": 0}), (Centre, {"centre": 0}), (Codebook, {"mean": 0})]
)
def test_buffers_that_train_mode_alone_touches_are_cut_along(
    kind: Any, touched: dict[str, int]
) -> None:
    model, x = made(kind()), example(4, 6)
    pruned = secateur.prune(model, x, sparsity=0.5)
    reference = masked_by_hand(model, pruned.plan)
    if kind is Codebook:  # distances to codes read the units, too: zero where they are made
        gone = list(pruned.plan.cuts["book"][0])
        with torch.no_grad():
            for tensor in (reference.inner.weight, reference.inner.bias, *reference.buffers()):
                if len(tensor) == 4:
                    tensor[gone] = 0
    for network in (pruned.model.train(), reference.train()):
        network(x)
    torch.testing.assert_close(pruned.model.eval()(x), reference.eval()(x), rtol=1e-9, atol=1e-9)
    for name, dim in touched.items():
        whole, gone = reference.get_buffer(name), pruned.plan.cuts[name][dim]
        kept = torch.tensor([i for i in range(whole.shape[dim]) if i not in gone])
        wanted = whole.index_select(dim, kept)
        torch.testing.assert_close(pruned.model.get_buffer(name), wanted, rtol=1e-9, atol=1e-9)


class Paths(nn.Module):
    """What runs depends on an argument, on a size and on the method called."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.extra, self.head = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.wide, self.project = nn.Linear(8, 8), nn.Linear(8, 5)

    def features(self, x: Tensor) -> Tensor:
        return torch.relu(self.a(x))

    def forward(self, x: Tensor, shift: Tensor | None = None) -> Tensor:
        h = self.features(x)
        if shift is not None:
            h = h + torch.relu(self.extra(h + shift))
        if x.shape[0] > 4:
            h = h * torch.sigmoid(self.wide(h))
        return self.head(h)

    def embed(self, x: Tensor) -> Tensor:
        return self.project(F.layer_norm(self.features(x), (self.head.in_features,)))


def also_of(x: Tensor) -> list[Any]:
    return [{"x": x, "shift": example(4, 1)}, example(6, 6), ("embed", x)]


def test_further_examples_couple_what_they_reach() -> None:
    model, x = made(Paths()), example(4, 6)
    also = also_of(x)
    graph = secateur.trace(model, x, also)
    assert not graph.notes
    (group,) = graph.groups
    assert {(s.name, s.dim) for s in group.slots} >= {
        ("extra.weight", 0), ("extra.weight", 1), ("wide.weight", 0), ("project.weight", 1)
    }  # fmt: skip
    pruned = secateur.prune(model, x, also=also, sparsity=0.5)
    reference = masked_by_hand(model, pruned.plan)
    calls = [{"x": x}, {"x": x, "shift": example(4, 1)}, {"x": example(6, 6)}]
    agree(pruned.model, reference, *calls)
    labels = [one.label for one in pruned.check.passes]
    assert labels == [
        "", "further example 1", "further example 2", "further example 3, method embed"
    ]  # fmt: skip
    # A norm over the units runs over the kept ones.
    kept = [i for i in range(8) if i not in pruned.plan.removed[group.name]]
    h = F.layer_norm(model.features(x)[:, kept], (4,))
    wanted = h @ model.project.weight[:, kept].t() + model.project.bias
    torch.testing.assert_close(pruned.model.embed(x), wanted)
    torch.testing.assert_close(secateur.mask(model, pruned.plan).embed(x), wanted)


def test_a_plan_keeps_its_passes_in_json() -> None:
    model, x = made(Paths()), example(4, 6)
    plan = make_plan(secateur.trace(model, x, also_of(x)), {"a": (1, 2)})
    assert secateur.Plan.from_json(plan.to_json()) == plan
    assert {one.method for one in plan.passes} == {"forward", "embed"}


class Depends(nn.Module):
    """The same operation is masked on one path and reads the input on the other."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.head = nn.Linear(6, 6), nn.Linear(1, 3)

    def forward(self, x: Tensor, direct: bool = False) -> Tensor:
        h = x if direct else torch.relu(self.a(x))
        return self.head(h.mean(1, keepdim=True))


def test_each_pass_is_proved_against_its_own_mask() -> None:
    model, x = made(Depends()), example(4, 6)
    also = [{"x": x, "direct": True}]
    graph = secateur.trace(model, x, also)
    plan = make_plan(graph, {"a": (0, 1)})
    check = secateur.verify(model, secateur.cut(model, plan), plan, x, also=also)
    assert check.ok
    assert len(check.passes) == 2
    with pytest.raises(PlanError, match="cannot tell which traced pass"):
        secateur.mask(model, plan)(x)


def test_also_is_checked() -> None:
    model, x = made(Paths()), example(4, 6)
    with pytest.raises(InputError, match=r"write also=\[example\]"):
        secateur.trace(model, x, x)
    with pytest.raises(InputError, match="'nothing', which the model does not have"):
        secateur.trace(model, x, [("nothing", x)])
    with pytest.raises(InputError, match="entry 1 has 3 parts"):
        secateur.trace(model, x, [("embed", x, x)])
    with pytest.raises(InputError, match="entry 2 is int"):
        secateur.trace(model, x, [x, 3])
    with pytest.raises(TraceError, match="further example 1: the model fails"):
        secateur.trace(model, x, [example(4, 5)])


class ByValue(nn.Module):
    """Large inputs meet the units of the first layer in another order."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.head = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.a(x))
        if x.max() > 100:
            h = h.flip(1)
        return self.head(h)


def test_what_values_choose_is_told_and_followed_by_a_further_example() -> None:
    model, x = made(ByValue()), example(4, 6)
    large = 1000 * x.abs()
    (note,) = secateur.trace(model, x).notes
    assert "chooses by values" in note
    pruned = secateur.prune(model, x, also=[large], sparsity=0.5)
    assert pruned.plan.removed
    agree(pruned.model, masked_by_hand(model, pruned.plan), {"x": x}, {"x": large})


class Targets(nn.Module):
    """Train mode needs what the example does not hold, as detection networks do."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.head = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor, targets: Tensor | None = None) -> Tensor:
        if self.training and targets is None:
            raise ValueError("targets should be given in train mode")
        y = self.head(torch.relu(self.a(x)))
        return y if targets is None else y - targets


def test_train_mode_that_the_example_cannot_run_is_told() -> None:
    model, x = made(Targets()), example(4, 6)
    pruned = secateur.prune(model, x, sparsity=0.5)
    (note,) = pruned.plan.notes
    assert note.startswith("train mode could not be traced: ")
    assert "targets should be given" in note
    assert not secateur.trace(model, x, [(x, example(4, 3))]).notes[1:]


class Unreached(nn.Module):
    """An optional branch that nothing but a further example reaches, beside a free layer."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(6, 8), nn.Linear(8, 12), nn.Linear(12, 3)
        self.inner = nn.Sequential(nn.Linear(12, 10), nn.ReLU(), nn.Linear(10, 12))
        self.side = nn.Linear(8, 5)

    def forward(self, x: Tensor, also: Tensor | None = None) -> Any:
        a = torch.relu(self.a(x))
        b = self.inner(torch.relu(self.b(a)))
        y = self.head(b)
        return y if also is None else (y, self.side(a * also))


def test_what_no_example_reached_is_told_and_what_it_could_meet_pinned() -> None:
    model, x = made(Unreached()), example(4, 6)
    pruned = secateur.prune(model, x, sparsity=0.5)
    note = pruned.plan.notes[0]
    assert "no example reached side" in note
    assert "also=[...]" in note
    assert "inner.0" in pruned.plan.removed
    assert "a" not in pruned.plan.removed
    agree(
        pruned.model, masked_by_hand(model, pruned.plan), {"x": x}, {"x": x, "also": example(4, 8)}
    )
    reached = secateur.trace(model, x, [(x, example(4, 1))])
    assert not reached.notes
    assert {group.name for group in reached.groups} == {"a", "b", "inner.0", "inner.2"}


class MaskToken(nn.Module):
    """A parameter of the embedding that only masked inputs use."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(6, 8)
        self.token = nn.Parameter(torch.randn(1, 8))
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor, hidden: Tensor | None = None) -> Tensor:
        h = self.embed(x)
        if hidden is not None:
            h = torch.where(hidden, self.token, h)
        return self.head(torch.relu(h))


def test_an_unreached_parameter_beside_one_axis_of_its_size_is_coupled_and_told() -> None:
    model, x = made(MaskToken()), example(4, 6)
    pruned = secateur.prune(model, x, sparsity=0.5)
    assert pruned.model.token.shape == (1, 4)
    assert "no example reached token" in pruned.plan.notes[0]
    hidden = torch.tensor([[True], [False], [True], [False]])
    agree(pruned.model, masked_by_hand(model, pruned.plan), {"x": x, "hidden": hidden})


def test_an_unreached_parameter_goes_by_those_beside_it_before_all_that_the_module_handles() -> (
    None
):
    class Embedding(MaskToken):
        """As wide as its input; the position embedding says which axis the token has."""

        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Linear(8, 8)
            self.position = nn.Parameter(torch.randn(1, 8))

        def forward(self, x: Tensor, hidden: Tensor | None = None) -> Tensor:
            h = self.embed(x)
            if hidden is not None:
                h = torch.where(hidden, self.token, h)
            return self.head(torch.relu(h + self.position))

    model, x = made(Embedding()), example(4, 8)
    pruned = secateur.prune(model, x, sparsity=0.5)
    hidden = torch.tensor([[True], [False], [True], [False]])
    agree(pruned.model, masked_by_hand(model, pruned.plan), {"x": x, "hidden": hidden})


def test_what_no_code_mentions_pins_nothing() -> None:
    class Dead(StochasticDepth):
        def __init__(self) -> None:
            super().__init__()
            self.left_over = nn.Linear(8, 8)

    graph = secateur.trace(made(Dead()), example(4, 6))
    assert "left_over" in graph.notes[0]
    assert {group.name for group in graph.groups} == {"a"}
