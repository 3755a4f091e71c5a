"""Where units are read, and what is seen there."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
import torch.nn.functional as F
from exactness import snapshot
from networks import NETWORKS, build
from test_hard_networks import Auxiliary
from torch import Tensor, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode

import secateur
from secateur.calibration import cross_entropy
from secateur.criteria.watching import Place, Reading, places, watch
from secateur.errors import InputError


@pytest.mark.parametrize("network", NETWORKS)
def test_every_group_has_a_place_and_every_unit_a_position(network: str) -> None:
    graph = secateur.trace(build(network), NETWORKS[network].inputs(2))
    held: dict[str, set[int]] = {group.name: set() for group in graph.groups}
    for place in places(graph):
        for name, columns in place.columns.items():
            for positions, units in columns:
                assert 0 <= int(positions.min()) <= int(positions.max()) < place.size
                held[name].update(units.tolist())
    assert held == {group.name: set(range(group.size)) for group in graph.groups}


class Reused(nn.Module):
    """One weight that reads twice, in place after it and in a branch that the loss may not see."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 4)
        self.head, self.aside = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.a(x).relu_()
        first = self.b(h).tanh_()
        second = self.b(first).relu_()
        return self.head(second), self.aside(h)


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return Reused().double().eval()


def test_all_uses_of_a_weight_are_one_place(model: nn.Module) -> None:
    x = torch.randn(5, 3, dtype=torch.float64)
    graph = secateur.trace(model, x)
    seen: list[tuple[str, Reading]] = []

    def see(place: Place, reading: Reading) -> None:
        assert place.consumer.parameter is not None
        seen.append((place.consumer.parameter[0], reading))

    found = places(graph)
    assert len(found) == 3
    watch(graph, found, see, [(x, torch.zeros(5, dtype=torch.long))])
    h = model.a(x).relu()
    by_name = {"b.weight": [h, torch.tanh(model.b(h))], "aside.weight": [h]}
    by_name["head.weight"] = [torch.relu(model.b(by_name["b.weight"][1]))]
    for place in found:
        name = place.consumer.parameter[0]
        readings = [reading for at, reading in seen if at == name]
        assert len(readings) == len(by_name[name])
        for reading, wanted in zip(readings, by_name[name], strict=True):
            torch.testing.assert_close(reading.values[..., 0], wanted.detach())


def test_gradients_are_those_of_each_sample_by_this_place_alone(model: nn.Module) -> None:
    x, labels = torch.randn(5, 3, dtype=torch.float64), torch.tensor([0, 1, 2, 3, 1])
    graph = secateur.trace(model, x)
    seen: dict[str, list[Tensor]] = {}

    def see(place: Place, reading: Reading) -> None:
        assert reading.gradient is not None
        seen.setdefault(place.consumer.parameter[0], []).append(reading.gradient[..., 0])

    watch(graph, places(graph), see, [(x, labels)], cross_entropy)
    h = model.a(x).relu().detach().requires_grad_()
    first = torch.tanh(model.b(h))
    first.retain_grad()
    logits = model.head(torch.relu(model.b(first)))
    F.cross_entropy(logits, labels, reduction="sum").backward()
    late, early = seen["b.weight"]  # the last one gets its gradient first
    torch.testing.assert_close(late, first.grad)
    torch.testing.assert_close(early, h.grad)
    # The loss does not see the branch: its reading is shown, with gradients of zero.
    assert [int(g.count_nonzero()) for g in seen["aside.weight"]] == [0]


def test_another_path_is_an_error_that_names_the_place() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            h = torch.relu(self.a(x))
            return self.b(h) if len(x) > 2 else h[:, :2]

    model = Two().eval()
    graph = secateur.trace(model, torch.randn(4, 3))
    batches = [(torch.randn(n, 3), torch.zeros(n, dtype=torch.long)) for n in (4, 1)]
    with pytest.raises(InputError, match=r"batch 1 takes another path .*b\.weight does not run"):
        secateur.score(graph, "activation_norm", batches)


