"""What every registered criterion must hold to, whatever it computes.

A criterion is tested here as soon as it is in ``CRITERIA``. Each is run on small
networks that hold a group of every kind, in a state (modes, frozen weights,
gradients, hooks) that a careless pass would disturb.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from exactness import differences, snapshot
from networks import NETWORKS, Network, ResNet, images, randomise
from test_hard_networks import Auxiliary
from torch import Tensor, nn

import secateur
from secateur.calibration import logits_of
from secateur.criteria import CRITERIA
from secateur.errors import InputError
from secateur.graph.tracing import run_model

NAMES = list(CRITERIA)
CALIBRATED = [name for name in NAMES if CRITERIA[name].needs_calibration]
# With a group of each kind between them; the first has a norm on every group, and the second
# groups that are read in train mode only.
SMALL = {
    "resnet": Network(lambda: ResNet("B", widths=(4, 5, 6)), images(3, 8, 8)),
    "auxiliary": Network(Auxiliary, images(3, 8, 8)),
    **{name: NETWORKS[name] for name in ("flatten", "bert", "llama", "moe_stacked")},
}
CASES = tuple(SMALL)
KINDS = {"channel", "neuron", "head", "kv_head", "head_dim", "embedding", "expert"}
# Draws differ although units do not.
BLIND = {"random"}
AGGREGATIONS = ("sum", "mean", "max", "first")
NORMALISATIONS = ("none", "mean", "max", "l2", "rank")
# GELU and SiLU are never exactly zero, as attention is not.
NEARLY_ZERO = {"apoz": {"threshold": 0.1}}
# Of these networks no norm with a scale runs over the units of attention, or over experts.
NORMLESS = {"norm_scale": {"head", "kv_head", "head_dim", "expert"}}
Batch = tuple[Any, Tensor]


def loss(outputs: Any, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits_of(outputs).flatten(0, -2), labels.flatten())


class Case(NamedTuple):
    """A traced network in a mixed state, and two batches of different sizes."""

    graph: secateur.Graph
    batches: list[Batch]


def small(network: str) -> nn.Module:
    return randomise(SMALL[network].factory().double()).eval()


@functools.cache
def case(network: str, dtype: torch.dtype = torch.float64) -> Case:
    model = small(network).to(dtype)

    def batch(size: int) -> Batch:
        inputs = tuple(
            x.to(dtype) if x.is_floating_point() else x for x in SMALL[network].inputs(size)
        )
        with torch.no_grad():
            shape = logits_of(run_model(model, inputs)).shape
        labels = torch.randint(shape[-1], shape[:-1], generator=torch.Generator().manual_seed(size))
        return inputs, labels

    batches = [batch(3), batch(2)]
    unsettle(model)
    return Case(secateur.trace(model, batches[0][0]), batches)


def unsettle(model: nn.Module) -> None:
    """Put a model in a mixed state: modes, a frozen weight, a gradient, a hook."""
    model.train()
    next(module for module in model.modules() if not list(module.children())).eval()
    first, second, *_ = model.parameters()
    first.requires_grad_(False)
    second.grad = torch.ones_like(second)
    last = list(model.modules())[-1]
    last.register_forward_hook(lambda *args: None)


def state(model: nn.Module) -> dict[str, Any]:
    """Record all that must stay; buffers and gradients by identity too."""
    record = snapshot(model)
    record |= {f"wants {name}": p.requires_grad for name, p in model.named_parameters()}
    record |= {f"gradient of {name}": id(p.grad) for name, p in model.named_parameters()}
    record |= {f"buffer {name}": id(buffer) for name, buffer in model.named_buffers()}
    return record


def judge(name: str, network: str = CASES[0], **other: Any) -> dict[str, Tensor]:
    """Score; {} where a criterion that leaves groups out finds none that it can judge."""
    graph, batches = case(network)
    try:
        return secateur.score(graph, name, **{"calibration": batches, "loss": loss, **other})
    except InputError as error:
        if CRITERIA[name].leaves_out and "finds nothing to judge" in str(error):
            return {}
        raise


def attempt(name: str, **other: Any) -> dict[str, Tensor] | str:
    """Return the scores, or the words of the refusal."""
    try:
        return judge(name, **other)
    except InputError as error:
        return str(error)


class Judged(NamedTuple):
    """What two runs of a criterion gave and left."""

    scores: dict[str, Tensor]
    again: dict[str, Tensor]
    changed: list[str]
    generator_moved: bool
    gradients_on: bool


@functools.cache
def judged(name: str, network: str) -> Judged:
    graph = case(network).graph
    before = state(graph.model)
    torch.manual_seed(1)
    generator = torch.get_rng_state()
    scores = judge(name, network)
    moved = not torch.equal(generator, torch.get_rng_state())
    torch.manual_seed(2)
    again = judge(name, network)
    changed = differences(before, state(graph.model))
    return Judged(scores, again, changed, moved, torch.is_grad_enabled())


each = pytest.mark.parametrize(
    ("name", "network"), [(name, network) for name in NAMES for network in CASES]
)


def test_the_networks_hold_a_group_of_every_kind() -> None:
    found = {group.kind for network in CASES for group in case(network).graph.groups}
    assert found == KINDS


@each
def test_every_unit_has_one_finite_score(name: str, network: str) -> None:
    scores, graph = judged(name, network).scores, case(network).graph
    judges = [group for group in graph.groups if group.name in scores]
    assert list(scores) == [group.name for group in judges]
    assert judges == list(graph.groups) or CRITERIA[name].leaves_out
    for group in judges:
        values = scores[group.name]
        assert tuple(values.shape) == (group.size,)
        assert values.dtype == torch.float64
        assert values.device.type == "cpu"
        assert not values.requires_grad
        assert bool(values.isfinite().all())


@pytest.mark.parametrize("name", [name for name in NAMES if CRITERIA[name].leaves_out])
def test_groups_that_are_left_out_are_documented(name: str) -> None:
    missing = [set(case(n).graph.by_name) - set(judged(name, n).scores) for n in CASES]
    assert any(missing)
    assert CRITERIA[name].leaves_out in table()[name]


@pytest.mark.parametrize("name", NAMES)
def test_a_group_of_every_kind_is_judged(name: str) -> None:
    found = set()
    for network in CASES:
        options = NEARLY_ZERO.get(name)
        scores = judge(name, network, options=options) if options else judged(name, network).scores
        found |= {case(network).graph.by_name[group].kind for group in scores}
    assert found == KINDS - NORMLESS.get(name, set())


@each
def test_the_same_question_has_the_same_answer(name: str, network: str) -> None:
    """Whatever the state of the global generator."""
    scores, again = judged(name, network)[:2]
    assert scores.keys() == again.keys()
    assert all(torch.equal(scores[group], again[group]) for group in scores)


@each
def test_the_model_stays_as_it_was(name: str, network: str) -> None:
    assert judged(name, network).changed == []


@each
def test_the_global_state_stays_as_it_was(name: str, network: str) -> None:
    assert not judged(name, network).generator_moved
    assert judged(name, network).gradients_on


@each
def test_the_order_of_batches_does_not_matter(name: str, network: str) -> None:
    turned = judge(name, network, calibration=case(network).batches[::-1])
    for group, values in judged(name, network).scores.items():
        scale = float(values.abs().max())
        torch.testing.assert_close(turned[group], values, rtol=1e-9, atol=1e-11 * scale)


class Stream:
    """Batches that are made when they are asked for; counts those that are alive at once."""

    def __init__(self, batches: list[Batch], repeat: int = 4) -> None:
        self.batches = batches * repeat
        self.reads = 0
        self.most = 0
        self._alive: list[weakref.ref[Tensor]] = []

    def __iter__(self) -> Iterator[Batch]:
        self.reads += 1
        for inputs, labels in self.batches:
            fresh = tuple(x.clone() for x in inputs)
            self._alive.append(weakref.ref(fresh[0]))
            yield fresh, labels.clone()
            del fresh
            self.most = max(self.most, sum(made() is not None for made in self._alive))


@pytest.mark.parametrize("name", NAMES)
def test_one_batch_is_in_memory_at_a_time(name: str) -> None:
    stream = Stream(case(CASES[0]).batches)
    judge(name, calibration=stream)
    assert bool(stream.reads) == CRITERIA[name].needs_calibration
    assert stream.most <= 2


@pytest.mark.parametrize("name", NAMES)
def test_missing_calibration_is_an_error_that_says_so(name: str) -> None:
    if name in CALIBRATED:
        with pytest.raises(InputError, match=f"'{name}' needs calibration batches, but got none"):
            judge(name, calibration=None)
    else:
        found = judge(name, calibration=None)
        assert all(torch.equal(found[g], v) for g, v in judged(name, CASES[0]).scores.items())


@pytest.mark.parametrize("name", [name for name in NAMES if name not in BLIND])
def test_a_constant_score_is_an_error(name: str) -> None:
    network = small(CASES[0])
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    batches = case(CASES[0]).batches
    graph = secateur.trace(network, batches[0][0])
    with pytest.raises(InputError, match="same score"):
        secateur.score(graph, name, calibration=batches, loss=loss)


@each
def test_single_precision_gives_double_scores(name: str, network: str) -> None:
    graph, batches = case(network, torch.float32)
    if not judged(name, network).scores:
        return
    before = state(graph.model)
    scores = secateur.score(graph, name, calibration=batches, loss=loss)
    assert list(scores) == list(judged(name, network).scores)
    assert all(v.dtype == torch.float64 and bool(v.isfinite().all()) for v in scores.values())
    assert differences(before, state(graph.model)) == []


@pytest.mark.parametrize("name", CALIBRATED)
def test_a_loss_that_is_not_a_number_is_an_error_that_names_the_batch(name: str) -> None:
    model = case(CASES[0]).graph.model
    batches = [(x, torch.full_like(y, n)) for n, (x, y) in enumerate(case(CASES[0]).batches)]
    calls = 0

    def lost(outputs: Any, labels: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return loss(outputs, labels) * (torch.nan if bool((labels == 1).any()) else 1.0)

    before = state(model)
    found = attempt(name, calibration=batches, loss=lost)
    if calls:
        assert "loss on calibration batch 1 must be finite, but is nan" in found
    assert isinstance(found, str) == bool(calls)
    assert differences(before, state(model)) == []


@pytest.mark.parametrize("name", CALIBRATED)
def test_inputs_that_are_not_numbers_are_an_error(name: str) -> None:
    graph, batches = case(CASES[0])
    (images,), labels = batches[1]
    with pytest.raises(InputError, match="finite"):
        judge(name, calibration=[batches[0], ((images * torch.nan,), labels)])
    assert graph.model.training


@pytest.mark.parametrize("name", CALIBRATED)
def test_no_batch_is_an_error(name: str) -> None:
    with pytest.raises(InputError, match="at least one batch, but it is empty"):
        judge(name, calibration=[])


@pytest.mark.parametrize("name", CALIBRATED)
def test_an_iterator_is_read_once_or_refused(name: str) -> None:
    found = attempt(name, calibration=iter(case(CASES[0]).batches))
    if isinstance(found, str):
        assert "must be a list or a data loader" in found
    else:
        assert all(torch.equal(found[g], v) for g, v in judged(name, CASES[0]).scores.items())


@pytest.mark.parametrize("name", CALIBRATED)
def test_an_interrupt_leaves_the_model_as_it_was(name: str) -> None:
    graph, batches = case(CASES[0])
    before = state(graph.model)

    class Interrupted:
        def __iter__(self) -> Iterator[Batch]:
            yield batches[0]
            raise KeyboardInterrupt

    torch.manual_seed(1)
    generator = torch.get_rng_state()
    with pytest.raises(KeyboardInterrupt) as caught:
        judge(name, calibration=Interrupted())
    # Here the error and all frames that it went through are still alive.
    assert differences(before, state(graph.model)) == []
    assert torch.equal(generator, torch.get_rng_state())
    assert torch.is_grad_enabled()
    assert caught.type is KeyboardInterrupt


@pytest.mark.parametrize("name", NAMES)
def test_it_works_where_gradients_are_off(name: str) -> None:
    with torch.no_grad():
        found = judge(name)
    assert all(torch.equal(found[g], v) for g, v in judged(name, CASES[0]).scores.items())


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("name", NAMES)
def test_every_aggregation_is_taken(name: str, aggregation: str) -> None:
    found = judge(name, aggregation=aggregation)
    assert all(bool(values.isfinite().all()) for values in found.values())
    if aggregation == "sum":
        assert all(torch.equal(found[g], v) for g, v in judged(name, CASES[0]).scores.items())


FIGURES: dict[str, Callable[[Tensor], float]] = {
    "mean": lambda values: float(values.abs().mean()),
    "max": lambda values: float(values.abs().max()),
    "l2": lambda values: float(values.norm()),
    "rank": lambda values: float(values.max()),
}


@pytest.mark.parametrize("normalisation", FIGURES)
@pytest.mark.parametrize("name", NAMES)
def test_every_normalisation_keeps_the_order(name: str, normalisation: str) -> None:
    plain, found = judged(name, CASES[0]).scores, judge(name, normalisation=normalisation)
    for group, values in plain.items():
        order = values.argsort(stable=True)
        assert bool((found[group][order].diff() >= 0).all())
        if bool(values.any()):
            assert FIGURES[normalisation](found[group]) == pytest.approx(1)


@pytest.mark.parametrize("name", [name for name in NAMES if CRITERIA[name].choices()])
def test_options_have_defaults_and_no_others_are_taken(name: str) -> None:
    found = judge(name, options=CRITERIA[name].choices())
    assert all(torch.equal(found[g], v) for g, v in judged(name, CASES[0]).scores.items())
    with pytest.raises(InputError, match="option of criterion"):
        judge(name, options={"no such option": 1})


def table() -> dict[str, str]:
    """Return the line of every criterion in the documentation."""
    text = (Path(__file__).parents[2] / "docs/criteria.md").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.startswith("| `")]
    return {line.split("`")[1]: line for line in lines}


@pytest.mark.parametrize("name", NAMES)
def test_the_documentation_has_a_line_on_it(name: str) -> None:
    line = table()[name]
    assert ("| yes |" in line) == (name in CALIBRATED)
    assert all(f"`{option}`" in line for option in CRITERIA[name].choices())
