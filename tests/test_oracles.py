"""Cuts against networks pruned by hand, without the algebra (``oracles``)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from exactness import LIMIT, outputs, relative_error
from oracles import ORACLES, Oracle, blanked, dropped, model_of, state_of

import secateur
from secateur.planning import make_plan


@pytest.fixture(params=ORACLES)
def oracle(request: pytest.FixtureRequest) -> Oracle:
    """Each oracle in turn."""
    return ORACLES[request.param]


def found_units(
    graph: Any, name: str, dim: int, positions: tuple[int, ...]
) -> dict[str, tuple[int, ...]]:
    """Return the units, by group, that occupy exactly these positions of a weight."""
    found: dict[str, tuple[int, ...]] = {}
    covered: set[int] = set()
    for group in graph.groups:
        for slot in group.slots:
            if (slot.name, slot.dim) != (name, dim):
                continue
            for unit in range(group.size):
                own = set(np.flatnonzero(np.asarray(slot.units) == unit).tolist())
                if own and own <= set(positions):
                    found[group.name] = (*found.get(group.name, ()), unit)
                    covered |= own
    assert covered == set(positions), f"no units have the positions {positions} of {name}, {dim}"
    return found


def test_the_hand_written_forward_is_the_network(oracle: Oracle) -> None:
    model = model_of(oracle)
    inputs = oracle.inputs(2)
    found = oracle.forward(state_of(model), *inputs, **oracle.dense_sizes)
    assert relative_error([found], outputs(model, inputs)) <= 1e-14


def test_the_hand_written_cut_is_the_hand_written_mask(oracle: Oracle) -> None:
    state = state_of(model_of(oracle))
    inputs = oracle.inputs(2)
    cut = oracle.forward(dropped(state, oracle.edits), *inputs, **oracle.sizes)
    dense = oracle.forward(state, *inputs, **oracle.dense_sizes)
    assert relative_error([cut], [dense]) > 1e-2
    if oracle.masks:
        masked = oracle.forward(blanked(state, oracle.edits), *inputs, **oracle.dense_sizes)
        assert relative_error([cut], [masked]) <= 1e-14


def test_the_cut_is_the_hand_written_cut(oracle: Oracle) -> None:
    model = model_of(oracle)
    inputs = oracle.inputs(2)
    graph = secateur.trace(model, inputs)
    removed: dict[str, tuple[int, ...]] = {}
    for anchor in oracle.anchors:
        for name, units in found_units(graph, *anchor).items():
            removed[name] = tuple(sorted({*removed.get(name, ()), *units}))
    plan = make_plan(graph, removed)
    assert {name: tuple(sorted(units)) for name, units in plan.removed.items()} == removed
    pruned = secateur.cut(model, plan)

    wanted = dropped(state_of(model), oracle.edits)
    found = state_of(pruned)
    assert {name: t.shape for name, t in found.items()} == {n: t.shape for n, t in wanted.items()}
    for name, tensor in wanted.items():
        if name in oracle.scaled:
            rows, factor = oracle.scaled[name]
            tensor = torch.cat([tensor[:rows] * factor, tensor[rows:]])
            torch.testing.assert_close(found[name], tensor, rtol=1e-12, atol=0)
        else:
            assert torch.equal(found[name], tensor), name
    by_hand = oracle.forward(wanted, *inputs, **oracle.sizes)
    assert relative_error(outputs(pruned, inputs), [by_hand]) <= LIMIT
