"""Maps of samples apart, and the statistics of units."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from secateur.errors import InputError
from secateur.relevance.maps import STATISTICS, Average, unit_statistic
from secateur.relevance.positions import Span, spans
from secateur.relevance.recording import record_steps

# Two positions of a channel's map each; units 0 and 1 own channels 0, 2 and 1; 3 is no one's.
MAP = torch.tensor([[1.0, -4.0], [2.0, 3.0], [0.5, 0.0], [100.0, 100.0]], dtype=torch.float64)
UNITS = torch.tensor([0, 1, 0, -1])
EXPECTED = {
    "mean": [-2.5 / 4, 2.5],
    "mean_abs": [5.5 / 4, 2.5],
    "max": [1, 3],
    "max_abs": [4, 3],
    "min": [-4, 2],
    "min_abs": [0, 2],
}


@pytest.mark.parametrize("statistic", STATISTICS)
def test_each_statistic_worked_out_by_hand(statistic: str) -> None:
    assert unit_statistic(MAP, UNITS, 2, statistic).tolist() == EXPECTED[statistic]


class Windows(nn.Module):
    """Moves the samples about: tokens first, merged with heads, merged with windows."""

    def forward(self, x: Tensor) -> Tensor:
        y = x.transpose(0, 1).contiguous()  # [tokens, samples, width]
        y = y.view(6, x.shape[0] * 2, 2).transpose(0, 1)  # [samples x heads, tokens, 2]
        return y.reshape(x.shape[0] * 2 * 3, 2, 2)


def test_samples_are_followed_through_views() -> None:
    samples = 5
    mark = torch.arange(samples, dtype=torch.float64)[:, None, None].expand(samples, 6, 4)
    recording = record_steps(Windows(), mark.contiguous())
    span = spans(recording)[recording.outputs[0]]
    assert span is not None
    values = Windows()(mark)
    parts = values.movedim(span.dim, 0).reshape(-1, samples, span.inner, 4)
    for sample in range(samples):
        assert bool((parts[:, sample] == sample).all())


@pytest.mark.parametrize("statistic", STATISTICS)
def test_batches_add_up_to_one_map(statistic: str) -> None:
    relevance = torch.randn(5, 4, 3, 2, dtype=torch.float64)
    whole, parts = Average(statistic), Average(statistic)
    whole.add(relevance, 1, Span(0, 1), 5, "here")
    for part in relevance.split([1, 3, 1]):
        parts.add(part, 1, Span(0, 1), len(part), "here")
    assert whole.total is not None
    assert parts.total is not None
    torch.testing.assert_close(whole.total, parts.total, rtol=1e-12, atol=1e-12)
    expected = relevance.sum(0).reshape(4, 6)
    expected = expected.mean(1, keepdim=True) if statistic == "mean" else expected
    torch.testing.assert_close(whole.total, expected, rtol=1e-12, atol=1e-12)


def test_maps_of_two_sizes_are_refused() -> None:
    average = Average("max")
    average.add(torch.ones(2, 3, 4), 1, Span(0, 1), 2, "conv 1")
    with pytest.raises(InputError, match=r"one size.*conv 1"):
        average.add(torch.ones(2, 3, 5), 1, Span(0, 1), 2, "conv 1")


def test_samples_that_cannot_be_told_apart_are_refused() -> None:
    with pytest.raises(InputError, match="cannot be told apart at conv 1"):
        Average("max").add(torch.ones(2, 3), 1, None, 2, "conv 1")
