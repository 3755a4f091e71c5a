"""A plan: which units go from which groups, worked out for every tensor; plain data."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from secateur.errors import CheckpointError
from secateur.files import with_checksum, without_checksum
from secateur.graph import Cost

FORMAT = 3


@dataclass(frozen=True)
class MaskPoint:
    """Where the masked reference acts on an argument of a module's operation number ``turn``.

    ``how`` is "mask" (positions ``removed`` of dimension ``dim`` count as zero) or
    "gather" (the operation runs over the other positions alone). ``paths`` are the numbers of
    the traced paths in which it does so, none for all of them; ``everywhere`` tells whether it
    does wherever the operation runs.
    """

    op: str
    module: str
    turn: int
    arg: int
    dim: int
    size: int
    removed: tuple[int, ...]
    how: str
    paths: tuple[int, ...] = ()
    everywhere: bool = True


@dataclass(frozen=True)
class TracedPass:
    """A pass that the plan holds for.

    Attributes:
        example: 0 for the example input, 1 and on for further ones.
        method: what takes the example; "forward" for a call of the network.
        training: whether it ran in train mode.
        path: its number among the passes that run different operations.
        shapes: of the example input at another size, those of its tensors; else empty.
    """

    example: int
    method: str
    training: bool
    path: int
    shapes: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True)
class Scale:
    """Positions of a parameter's dimension that the cut multiplies by ``factor``."""

    name: str
    dim: int
    positions: tuple[int, ...]
    factor: float


@dataclass(frozen=True)
class Plan:
    """Which units go, and what that means for every tensor.

    Attributes:
        removed: units by group, the least important first.
        sizes: number of units of every group before the cut.
        cuts: removed positions by parameter or buffer name and dimension.
        attributes: new values of integers in the model's own attributes, by path.
        consumers: (parameter, dimension) that read removed units; the masked
            reference is zero there.
        masks: operations without such a weight where the reference acts.
        given_back: units that had to stay so that the model's code works, by group.
        dense: parameters and MACs before.
        pruned: parameters and MACs after.
        scales: weights that take the change of a number which the model's code
            derives from its shapes.
        lengths: (length, direction, dimension) of weight norms whose lengths shrink
            with their directions, so that the kept weights stay as they were.
        passes: the passes that were traced.
        notes: what a user should know of the plan.
        shapes: of the network's parameters, saved buffers and whatever else the plan cuts, by name.
        caches: attributes of the modules that a pass fills with tensors, by path, and what they are
            after a cut: "empty" (dictionaries and lists), "None" or "absent".
        digest: of all that hangs together, from ``removed`` to ``shapes``, so that a plan which
            was edited is told; see :func:`sealed`. "" while a plan is being made.
    """

    removed: dict[str, tuple[int, ...]]
    sizes: dict[str, int]
    cuts: dict[str, dict[int, tuple[int, ...]]]
    attributes: dict[str, int]
    consumers: tuple[tuple[str, int], ...]
    masks: tuple[MaskPoint, ...]
    given_back: dict[str, int]
    dense: Cost
    pruned: Cost
    scales: tuple[Scale, ...] = ()
    lengths: tuple[tuple[str, str, int], ...] = ()
    passes: tuple[TracedPass, ...] = ()
    notes: tuple[str, ...] = ()
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    caches: dict[str, str] = field(default_factory=dict)
    digest: str = ""

    def to_json(self) -> str:
        """Write the plan as JSON with a checksum; runs of positions as "first-last"."""
        data = dataclasses.asdict(self)
        data["format"] = FORMAT
        data["removed"] = {name: list(units) for name, units in self.removed.items()}
        data["cuts"] = {
            name: {str(dim): _ranges(positions) for dim, positions in dims.items()}
            for name, dims in self.cuts.items()
        }
        for point in data["masks"]:
            point["removed"] = _ranges(point["removed"])
        for scale in data["scales"]:
            scale["positions"] = _ranges(scale["positions"])
        return json.dumps(with_checksum(data), indent=1)

    @staticmethod
    def from_json(text: str) -> Plan:
        """Read a plan back.

        Raises:
            CheckpointError: ``text`` is no whole plan of this format.
        """
        try:
            data: dict[str, Any] = without_checksum(json.loads(text), "the plan")
            if data.pop("format") != FORMAT:
                raise CheckpointError(f"the plan's format must be {FORMAT}")
            data["removed"] = {name: tuple(units) for name, units in data["removed"].items()}
            data["cuts"] = {
                name: {int(dim): _positions(text) for dim, text in dims.items()}
                for name, dims in data["cuts"].items()
            }
            data["consumers"] = tuple((name, dim) for name, dim in data["consumers"])
            data["masks"] = tuple(
                MaskPoint(
                    **{
                        **point,
                        "removed": _positions(point["removed"]),
                        "paths": tuple(point["paths"]),
                    }
                )
                for point in data["masks"]
            )
            data["passes"] = tuple(
                TracedPass(**{**one, "shapes": tuple(map(tuple, one["shapes"]))})
                for one in data["passes"]
            )
            data["scales"] = tuple(
                Scale(**{**scale, "positions": _positions(scale["positions"])})
                for scale in data["scales"]
            )
            data["lengths"] = tuple((g, v, dim) for g, v, dim in data["lengths"])
            data["notes"] = tuple(data.get("notes", ()))
            data["shapes"] = {name: tuple(shape) for name, shape in data["shapes"].items()}
            data["dense"], data["pruned"] = Cost(**data["dense"]), Cost(**data["pruned"])
            if not data["digest"]:
                raise CheckpointError("the plan carries no digest of its parts")
            return Plan(**data)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(f"this is not a whole plan: {error!r}") from error


def sealed(plan: Plan) -> Plan:
    """Return ``plan`` with the digest of its parts, by which an edited plan is told."""
    return dataclasses.replace(plan, digest=digest_of(plan))


def digest_of(plan: Plan) -> str:
    """Return the SHA-256 of what must hang together: units, positions, attributes and shapes."""
    digest = hashlib.sha256()

    def add(value: object) -> None:
        digest.update(f"{value!r};".encode())

    def add_positions(positions: tuple[int, ...]) -> None:
        digest.update(np.asarray(positions, dtype=np.int64).tobytes() + b";")

    for name, units in sorted(plan.removed.items()):
        add((name, plan.sizes.get(name)))
        add_positions(tuple(sorted(units)))
    for name, dims in sorted(plan.cuts.items()):
        for dim, positions in sorted(dims.items()):
            add((name, dim))
            add_positions(positions)
    for point in plan.masks:
        add((point.op, point.module, point.turn, point.arg, point.dim, point.size, point.how))
        add_positions(point.removed)
    for scale in plan.scales:
        add((scale.name, scale.dim, scale.factor))
        add_positions(scale.positions)
    for part in (plan.attributes, plan.caches, plan.shapes):
        add(sorted(part.items()))
    add((sorted(plan.consumers), plan.lengths))
    return digest.hexdigest()


def _ranges(positions: Iterable[int]) -> str:
    """Write sorted positions as "0-3,7"."""
    parts: list[list[int]] = []
    for position in positions:
        if parts and parts[-1][1] == position - 1:
            parts[-1][1] = position
        else:
            parts.append([position, position])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in parts)


def _positions(text: str) -> tuple[int, ...]:
    found: list[int] = []
    for part in text.split(",") if text else ():
        first, _, last = part.partition("-")
        found.extend(range(int(first), int(last or first) + 1))
    return tuple(found)
