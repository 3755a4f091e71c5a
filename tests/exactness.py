"""What a cut must hold to, as plain functions for any network; used by several tests.

``dense`` is the caller's model, ``pruned`` what ``secateur.cut`` returned. Only
public names of the package are used, and for the references none at all.
"""

from __future__ import annotations

import copy
import math
import time
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import secateur
from secateur.errors import PlanError
from secateur.graph.copies import copy_model, map_tensors
from secateur.graph.process_settings import plain_operations
from secateur.graph.tracing import run_model
from secateur.output_error import largest_error
from secateur.planning import make_plan
from secateur.precision import Precision

LIMIT = 1e-10


def tensors(value: Any) -> list[Tensor]:
    """Return every floating tensor in nested containers and dataclasses, in order."""
    if isinstance(value, Tensor):
        return [value] if value.is_floating_point() else []
    if isinstance(value, Mapping):
        return [tensor for part in value.values() for tensor in tensors(part)]
    if isinstance(value, (list, tuple)):
        return [tensor for part in value for tensor in tensors(part)]
    parts = vars(value).values() if hasattr(value, "__dict__") else ()
    return [tensor for part in parts for tensor in tensors(part)]


def call(model: nn.Module, inputs: Any) -> list[Tensor]:
    """Run a model on a tensor, a tuple or a dict and return its floating outputs."""
    if isinstance(inputs, Mapping):
        return tensors(model(**inputs))
    return tensors(model(*inputs) if isinstance(inputs, tuple) else model(inputs))


def outputs(model: nn.Module, inputs: Any) -> list[Tensor]:
    """Return the floating outputs without gradients."""
    with torch.no_grad():
        return call(model, inputs)


def relative_error(found: list[Tensor], wanted: list[Tensor]) -> float:
    """Return the largest difference of two lists of outputs, relative to the wanted ones."""
    assert [t.shape for t in found] == [t.shape for t in wanted]
    scale = max((t.abs().max().item() for t in wanted if t.numel()), default=0.0)
    away = max(
        ((a - b).abs().max().item() for a, b in zip(found, wanted, strict=True) if a.numel()),
        default=0.0,
    )
    return away / scale if scale else math.inf


def count(model: nn.Module) -> int:
    """Return the number of parameters, shared ones once."""
    return sum(parameter.numel() for parameter in model.parameters())


def fingerprint(tensor: Tensor) -> tuple[Any, ...]:
    """Return what tells two tensors apart, bit by bit, without keeping a copy."""
    about = (tuple(tensor.shape), tensor.dtype, tensor.device.type, tensor.requires_grad)
    if tensor.is_meta or not tensor.numel():
        return about
    raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return (*about, zlib.crc32(memoryview(raw.numpy())))


def snapshot(model: nn.Module) -> dict[str, Any]:
    """Record all that a pruning tool might disturb: values, modes, gradients, hooks, attributes."""
    record: dict[str, Any] = {
        f"tensor {name}": fingerprint(tensor)
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]
    }
    record |= {f"identity {name}": id(p) for name, p in model.named_parameters()}
    record |= {
        f"gradient {name}": None if p.grad is None else fingerprint(p.grad)
        for name, p in model.named_parameters()
    }
    for name, module in model.named_modules():
        record[f"mode {name}"] = module.training
        record[f"class {name}"] = type(module)
        record[f"hooks {name}"] = [
            list(hooks)
            for key, hooks in sorted(vars(module).items())
            if key.endswith("hooks") and isinstance(hooks, dict)
        ]
        record[f"attributes {name}"] = {
            key: (type(value), value)
            for key, value in vars(module).items()
            if isinstance(value, (int, float, str, tuple, bool)) or callable(value)
        }
    return record


def differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Return the names under which two snapshots differ."""
    names = [name for name in before | after if (name in before) != (name in after)]
    for name in before.keys() & after.keys():
        if before[name] != after[name]:
            names.append(name)
    return sorted(names)


def train_once(model: nn.Module, inputs: Any) -> list[str]:
    """Run a copy forward and backward in train mode; return what went wrong."""
    trained = copy.deepcopy(model).train()
    for parameter in trained.parameters():
        parameter.requires_grad_(True)
    torch.manual_seed(0)
    results = call(trained, inputs)
    sum(result.square().mean() for result in results if result.requires_grad).backward()
    gradients = {name: p.grad for name, p in trained.named_parameters() if p.grad is not None}
    problems = [] if gradients else ["train mode: no parameter has a gradient"]
    for name, gradient in gradients.items():
        if not torch.isfinite(gradient).all():
            problems.append(f"train mode: gradient of {name} is not finite")
    return problems


def unreached(graph: Any) -> dict[str, float]:
    """Return the share of parameter elements on no group, by the reason that pins them.

    An element is left out when no slot gives a unit to any of its coordinates.
    """
    parameters = dict(graph.model.named_parameters())
    free = {
        name: [np.ones(size, dtype=bool) for size in tensor.shape]
        for name, tensor in parameters.items()
    }
    for group in graph.groups:
        for slot in group.slots:
            if slot.name in free:
                free[slot.name][slot.dim] &= np.asarray(slot.units) < 0
    reasons: dict[str, list[str]] = defaultdict(list)
    for pin in graph.pinned:
        if pin.reason not in reasons[pin.name]:
            reasons[pin.name].append(pin.reason)
    total = sum(tensor.numel() for tensor in parameters.values())
    shares: dict[str, float] = defaultdict(float)
    for name, masks in free.items():
        left = math.prod(int(mask.sum()) for mask in masks)
        if left:
            shares[" and ".join(reasons[name]) or "a single unit"] += left / total
    return dict(sorted(shares.items(), key=lambda item: -item[1]))


def reached(graph: Any) -> float:
    """Return the share of parameter elements that lie on at least one group."""
    return 1 - sum(unreached(graph).values())


def masked_outputs(model: nn.Module, graph: Any, plan: Any, inputs: Any) -> list[Tensor]:
    """Compute the masked reference by hooks: zero removed channels where a module reads them.

    Knows only which positions of which weight go. Valid where all readers are
    convolutions and dense layers and no norm mixes channels.
    """
    owners: dict[int, list[nn.Module]] = {}
    for module in model.modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, nn.Parameter):
            owners.setdefault(id(weight), []).append(module)
    parameters = dict(model.named_parameters())
    blanks: dict[nn.Module, set[int]] = {}
    for group in graph.groups:
        gone = set(plan.removed.get(group.name, ()))
        for slot in group.slots:
            positions = [
                p for p, unit in enumerate(np.asarray(slot.units).tolist()) if unit in gone
            ]
            for module in owners.get(id(parameters.get(slot.name)), []):
                blanks.setdefault(module, set()).update(input_channels(module, slot.dim, positions))

    def hook(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        dim = -1 if isinstance(module, nn.Linear) else 1
        index = torch.tensor(sorted(blanks[module]), dtype=torch.long)
        return (args[0].index_fill(dim, index, 0.0), *args[1:])

    handles = [module.register_forward_pre_hook(hook) for module in blanks if blanks[module]]
    try:
        return outputs(model, inputs)
    finally:
        for handle in handles:
            handle.remove()


def input_channels(module: nn.Module, dim: int, positions: list[int]) -> list[int]:
    """Return the input channels that these positions of a module's weight read."""
    if isinstance(module, (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)):
        return positions if dim == 0 else []
    if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)) and dim == 1:
        width = module.in_channels // module.groups
        return [group * width + p for group in range(module.groups) for p in positions]
    if isinstance(module, nn.Linear) and dim == 1:
        return positions
    return []


UNCHANGED = "the output did not change"


def _precise(network: nn.Module, inputs: Any) -> list[Tensor]:
    """Return the outputs of a float64 network whose code may ask for less."""
    with torch.no_grad(), plain_operations(), Precision(torch.float64):
        found = run_model(network, map_tensors(inputs, torch.clone))
    return tensors(found)


