"""Recurrent layers on padded and packed sequences, traced with real tensors too.

The oracle zeroes, in the dense network, the columns of every matrix that read a removed
unit: recurrence is linear in its hidden state, so nothing else is needed.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from exactness import count, relative_error
from torch import Tensor, nn
from torch.nn.utils.rnn import (
    PackedSequence,
    pack_padded_sequence,
    pack_sequence,
    pad_packed_sequence,
)

import secateur

INPUTS, HIDDEN = 6, 10
KINDS = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}


class Recurrent(nn.Module):
    """A dense front, a recurrent layer read as ``forward`` says, and a dense head."""

    def __init__(self, kind: str, forward: Callable[..., Tensor], **settings: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.front = nn.Linear(4, INPUTS)
        self.layer = KINDS[kind](INPUTS, HIDDEN, batch_first=True, **settings)
        width = settings.get("proj_size", 0) or HIDDEN
        self.head = nn.Linear(width * (1 + settings.get("bidirectional", False)), 3)
        self.run = forward
        self.double().eval()

    def packed(self, x: Tensor, lengths: Any) -> PackedSequence:
        return pack_padded_sequence(self.front(x), lengths, batch_first=True, enforce_sorted=False)

    def forward(self, *inputs: Any) -> Tensor:
        return self.run(self, *inputs)


def with_values(net: Recurrent, x: Tensor) -> Tensor:
    """Look at a value, which fakes do not have."""
    if bool((x > 1e9).any()):
        raise ValueError
    return net.head(net.layer(net.front(x))[0])


def last_state(net: Recurrent, x: Tensor, lengths: Tensor) -> Tensor:
    state = net.layer(net.packed(x, lengths))[1]
    return net.head((state[0] if isinstance(state, tuple) else state)[-1])


def padded_again(net: Recurrent, x: Tensor, lengths: Tensor) -> Tensor:
    out, _ = pad_packed_sequence(net.layer(net.packed(x, lengths))[0], batch_first=True)
    return net.head(out)


def mean_of_steps(net: Recurrent, x: Tensor, lengths: Tensor) -> Tensor:
    out, found = pad_packed_sequence(net.layer(net.packed(x, lengths))[0], batch_first=True)
    return net.head(out.sum(1) / found[:, None])


def last_step(net: Recurrent, x: Tensor, lengths: Tensor) -> Tensor:
    out, found = pad_packed_sequence(net.layer(net.packed(x, lengths))[0], batch_first=True)
    return net.head(out[torch.arange(len(out)), found - 1])


def first_state_given(net: Recurrent, x: Tensor, lengths: Tensor) -> Tensor:
    layers = net.layer.num_layers * (1 + net.layer.bidirectional)
    zeros = torch.zeros(layers, len(x), net.layer.hidden_size, dtype=x.dtype)
    start = (zeros, zeros) if isinstance(net.layer, nn.LSTM) else zeros
    out, _ = pad_packed_sequence(net.layer(net.packed(x, lengths), start)[0], batch_first=True)
    return net.head(out)


def head_on_packed_steps(net: Recurrent, x: Tensor, lengths: Tensor) -> Tensor:
    out = net.layer(net.packed(x, lengths))[0]
    return pad_packed_sequence(PackedSequence(net.head(out.data), *out[1:]), batch_first=True)[0]


def packed_by_the_caller(net: Recurrent, steps: PackedSequence) -> Tensor:
    out = net.layer(PackedSequence(net.front(steps.data), *steps[1:]))[0]
    return pad_packed_sequence(PackedSequence(net.head(out.data), *out[1:]))[0]


def steps(batch: int) -> Tensor:
    generator = torch.Generator().manual_seed(batch)
    return torch.randn(batch, 5, 4, generator=generator, dtype=torch.float64)


def padded(*lengths: int) -> tuple[Tensor, Tensor]:
    return steps(len(lengths)), torch.tensor(lengths)


def packed(*lengths: int) -> PackedSequence:
    parts = [x[:n] for x, n in zip(steps(len(lengths)), lengths, strict=True)]
    return pack_sequence(parts, enforce_sorted=False)


Example = Callable[..., Any]
LAYERS: dict[str, dict[str, Any]] = {
    "": {},
    "two_ways": {"bidirectional": True},
    "two_layers": {"num_layers": 2, "bias": False, "dropout": 0.5},
}
CASES: dict[str, tuple[Callable[[], Recurrent], Any, Any]] = {
    f"{kind} {forward.__name__} {layers}".strip(): (
        lambda kind=kind, forward=forward, layers=layers: Recurrent(
            kind, forward, **LAYERS[layers]
        ),
        padded(2, 5, 3),
        padded(4, 1),
    )
    for kind in KINDS
    for layers in LAYERS
    for forward in (padded_again, mean_of_steps, last_step, first_state_given, head_on_packed_steps)
}
CASES |= {
    f"{kind} last_state": (lambda kind=kind: Recurrent(kind, last_state), padded(2, 5), padded(3))
    for kind in KINDS
}
CASES |= {
    f"{kind} packed_by_the_caller": (
        lambda kind=kind: Recurrent(kind, packed_by_the_caller), packed(2, 5, 3), packed(1, 4),
    )
    for kind in KINDS
}  # fmt: skip
CASES |= {
    "lstm projected": (
        lambda: Recurrent("lstm", padded_again, proj_size=7), padded(2, 5, 3), padded(4, 1),
    ),
    "lstm projected two_ways": (
        lambda: Recurrent("lstm", padded_again, proj_size=7, bidirectional=True),
        padded(2, 5, 3),
        padded(4, 1),
    ),
}  # fmt: skip


def masked_by_hand(model: nn.Module, plan: Any) -> nn.Module:
    """Return the dense network with the columns of removed units zero."""
    masked = copy.deepcopy(model)
    named = dict(masked.named_parameters())
    with torch.no_grad():
        for name, cuts in plan.cuts.items():
            if named[name].dim() == 2 and 1 in cuts:
                named[name][:, list(cuts[1])] = 0.0
    return masked


def arguments(inputs: Any) -> tuple[Any, ...]:
    """A packed sequence is one argument although it is a tuple."""
    return inputs if type(inputs) is tuple else (inputs,)


def agree(model: nn.Module, inputs: Any, others: Any) -> Any:
    """Cut a random half of every group; compare with the oracle, at other lengths too."""
    graph = secateur.trace(model, inputs)
    plan = secateur.allocate(graph, secateur.score(graph, "random", seed=1), sparsity=0.5)
    assert plan.given_back == {}
    pruned = secateur.cut(model, plan)
    check = secateur.verify(model, pruned, plan, inputs)
    assert check.ok
    assert check.changed
    reference = masked_by_hand(model, plan)
    for example in (inputs, others):
        with torch.no_grad():
            wanted = reference(*arguments(example))
            assert relative_error([pruned(*arguments(example))], [wanted]) <= 1e-10
            assert relative_error([model(*arguments(example))], [wanted]) > 1e-3
    return pruned


@pytest.mark.parametrize("name", CASES)
def test_packed_sequences_are_cut_as_padded_ones(name: str) -> None:
    build, inputs, others = CASES[name]
    model = build()
    assert count(agree(model, inputs, others)) < 0.45 * count(model)


@pytest.mark.parametrize("settings", LAYERS.values(), ids=LAYERS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_trace_with_real_tensors_frees_what_one_without_does(
    kind: str, settings: dict[str, Any]
) -> None:
    model = Recurrent(kind, with_values, **settings)
    model.float()  # in float64 PyTorch does not compute a whole LSTM as one operation
    x = steps(3).float()
    graph = secateur.trace(model, x)
    assert graph.program.way == "real"
    plain = Recurrent(kind, lambda net, x: net.head(net.layer(net.front(x))[0]), **settings)
    wanted = secateur.trace(plain, steps(3))
    assert wanted.program.way == "meta"
    assert [(g.name, g.size, g.kind) for g in graph.groups] == [
        (g.name, g.size, g.kind) for g in wanted.groups
    ]
    agree(model.double(), steps(3), steps(2))


def test_a_masked_lstm_whose_weights_are_computed_is_exact_in_float32() -> None:
    """A product inside an LSTM is masked as it runs: a fused layer would hide it."""
    model = Recurrent("lstm", with_values).float()
    nn.utils.parametrizations.weight_norm(model.layer, "weight_hh_l0", dim=0)
    x = steps(3).float()
    graph = secateur.trace(model, x)
    plan = secateur.allocate(graph, secateur.score(graph, "random", seed=1), sparsity=0.5)
    pruned, masked = secateur.cut(model, plan), secateur.mask(model, plan)
    with torch.no_grad():
        assert relative_error([masked(x)], [pruned(x)]) < 1e-5
        assert relative_error([model(x)], [pruned(x)]) > 1e-3


class BlockDiagonal(nn.Module):
    """A recurrent cell whose heads have a matrix each for every gate, as in sLSTM."""

    def __init__(self, heads: int = 3, width: int = 4) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.heads, self.width = heads, width
        self.inputs = nn.Linear(4, 2 * heads * width)
        self.recurrent = nn.Parameter(torch.randn(2, heads, width, width) / 2)
        self.head = nn.Linear(heads * width, 3)
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        gates = self.inputs(x).view(*x.shape[:2], 2, self.heads, self.width)
        state = torch.zeros(len(x), self.heads, self.width, dtype=x.dtype)
        for step in gates.unbind(1):
            read = torch.einsum("bhd,ghde->bghe", state, self.recurrent) + step
            state = torch.sigmoid(read[:, 0]) * state + torch.tanh(read[:, 1])
        return self.head(state.reshape(len(x), -1))


def test_a_weight_read_by_einsum_is_masked_at_every_length() -> None:
    """Its rows are zeroed themselves: products that a longer sequence adds are masked too."""
    model = BlockDiagonal()
    graph = secateur.trace(model, steps(3))
    assert sorted(group.size for group in graph.groups) == [3, 4]
    plan = secateur.allocate(graph, secateur.score(graph, "random", seed=1), sparsity=0.5)
    assert plan.masks == ()
    pruned, masked = secateur.cut(model, plan), secateur.mask(model, plan)
    for length in (5, 9):
        x = torch.randn(2, length, 4, dtype=torch.float64)
        by_hand = copy.deepcopy(model)
        with torch.no_grad():
            heads, inner = (
                list(plan.cuts["recurrent"][d]) for d in (1, 2)
            )  # what a state that is zero there would read
            by_hand.recurrent[:, heads] = 0.0
            by_hand.recurrent[:, :, inner] = 0.0
            by_hand.head.weight[:, list(plan.cuts["head.weight"][1])] = 0.0
            wanted = by_hand(x)
            assert relative_error([pruned(x)], [wanted]) < 1e-12
            assert relative_error([masked(x)], [wanted]) < 1e-12
            assert relative_error([model(x)], [wanted]) > 1e-2
