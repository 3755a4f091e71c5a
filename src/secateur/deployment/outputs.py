"""Outputs of an export: tensors in dicts, tuples and lists, which every runtime knows."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from torch import Tensor


def plain(value: Any) -> Any:
    """Rebuild outputs from tensors in dicts, tuples and lists.

    Data classes and the model outputs of transformers become dicts, so that a program loads
    without the library that declares them. What is none of these (a cache, a number) is left
    out: of a dict, and as None of a tuple or list, where the others keep their places.
    """
    if isinstance(value, Tensor):
        return value
    if isinstance(value, Mapping):
        parts = {key: plain(part) for key, part in value.items()}
        return {key: part for key, part in parts.items() if part is not None}
    if isinstance(value, tuple | list):
        kept = [plain(part) for part in value]
        return kept if isinstance(value, list) else tuple(kept)
    return plain(_fields(value)) if _fields(value) else None


def left_out(value: Any, path: str = "") -> tuple[str, ...]:
    """Name what :func:`plain` leaves out, each with its type: "past_key_values (DynamicCache)"."""
    if value is None or isinstance(value, Tensor):
        return ()
    if isinstance(value, Mapping):
        parts = list(value.items())
    elif isinstance(value, tuple | list):
        parts = list(enumerate(value))
    elif _fields(value):
        parts = list(_fields(value).items())
    else:
        return (f"{path or 'output'} ({type(value).__name__})",)
    return tuple(
        name
        for key, part in parts
        for name in left_out(part, f"{path}.{key}" if path else str(key))
    )


def _fields(value: Any) -> dict[str, Any]:
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return {}
    return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
