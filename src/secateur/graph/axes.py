"""The axis algebra: what must survive for a position of a dimension to survive.

Symbols and shapes
    atom      a removable thing, numbered from 1; 0 means "no factor"
    axis      int array [size, k]: position i survives exactly when all the
              non-zero atoms of row i survive
    root      the atom that stands for a set of unified atoms (union-find)
    product   an atom may be defined as the product of others: it survives when
              they all do (a channel of 12 heads x 64 is head x head dimension)
    pinned    an atom that must survive, with the reason

All operations are vectorised over positions; the state is the union-find, the
definitions and the reasons. Everything is sound by construction: an operation
may couple more than needed or pin, it never leaves two positions free to part
that must live together.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Axis: TypeAlias = NDArray[np.int64]

_MOST_FACTORS = 6


def fixed(size: int) -> Axis:
    """Return an axis without factors: all positions survive."""
    return np.zeros((size, 0), dtype=np.int64)


class Axes:
    """The union-find over atoms, their definitions as products, and the pins."""

    def __init__(self) -> None:
        self.count = 1
        self._parent = np.zeros(1024, dtype=np.int64)
        self._reason = np.zeros(1024, dtype=np.int64)
        self._row = np.full(1024, -1, dtype=np.int64)
        self._products = np.zeros((0, 2), dtype=np.int64)
        self._cache: dict[int, tuple[Axis, Axis]] | None = None
        self._reasons: list[str] = [""]
        self._reason_ids: dict[str, int] = {"": 0}

    def fresh(self, size: int) -> Axis:
        """Return an axis of ``size`` new atoms, one a position."""
        start, end = self.count, self.count + size
        while end > len(self._parent):
            grow = len(self._parent)
            self._parent = np.concatenate([self._parent, np.zeros(grow, dtype=np.int64)])
            self._reason = np.concatenate([self._reason, np.zeros(grow, dtype=np.int64)])
            self._row = np.concatenate([self._row, np.full(grow, -1, dtype=np.int64)])
        self._parent[start:end] = np.arange(start, end)
        self.count = end
        return np.arange(start, end, dtype=np.int64)[:, None]

    def _roots(self, atoms: Axis) -> Axis:
        parents = self._parent[atoms]
        while True:
            above = self._parent[parents]
            if np.array_equal(above, parents):
                return parents
            self._parent[atoms] = above
            parents = above

    def expand(self, axis: Axis) -> Axis:
        """Return ``axis`` in roots with all products written out, pinned atoms still in."""
        axis = self._roots(axis)
        while len(self._products):
            rows = self._row[axis]
            if not (rows >= 0).any():
                break
            columns = []
            for column, row in zip(axis.T, rows.T, strict=True):
                if not (row >= 0).any():
                    columns.append(column[:, None])
                    continue
                wide = self._products[row].copy()
                wide[row < 0] = 0
                wide[row < 0, 0] = column[row < 0]
                columns.append(wide)
            axis = self._roots(np.concatenate(columns, axis=1))
        return axis

    def freeze(self) -> None:
        """Declare that nothing changes any more, so that results may be remembered."""
        self._cache = {}

    def canon(self, axis: Axis) -> Axis:
        """Return ``axis`` in free roots: pinned atoms, repeats and empty columns dropped."""
        if self._cache is None:
            return self._canon(axis)
        if id(axis) not in self._cache:
            self._cache[id(axis)] = (axis, self._canon(axis))  # kept, so that its id stays its own
        return self._cache[id(axis)][1]

    def _canon(self, axis: Axis) -> Axis:
        if axis.shape[1] == 0:
            return axis
        axis = self.expand(axis)
        axis = np.where(self._reason[axis] > 0, 0, axis)
        for i, j in itertools.combinations(range(axis.shape[1]), 2):
            axis[:, j] = np.where(axis[:, i] == axis[:, j], 0, axis[:, j])
        return axis[:, axis.any(axis=0)]

    def pin(self, axis: Axis, reason: str) -> None:
        """Forbid the removal of any position of ``axis``."""
        free = self.canon(axis)
        atoms = free[free > 0]
        if len(atoms):
            number = self._reason_ids.setdefault(reason, len(self._reasons))
            if number == len(self._reasons):
                self._reasons.append(reason)
            self._reason[atoms] = number

    def is_pinned(self, atoms: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Tell which atoms cannot go."""
        return self._reason[self._roots(atoms)] > 0

    def reasons(self, axis: Axis) -> tuple[str, ...]:
        """Return why positions of ``axis`` are pinned, the commonest reason first."""
        if axis.size == 0:
            return ()
        numbers, counts = np.unique(self._reason[self.expand(axis)], return_counts=True)
        order = np.argsort(-counts, kind="stable")
        return tuple(self._reasons[numbers[i]] for i in order if numbers[i] > 0)

    def unify(self, left: Axis, right: Axis, reason: str) -> None:
        """Make position i of ``left`` survive exactly when position i of ``right`` does.

        Atoms that both sides share are dropped first. What is left is matched: as
        many against as many one by one, one against many by definition, some
        against none by a pin (``reason``), anything else by pinning both.

        Raises:
            ValueError: the two differ in size.
        """
        if len(left) != len(right):
            raise ValueError(f"axes of {len(left)} and {len(right)} positions cannot be unified")
        if left is right:
            return
        if left.shape[1] == 1 and right.shape[1] == 1:
            a, b = self._roots(left[:, 0]), self._roots(right[:, 0])
            both = np.concatenate([a, b])
            if (self._row[both] < 0).all() and not self._reason[both].any() and both.all():
                self._union(a, b)
                return
        given = (left, right)
        for _ in range(64):
            left, right = self.canon(left), self.canon(right)
            if left.shape == right.shape and np.array_equal(left, right):
                return
            left, right = self._apart(left, right)
            if left.shape[1] == 0 or right.shape[1] == 0 or not (left.any(1) & right.any(1)).all():
                found = self.reasons(given[0]) or self.reasons(given[1])
                reason = found[0] if found else reason
            if left.shape[1] == 0 and right.shape[1] == 0:
                return
            if not self._match(left, right, reason):
                return
        self.pin(left, reason)
        self.pin(right, reason)

    @staticmethod
    def _apart(left: Axis, right: Axis) -> tuple[Axis, Axis]:
        """Drop, row by row, the atoms that both sides have."""
        left, right = left.copy(), right.copy()
        for i in range(left.shape[1]):
            for j in range(right.shape[1]):
                same = left[:, i] == right[:, j]
                left[same, i] = 0
                right[same, j] = 0
        return left[:, left.any(axis=0)], right[:, right.any(axis=0)]

    def _match(self, left: Axis, right: Axis, reason: str) -> bool:
        """Unify rows that share no atom; True where another pass must look again."""
        n_left, n_right = (left > 0).sum(axis=1), (right > 0).sum(axis=1)
        again = False
        lonely = (n_left == 0) != (n_right == 0)
        if lonely.any():
            self.pin(left[lonely], reason)
            self.pin(right[lonely], reason)
        many = (n_left > 0) & (n_right > 0)
        single = many & (n_left == 1) & (n_right == 1)
        if single.any():
            self._union(left[single].max(axis=1), right[single].max(axis=1))
            again = True
        even = many & ~single & (n_left == n_right)
        for arity in np.unique(n_left[even]):
            rows = even & (n_left == arity)
            a, b = _packed(left[rows], int(arity)), _packed(right[rows], int(arity))
            for i, j in enumerate(_pairing(a, b)):
                self._union(a[:, i], b[:, j])
            again = True
        for one, other, rows in (
            (left, right, many & (n_left == 1) & (n_right > 1)),
            (right, left, many & (n_right == 1) & (n_left > 1)),
        ):
            if rows.any() and not lonely.any() and not single.any():
                again |= self._define(one[rows].max(axis=1), other[rows], reason)
            elif rows.any():
                again = True
        odd = many & (n_left != n_right) & (n_left > 1) & (n_right > 1)
        if odd.any():
            self.pin(left[odd], reason)
            self.pin(right[odd], reason)
        return again

    def _define(self, atoms: NDArray[np.int64], products: Axis, reason: str) -> bool:
        """Define each atom as the product in its row; True where an atom came twice."""
        circular = np.isin(atoms, products)
        if circular.any() or products.shape[1] > _MOST_FACTORS:
            rows = circular if circular.any() else np.ones(len(atoms), dtype=bool)
            self.pin(atoms[rows][:, None], reason)
            self.pin(products[rows], reason)
            return True
        unique, first = np.unique(atoms, return_index=True)
        table = products[first]
        width = max(table.shape[1], self._products.shape[1])
        stored = np.pad(self._products, ((0, 0), (0, width - self._products.shape[1])))
        added = np.pad(table, ((0, 0), (0, width - table.shape[1])))
        self._row[unique] = np.arange(len(stored), len(stored) + len(added))
        self._products = np.concatenate([stored, added])
        return len(unique) < len(atoms)

    def _union(self, left: NDArray[np.int64], right: NDArray[np.int64]) -> None:
        while True:
            a, b = self._parent[left], self._parent[right]
            while not np.array_equal(above := self._parent[a], a):
                a = above
            while not np.array_equal(above := self._parent[b], b):
                b = above
            low, high = np.minimum(a, b), np.maximum(a, b)
            differ = low != high
            if not differ.any():
                return
            low, high = low[differ], high[differ]
            np.minimum.at(self._parent, high, low)
            pinned = high[self._reason[high] > 0]
            if len(pinned):
                above = self._roots(pinned)
                free = self._reason[above] == 0
                self._reason[above[free]] = self._reason[pinned[free]]

    def split(self, axis: Axis, sizes: Sequence[int], reason: str) -> list[Axis]:
        """Undo a merge: read ``axis`` as an array of shape ``sizes``, one axis a dimension.

        A column that varies along one dimension belongs to it. One that varies
        along several becomes the product of fresh atoms, one factor a dimension.
        """
        axis = self.canon(axis)
        parts: list[list[NDArray[np.int64]]] = [[] for _ in sizes]
        for column in axis.T:
            grid = column.reshape(tuple(sizes))
            along = [d for d in range(len(sizes)) if (np.diff(grid, axis=d) != 0).any()]
            if len(along) <= 1:
                place = along[0] if along else int(np.argmax(sizes))
                index = tuple(slice(None) if d == place else 0 for d in range(len(sizes)))
                parts[place].append(grid[index])
                continue
            factors = [self.fresh(n) if d in along else fixed(n) for d, n in enumerate(sizes)]
            self.unify(column[:, None], merge(factors), reason)
            for d in along:
                parts[d].append(factors[d][:, 0])
        return [
            np.stack(columns, axis=1) if columns else fixed(n)
            for columns, n in zip(parts, sizes, strict=True)
        ]


