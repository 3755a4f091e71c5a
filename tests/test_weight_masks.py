"""Masks of single weights: exact counts, ties, N:M runs, what is maskable, zeros that hold."""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from exactness import differences, snapshot
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import secateur
from secateur.criteria.elements import ELEMENTWISE, element_scores
from secateur.errors import InputError, PlanError
from secateur.measure import weight_bytes
from secateur.weight_masks import input_dims, lowest_masked


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8),
        nn.ReLU(), nn.Flatten(), nn.Linear(32, 5),
    ).eval()  # fmt: skip


def image() -> Tensor:
    torch.manual_seed(1)
    return torch.randn(4, 3, 6, 6)


def batches() -> list[tuple[Tensor, Tensor]]:
    return [(image(), torch.tensor([0, 4, 2, 1]))]


def zeros(model: nn.Module) -> int:
    return sum(int((p == 0).sum()) for p in model.parameters())


# --- oracles: plain lists, no tensors ---


def lowest(values: list[float], count: int) -> set[int]:
    """The positions of the ``count`` lowest, the earlier of equals first."""
    return set(sorted(range(len(values)), key=lambda i: (values[i], i))[:count])


def runs_by_loops(scores: Tensor, dim: int, keep: int, run: int) -> Tensor:
    kept = torch.zeros(scores.shape, dtype=torch.bool)
    others = [range(n) if d != dim else (0,) for d, n in enumerate(scores.shape)]
    places: list[tuple[int, ...]] = [()]
    for choices in others:
        places = [(*place, c) for place in places for c in choices]
    for place in places:
        for start in range(0, scores.shape[dim], run):
            line = [
                (*place[:dim], i, *place[dim + 1 :])
                for i in range(start, min(start + run, scores.shape[dim]))
            ]
            values = [float(scores[p]) for p in line]
            gone = lowest(values, max(0, len(line) - keep))
            for i, p in enumerate(line):
                kept[p] = i not in gone
    return kept


# --- counts and ties ---


@settings(max_examples=80, deadline=None)
@given(
    tensors=st.lists(
        st.lists(st.integers(-3, 3).map(float), min_size=1, max_size=30), min_size=1, max_size=4
    ),
    hundredths=st.integers(0, 99),
    scope=st.sampled_from(["local", "global"]),
)
def test_the_lowest_go_in_exact_numbers(
    tensors: list[list[float]], hundredths: int, scope: str
) -> None:
    """Few distinct values: nearly everything is a tie."""
    scores = {str(i): torch.tensor(values).reshape(1, -1) for i, values in enumerate(tensors)}
    masks = lowest_masked(scores, hundredths / 100, scope)
    found = [[not kept for kept in mask.reshape(-1).tolist()] for mask in masks.values()]
    share = Fraction(hundredths, 100)
    if scope == "local":
        for values, gone in zip(tensors, found, strict=True):
            wanted = lowest(values, math.floor(share * len(values)))
            assert {i for i, g in enumerate(gone) if g} == wanted
    else:
        joined = [v for values in tensors for v in values]
        wanted = lowest(joined, math.floor(share * len(joined)))
        assert {i for i, g in enumerate(g for gone in found for g in gone) if g} == wanted


@pytest.mark.parametrize("scope", ["local", "global"])
def test_the_result_counts_what_is_zero(scope: str) -> None:
    model = network()
    result = secateur.sparsify(model, "l1", 0.37, scope=scope)
    sizes = [8 * 3 * 9, 8 * 9, 32 * 5]
    parts = [math.floor(Fraction(37, 100) * n) for n in sizes]
    wanted = sum(parts) if scope == "local" else math.floor(Fraction(37, 100) * sum(sizes))
    whole = sum(p.numel() for p in model.parameters())
    # The fresh batch norm's biases are zeros of their own.
    assert zeros(result.model) - zeros(model) == wanted == result.removed
    assert (result.maskable, result.params) == (sum(sizes), whole)
    assert result.sparsity == wanted / sum(sizes)
    assert result.param_sparsity == wanted / whole
    if scope == "local":
        assert [int((~mask).sum()) for mask in result.masks.values()] == parts


