"""Integers that remember where they came from.

While a model is traced, the integers in its modules' attributes and the ones
that ``.shape`` and ``.size()`` return are replaced by :class:`Sized` integers.
Each behaves as the int it is and carries an expression, so that a
``view(b, n, 3, self.heads, c // self.heads)`` tells which attribute and which
dimension every size was made from. ``evaluate`` computes the same expression
again for other sizes, that is, after a cut.

Arithmetic that leaves the integers (``int(...)``, ``/``, ``math.*``) drops the
expression; the value then counts as a literal, which pins what it sizes. What no
Python class can see (``range(C)``, ``math.gcd(C, n)``) is found by tracing the planned
network again (:mod:`secateur.plan_check`).
"""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeAlias


@dataclass(frozen=True)
class Dim:
    """Size of dimension ``dim`` of the traced tensor number ``tensor``."""

    tensor: int
    dim: int


@dataclass(frozen=True)
class Attr:
    """An integer held by the model: ``path`` leads to it, see :mod:`secateur.graph.attributes`."""

    path: str

    def __str__(self) -> str:
        return self.path


@dataclass(frozen=True)
class Apply:
    """An arithmetic operation on sizes."""

    op: str
    left: Expr
    right: Expr


Expr: TypeAlias = "int | Dim | Attr | Apply"

