"""Prove that a cut network computes what the masked network computes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from secateur.cutting import cut
from secateur.errors import InputError, PlanError, TraceError
from secateur.graph.copies import cloned, copy_model, every_tensor, map_tensors
from secateur.graph.hooks import shared_variables_put_back
from secateur.graph.modules import Address, where_is
from secateur.graph.normal_mode import normal_mode
from secateur.graph.passes import Pass, list_passes, pass_mode, set_mode
from secateur.graph.process_settings import plain_operations
from secateur.graph.program import tensor_leaves
from secateur.graph.tracing import check_inputs, first_line, run_model
from secateur.masking import mask, on_path
from secateur.output_error import largest_error
from secateur.plan import Plan
from secateur.precision import Precision, in_precision
from secateur.proof_inputs import drawn_inputs
from secateur.proof_passes import passes_to_compare, share_statistics
from secateur.random_draws import Draws, Shapes, uneven

TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-4}
_OWN_TOLERANCES = {**TOLERANCES, torch.float16: 1e-2, torch.bfloat16: 5e-2}

_DRAWN = (1, 3)
"""How many inputs are drawn beside the example, and how many more where those show nothing."""


@dataclass(frozen=True)
class PassCheck:
    """The largest error of one pass; ``label`` is "" for the example input in eval mode."""

    label: str
    max_error: float


@dataclass(frozen=True)
class Check:
    """The proof.

    Attributes:
        max_error: largest difference between an output of the cut network and
            the reference's, relative to that output's largest magnitude; of the first
            inputs on which they are not equal, if there are such.
        tolerance: the most that counts as equal.
        ok: whether all outputs are equal within the tolerance, and so that it shows something.
        changed: whether the reference differs from the dense network at all; it does not where
            the removed units were zero before.
        dtype: precision of the computation.
        inputs: how many inputs were compared: the example, and others drawn in its shapes.
        reason: why ``ok`` is False; else empty.
        notes: what a user should know of the proof.
        passes: the error of every pass that was compared. One in train mode is left out where it
            runs the same operations as in eval mode.
    """

    max_error: float
    tolerance: float
    ok: bool
    changed: bool
    dtype: str
    inputs: int = 1
    reason: str = ""
    notes: tuple[str, ...] = ()
    passes: tuple[PassCheck, ...] = ()


@normal_mode()
def verify(
    model: nn.Module,
    pruned: nn.Module,
    plan: Plan,
    example_inputs: Any,
    *,
    also: Sequence[Any] = (),
    dtype: torch.dtype = torch.float64,
) -> Check:
    """Compare ``pruned`` with the masked reference of ``model``, in eval and in train mode.

    Both run on the examples and on inputs drawn in their shapes. Random numbers that the network
    draws are the same in both. Train mode runs with dropout off and batch norm by its running
    statistics.

    Args:
        model: the dense network.
        pruned: what ``cut`` made of it.
        plan: what was removed.
        example_inputs: a tensor, a tuple of arguments or a dict of keyword arguments.
        also: further examples, as they were traced with; see :func:`secateur.trace`.
        dtype: float64 (tolerance 1e-10) or float32 (1e-4). Where the network or its device
            cannot compute in float64, the proof is in float32 or the network's own precision,
            and says so.

    Raises:
        InputError: arguments of the wrong kind.
        TraceError: the dense network fails on an example.
        PlanError: the plan does not fit the model.
    """
    check_inputs(model, example_inputs)
    if dtype not in TOLERANCES:
        raise InputError(f"dtype must be torch.float64 or torch.float32, but got {dtype}")
    passes = passes_to_compare(plan, list_passes(model, example_inputs, also))
    inputs = [one.inputs for one, _ in passes]
    if any(t.is_meta for t in (*model.parameters(), *tensor_leaves(inputs))):
        raise InputError("verify computes outputs, so model and inputs must not be on meta")
    failures: list[str] = []
    for precision in _precisions(model, inputs, dtype):
        try:
            return _Proof(model, pruned, plan, passes, precision).check(failures)
        except _DenseFailsError as error:
            failures.append(f"in {precision} the network fails: {error}")
    raise TraceError(f"the model fails on its example input: {failures[-1]}")


class _DenseFailsError(Exception):
    """The dense network does not run on an example in some precision."""


class _Precise(NamedTuple):
    """A precision that a proof may run in; ``dtype`` None leaves the network as it is."""

    dtype: torch.dtype | None
    device: torch.device | None
    own: torch.dtype

    def __str__(self) -> str:
        return str(self.dtype or self.own).removeprefix("torch.")

    @property
    def tolerance(self) -> float:
        return _OWN_TOLERANCES[self.dtype or self.own]

    def convert(self, tensor: Tensor) -> Tensor:
        if self.dtype is None:
            return cloned(tensor)
        return in_precision(tensor, self.dtype, self.device)


def _precisions(model: nn.Module, inputs: Any, dtype: torch.dtype) -> Iterator[_Precise]:
    tensors = [t for _, t in every_tensor(model)] + tensor_leaves(inputs)
    kinds = {t.dtype for t in tensors if t.dtype in _OWN_TOLERANCES} or {torch.float32}
    own = max(kinds, key=lambda kind: _OWN_TOLERANCES[kind])
    able = all(_computes_in(device, dtype) for device in {t.device for t in tensors})
    yield _Precise(dtype, None if able else torch.device("cpu"), own)
    if dtype == torch.float64:
        yield _Precise(torch.float32, None, own)
    yield _Precise(None, None, own)


def _computes_in(device: torch.device, dtype: torch.dtype) -> bool:
    try:
        torch.zeros(1, dtype=dtype, device=device)
    except (TypeError, RuntimeError, NotImplementedError):
        return False
    return True


@dataclass(frozen=True)
class _Run:
    """One pass of a network: its outputs, what it drew, or how it failed."""

    outputs: list[Tensor] = field(default_factory=list)
    draws: Shapes = field(default_factory=dict)
    unlike: frozenset[Address] = frozenset()
    failure: str = ""


@dataclass(frozen=True)
class _Trial:
    """Inputs of a proof, and the seed of what the networks draw on them.

    ``seed`` is 0 for an example itself; ``path`` is the traced one that it takes, if known.
    """

    one: Pass
    seed: int
    path: int | None = None


@dataclass(frozen=True)
class _Comparison:
    """The runs of the three networks in one trial."""

    trial: _Trial
    dense: _Run
    reference: _Run
    small: _Run

    @property
    def comparable(self) -> bool:
        return not self.dense.failure and not self.reference.failure

    @property
    def needed(self) -> bool:
        """Whether the example itself runs, and so must its reference."""
        return self.trial.seed == 0 and not self.dense.failure

    @property
    def error(self) -> float:
        if self.small.failure:
            return float("inf")
        return largest_error(self.small.outputs, self.reference.outputs, self.dense.outputs)

    @property
    def change(self) -> float:
        return largest_error(self.dense.outputs, self.reference.outputs)

    @property
    def tells(self) -> bool:
        """Whether any output holds numbers that could differ."""
        return any(
            bool(t.isfinite().any()) if t.is_floating_point() or t.is_complex() else t.numel() > 0
            for t in self.reference.outputs
        )


class _Proof:
    """The comparison of one cut network with its reference in one precision."""

    def __init__(
        self,
        model: nn.Module,
        pruned: nn.Module,
        plan: Plan,
        passes: Sequence[tuple[Pass, int | None]],
        precise: _Precise,
    ) -> None:
        self._model = model
        self._pruned = pruned
        self._plan = plan
        self._passes = passes
        self._precise = precise
        self._even: dict[Address, tuple[int, ...]] = {}
        self._unlike: set[Address] = set()
        self._notes: list[str] = []

    def check(self, failures: Sequence[str]) -> Check:
        """Run the networks; ``failures`` say why not in a better precision.

        Raises:
            _DenseFailsError: the dense network does not run on an example.
        """
        if failures:
            self._notes.append(f"proved in {self._precise}, as {failures[-1]}")
        if self._precise.device is not None:
            self._notes.append(f"proved on {self._precise.device}: the device has no float64")
        examples = [_Trial(one, 0, path) for one, path in self._passes]
        found = self._compare([*examples, *self._drawn(1, _DRAWN[0])])
        for one in found:
            label, failure = one.trial.one.label, one.dense.failure
            optional = one.trial.one.training or bool(one.trial.one.shapes)
            if failure and one.trial.seed == 0 and not optional:
                raise _DenseFailsError(f"{label}: {failure}" if label else failure)
            if failure and one.trial.seed == 0:
                self._notes.append(f"{label} is not proved: the network fails: {failure}")
        if not self._wrong(found) and not self._shown(found):
            found += self._compare(self._drawn(1 + _DRAWN[0], _DRAWN[1]))
        # Drawn inputs may be none that the network takes.
        found = [one for one in found if one.comparable or one.needed]
        reason = self._reason(found)
        compared = [one for one in found if one.comparable]
        errors = [one.error for one in compared] or [float("inf")]
        wrong = (error for error in errors if not error <= self._precise.tolerance)
        return Check(
            max_error=next(wrong, max(errors)),
            tolerance=self._precise.tolerance,
            ok=not reason,
            changed=self._changed(found),
            dtype=str(self._precise),
            inputs=len(compared),
            reason=reason,
            notes=tuple(dict.fromkeys(self._notes)),
            passes=_by_pass(compared),
        )

    def _drawn(self, first: int, count: int) -> list[_Trial]:
        drawn = (
            (one, drawn_inputs(one.inputs, seed), seed)
            for one, _ in self._passes
            for seed in range(first, first + count)
        )
        return [
            _Trial(replace(one, inputs=inputs), seed)
            for one, inputs, seed in drawn
            if inputs is not None
        ]

    def _compare(self, trials: Sequence[_Trial]) -> list[_Comparison]:
        """Run the three networks in every trial; again where the plan cuts what they draw."""
        found = self._comparisons(trials)
        even = self._uneven(found)
        if even:
            self._even |= even
            found = self._comparisons(trials)
        drawn = [where for one in found for where in one.reference.draws]
        if drawn:
            self._notes.append(f"{_draws(drawn)}: every network drew the same")
        return found

    def _uneven(self, found: Sequence[_Comparison]) -> dict[Address, tuple[int, ...]]:
        """Return the draws whose shapes the plan cuts, and in which dimensions."""
        even: dict[Address, tuple[int, ...]] = {}
        for one in found:
            if not one.reference.failure and not one.small.failure:
                dims, unlike = uneven(one.reference.draws, one.small.draws)
                even |= dims
                self._unlike |= unlike
        return even

    def _comparisons(self, trials: Sequence[_Trial]) -> list[_Comparison]:
        # One network after the other, so that no two copies are alive at once. Each copy is made
        # anew: a network may change its buffers as it runs.
        runs = [self._runs(make, trials) for make in (self._dense, self._masked, self._small)]
        return [_Comparison(trial, *three) for trial, *three in zip(trials, *runs, strict=True)]

    def _dense(self) -> nn.Module:
        return copy_model(self._model, lambda _, t: self._precise.convert(t), apart=True)

    def _masked(self) -> nn.Module:
        return mask(self._dense(), self._plan, inplace=True)

    def _small(self) -> nn.Module:
        names = {s.name for s in self._plan.scales} | {name for name, _, _ in self._plan.lengths}
        exact: dict[str, Tensor] = {}
        if names and self._precise.dtype is not None:
            unrounded = cut(self._dense(), self._plan)
            exact = {name: t.detach() for name, t in every_tensor(unrounded) if name in names}
        return copy_model(
            self._pruned, lambda name, t: self._preferred(exact.get(name), t), apart=True
        )

    def _preferred(self, exact: Tensor | None, tensor: Tensor) -> Tensor:
        """Take a scaled weight as it was before it was rounded, if rounding is all that differs."""
        rounded = self._precise.convert(tensor)
        if exact is None or exact.shape != rounded.shape:
            return rounded
        slack = 4 * torch.finfo(tensor.dtype).eps
        if not torch.allclose(rounded, exact, rtol=slack, atol=0.0):
            return rounded
        return nn.Parameter(exact.clone(), requires_grad=False)

    def _perturbed(self) -> nn.Module:
        """Return the reference with other values, none of them zero before, where the plan cuts."""
        network = self._masked()
        generator = torch.Generator("cpu").manual_seed(0)
        with torch.no_grad():
            for name, tensor in every_tensor(network):
                if name in self._plan.cuts and tensor.is_floating_point():
                    factors = 1 + torch.rand(tensor.shape, generator=generator, device="cpu") / 4
                    tensor.mul_(factors.to(tensor))
        return network

    def _runs(self, make: Callable[[], nn.Module], trials: Sequence[_Trial]) -> list[_Run]:
        network = make()
        with shared_variables_put_back(network):
            return [self._run(network, trial) for trial in trials]

    def _run(self, network: nn.Module, trial: _Trial) -> _Run:
        one = trial.one
        set_mode(network, one.training)
        if one.training:
            share_statistics(self._model, network, self._plan)
        inputs = map_tensors(one.inputs, self._precise.convert)
        draws = Draws(network, trial.seed, self._even)
        dtype = self._precise.dtype
        kept = contextlib.nullcontext() if dtype is None else Precision(dtype)
        try:
            with (
                pass_mode(one.training),
                plain_operations(),
                on_path(trial.path),
                kept,
                draws.watch(),
            ):
                found = run_model(network, inputs, one.method)
        except PlanError as error:
            return _Run(failure=str(error))
        except Exception as error:  # noqa: BLE001 - user code may raise anything
            return _Run(failure=f"{type(error).__name__}: {first_line(error)}")
        outputs = [tensor.detach() for tensor in tensor_leaves(found)]
        return _Run(outputs, draws.shapes, frozenset(draws.unknown))

    def _wrong(self, found: Sequence[_Comparison]) -> bool:
        return any(not one.comparable or not one.error <= self._precise.tolerance for one in found)

    def _changed(self, found: Sequence[_Comparison]) -> bool:
        return any(one.comparable and one.change > self._precise.tolerance for one in found)

    def _shown(self, found: Sequence[_Comparison]) -> bool:
        telling = [one for one in found if one.comparable and one.tells]
        return bool(telling) and (not self._plan.removed or self._changed(telling))

    def _reason(self, found: Sequence[_Comparison]) -> str:
        """Say why this is no proof; "" where it is one."""
        for one in found:
            if one.reference.failure:
                return one.reference.failure
            if one.error <= self._precise.tolerance:
                continue
            if one.small.failure:
                return f"the cut network fails: {one.small.failure}"
            if unlike := sorted(self._unlike | one.small.unlike | one.reference.unlike):
                return f"{_draws(unlike)}, in a shape that the plan cuts: no two draws agree"
            if self._differs_from_itself(one):
                return "the network does not compute the same twice, so nothing can be compared"
            return (
                f"the cut network differs from its masked reference by {one.error:.3g} "
                f"(tolerance {self._precise.tolerance:.0e})"
            )
        if self._shown(found):
            return ""
        telling = [one for one in found if one.tells]
        if not telling:
            empty = all(t.numel() == 0 for one in found for t in one.reference.outputs)
            what = "hold no numbers" if empty else "are not finite"
            return f"nothing is shown: the outputs {what} on any of {len(found)} inputs"
        if self._depends(telling) or (_vary(telling) and self._holds_with_noise(telling)):
            return ""
        return (
            "nothing is shown: the outputs do not depend on what the plan cuts, on any of "
            f"{len(found)} inputs"
        )

    def _differs_from_itself(self, one: _Comparison) -> bool:
        again = self._runs(self._masked, [one.trial])[0]
        return not largest_error(again.outputs, one.reference.outputs) <= self._precise.tolerance

    def _depends(self, found: Sequence[_Comparison]) -> bool:
        """Tell whether outputs depend on what is left of the tensors that the plan cuts."""
        others = self._runs(self._perturbed, [one.trial for one in found])
        return any(
            not other.failure
            and largest_error(other.outputs, one.reference.outputs) > self._precise.tolerance
            for one, other in zip(found, others, strict=True)
        )

    def _holds_with_noise(self, found: Sequence[_Comparison]) -> bool:
        """Tell whether the network is what the plan makes, and its cut right with other weights.

        So a branch is proved that is wholly zero, beside others that are not.
        """
        made = dict(every_tensor(cut(self._model, self._plan)))
        given = dict(every_tensor(self._pruned))
        if made.keys() != given.keys() or not all(
            torch.equal(tensor, given[name].to(tensor.device)) for name, tensor in made.items()
        ):
            return False
        trials = [one.trial for one in found]
        references = self._runs(lambda: mask(self._noisy(), self._plan, inplace=True), trials)
        cuts = self._runs(lambda: cut(self._noisy(), self._plan), trials)
        dense = self._runs(self._noisy, trials)
        return not any(run.failure for run in (*references, *cuts, *dense)) and all(
            largest_error(small.outputs, reference.outputs)
            <= self._precise.tolerance
            < largest_error(whole.outputs, reference.outputs)
            for small, reference, whole in zip(cuts, references, dense, strict=True)
        )

    def _noisy(self) -> nn.Module:
        """Return the dense network with something added to every weight."""
        network = self._dense()
        generator = torch.Generator("cpu").manual_seed(0)
        with torch.no_grad():
            for _, tensor in every_tensor(network):
                if tensor.is_floating_point():
                    added = torch.rand(tensor.shape, generator=generator, device="cpu") / 8
                    tensor.add_(added.to(tensor))
        return network


def _vary(found: Sequence[_Comparison]) -> bool:
    """Tell whether the outputs depend on the inputs."""
    first = found[0].reference.outputs
    return any(largest_error(one.reference.outputs, first) > 1e-6 for one in found[1:])


def _by_pass(found: Sequence[_Comparison]) -> tuple[PassCheck, ...]:
    errors: dict[str, float] = {}
    for one in found:
        label = one.trial.one.label
        errors[label] = max(errors.get(label, 0.0), one.error)
    return tuple(PassCheck(label, error) for label, error in errors.items())


def _draws(places: Sequence[Address]) -> str:
    named = list(dict.fromkeys(where_is(op, module) for op, module, _ in places))
    more = f" and {len(named) - 3} more" if len(named) > 3 else ""
    return f"the network draws random numbers in eval mode ({', '.join(named[:3])}{more})"