@pytest.mark.parametrize("name", sorted(ELEMENTWISE))
@pytest.mark.parametrize("scope", ["local", "global"])
def test_every_elementwise_criterion_decides(name: str, scope: str) -> None:
    model = network()
    data = batches() if ELEMENTWISE[name].needs_calibration else None
    before = snapshot(model)
    result = secateur.sparsify(
        model, name, 0.5, scope=scope, calibration=data, example_inputs=image(), seed=2
    )
    assert differences(before, snapshot(model)) == []
    scores = element_scores(model, name, data, seed=2, example_inputs=image())
    groups = [["0.weight"], ["3.weight"], ["6.weight"]]
    if scope == "global":
        groups = [[n for (n,) in groups]]
    for names in groups:
        values = [float(v) for n in names for v in scores[n].reshape(-1)]
        kept = [bool(k) for n in names for k in result.masks[n].reshape(-1)]
        assert {i for i, k in enumerate(kept) if not k} == lowest(values, len(values) // 2)
    for key, parameter in result.model.named_parameters():
        mask = result.masks.get(key, torch.ones_like(parameter, dtype=torch.bool))
        assert torch.equal(parameter, dict(model.named_parameters())[key] * mask)


def test_nothing_goes_at_zero() -> None:
    result = secateur.sparsify(network(), "l1", 0.0)
    assert result.removed == 0
    assert all(bool(mask.all()) for mask in result.masks.values())


# --- N:M ---


@pytest.mark.parametrize("pattern", ["2:4", "1:4", "1:2", "3:4", "4:8", "2:5"])
@pytest.mark.parametrize(
    "layer",
    [
        nn.Linear(16, 6), nn.Linear(10, 3), nn.Conv2d(8, 4, 3), nn.Conv2d(3, 4, 3),
        nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(16, 8, 1, groups=2), nn.Conv1d(6, 4, 5),
        nn.ConvTranspose2d(8, 6, 2),
    ],
    ids=str,
)  # fmt: skip
def test_runs_keep_the_highest(layer: nn.Module, pattern: str) -> None:
    torch.manual_seed(0)
    nn.init.normal_(layer.weight)
    dim = 0 if isinstance(layer, nn.ConvTranspose2d) else 1
    keep, run = (int(part) for part in pattern.split(":"))
    result = secateur.sparsify(nn.Sequential(layer), "l1", pattern=pattern)
    wanted = runs_by_loops(layer.weight.detach().abs(), dim, keep, run)
    assert torch.equal(result.masks["0.weight"], wanted)
    assert result.removed == int((~wanted).sum())


def test_ties_in_a_run_go_by_position() -> None:
    layer = nn.Linear(9, 1)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 1, 1, 1, 2, 1, 2, 1, 5]]))
    mask = secateur.sparsify(layer, "l1", pattern="2:4").masks["weight"]
    assert mask.int().tolist() == [[0, 0, 1, 1, 1, 0, 1, 0, 1]]


def test_two_of_four_is_half_where_runs_are_whole() -> None:
    result = secateur.sparsify(nn.Sequential(nn.Linear(16, 8), nn.Conv2d(4, 4, 3)), pattern="2:4")
    assert result.sparsity == 0.5


# --- what may be masked ---


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(10, 6)
        self.attention = nn.MultiheadAttention(6, 2)
        self.norm = nn.LayerNorm((6, 6))
        self.scale = nn.Parameter(torch.rand(6, 6))
        self.up = nn.ConvTranspose1d(6, 6, 3)
        self.memory = nn.GRU(6, 6)
        self.body = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
        self.head = nn.Linear(6, 10)
        self.head.weight = self.table.weight


def test_what_may_be_masked() -> None:
    """A head tied to an embedding is an embedding."""
    assert input_dims(Mixed()) == {
        "attention.in_proj_weight": 1,
        "attention.out_proj.weight": 1,
        "up.weight": 0,
        "body.0.weight": 1,
        "body.1.weight": 1,
    }


@pytest.mark.parametrize(
    ("patterns", "gone"),
    [
        (["up.weight"], {"up.weight"}),
        (["body"], {"body.0.weight", "body.1.weight"}),
        (["attention.*"], {"attention.in_proj_weight", "attention.out_proj.weight"}),
        (["*.1", "up"], {"body.1.weight", "up.weight"}),
    ],
)
def test_protected_weights_stay_whole(patterns: list[str], gone: set[str]) -> None:
    model = Mixed()
    assert set(input_dims(model)) - set(input_dims(model, protect=patterns)) == gone
    result = secateur.sparsify(model, "l1", 0.5, protect=patterns)
    assert not set(result.masks) & gone
    for name in gone:
        assert torch.equal(
            dict(result.model.named_parameters())[name], dict(model.named_parameters())[name]
        )


def test_more_may_be_included() -> None:
    result = secateur.sparsify(Mixed(), "l1", 0.5, include=["table", "memory.weight_*"])
    assert {"table.weight", "memory.weight_ih_l0", "memory.weight_hh_l0"} < set(result.masks)
    assert result.model.head.weight is result.model.table.weight


# --- holding and storing zeros ---


def test_zeros_hold_through_training() -> None:
    result = secateur.sparsify(network(), "l1", 0.8)
    model = result.model.train()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    for inputs, labels in batches() * 3:
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(inputs), labels).backward()
        optimiser.step()
        secateur.apply_masks(model, result.masks)
    for name, mask in result.masks.items():
        weight = dict(model.named_parameters())[name]
        assert not weight[~mask].any()
        assert bool((weight[mask] != 0).all())