class Twins:
    """Proofs of many plans of one float64 network, without copying what a plan leaves alone.

    As ``secateur.verify``, but the cut network and the masked one share every tensor that
    they do not change with the dense one, whose own outputs are computed once.
    """

    def __init__(self, model: nn.Module, inputs: Any) -> None:
        self.model = model
        self.inputs = inputs
        self.dense = _precise(self._twin(set()), inputs)

    def problem(self, plan: secateur.Plan) -> str:
        """Return what is wrong with the cut of ``plan``, nothing if it is exact."""
        lengths = {length for length, _, _ in plan.lengths}
        pruned = secateur.cut(self._twin(lengths), plan, inplace=True)
        found = _precise(pruned, self.inputs)
        masked = secateur.mask(self._twin({name for name, _ in plan.consumers}), plan, inplace=True)
        wanted = _precise(masked, self.inputs)
        error = largest_error(found, wanted)
        if not error <= LIMIT:
            return f"max_error {error:.1e}"
        return "" if largest_error(self.dense, wanted) > LIMIT else UNCHANGED

    def _twin(self, own: set[str]) -> nn.Module:
        def replace(name: str, tensor: Tensor) -> Tensor:
            return nn.Parameter(tensor.detach().clone(), False) if name in own else tensor

        return copy_model(self.model, replace)


@dataclass(frozen=True)
class Alone:
    """Groups cut one at a time: how many of ``groups`` were tried, how many of them were exact.

    ``stay`` counts those of the exact ones that the model's own code does not let go alone,
    and a plan says so.
    """

    groups: int
    tried: int
    exact: int
    stay: int
    problems: tuple[str, ...]


def evenly(count: int) -> Iterator[int]:
    """Yield 0 to ``count`` - 1 in an order of which every beginning is an even sample."""
    return iter(sorted(range(count), key=lambda i: (i * 0.6180339887498949) % 1))


STAYS = "the model's code allows none of these units to go"


def alone_problem(graph: Any, twins: Twins, removed: dict[str, list[int]]) -> str:
    """Return what is wrong with one cut; ``STAYS`` where the plan refuses all of it."""
    try:
        return twins.problem(make_plan(graph, removed))
    except PlanError as error:
        return STAYS if STAYS in str(error) else str(error)
    except Exception as error:  # noqa: BLE001 - any failure of user code is a finding here
        return f"{type(error).__name__}: {first_line(error)}"


def train_problem(graph: Any, removed: dict[str, list[int]]) -> str:
    """Return what is wrong with a cut of what train mode alone reads, such as a second classifier.

    The reference is masked by hooks (see :func:`masked_outputs`); dropout is off.
    """
    plan = make_plan(graph, removed)

    def training() -> nn.Module:
        twin = copy.deepcopy(graph.model).train()
        for module in twin.modules():
            if isinstance(module, nn.modules.dropout._DropoutNd):
                module.eval()
        return twin

    inputs = graph.example_inputs
    wanted = masked_outputs(training(), graph, plan, inputs)
    error = relative_error(outputs(secateur.cut(training(), plan), inputs), wanted)
    if not error <= LIMIT:
        return f"train mode: max_error {error:.1e}"
    away = relative_error(outputs(training(), inputs), wanted)
    return "" if away > LIMIT else UNCHANGED


