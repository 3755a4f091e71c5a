"""Networks that are awkward: odd outputs, odd state, writes into views, and what must be refused.

Each is either cut exactly, whichever unit goes, or pinned, or refused with its reason;
and the caller's network is left as it was.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from exactness import LIMIT, call, differences, snapshot, train_once
from networks import randomise
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

import secateur
from secateur.errors import PlanError, SecateurError, TraceError
from secateur.planning import make_plan

Change = Callable[[Tensor], Tensor]


def rows(batch: int = 3) -> Tensor:
    """Return a batch of six features."""
    return torch.randn(
        (batch, 6), generator=torch.Generator().manual_seed(batch), dtype=torch.float64
    )


def images(batch: int = 2) -> Tensor:
    """Return a batch of small images with four channels."""
    generator = torch.Generator().manual_seed(batch)
    return torch.randn((batch, 4, 5, 5), generator=generator, dtype=torch.float64)


def plain() -> nn.Sequential:
    """Return the network that most tests make awkward."""
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 5)).double()


def cut_exactly(model: nn.Module, inputs: Any, *, trains: bool = True) -> Any:
    """Prove random halves and every single unit exact; return the graph."""
    randomise(model)
    before = snapshot(model)
    graph = secateur.trace(model, inputs)
    assert graph.groups
    halves = [
        {group.name: range(start, group.size, 2) for group in graph.groups} for start in (0, 1)
    ]
    singles = [{group.name: (unit,)} for group in graph.groups for unit in range(group.size)]
    cuts = 0
    for removed in (*halves, *singles):
        try:
            plan = make_plan(graph, removed)
        except PlanError:
            continue  # the model's own code needs it; said, not silent
        pruned = secateur.cut(model, plan)
        check = secateur.verify(model, pruned, plan, inputs)
        assert check.max_error <= LIMIT, (removed, check)
        # A single channel may be one that the network overwrites: dead, and free to go.
        assert check.changed or removed in singles, removed
        cuts += 1
    assert cuts
    if trains:
        assert train_once(pruned, inputs) == []
    assert differences(before, snapshot(model)) == []
    return graph


# --- outputs


class Answer(NamedTuple):
    first: Tensor
    second: Tensor


@dataclass
class Output:
    logits: Tensor
    more: dict[str, Any]
    name: str = "an output"


@dataclass(frozen=True)
class Frozen:
    logits: Tensor
    hidden: tuple[Tensor, ...]


class Returns(nn.Module):
    def __init__(self, make: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.body, self.one, self.two = nn.Linear(6, 8), nn.Linear(8, 5), nn.Linear(8, 4)
        self.make = make

    def forward(self, x: Tensor) -> Any:
        x = torch.sigmoid(self.body(x))
        return self.make(self.one(x), self.two(x))


OUTPUTS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "dataclass": lambda a, b: Output(a, {"b": b}),
    "frozen dataclass": lambda a, b: Frozen(a, (b,)),
    "dict": lambda a, b: {"a": a, "more": {"b": [b]}},
    "ordered dict": lambda a, b: OrderedDict(a=a, b=b),
    "nested tuple": lambda a, b: (a, (b, [None, {"again": b}], 3, "text")),
    "named tuple": Answer,
    "list": lambda a, b: [a, b],
    "the same twice": lambda a, b: (a, b, a),
    "loss and logits": lambda a, b: (a.square().mean(), a, b),
}


@pytest.mark.parametrize("name", OUTPUTS)
def test_every_tensor_of_the_output_counts(name: str) -> None:
    model = Returns(OUTPUTS[name]).double()
    graph = cut_exactly(model, rows())
    assert [group.size for group in graph.groups] == [8]


@pytest.mark.parametrize("nothing", [None, 3.0, "text", ()])
def test_an_output_without_a_tensor_is_refused(nothing: Any) -> None:
    with pytest.raises(TraceError, match="returns no tensor"):
        secateur.trace(Returns(lambda a, b: nothing).double(), rows())


def test_a_hidden_tensor_that_is_returned_stays_whole() -> None:
    class Shows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(8, 7), nn.Linear(7, 5)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            shown = torch.sigmoid(self.a(x))
            return self.c(torch.sigmoid(self.b(shown))), shown

    graph = cut_exactly(Shows().double(), rows())
    assert [(group.name, group.size) for group in graph.groups] == [("b", 7)]
    assert "the model's output" in {pin.reason for pin in graph.pinned if pin.name == "a.weight"}


# --- control flow that looks at values


class Chooses(nn.Module):
    def __init__(self, change: Change) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 5)
        self.change = change

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.change(torch.sigmoid(self.a(x))))


def checked(h: Tensor) -> Tensor:
    if not torch.isfinite(h).all():
        raise ValueError("not finite")
    return h


def loops(h: Tensor) -> Tensor:
    for _ in range(1 + int(h.shape[0] > 1 and h.sum().item() > -1e9)):
        h = h * 0.5
    return h


LOOKS: dict[str, Change] = {
    "item": lambda h: h * 2 if h.sum().item() > -1e9 else h,
    "truth": lambda h: h * 2 if (h >= 0).any() else h,
    "list": lambda h: h * len([v for v in h.sum(1).tolist() if v > -1e9]),
    "a loop": loops,
    "a mask": lambda h: h[h.sum(1) > -1e9],
    "nonzero": lambda h: h[(h.sum(1) > -1e9).nonzero().flatten()],
    "an assertion": checked,
}


@pytest.mark.parametrize("name", LOOKS)
def test_code_that_looks_at_values_runs_on_real_tensors_and_says_so(name: str) -> None:
    graph = cut_exactly(Chooses(LOOKS[name]).double(), rows())
    assert [group.size for group in graph.groups] == [8]
    assert any("traced with real tensors" in note for note in graph.notes)


def test_what_leaves_torch_is_pinned() -> None:
    class Leaves(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(8, 7), nn.Linear(7, 5)

        def forward(self, x: Tensor) -> Tensor:
            h = torch.sigmoid(self.b(torch.sigmoid(self.a(x))))
            return self.c(h + torch.from_numpy(h.detach().numpy() * 0.5))

    graph = cut_exactly(Leaves().double(), rows())
    assert [group.name for group in graph.groups] == ["a"]
    assert any("traced with real tensors" in note for note in graph.notes)


# --- operations of one's own


@torch.library.custom_op("secateur_tests::twice", mutates_args=())
def twice(x: Tensor) -> Tensor:
    return x * 2


@torch.library.custom_op("secateur_tests::thrice", mutates_args=())
def thrice(x: Tensor) -> Tensor:
    return x * 3


@thrice.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("secateur_tests::thrice_in_place", mutates_args=("x",))
def thrice_in_place(x: Tensor) -> None:
    x.mul_(3)


class Own(nn.Module):
    def __init__(self, change: Change) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(8, 7), nn.Linear(7, 5)
        self.change = change

    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.sigmoid(self.change(self.b(torch.sigmoid(self.a(x))))))


@pytest.mark.parametrize("own", [lambda h: twice(h), lambda h: thrice(h)], ids=["bare", "fake"])
def test_a_custom_operation_pins_what_it_touches(own: Change) -> None:
    graph = cut_exactly(Own(own).double(), rows(), trains=False)
    assert [group.name for group in graph.groups] == ["a"]
    reasons = {pin.reason for pin in graph.pinned if pin.name == "b.weight"}
    assert any("secateur_tests" in reason and "no rule" in reason for reason in reasons)


def test_a_custom_operation_that_writes_into_a_view_pins_that_view() -> None:
    def change(h: Tensor) -> Tensor:
        h = h.clone()
        thrice_in_place(h[:, :3])
        return h

    graph = cut_exactly(Own(change).double(), rows(), trains=False)
    assert [(group.name, group.size) for group in graph.groups] == [("a", 8), ("b", 4)]


def test_an_autograd_function_is_seen_through_its_operations() -> None:
    class Doubles(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x * 2

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:
            return gradient * 2

    graph = cut_exactly(Own(lambda h: Doubles.apply(h)).double(), rows())
    assert [group.size for group in graph.groups] == [8, 7]


# --- writes into views


class Writes(nn.Module):
    def __init__(self, change: Change) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(4, 8, 1), nn.Conv2d(8, 6, 1), nn.Conv2d(6, 5, 1)
        self.change = change

    def forward(self, x: Tensor) -> Tensor:
        h = torch.sigmoid(self.a(x)).clone()
        return self.c(torch.sigmoid(self.b(self.change(h))))


def statements(text: str) -> Change:
    """Return a function of ``h`` from statements that write into it or into ``o``."""

    def change(h: Tensor) -> Tensor:
        names = {"h": h, "torch": torch, "F": F}
        exec(text, names)
        return names.get("o", names["h"])

    return change


# What is left to cut of the eight channels is not asked: only that it is right.
WRITES = (
    "h[:, :3] = 0.5",
    "h[:, :4] = h[:, 4:]",
    "h[:, :4] *= h[:, 4:]",
    "h[:, ::2] += h[:, 1::2]",
    "h[:, 5] = h[:, 0] * 2",
    "h[:, [0, 2]] = h[:, [1, 3]]",
    "h[:, :, 1:3] = 0.1",
    "h[..., 0] = h[..., 1]",
    "h[h < 0.4] = 0.0",
    "m = h[:, :2]; m[m < 0.5] = 0.7",
    "t = h[:, 0].clone(); h[:, 0] = h[:, 1]; h[:, 1] = t",
    "a, b = h.chunk(2, 1); a.mul_(b)",
    "a, b = h.chunk(2, 1); a.mul_(2)",
    "a, b = h.split([3, 5], 1); b.sin_()",
    "h.unbind(1)[2].zero_()",
    "h[:, :3].masked_fill_(h[:, :3] > 0.5, 1.0)",
    "h.narrow(1, 2, 3).copy_(h.narrow(1, 0, 3))",
    "h.index_copy_(1, torch.tensor([1]), h[:, :1].clone())",
    "h = h.index_add(1, torch.tensor([0, 2]), h[:, :2])",
    "h.index_fill_(1, torch.tensor([3]), 0.2)",
    "h.scatter_(1, torch.zeros(2, 1, 5, 5, dtype=torch.long), 0.9)",
    "h.put_(torch.tensor([3, 40]), torch.tensor([1.0, 2.0], dtype=h.dtype))",
    "h.view(2, -1).mul_(torch.arange(200, dtype=h.dtype, device=h.device) / 200)",
    "h.view(2, -1)[:, :100] = 0.3",
    "h.reshape(2, 2, 4, 25)[:, 0] = 1.0",
    "h.view(16, 25).fill_diagonal_(0.4)",
    "h.diagonal(dim1=1, dim2=2).fill_(0.7)",
    "h.permute(0, 2, 3, 1).add_(torch.arange(8.0, dtype=h.dtype, device=h.device))",
    "v = h.transpose(1, 2); v[:, :2] = 1.0",
    "h.as_strided((2, 25), (200, 1), 25).fill_(0.4)",
    "h.unfold(1, 2, 2)[..., 0] = 0.3",
    "h.unsqueeze_(1); h[:, :, :2] = 0.2; h.squeeze_(1)",
    "a = h[:, :4]; b = h[:, 2:6]; a.add_(1); b.mul_(2)",
    "a = h[:, :4]; h.mul_(2.0).sin_(); o = torch.cat([a, a], 1)",
    "h.detach()[:, :2].fill_(1.0)",
    "h.data[:, :2] = 1.0",
    "o = torch.empty_like(h); torch.sin(h, out=o)",
    "o = torch.empty_like(h); torch.add(h, h.flip(1), out=o)",
    "o = torch.zeros_like(h); torch.mul(h[:, :4], 2.0, out=o[:, :4])",
    "o = torch.zeros(h.shape[0], 8, 5, 5, dtype=h.dtype, device=h.device); o[:, :8] = h",
    "o = h.new_zeros(h.shape[0], 8, 5, 5); o[:, 2:8] = h[:, :6]",
    "a, b = h.chunk(2, 1); torch._foreach_mul_([a, b], 2.0)",
    "o = h.new_empty(0); torch.add(h, 1, out=o)",
    "o = h.new_empty(0); o.set_(h); o[:, :3] = 0.1",
)


@pytest.mark.parametrize("text", WRITES)
def test_a_write_into_a_view_is_exact_or_pinned(text: str) -> None:
    # Some of them autograd refuses, in the dense network as in the cut one.
    graph = cut_exactly(Writes(statements(text)).double(), images(), trains=False)
    assert graph.groups[-1].name == "b"


def test_a_write_that_leaves_channels_alone_leaves_them_free() -> None:
    graph = secateur.trace(Writes(statements("h[:, :3] = 0.5")).double(), images())
    assert [(group.name, group.size) for group in graph.groups] == [("a", 5), ("b", 6)]


# --- modules that are used, shared, wrapped or changed


class Twice(nn.Module):
    """One module under two names, run three times."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 5)
        self.again = self.middle
        self.all = nn.ModuleList([self.middle, self.last])

    def forward(self, x: Tensor) -> Tensor:
        x = torch.sigmoid(self.middle(torch.sigmoid(self.first(x))))
        return self.all[1](torch.sigmoid(self.all[0](torch.sigmoid(self.again(x)))))