_OPS: dict[str, Callable[[int, int], int]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "//": operator.floordiv,
    "%": operator.mod,
    "**": operator.pow,
    "<<": operator.lshift,
    ">>": operator.rshift,
    "&": operator.and_,
    "|": operator.or_,
    "^": operator.xor,
    "ceil": lambda a, b: -(-a // b),
    "==": lambda a, b: int(a == b),
    "<": lambda a, b: int(a < b),
    "<=": lambda a, b: int(a <= b),
}


class Sized(int):
    """An int with the expression that made it."""

    expr: Expr
    trace: object

    def __new__(cls, value: int, expr: Expr) -> Sized:
        """Make ``value`` remember ``expr``."""
        made = super().__new__(cls, value)
        made.expr, made.trace = expr, _trace.get()
        return made

    def __hash__(self) -> int:
        _tell_of_hash()
        return int.__hash__(self)

    def __reduce__(self) -> tuple[type[int], tuple[int]]:
        return int, (int(self),)

    def __deepcopy__(self, memo: dict[int, Any]) -> Sized:
        return self

    def __add__(self, other: Any) -> Any:
        return _apply("+", self, other)

    def __radd__(self, other: Any) -> Any:
        return _apply("+", other, self)

    def __sub__(self, other: Any) -> Any:
        return _apply("-", self, other)

    def __rsub__(self, other: Any) -> Any:
        return _apply("-", other, self)

    def __mul__(self, other: Any) -> Any:
        return _apply("*", self, other)

    def __rmul__(self, other: Any) -> Any:
        return _apply("*", other, self)

    def __floordiv__(self, other: Any) -> Any:
        return _apply("//", self, other)

    def __rfloordiv__(self, other: Any) -> Any:
        return _apply("//", other, self)

    def __mod__(self, other: Any) -> Any:
        return _apply("%", self, other)

    def __rmod__(self, other: Any) -> Any:
        return _apply("%", other, self)

    def __divmod__(self, other: Any) -> Any:
        return self // other, self % other

    def __rdivmod__(self, other: Any) -> Any:
        return other // self, other % self

    def __pow__(self, other: Any, modulo: Any = None) -> Any:
        if modulo is not None:
            return pow(int(self), other, modulo)
        return _apply("**", self, other)

    def __rpow__(self, other: Any, modulo: Any = None) -> Any:
        return _apply("**", other, self)

    def __lshift__(self, other: Any) -> Any:
        return _apply("<<", self, other)

    def __rlshift__(self, other: Any) -> Any:
        return _apply("<<", other, self)

    def __rshift__(self, other: Any) -> Any:
        return _apply(">>", self, other)

    def __rrshift__(self, other: Any) -> Any:
        return _apply(">>", other, self)

    def __and__(self, other: Any) -> Any:
        return _apply("&", self, other)

    def __rand__(self, other: Any) -> Any:
        return _apply("&", other, self)

    def __or__(self, other: Any) -> Any:
        return _apply("|", self, other)

    def __ror__(self, other: Any) -> Any:
        return _apply("|", other, self)

    def __xor__(self, other: Any) -> Any:
        return _apply("^", self, other)

    def __rxor__(self, other: Any) -> Any:
        return _apply("^", other, self)

    def __invert__(self) -> Any:
        return _apply("-", -1, self)

    def __pos__(self) -> Any:
        return self

    def __abs__(self) -> Any:
        return -self if self < 0 else self

    def __round__(self, digits: Any = None) -> Any:
        return self if digits is None or digits >= 0 else round(int(self), digits)

    def __trunc__(self) -> Any:
        return self

    def __floor__(self) -> Any:
        return self

    def __ceil__(self) -> Any:
        return self

    def __eq__(self, other: object) -> bool:
        return _noted("==", self, other, int.__eq__(self, other))

    def __ne__(self, other: object) -> bool:
        return _denied("==", self, other, int.__ne__(self, other))

    def __lt__(self, other: Any) -> bool:
        return _noted("<", self, other, int.__lt__(self, other))

    def __ge__(self, other: Any) -> bool:
        return _denied("<", self, other, int.__ge__(self, other))

    def __le__(self, other: Any) -> bool:
        return _noted("<=", self, other, int.__le__(self, other))

    def __gt__(self, other: Any) -> bool:
        return _denied("<=", self, other, int.__gt__(self, other))

    def __bool__(self) -> bool:
        return not _noted("==", self, 0, int.__eq__(self, 0))

    def __truediv__(self, other: Any) -> Any:
        if not isinstance(other, (int, float)):
            return NotImplemented
        return SizedFloat(int.__index__(self) / float(other), self)

    def __int__(self) -> int:
        value = int.__index__(self)
        _fix(expr_of(self), value)
        return value

    def __neg__(self) -> Any:
        return _apply("-", 0, self)


def _apply(op: str, left: Any, right: Any) -> Any:
    if isinstance(left, bool) or isinstance(right, bool):
        left, right = _plain(left), _plain(right)
    if not (isinstance(left, int) and isinstance(right, int)):
        size, other = (left, right) if isinstance(left, Sized) else (right, left)
        if not isinstance(other, float) or op not in _OF_FLOATS:
            return NotImplemented
        plain = float(other), float(int.__index__(size))
        numbers = plain[::-1] if size is left else plain
        return _float(_OF_FLOATS[op](*numbers), size)
    value = _OPS[op](int.__index__(left), int.__index__(right))
    if not isinstance(value, int):  # a negative power
        return _float(value, left if isinstance(left, Sized) else right)
    return Sized(value, Apply(op, expr_of(left), expr_of(right)))


_OF_FLOATS: dict[str, Callable[[float, float], Any]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "//": operator.floordiv,
    "%": operator.mod,
    "**": operator.pow,
}


def _float(number: Any, size: Sized) -> Any:
    """Make a float remember its size; a complex root stays as it is."""
    return SizedFloat(number, size) if isinstance(number, float) else number


_trace: ContextVar[object] = ContextVar("_trace", default=None)
_hashed: ContextVar[Callable[[], None] | None] = ContextVar("_hashed", default=None)


def _tell_of_hash() -> None:
    note = _hashed.get()
    if note is not None:
        note()


@contextlib.contextmanager
def sizes_of_one_trace(hashed: Callable[[], None] | None = None) -> Iterator[None]:
    """Tell the sizes that are made inside from those of any other trace.

    Code may keep sizes from one trace to the next; in another trace they are plain integers.

    Args:
        hashed: called before a size becomes the key of a dictionary, set or cache.
    """
    tokens = _trace.set(object()), _hashed.set(hashed)
    try:
        yield
    finally:
        _trace.reset(tokens[0])
        _hashed.reset(tokens[1])


_watcher: ContextVar[Callable[[str, Expr, Expr, bool], None] | None] = ContextVar(
    "_watcher", default=None
)


@contextlib.contextmanager
def watch_comparisons(note: Callable[[str, Expr, Expr, bool], None]) -> Iterator[None]:
    """Report every comparison of sizes and its outcome: the code takes its way by it."""
    token = _watcher.set(note)
    try:
        yield
    finally:
        _watcher.reset(token)


def _noted(op: str, left: Sized, right: object, outcome: bool) -> bool:
    note = _watcher.get()
    if note is not None and isinstance(right, int) and isinstance(outcome, bool):
        note(op, expr_of(left), expr_of(right), outcome)
    return outcome


def _denied(op: str, left: Sized, right: object, outcome: bool) -> bool:
    """Note a comparison by its opposite."""
    if isinstance(outcome, bool):
        _noted(op, left, right, not outcome)
    return outcome


def _fix(expr: Expr, value: int) -> None:
    """Report that the code turned a size into a plain number: it must stay as it is."""
    note = _watcher.get()
    if note is not None:
        note("==", expr, value, True)


class SizedFloat(float):
    """A float made from a size; made an integer again, it fixes the size."""

    expr: Expr
    value: int
    trace: object

    def __new__(cls, number: float, size: Sized) -> SizedFloat:
        """Make ``number`` remember the size that it came from."""
        made = super().__new__(cls, number)
        made.expr, made.value = expr_of(size), int.__index__(size)
        made.trace = _trace.get()
        return made

    def __hash__(self) -> int:
        _tell_of_hash()
        return float.__hash__(self)

    def _whole(self, result: int) -> int:
        if is_current(self):
            _fix(self.expr, self.value)
        return result

    def __int__(self) -> int:
        return self._whole(float.__int__(self))

    def __trunc__(self) -> int:
        return self._whole(float.__trunc__(self))

    def __floor__(self) -> int:
        return self._whole(float.__floor__(self))

    def __ceil__(self) -> int:
        return self._whole(float.__ceil__(self))

    def __round__(self, digits: Any = None) -> Any:
        return self._whole(float.__round__(self, digits))

    def __deepcopy__(self, memo: dict[int, Any]) -> SizedFloat:
        return self


def _plain(value: Any) -> Any:
    return int(value) if isinstance(value, bool) else value


def expr_of(value: int) -> Expr:
    """Return the expression behind ``value``; an int, or one of another trace, is itself."""
    return value.expr if isinstance(value, Sized) and is_current(value) else int.__index__(value)


def is_current(value: Sized | SizedFloat) -> bool:
    """Tell whether ``value`` belongs to the trace that runs; where none runs, it may be any."""
    trace = _trace.get()
    return trace is None or value.trace is trace


def ceil_div(left: Expr, right: Expr) -> Expr:
    """Return the expression for the quotient rounded up, as ``chunk`` computes it."""
    return Apply("ceil", left, right)


def evaluate(expr: Expr, dims: Callable[[Dim], int], attrs: Mapping[Attr, int]) -> int | None:
    """Compute ``expr`` with new sizes; None where that gives no integer.

    Args:
        expr: what to compute.
        dims: gives the new size of a traced dimension.
        attrs: the value of every attribute that occurs in ``expr``.
    """
    if isinstance(expr, Dim):
        return dims(expr)
    if isinstance(expr, Attr):
        return attrs[expr]
    if isinstance(expr, Apply):
        left = evaluate(expr.left, dims, attrs)
        right = evaluate(expr.right, dims, attrs)
        if left is None or right is None or not _defined(expr.op, left, right):
            return None
        return _OPS[expr.op](left, right)
    return expr


_MOST_BITS = 4096


def _defined(op: str, left: int, right: int) -> bool:
    """Tell whether an operation on integers gives an integer of a sensible length."""
    if op in ("//", "%", "ceil"):
        return right != 0
    if op in ("**", "<<"):
        bits = left.bit_length() * right if op == "**" else left.bit_length() + right
        return right >= 0 and bits <= _MOST_BITS
    return op != ">>" or right >= 0


def leaves(expr: Expr) -> tuple[Dim | Attr, ...]:
    """Return every dimension and attribute that ``expr`` is made from."""
    if isinstance(expr, (Dim, Attr)):
        return (expr,)
    if isinstance(expr, Apply):
        return leaves(expr.left) + leaves(expr.right)
    return ()


def rename(expr: Expr, change: Callable[[Dim], Dim]) -> Expr:
    """Return ``expr`` with every dimension replaced."""
    if isinstance(expr, Dim):
        return change(expr)
    if isinstance(expr, Apply):
        return Apply(expr.op, rename(expr.left, change), rename(expr.right, change))
    return expr


def show(expr: Expr) -> str:
    """Write ``expr`` for a person."""
    if isinstance(expr, Dim):
        return f"t{expr.tensor}.size({expr.dim})"
    if isinstance(expr, Apply):
        return f"({show(expr.left)} {expr.op} {show(expr.right)})"
    return str(expr)