def prove_alone(graph: Any, twins: Twins, budget: float, seed: int = 0) -> Alone:
    """Cut a random half of each group by itself, for ``budget`` seconds of the processor."""
    draw = np.random.default_rng(seed)
    start = time.process_time()
    tried = stay = 0
    problems: list[str] = []
    for index in evenly(len(graph.groups)):
        if time.process_time() - start > budget:
            break
        group = graph.groups[index]
        tried += 1
        units = draw.permutation(group.size).tolist()
        # The half may hold units that are dead on these inputs: then the other half must tell.
        for half in (units[: group.size // 2], units[group.size // 2 :][: group.size - 1]):
            found = alone_problem(graph, twins, {group.name: half})
            if found != UNCHANGED:
                break
        if found == UNCHANGED:
            found = train_problem(graph, {group.name: half})
        if found == STAYS:
            stay += 1
        elif found:
            problems.append(f"alone, {group.name}: {found}")
    return Alone(len(graph.groups), tried, tried - len(problems), stay, tuple(problems))


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text."""
    return (str(error).splitlines() or [""])[0]


@dataclass(frozen=True)
class Proof:
    """What :func:`prove` found; ``problems`` is empty when everything held."""

    ops: int
    seconds: float
    groups: int
    reached: float
    unreached: dict[str, float]
    params_dense: int
    params_pruned: int
    max_error: float
    changed: bool
    given_back: int
    seeds: int
    alone: Alone
    problems: tuple[str, ...]


def prove(
    model: nn.Module,
    make_inputs: Callable[[int], Any],
    folder: Path,
    seed: int = 0,
    sparsity: float = 0.5,
    batch: int = 2,
    larger: Callable[[int], Any] | None = None,
    more_seeds: Sequence[int] = (),
    budget: float = 0.0,
) -> Proof:
    """Cut a random half of every group and check the whole contract on one network.

    Later checks run although an earlier one failed, so that one run tells all.

    Args:
        model: in float64 and eval mode.
        make_inputs: makes example inputs of a batch size.
        folder: to save into.
        seed: of the random choice of units.
        sparsity: share of every group to cut.
        batch: samples to trace with.
        larger: makes inputs of another resolution or length that the dense network takes.
        more_seeds: other random choices whose cuts are verified, too.
        budget: seconds of the processor for every group alone; what it does not
            suffice for stays out, evenly over the network.
    """
    inputs = make_inputs(batch)
    before = snapshot(model)
    start = time.process_time()
    graph = secateur.trace(model, inputs)
    scores = secateur.score(graph, "random", seed=seed)
    plan = secateur.allocate(graph, scores, sparsity=sparsity, scope="local")
    pruned = secateur.cut(model, plan)
    seconds = time.process_time() - start
    check = secateur.verify(model, pruned, plan, inputs)
    problems: list[str] = []
    if not check.ok or check.max_error > LIMIT:
        problems.append(f"max_error {check.max_error:.1e}, ok {check.ok}")
    if not check.changed:
        problems.append(UNCHANGED)
    if count(pruned) >= count(model):
        problems.append("no parameter fewer")
    for what, cost in (("plan", plan.pruned), ("cost", graph.cost(plan.removed))):
        if cost.params != count(pruned):
            problems.append(f"{what} says {cost.params} parameters, not {count(pruned)}")

    def attempt(what: str, action: Callable[[], list[str]]) -> None:
        try:
            problems.extend(action())
        except Exception as error:  # noqa: BLE001 - any failure of user code is a finding here
            problems.append(f"{what}: {type(error).__name__}: {first_line(error)}")

    def round_trip() -> list[str]:
        secateur.save(pruned, folder)
        same = relative_error(outputs(secateur.load(folder), inputs), outputs(pruned, inputs))
        return [] if same == 0 else [f"save and load: outputs differ by {same:.1e}"]

    def exact_on(what: str, inputs: Any) -> list[str]:
        check = secateur.verify(model, pruned, plan, inputs)
        return [] if check.ok else [f"{what}: max_error {check.max_error:.1e}"]

    attempt("another batch size", lambda: exact_on("another batch size", make_inputs(batch + 1)))

    def exact_at_size(inputs: Any) -> list[str]:
        # A network that unrolls over its length takes as many steps as that length asks for:
        # its reference is planned at that length, and must cut the same.
        again = make_plan(secateur.trace(model, inputs), plan.removed)
        if again.cuts != plan.cuts:
            return ["another size: the same units are other positions"]
        check = secateur.verify(model, pruned, again, inputs)
        return [] if check.ok else [f"another size: max_error {check.max_error:.1e}"]

    if larger is not None:
        attempt("another size", lambda: exact_at_size(larger(batch)))
    attempt("train mode", lambda: train_once(pruned, make_inputs(batch + 1)))
    attempt("save and load", round_trip)

    def exact_with(seed: int) -> list[str]:
        scores = secateur.score(graph, "random", seed=seed)
        other = secateur.allocate(graph, scores, sparsity=sparsity, scope="local")
        found = twins.problem(other)
        return [f"seed {seed}: {found}"] if found else []

    alone = Alone(len(graph.groups), 0, 0, 0, ())
    if more_seeds or budget:
        twins = Twins(model, make_inputs(1))
        for other in more_seeds:
            attempt(f"seed {other}", lambda other=other: exact_with(other))
        if budget:
            alone = prove_alone(graph, twins, budget, seed)
    problems += alone.problems
    problems += [
        f"the dense model changed: {name}" for name in differences(before, snapshot(model))
    ]
    left = unreached(graph)
    return Proof(
        ops=graph.layout.ops,
        seconds=seconds,
        groups=len(graph.groups),
        reached=1 - sum(left.values()),
        unreached=left,
        params_dense=count(model),
        params_pruned=count(pruned),
        max_error=check.max_error,
        changed=check.changed,
        given_back=sum(plan.given_back.values()),
        seeds=1 + len(more_seeds),
        alone=alone,
        problems=tuple(problems),
    )
