"""Tacotron 2 (Shen et al. 2018) with the parts of NVIDIA's published code, small.

Embedding, convolutions and a packed bidirectional LSTM; a decoder of two LSTM cells with
location-sensitive attention and a pre-net whose dropout is on in eval mode too; a post-net.
"""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from exactness import count, reached, relative_error
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import secateur

MELS, WIDTH = 5, 12


def conv_norm(inputs: int, outputs: int) -> nn.Sequential:
    conv = nn.Conv1d(inputs, outputs, 5, padding=2)
    return nn.Sequential(conv, nn.BatchNorm1d(outputs))


def mask_of(lengths: Tensor) -> Tensor:
    longest = torch.max(lengths).item()
    return torch.arange(longest) >= lengths[:, None]


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(conv_norm(WIDTH, WIDTH) for _ in range(2))
        self.lstm = nn.LSTM(WIDTH, WIDTH // 2, batch_first=True, bidirectional=True)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        for conv in self.convolutions:
            x = F.dropout(F.relu(conv(x)), 0.5, self.training)
        packed = pack_padded_sequence(x.transpose(1, 2), lengths.numpy(), batch_first=True)
        return pad_packed_sequence(self.lstm(packed)[0], batch_first=True)[0]


class Attention(nn.Module):
    def __init__(self, query: int, width: int = 14, filters: int = 6) -> None:
        super().__init__()
        self.query = nn.Linear(query, width, bias=False)
        self.memory = nn.Linear(WIDTH, width, bias=False)
        self.location_conv = nn.Conv1d(2, filters, 3, padding=1, bias=False)
        self.location = nn.Linear(filters, width, bias=False)
        self.energy = nn.Linear(width, 1, bias=False)

    def forward(
        self, hidden: Tensor, memory: Tensor, processed: Tensor, weights: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        place = self.location(self.location_conv(weights).transpose(1, 2))
        energy = self.energy(torch.tanh(self.query(hidden.unsqueeze(1)) + place + processed))
        energies = energy.squeeze(-1)
        energies.data.masked_fill_(mask, -float("inf"))
        found = F.softmax(energies, dim=1)
        return torch.bmm(found.unsqueeze(1), memory).squeeze(1), found


class Decoder(nn.Module):
    """State lies in attributes, as in the published code."""

    def __init__(self, dropout: float, query: int = 10, hidden: int = 16, pre: int = 8) -> None:
        super().__init__()
        self.dropout, self.query_width, self.hidden_width = dropout, query, hidden
        self.memory_width = WIDTH
        self.prenet = nn.ModuleList(nn.Linear(n, pre, bias=False) for n in (MELS, pre))
        self.attention_rnn = nn.LSTMCell(pre + WIDTH, query)
        self.attention = Attention(query)
        self.decoder_rnn = nn.LSTMCell(query + WIDTH, hidden)
        self.projection = nn.Linear(hidden + WIDTH, MELS)
        self.gate = nn.Linear(hidden + WIDTH, 1)

    def start(self, memory: Tensor) -> None:
        def state(width: int) -> Tensor:
            return memory.data.new(memory.size(0), width).zero_()

        self.query, self.query_cell = state(self.query_width), state(self.query_width)
        self.hidden, self.cell = state(self.hidden_width), state(self.hidden_width)
        self.weights, self.summed = state(memory.size(1)), state(memory.size(1))
        self.context = state(self.memory_width)
        self.memory, self.processed = memory, self.attention.memory(memory)

    def step(self, frame: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        read = torch.cat((frame, self.context), -1)
        self.query, self.query_cell = self.attention_rnn(read, (self.query, self.query_cell))
        weights = torch.cat((self.weights.unsqueeze(1), self.summed.unsqueeze(1)), dim=1)
        self.context, self.weights = self.attention(
            self.query, self.memory, self.processed, weights, mask
        )
        self.summed += self.weights
        read = torch.cat((self.query, self.context), -1)
        self.hidden, self.cell = self.decoder_rnn(read, (self.hidden, self.cell))
        out = torch.cat((self.hidden, self.context), dim=1)
        return self.projection(out), self.gate(out)

    def forward(self, memory: Tensor, mels: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        first = memory.data.new(memory.size(0), MELS).zero_()
        frames = torch.cat((first.unsqueeze(0), mels.permute(2, 0, 1)), dim=0)
        for layer in self.prenet:
            frames = F.dropout(F.relu(layer(frames)), self.dropout, training=True)
        self.start(memory)
        steps = [self.step(frame, mask) for frame in frames[:-1]]
        found, gates = zip(*steps, strict=True)
        return torch.stack(found).permute(1, 2, 0), torch.stack(gates).transpose(0, 1)


class Tacotron(nn.Module):
    def __init__(self, dropout: float = 0.5) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(17, WIDTH)
        self.encoder, self.decoder = Encoder(), Decoder(dropout)
        widths = (MELS, 10, 10, MELS)
        self.postnet = nn.ModuleList(map(conv_norm, widths[:-1], widths[1:]))

    def forward(self, text: Tensor, lengths: Tensor, mels: Tensor) -> tuple[Tensor, ...]:
        memory = self.encoder(self.embedding(text).transpose(1, 2), lengths)
        found, gates = self.decoder(memory, mels, mask_of(lengths))
        x = found
        for place, layer in enumerate(self.postnet):
            x = layer(x) if place == len(self.postnet) - 1 else torch.tanh(layer(x))
        return found, found + x, gates


def example(*lengths: int, frames: int = 4) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(frames)
    text = torch.randint(0, 17, (len(lengths), max(lengths)), generator=generator)
    mels = torch.randn(len(lengths), MELS, frames, generator=generator, dtype=torch.float64)
    return text, torch.tensor(lengths), mels


def halved(model: Tacotron, inputs: tuple[Tensor, ...]) -> tuple[secateur.Plan, nn.Module]:
    graph = secateur.trace(model, inputs)
    assert reached(graph) > 0.99
    plan = secateur.allocate(graph, secateur.score(graph, "random", seed=1), sparsity=0.5)
    return plan, secateur.cut(model, plan)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_it_is_cut_and_proved_with_the_same_draws(dtype: torch.dtype) -> None:
    """The pre-net's dropout draws in eval mode: another draw is no defect."""
    model, inputs = Tacotron().to(dtype).eval(), example(6, 4)
    inputs = (*inputs[:2], inputs[2].to(dtype))
    plan, pruned = halved(model, inputs)
    check = secateur.verify(model, pruned, plan, inputs)
    assert check.ok
    assert check.changed
    assert count(pruned) < 0.45 * count(model)


def test_the_cut_equals_the_network_masked_by_hand() -> None:
    """Columns that read removed units are zero; batch norms and cells mix no units."""
    model, inputs = Tacotron(dropout=0.0).double().eval(), example(6, 4)
    plan, pruned = halved(model, inputs)
    masked = copy.deepcopy(model)
    with torch.no_grad():
        for name, cuts in plan.cuts.items():
            weight = dict(masked.named_parameters()).get(name)
            if weight is not None and weight.dim() > 1 and 1 in cuts and "embedding" not in name:
                weight[:, list(cuts[1])] = 0.0
        # The context is made of the memory's columns: those that are removed end in no reader.
        for tested in (inputs, example(7, 5, 2, frames=6)):
            wanted = list(masked(*tested))
            assert relative_error(list(pruned(*tested)), wanted) < 1e-10
            assert relative_error(list(model(*tested)), wanted) > 1e-3