def test_masks_come_back_from_a_saved_network(tmp_path: Path) -> None:
    result = secateur.sparsify(network(), "l1", 0.8)
    secateur.save(result.model, tmp_path)
    loaded = secateur.load(tmp_path)
    assert torch.equal(loaded(image()), result.model(image()))
    masks = secateur.find_masks(loaded)
    assert masks.keys() == result.masks.keys()
    assert all(torch.equal(masks[name], result.masks[name]) for name in masks)
    assert secateur.find_masks(network()) == {}


def test_zeros_make_the_gzipped_file_smaller_and_the_raw_one_not() -> None:
    model = nn.Sequential(nn.Linear(128, 128), nn.Linear(128, 10))
    dense, sparse = (weight_bytes(m) for m in (model, secateur.sparsify(model, "l1", 0.9).model))
    assert sparse[0] == dense[0]
    assert sparse[1] < 0.3 * dense[1]


def test_in_place_and_not() -> None:
    model = network()
    before = snapshot(model)
    copy = secateur.sparsify(model, "l1", 0.5)
    assert differences(before, snapshot(model)) == []
    assert copy.model is not model
    same = secateur.sparsify(model, "l1", 0.5, inplace=True)
    assert same.model is model
    for left, right in zip(model.parameters(), copy.model.parameters(), strict=True):
        assert torch.equal(left, right)


def test_masked_networks_can_be_cut() -> None:
    sparse = secateur.sparsify(network(), "l1", 0.5).model
    result = secateur.prune(sparse, image(), sparsity=0.5)
    assert result.check.ok


# --- bad input ---


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, "exactly one of sparsity, pattern must be given, but got none"),
        ({"sparsity": 0.5, "pattern": "2:4"}, "exactly one of .* but got sparsity, pattern"),
        ({"sparsity": 1.0}, "sparsity must satisfy 0 <= sparsity < 1, but got 1.0"),
        ({"sparsity": math.nan}, "sparsity must satisfy .* but got nan"),
        ({"sparsity": 0.5, "scope": "all"}, "scope must be one of local, global, but got 'all'"),
        ({"pattern": "4:2"}, "pattern must be 'N:M' with 0 < N < M, but got '4:2'"),
        ({"pattern": "0:2"}, "pattern must be 'N:M'"),
        ({"pattern": "2"}, "pattern must be 'N:M'"),
        ({"criterion": "l3", "sparsity": 0.5}, "element-wise criterion must be one of .*'l3'"),
        ({"criterion": "taylor", "sparsity": 0.5}, "'taylor' needs calibration"),
        ({"sparsity": 0.5, "protect": ["6.wight"]}, "protect .* '6.wight' .* are 6.weight"),
        ({"sparsity": 0.5, "include": ["1"]}, "include .* '1' matches nothing"),
        ({"sparsity": 0.5, "protect": "6"}, "protect must be a list of patterns"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        secateur.sparsify(network(), **arguments)


def test_nothing_to_mask_and_masks_that_do_not_fit() -> None:
    with pytest.raises(PlanError, match="no weights of convolutions or dense layers"):
        secateur.sparsify(nn.BatchNorm1d(3), "l1", 0.5)
    with pytest.raises(PlanError, match=r"'0\.wight', which the model does not have"):
        secateur.apply_masks(network(), {"0.wight": torch.ones(1, dtype=torch.bool)})
    with pytest.raises(PlanError, match=r"mask of '0.weight' must be bool \(8, 3, 3, 3\)"):
        secateur.apply_masks(network(), {"0.weight": torch.ones(8, dtype=torch.bool)})


class TwoDense(nn.Module):
    """Two dense layers, written the usual way or as GPT-2 writes them."""

    def __init__(self, a: nn.Module, b: nn.Module) -> None:
        super().__init__()
        self.a, self.b = a, b

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.b(self.a(x).relu())
        return out


@pytest.mark.parametrize("criterion", ["l1", "wanda", "taylor"])
@pytest.mark.parametrize("how", [{"sparsity": 0.5}, {"pattern": "2:4"}])
def test_turned_dense_layers_lose_the_same_weights(criterion: str, how: dict[str, Any]) -> None:
    conv1d = pytest.importorskip("transformers.pytorch_utils").Conv1D
    torch.manual_seed(0)
    usual = TwoDense(nn.Linear(8, 12), nn.Linear(12, 4))
    turned = TwoDense(conv1d(12, 8), conv1d(4, 12))
    for name, parameter in turned.named_parameters():
        parameter.data = usual.get_parameter(name).data.t().clone()
    batches = [(torch.randn(6, 8), torch.randint(0, 4, (6,)))]
    common = {"calibration": batches, "example_inputs": batches[0][0], "scope": "local", **how}
    if "pattern" in how:
        del common["scope"]
    wanted = secateur.sparsify(usual, criterion, **common).masks
    found = secateur.sparsify(turned, criterion, **common).masks
    assert set(found) == set(wanted) == {"a.weight", "b.weight"}
    for name, mask in wanted.items():
        assert torch.equal(found[name], mask.T), name