def merge(axes: Sequence[Axis]) -> Axis:
    """Return the axis of the flattened dimensions ``axes`` (row-major, order kept)."""
    total = int(np.prod([len(axis) for axis in axes], dtype=np.int64))
    columns = []
    before = 1
    for axis in axes:
        after = total // (before * len(axis)) if total else 0
        columns.append(np.tile(np.repeat(axis, after, axis=0), (before, 1)))
        before *= len(axis)
    return np.concatenate(columns, axis=1) if columns else fixed(1)


def stack(axes: Sequence[Axis]) -> Axis:
    """Return the axis of a concatenation along the dimension that ``axes`` describe."""
    width = max(axis.shape[1] for axis in axes)
    return np.concatenate([np.pad(a, ((0, 0), (0, width - a.shape[1]))) for a in axes])


def _packed(axis: Axis, arity: int) -> Axis:
    """Move the non-zero atoms of each row to the left; every row has ``arity`` of them."""
    order = np.argsort(axis == 0, axis=1, kind="stable")
    return np.take_along_axis(axis, order, axis=1)[:, :arity]


def _pairing(left: Axis, right: Axis) -> tuple[int, ...]:
    """Match the columns that vary alike, so that heads meet heads."""
    arity = left.shape[1]
    if arity > 3:
        return tuple(range(arity))
    pairs = [
        [len(np.unique(left[:, i] * (1 << 32) + right[:, j])) for j in range(arity)]
        for i in range(arity)
    ]
    return min(
        itertools.permutations(range(arity)),
        key=lambda p: (sum(pairs[i][p[i]] for i in range(arity)), p),
    )
