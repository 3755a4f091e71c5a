"""Dense and pruned side by side: every figure against what it is made of."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix, f1_score
from torch import Tensor, nn

import secateur
from secateur.facts import facts_of
from secateur.footprint import peak_memory
from secateur.measure import answers, sparse_bytes
from secateur.models import digits_cnn
from secateur.pairing import mcnemar
from secateur.results import Facts, build_record

CLASSES = [str(digit) for digit in range(10)]


@pytest.fixture(scope="module")
def pair() -> tuple[nn.Module, nn.Module, list[tuple[Tensor, Tensor]]]:
    torch.manual_seed(0)
    dense = digits_cnn().eval()
    pruned = secateur.prune(dense, torch.zeros(2, 1, 8, 8), sparsity=0.5).model
    labels = torch.arange(60) % 10
    return dense, pruned, [(torch.randn(60, 1, 8, 8), labels)]


def test_figures_are_those_of_the_parts(
    pair: tuple[nn.Module, nn.Module, list[tuple[Tensor, Tensor]]],
) -> None:
    dense, pruned, loader = pair
    example = torch.zeros(1, 1, 8, 8)
    found = facts_of(dense, pruned, loader, "test", CLASSES, example, batch=2, repeats=3)
    before, after = answers(dense, loader, "test"), answers(pruned, loader, "test")
    assert found.paired == mcnemar(before, after)
    for place, one in ((2, before), (3, after)):
        wanted = confusion_matrix(one.labels, one.predicted, labels=range(10))
        counted = np.zeros((10, 10), dtype=int)
        for pair_ in found.confusion:
            counted[pair_[0], pair_[1]] = pair_[place]
        assert np.array_equal(counted, wanted)
    assert all(pair_[2] or pair_[3] for pair_ in found.confusion)
    wanted_f1 = f1_score(before.labels, before.predicted, average=None, zero_division=0)
    assert [one.f1 or 0.0 for one in found.dense_classes] == pytest.approx(list(wanted_f1))
    assert found.sparse == (sparse_bytes(dense), sparse_bytes(pruned))
    inputs = torch.zeros(2, 1, 8, 8)
    assert found.memory == (peak_memory(dense, inputs), peak_memory(pruned, inputs))
    assert [one.layer for one in found.layers] == [
        name for name, module in dense.named_modules() if not list(module.children())
    ]
    assert all(one.dense > 0 and one.pruned > 0 for one in found.layers)
    assert (found.batch, found.threads, found.split) == (2, 1, "test")


def test_facts_survive_their_file(
    pair: tuple[nn.Module, nn.Module, list[tuple[Tensor, Tensor]]], tmp_path: Path
) -> None:
    found = facts_of(*pair, "test", CLASSES, torch.zeros(1, 1, 8, 8), repeats=1)
    assert build_record(Facts, json.loads(json.dumps(asdict(found)))) == found
