"""Find the config whose model has given sizes.

Two numbers of a config may be equal, so values tell nothing. Instead one number
at a time is changed, a model is built without memory, and the sizes that changed
with it are its own. Each size that is still wrong then proposes a value for the
numbers that it depends on, and the best proposals are taken until every size fits.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from secateur.huggingface.configs import Blueprint, Field, Place, changed, integers, show

ROUNDS = 6
TRIALS = 48
PROPOSALS = 3


@dataclass(frozen=True)
class Solution:
    """The numbers of a config that change, or why no config fits."""

    values: dict[Field, int]
    reason: str = ""


def solve(of: Blueprint, plain: dict[str, Any], wanted: Mapping[Place, int]) -> Solution:
    """Find new numbers for a config so that its model has the sizes ``wanted``.

    Args:
        of: builds the models.
        plain: the config that the dense model was made from.
        wanted: every dimension of every tensor, and attributes that are known to be true.
    """
    now = of.sizes(plain)
    if now is None:
        return Solution({}, f"no model can be built from its config: {of.error}")
    stray = sorted(set(_tensors(now)) ^ set(_tensors(wanted)))
    if stray:
        return Solution({}, f"the config builds another model: {stray[0][0]} is in one of them")
    if not _wrong(now, wanted):
        return Solution({})
    hidden = _hidden(of, plain, now)
    given = integers(plain)
    current = {**given, **hidden}
    plain = changed(plain, hidden)
    moving: tuple[Field, ...] = tuple(current)
    for _ in range(ROUNDS):
        wrong = _wrong(now, wanted)
        effects = {
            field: effect
            for field in moving
            if (effect := _probe(of, changed(plain, current), field, current[field], now))
        }
        moving = tuple(effects)
        choices, clash = _choices(current, effects, now, wrong)
        if clash:
            return Solution({}, clash)
        best = (_badness(wrong), current, now)
        for trial in _trials(choices, current):
            candidate = {**current, **trial}
            sizes = of.sizes(changed(plain, candidate))
            if sizes is not None and (left := _badness(_wrong(sizes, wanted))) < best[0]:
                best = (left, candidate, sizes)
                if not sum(left):
                    return Solution(_needed(of, plain, candidate, given, sizes))
        if best[1] is current:
            break
        _, current, now = best
    return Solution({}, _misfit(now, wanted))


def _needed(
    of: Blueprint,
    plain: dict[str, Any],
    values: Mapping[Field, int],
    given: Mapping[Field, int],
    sizes: dict[Place, int],
) -> dict[Field, int]:
    """Leave out what is as it was, and what the config derives just as well."""
    for field in values.keys() - given.keys():
        without = {f: v for f, v in values.items() if f != field}
        if of.sizes(changed(plain, {**without, field: None})) == sizes:
            values = without
    return {field: value for field, value in values.items() if value != given.get(field)}


def _hidden(of: Blueprint, plain: dict[str, Any], now: Mapping[Place, int]) -> dict[Field, int]:
    """Return sizes that a config may have and does not: head_dim, which models else derive."""
    found: dict[Field, int] = {}
    for field, heads in integers(plain).items():
        width = integers(plain).get((*field[:-1], "hidden_size"), 0)
        at = (*field[:-1], "head_dim")
        if field[-1] == "num_attention_heads" and width and at not in integers(plain):
            size = width // heads
            same = of.sizes(changed(plain, {at: size}))
            other = of.sizes(changed(plain, {at: 2 * size}))
            if same == now and other not in (None, now):
                found[at] = size
    return found


def _tensors(sizes: Mapping[Place, int]) -> Iterator[Place]:
    return (place for place in sizes if place[1] >= 0)


def _wrong(now: Mapping[Place, int], wanted: Mapping[Place, int]) -> list[tuple[Place, int]]:
    return [(place, size) for place, size in wanted.items() if now.get(place, size) != size]


def _badness(wrong: list[tuple[Place, int]]) -> tuple[int, int]:
    """Count wrong attributes, then wrong dimensions: one dimension may have several causes."""
    attributes = sum(dim < 0 for (_, dim), _ in wrong)
    return attributes, len(wrong) - attributes


def _probe(
    of: Blueprint, plain: dict[str, Any], field: Field, value: int, now: Mapping[Place, int]
) -> tuple[int, dict[Place, int]] | None:
    """Change one number; return its new value and the sizes that changed with it, if any."""
    for other in (2 * value, value // 2, value + 1, 3 * value):
        if other in (0, value):
            continue
        sizes = of.sizes(changed(plain, {field: other}))
        if sizes is not None:
            effect = {p: s for p, s in sizes.items() if now.get(p, s) != s}
            return (other, effect) if effect else None
    return None


def _choices(
    current: Mapping[Field, int],
    moved: Mapping[Field, tuple[int, dict[Place, int]]],
    now: Mapping[Place, int],
    wrong: list[tuple[Place, int]],
) -> tuple[dict[Field, list[int]], str]:
    """Return the values worth trying for every number, and where two sizes ask for different."""
    sure: dict[Field, dict[int, Place]] = {}
    votes: dict[Field, Counter[int]] = {}
    for place, want in wrong:
        owners = [field for field, (_, sizes) in moved.items() if place in sizes]
        if not owners:
            return {}, _nobody(place, want, now[place])
        for field in owners:
            other, sizes = moved[field]
            for value in _answers(current[field], other, now[place], sizes[place], want):
                votes.setdefault(field, Counter())[value] += 1
                if len(owners) == 1 and place[1] >= 0:
                    sure.setdefault(field, {}).setdefault(value, place)
    clash = ""
    choices: dict[Field, list[int]] = {}
    for field, count in votes.items():
        told = sure.get(field, {})
        if len(told) > 1 and not clash:
            (one, here), (two, there) = sorted(told.items(), key=lambda item: item[1])[:2]
            clash = (
                f"{show(field)} is one number, but {_say(here)} needs {one} and "
                f"{_say(there)} needs {two}"
            )
        choices[field] = [value for value, _ in count.most_common(PROPOSALS)]
    # The last ones vary first: what is sure stays longest at its first value.
    return dict(sorted(choices.items(), key=lambda item: len(sure.get(item[0], {})) != 1)), clash


def _answers(value: int, other: int, size: int, moved: int, want: int) -> set[int]:
    """Solve for the number whose size is wanted: proportional, linear, or inverse."""
    linear = value + Fraction((want - size) * (other - value), moved - size)
    found = {linear}
    if size * value == moved * other:
        found = {Fraction(value * size, want)} if want else set()
    return {int(answer) for answer in found if answer.denominator == 1 and answer >= 1}


def _trials(
    choices: Mapping[Field, list[int]], current: Mapping[Field, int]
) -> Iterator[dict[Field, int]]:
    """Yield combinations, all first proposals first, then every proposal alone."""
    options = [[*values, current[field]] for field, values in choices.items()]
    for picked in itertools.islice(itertools.product(*options), TRIALS):
        yield dict(zip(choices, picked, strict=True))
    for field, values in choices.items():
        yield from ({field: value} for value in values)


def _misfit(now: Mapping[Place, int], wanted: Mapping[Place, int]) -> str:
    """Name the first size that no number of the config can make."""
    (place, want), *_ = sorted(_wrong(now, wanted), key=lambda item: item[0][1] < 0)
    return _nobody(place, want, now[place])


def _nobody(place: Place, want: int, nearest: int) -> str:
    return (
        f"{_say(place)} is {want}, and no number of the config can say so beside the others "
        f"(the nearest config makes it {nearest})"
    )


def _say(place: Place) -> str:
    name, dim = place
    return name if dim < 0 else f"dimension {dim} of {name}"