@pytest.mark.parametrize(
    "criterion", ["activation_norm", "apoz", "wanda", "entropy", "taylor_activation", "lrp"]
)
def test_what_is_read_in_train_mode_only_is_left_out(criterion: str) -> None:
    torch.manual_seed(0)
    model, x = Auxiliary().double(), torch.randn(5, 3, 8, 8, dtype=torch.float64)
    batches = [(x, torch.tensor([0, 1, 2, 3, 4]))]
    graph = secateur.trace(model, x)
    assert {"stem", "conv", "aux_conv", "aux_hidden"} == set(graph.by_name)
    found = secateur.score(graph, criterion, batches)
    assert "stem" in found  # the classifier in train mode reads it too
    assert not found.keys() & {"aux_conv", "aux_hidden"}
    # The same network without that classifier, which eval mode never runs.
    del model.aux_conv, model.aux_norm, model.aux_hidden, model.aux_head
    alone = secateur.score(secateur.trace(model, x), criterion, batches)
    assert found.keys() == alone.keys()
    assert all(torch.equal(found[group], alone[group]) for group in found)


class NormedAside(nn.Module):
    """In eval mode a mean alone reads what a layer reads in train mode."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.aside, self.b = nn.Linear(3, 4), nn.Linear(4, 2), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        h = self.a(x).relu()
        result = self.b(x) * h.mean(-1, keepdim=True)
        return (result, self.aside(h)) if self.training else result


@pytest.mark.parametrize("criterion", ["activation_norm", "lrp"])
def test_a_mean_is_watched_where_the_one_contraction_runs_in_train_mode(criterion: str) -> None:
    torch.manual_seed(0)
    model, x = NormedAside().double(), torch.randn(5, 3, dtype=torch.float64)
    found = secateur.score(secateur.trace(model, x), criterion, [(x, torch.zeros(5).long())])
    assert set(found) == {"a"}
    if criterion == "activation_norm":
        h = model.a(x).relu().detach()
        torch.testing.assert_close(found["a"], h.square().mean(0).sqrt())


@pytest.mark.parametrize("loss", [None, cross_entropy])
def test_hooks_go_and_nothing_is_kept(loss: secateur.calibration.Loss | None) -> None:
    model = build("flatten")
    (x,) = NETWORKS["flatten"].inputs(3)
    graph = secateur.trace(model, x)
    before = snapshot(model)
    alive: list[weakref.ref[Tensor]] = []

    def see(place: Place, reading: Reading) -> None:
        alive.append(weakref.ref(reading.values))

    batch = (x, torch.zeros(3, dtype=torch.long))
    watch(graph, places(graph), see, [batch, batch], loss)
    assert snapshot(model).keys() == before.keys()
    assert all(before[key] == value for key, value in snapshot(model).items() if "hooks" in key)
    gc.collect()
    assert len(alive) == 2 * len(places(graph))
    assert not any(made() is not None for made in alive)


def test_an_error_in_the_model_leaves_no_hook_and_no_mode() -> None:
    class Fails(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.calls = nn.Linear(3, 4), nn.Linear(4, 2), 0

        def forward(self, x: Tensor) -> Tensor:
            if x.shape[0] == 1:
                raise RuntimeError("no")
            return self.b(torch.relu(self.a(x)))

    model = Fails().eval()
    graph = secateur.trace(model, torch.randn(4, 3))
    with pytest.raises(RuntimeError, match="no"):
        secateur.score(graph, "apoz", [(torch.randn(1, 3), torch.zeros(1, dtype=torch.long))])
    assert not model._forward_hooks
    assert not model._forward_pre_hooks
    assert torch.utils._python_dispatch._get_current_dispatch_mode() is None


def test_fused_recurrent_kernels_come_back() -> None:
    model = nn.LSTM(3, 4, batch_first=True).eval()

    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.core, self.head = model, nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.core(x)[0][:, -1])

    network, x = Last().eval(), torch.randn(5, 6, 3)
    before = torch.backends.mkldnn.enabled, torch.backends.cudnn.enabled
    graph = secateur.trace(network, x)
    found = secateur.score(graph, "activation_norm", [(x, torch.zeros(5, dtype=torch.long))])
    assert found
    assert (torch.backends.mkldnn.enabled, torch.backends.cudnn.enabled) == before


def test_an_interrupt_inside_the_forward_pass_leaves_no_mode(model: nn.Module) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    x = torch.randn(5, 3, dtype=torch.float64)
    graph = secateur.trace(model, x)
    handle = graph.model.get_submodule("head").register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        watch(graph, places(graph), lambda *_: None, [(x, torch.zeros(5, dtype=torch.long))])
    handle.remove()
    assert _get_current_dispatch_mode() is None
