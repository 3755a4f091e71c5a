"""Tracing: what is recorded, what is left alone, and what is refused."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from exactness import differences, snapshot
from torch import Tensor, nn
from torch.nn.modules import module as module_state

import secateur
from secateur.errors import InputError, TraceError
from secateur.graph.copies import copy_model, integer_attributes, map_tensors
from secateur.graph.sizes import Attr, Dim, Sized, expr_of
from secateur.graph.tracing import record


class Small(nn.Module):
    """Two layers and numbers of every kind in its attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 6, 3)
        self.norm = nn.BatchNorm2d(6)
        self.b = nn.Linear(6, 4)
        self.width = 6
        self.pads = [1, 2]
        self.scale = 0.5
        self.flag = True
        self.table = torch.arange(6.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.dropout(F.relu(self.norm(self.a(x))).mean((2, 3)), 0.5, self.training))


def image() -> Tensor:
    return torch.randn(2, 3, 8, 8)


class Chooses(nn.Module):
    """Its code looks at values, which fakes do not have."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(3, 6)
        self.b = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        return self.b(h if x.sum().item() > -1e9 else -h)


@pytest.mark.parametrize("kind", [Small, Chooses])
@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_exactly_as_it_was(kind: type[nn.Module], training: bool) -> None:
    model = kind().train(training)
    model.a.weight.requires_grad_(False)
    model.b.weight.grad = torch.ones_like(model.b.weight)
    model.register_forward_hook(lambda *args: None)
    before = snapshot(model)
    x = image() if kind is Small else torch.randn(2, 3)
    kept = x.clone()
    noise = torch.get_rng_state()
    secateur.trace(model, x)
    assert differences(before, snapshot(model)) == []
    assert type(vars(model).get("width", 6)) is int
    assert torch.equal(x, kept)
    assert torch.equal(torch.get_rng_state(), noise)


def global_state() -> tuple[Any, ...]:
    return (
        len(module_state._global_forward_hooks),
        len(module_state._global_forward_pre_hooks),
        torch.backends.mha.get_fastpath_enabled(),
        torch.is_grad_enabled(),
        torch.get_default_device(),
        torch.utils._python_dispatch._get_current_dispatch_mode(),
    )


class Fails(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("the second line\n  is not for this message")


@pytest.mark.parametrize("model", [Small(), Fails()])
def test_global_state_is_put_back(model: nn.Module) -> None:
    before = global_state()
    try:
        secateur.trace(model, image())
    except TraceError:
        assert isinstance(model, Fails)
    assert global_state() == before


def test_a_model_that_fails_says_why() -> None:
    with pytest.raises(TraceError, match="fails on its example input: RuntimeError: the second"):
        secateur.trace(Fails(), image())


def test_a_wrong_shape_is_told_with_the_models_own_words() -> None:
    with pytest.raises(TraceError, match=r"expected input.* to have 3 channels, but got 5"):
        secateur.trace(Small(), torch.randn(2, 5, 8, 8))


@pytest.mark.parametrize(
    ("model", "inputs", "words"),
    [
        (lambda x: x, torch.zeros(1), "model must be a torch.nn.Module, but got function"),
        (Small(), 3, "example_inputs must be a tensor.*but got int"),
        (Small(), {}, "example_inputs must be a tensor.*but got dict"),
        (Small(), None, "example_inputs must be a tensor.*but got NoneType"),
    ],
)
def test_wrong_arguments_are_refused(model: Any, inputs: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        secateur.trace(model, inputs)


def test_a_model_without_a_tensor_to_return_is_refused() -> None:
    class Empty(Small):
        def forward(self, x: Tensor) -> Any:
            return None

    with pytest.raises(TraceError, match="returns no tensor"):
        secateur.trace(Empty(), image())


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor, scale: Tensor, *, shift: Tensor | None = None) -> dict[str, Any]:
        h = F.relu(self.a(x)) * scale + (0 if shift is None else shift)
        return {"logits": self.b(h), "all": [h.sum(), (None, "text")]}


@pytest.mark.parametrize(
    "inputs",
    [
        (torch.randn(2, 3), torch.randn(2, 1)),
        [torch.randn(2, 3), torch.randn(2, 1)],
        {"x": torch.randn(2, 3), "scale": torch.randn(2, 1)},
        {"x": torch.randn(2, 3), "scale": torch.randn(2, 1), "shift": torch.randn(1)},
    ],
)
def test_inputs_come_as_tuple_list_or_dict(inputs: Any) -> None:
    (group,) = secateur.trace(Two(), inputs).groups
    assert group.size == 6


def test_the_first_input_tells_the_batch() -> None:
    for batch in (1, 2, 5):
        assert secateur.trace(Small(), torch.randn(batch, 3, 8, 8)).cost().macs == (
            6 * 3 * 9 * 36 + 6 * 4
        )


def test_eval_mode_is_traced_whatever_the_mode() -> None:
    def ops(model: nn.Module) -> list[str]:
        return [node.op for node in record(model, image()).nodes]

    model = Small()
    assert ops(model.train()) == ops(model.eval())
    assert not any("dropout" in op or "bernoulli" in op for op in ops(model))


def test_nodes_say_which_module_ran_them_and_how_often() -> None:
    model = nn.Sequential(nn.Linear(3, 5), nn.Sequential(nn.ReLU(), nn.Linear(5, 4)))
    nodes = [n for n in record(model, torch.randn(2, 3)).nodes if n.op == "aten.addmm"]
    assert [(n.module, n.turn) for n in nodes] == [("0", 0), ("1.1", 0)]
    assert [n.call.name for n in nodes if n.call] == ["linear", "linear"]


def test_nothing_is_noted_where_shapes_are_enough() -> None:
    assert secateur.trace(Small(), image()).notes == ()


def test_code_that_looks_at_values_is_traced_with_real_tensors_and_says_so() -> None:
    graph = secateur.trace(Chooses(), torch.randn(2, 3))
    assert len(graph.groups) == 1
    assert [note for note in graph.notes if "traced with real tensors" in note] == [graph.notes[0]]


def test_a_model_without_memory_can_be_traced() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(3, 1 << 20), nn.ReLU(), nn.Linear(1 << 20, 4))
    graph = secateur.trace(model, torch.randn(1, 3, device="meta"))
    assert [group.size for group in graph.groups] == [1 << 20]
    assert graph.cost().params == (3 + 1 + 4) * (1 << 20) + 4


def test_shapes_and_attributes_carry_their_expressions() -> None:
    class Seen(list[Any]):
        """A class of its own: the contents of plain lists are put back after a trace."""

    seen = Seen()

    class Looks(Small):
        def forward(self, x: Tensor) -> Tensor:
            h = self.a(x)
            seen.extend([h.shape[1], h.size(1), h.size()[1], h.size(-1), self.width, self.pads[1]])
            seen.extend([self.flag, self.scale, x.dim()])
            return super().forward(x)

    record(Looks(), image())
    values = seen[:9]
    assert values == [6, 6, 6, 6, 6, 2, True, 0.5, 4]
    dims = [expr_of(value) for value in values[:4]]
    assert dims[0] == dims[1] == dims[2] != dims[3]
    assert isinstance(dims[0], Dim)
    assert (dims[0].dim, dims[3].dim) == (1, 3)  # type: ignore[union-attr]
    assert [expr_of(value) for value in values[4:6]] == [Attr("width"), Attr("pads[1]")]
    assert not any(isinstance(value, Sized) for value in values[6:])


def test_integer_attributes_are_listed_by_path() -> None:
    found = integer_attributes(nn.Sequential(Small()))
    assert found["0.width"] == 6
    assert (found["0.pads[0]"], found["0.pads[1]"]) == (1, 2)
    assert found["0.a.out_channels"] == 6
    assert found["0.a.kernel_size[1]"] == 3
    assert not any(path.endswith((".scale", ".flag", ".training")) for path in found)


def test_a_copy_shares_nothing_and_keeps_ties() -> None:
    model = nn.ModuleDict({"a": nn.Linear(4, 4), "b": nn.Linear(4, 4)})
    model["b"].weight = model["a"].weight
    model["a"].twin = model["b"]
    made = copy_model(model, lambda name, t: nn.Parameter(t.detach().clone()))
    assert type(made) is nn.ModuleDict
    assert made["a"].weight is made["b"].weight
    assert made["a"].weight is not model["a"].weight
    assert made["a"].twin is made["b"]
    with torch.no_grad():
        made["a"].weight.zero_()
    assert model["a"].weight.abs().sum() > 0


def test_a_copy_is_what_deepcopy_would_give() -> None:
    model = nn.Sequential(Small(), nn.MaxPool2d(2), nn.MultiheadAttention(4, 2), nn.LSTM(3, 4))
    wanted = copy.deepcopy(model)
    made = copy_model(model, lambda name, t: copy.deepcopy(t))
    for (name, a), (other, b) in zip(made.named_modules(), wanted.named_modules(), strict=True):
        assert (name, type(a)) == (other, type(b))
        assert {k: repr(v) for k, v in vars(a).items() if not k.startswith("_")} == {
            k: repr(v) for k, v in vars(b).items() if not k.startswith("_")
        }
    assert made[0].pads is not model[0].pads
    assert made[0].table is not model[0].table


def test_a_class_with_its_own_copy_is_copied_its_own_way() -> None:
    class Own(nn.Linear):
        def __deepcopy__(self, memo: dict[int, Any]) -> Own:
            made = Own(self.in_features, self.out_features)
            made.note = "copied by its own code"
            return made

    made = copy_model(nn.Sequential(Own(3, 4)), lambda name, t: copy.deepcopy(t))
    assert made[0].note == "copied by its own code"


def test_map_tensors_rebuilds_containers_and_shares_what_was_shared() -> None:
    x = torch.ones(2)
    value = {"a": [x, (x, 3)], "b": "text"}
    made = map_tensors(value, lambda t: t + 1)
    assert made["a"][0] is made["a"][1][0]
    assert made["a"][0].tolist() == [2, 2]
    assert made["a"][1][1] == 3
    assert value["a"][0] is x
    assert x.tolist() == [1, 1]