def test_a_module_used_several_times_is_cut_once_for_all() -> None:
    model = Twice().double()
    graph = cut_exactly(model, rows())
    assert [group.size for group in graph.groups] == [8]
    pruned = secateur.cut(model, make_plan(graph, {graph.groups[0].name: (0, 1)}))
    assert pruned.again is pruned.middle is pruned.all[0]
    assert pruned.middle.weight.shape == (6, 6)


class Positive(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight.abs()


def absolute(model: nn.Sequential) -> None:
    parametrize.register_parametrization(model[0], "weight", Positive())


PARAMETRIZED: dict[str, Callable[[nn.Sequential], Any]] = {
    "a function": absolute,
    "weight norm": lambda model: parametrizations.weight_norm(model[0]),
    "orthogonal": lambda model: parametrizations.orthogonal(model[2]),
    "masked by torch": lambda model: prune.l1_unstructured(model[0], "weight", amount=3),
}


@pytest.mark.parametrize("name", PARAMETRIZED)
def test_parametrized_weights_are_cut_or_pinned(name: str) -> None:
    model = plain()
    PARAMETRIZED[name](model)
    cut_exactly(model, rows())


def test_hooks_that_compute_are_part_of_the_network() -> None:
    model = plain()
    model[0].register_forward_hook(lambda module, args, out: out * 2 + 1)
    model[2].register_forward_pre_hook(lambda module, args: (args[0] + 0.5,))
    graph = cut_exactly(model, rows())
    assert [group.size for group in graph.groups] == [8]


def test_lazy_modules_must_have_run() -> None:
    model = nn.Sequential(nn.LazyLinear(8), nn.Tanh(), nn.LazyLinear(5)).double()
    with pytest.raises(SecateurError, match=r"(?i)uninitialized|not initialised"):
        secateur.trace(model, rows())
    model(rows())
    assert [group.size for group in cut_exactly(model, rows()).groups] == [8]


@pytest.mark.parametrize("model", [nn.Sequential(), nn.Sequential(nn.Tanh(), nn.Softmax(1))])
def test_there_is_nothing_to_cut_without_parameters(model: nn.Module) -> None:
    graph = secateur.trace(model, rows())
    assert graph.groups == ()
    with pytest.raises(PlanError, match="nothing can be cut"):
        secateur.prune(model, rows(), sparsity=0.5)


class Integers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.arange(12).reshape(3, 4))
        self.w = nn.Parameter(torch.arange(20).reshape(4, 5), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.table.T @ self.table @ self.w


def test_whole_numbers_are_traced() -> None:
    graph = secateur.trace(Integers(), torch.ones(2, 4, dtype=torch.long))
    assert graph.groups == ()
    assert {pin.name for pin in graph.pinned} == {"w"}


def test_tokens_alone_are_inputs_enough() -> None:
    class Bag(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.out = nn.Embedding(11, 8), nn.Linear(8, 5)

        def forward(self, tokens: Tensor) -> Tensor:
            return self.out(self.words(tokens).mean(1))

    graph = cut_exactly(Bag().double(), torch.arange(12).reshape(3, 4) % 11)
    assert [group.size for group in graph.groups] == [8]


# --- precision, shapes and modes of inputs and weights


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_precision_of_the_weights_stays(dtype: torch.dtype) -> None:
    model = plain().to(dtype)
    result = secateur.prune(model, rows().to(dtype), sparsity=0.5)
    assert result.check.ok
    assert result.check.changed
    assert {p.dtype for p in result.model.parameters()} == {dtype}
    assert result.model(rows().to(dtype)).dtype == dtype


@pytest.mark.parametrize("inputs", [rows(1), rows()[0], rows().requires_grad_(), [rows()]])
def test_odd_inputs_are_taken(inputs: Any) -> None:
    result = secateur.prune(randomise(plain()), inputs, sparsity=0.5)
    assert result.check.ok
    assert result.check.changed


def test_an_empty_batch_shows_nothing_so_that_others_are_drawn() -> None:
    result = secateur.prune(randomise(plain()), rows()[:0], sparsity=0.5)
    assert result.check.changed
    assert result.check.inputs == 2


def test_a_dimension_of_size_zero_is_left_alone() -> None:
    class Nothing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 5)
            self.none = nn.Parameter(torch.zeros(8, 0))

        def forward(self, x: Tensor) -> Tensor:
            return self.b(torch.sigmoid(self.a(x) + F.linear(x[:, :0], self.none)))

    model = Nothing().double()
    graph = secateur.trace(model, rows())
    plan = make_plan(graph, {graph.groups[0].name: (1, 4)})
    pruned = secateur.cut(model, plan)
    assert pruned.none.shape == (6, 0)
    assert secateur.verify(model, pruned, plan, rows()).ok


def test_a_network_in_train_mode_stays_so() -> None:
    model = nn.Sequential(
        nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Tanh(), nn.Linear(8, 5)
    )
    graph = cut_exactly(model.double().train(), rows())
    pruned = secateur.cut(model, make_plan(graph, {graph.groups[0].name: (0,)}))
    assert all(module.training for module in pruned.modules())


# --- networks that change something while they run


class Remembers(nn.Module):
    """Changes attributes, buffers and containers of its own on every pass, but not its output."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 5)
        self.calls = 0
        self.seen: list[Tensor] = []
        self.last: Tensor | None = None
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))
        self.register_buffer("mean", torch.zeros(8))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.sigmoid(self.a(x))
        self.calls += 1
        self.steps += 1
        self.mean.mul_(0.9).add_(h.detach().mean(0), alpha=0.1)
        self.last = h.detach()
        self.seen.append(h.detach())
        return self.b(h)


def test_what_a_network_remembers_is_left_as_it_was() -> None:
    model = Remembers().double()
    cut_exactly(model, rows())
    assert (model.calls, int(model.steps), model.seen, model.last) == (0, 0, [], None)


def test_inputs_that_a_network_overwrites_are_left_as_they_were() -> None:
    class Overwrites(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.mul_(2))

    inputs = rows()
    result = secateur.prune(randomise(Overwrites(*plain())), inputs, sparsity=0.5)
    assert result.check.ok
    assert torch.equal(inputs, rows())


def test_switches_that_a_network_sets_are_put_back() -> None:
    class Sets(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            torch.set_grad_enabled(False)
            return super().forward(x)

    assert secateur.trace(Sets(*plain()), rows()).groups
    assert torch.is_grad_enabled()


# --- wrapped and compiled networks


# PyTorch warns that its compiler does not see the hooks that watch modules run.
@pytest.mark.filterwarnings("ignore:Using `torch.compile:UserWarning")
def test_a_compiled_network_is_cut_and_still_runs() -> None:
    inner = randomise(plain())
    model = torch.compile(inner, backend="eager")
    model(rows())
    graph = secateur.trace(model, rows())
    plan = make_plan(graph, {graph.groups[0].name: (0, 1, 2)})
    pruned = secateur.cut(model, plan)
    assert secateur.verify(model, pruned, plan, rows()).ok
    reference = secateur.mask(inner, make_plan(secateur.trace(inner, rows()), {"0": (0, 1, 2)}))
    with torch.no_grad():
        assert torch.allclose(pruned(rows()), reference(rows()), rtol=1e-12)


def test_a_graph_module_is_cut() -> None:
    model = torch.fx.symbolic_trace(plain())
    assert [group.size for group in cut_exactly(model, rows()).groups] == [8]


def test_a_network_without_memory_is_planned() -> None:
    graph = secateur.trace(plain().to("meta"), rows())
    plan = make_plan(graph, {graph.groups[0].name: (0, 1)})
    assert plan.pruned.params == 6 * 6 + 6 + 6 * 5 + 5


def test_a_cut_network_can_be_copied_and_called() -> None:
    result = secateur.prune(randomise(plain()), rows(), sparsity=0.5)
    again = copy.deepcopy(result.model)
    assert torch.equal(call(again, rows())[0], call(result.model, rows())[0])
