"""The sizes inside ``torch.nn.functional.multi_head_attention_forward``.

The function is called with the width and the number of heads, and shapes its
tensors by them out of the tracer's sight: with E the width of the query, B the
batch, L its length and h heads, its views are [L, B h, E / h], [B, h, L, E / h],
[B, h, L, S], [L B, E] and [L, B, 3, E] for the packed projection.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from secateur.graph.program import Call, Ref
from secateur.graph.sizes import Dim, Expr, Sized, expr_of


def attention_width(call: Call) -> Sized:
    """Return the query's width, as the function reads it."""
    width = int(call.args[3])
    query = call.args[0]
    assert isinstance(query, Ref)
    return Sized(width, Dim(query.key, _WIDTH))


# The query is [L, B, E] or, without a batch, [L, E]: the width is its last dimension.
_WIDTH = -1


def attention_equalities(call: Call) -> dict[tuple[str, Expr, Expr, bool], str]:
    """Return what the function asserts: the width it was built for, in whole heads."""
    width, built, heads = attention_width(call), call.args[3], call.args[4]
    whole = width // heads * heads
    return {("==", expr_of(width), expr_of(v), True): "attention" for v in (built, whole)}


def norm_equalities(call: Call, rank: int) -> dict[tuple[str, Expr, Expr, bool], str]:
    """Return what a norm asserts: the last dimensions have the sizes that it is given."""
    given = call.args[1] if len(call.args) > 1 else call.kwargs["normalized_shape"]
    x = call.args[0] if call.args else call.kwargs["input"]
    sizes = given if isinstance(given, tuple) else (given,)
    return {
        ("==", Dim(x.key, rank - len(sizes) + k), expr_of(size), True): call.name
        for k, size in enumerate(sizes)
    }


def attention_sizes(call: Call, shape: Sequence[int]) -> list[Any]:
    """Return what the function states of the sizes of a view; None where they follow."""
    width, heads = attention_width(call), call.args[4]
    each = width // Sized(int(heads), expr_of(heads))
    total, h, d = int(width), int(heads), int(each)
    stated: list[Any] = [None] * len(shape)
    if len(shape) == 4 and tuple(shape[2:]) == (3, total):
        stated[2:] = [3, width]
    elif len(shape) == 4 and shape[1] == h:
        stated[1] = heads
        if shape[3] == d and call.name and shape[2] != d:
            stated[3] = each
    elif len(shape) == 3 and shape[2] == d and shape[1] % h == 0:
        stated[2] = each
    elif len(shape) == 2 and shape[1] == total:
        stated[1] = width
    return stated
