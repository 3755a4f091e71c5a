"""NumPy's numbers, arrays, dtypes and generators, and PyTorch's generators, as JSON and back."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from secateur.errors import CheckpointError

_PLAIN_DTYPE = re.compile(r"[<>|=][biufcSUMm]\d*(\[[^\]]{1,8}\])?")
_NUMPY = (np.ndarray, np.generic, np.dtype, np.random.Generator, np.random.RandomState)
_TORCH = (torch.Generator, torch.finfo, torch.iinfo)
_BIT_GENERATORS = ("PCG64", "PCG64DXSM", "SFC64", "MT19937")
_MT19937_WORDS = 624


def is_numeric(value: Any) -> bool:
    """Tell whether a value is of a kind that this file describes."""
    return isinstance(value, (*_NUMPY, *_TORCH))


def write_numeric(value: Any, keep: Callable[[Tensor], str]) -> dict[str, Any] | None:
    """Describe a value; ``keep`` stores a tensor of bytes and returns its name.

    Returns:
        None where the value holds Python objects, or is of a class of its own.
    """
    if isinstance(value, np.dtype):
        return {"$": "numpy dtype", "dtype": value.str} if _is_plain(value) else None
    if isinstance(value, np.ndarray):
        if type(value) is not np.ndarray or not _is_plain(value.dtype):
            return None
        turned = value.flags.f_contiguous and not value.flags.c_contiguous
        return {
            "$": "numpy array",
            "dtype": value.dtype.str,
            "shape": list(value.shape),
            "order": "F" if turned else "C",
            "writeable": value.flags.writeable,
            "bytes": keep(_bytes(value)),
        }
    if isinstance(value, np.generic):
        if not _is_plain(value.dtype):
            return None
        return {"$": "numpy number", "dtype": value.dtype.str, "bytes": value.tobytes().hex()}
    if isinstance(value, torch.Generator):
        if value.device.type != "cpu":
            return None
        return {"$": "torch generator", "bytes": keep(value.get_state().clone())}
    if isinstance(value, (torch.finfo, torch.iinfo)):
        return {"$": type(value).__name__, "dtype": str(value.dtype).removeprefix("torch.")}
    return _generator(value, keep)


def _generator(value: Any, keep: Callable[[Tensor], str]) -> dict[str, Any] | None:
    old = isinstance(value, np.random.RandomState)
    if type(value) not in (np.random.Generator, np.random.RandomState):
        return None
    state: Any = value.get_state(legacy=False) if old else value.bit_generator.state
    name = state["bit_generator"]
    if name not in _BIT_GENERATORS:
        return None
    flat = {
        key: item.item() if isinstance(item, np.generic) else item
        for key, item in state.items()
        if key not in ("state", "bit_generator")
    }
    inner = {
        key: keep(_bytes(item)) if isinstance(item, np.ndarray) else int(item)
        for key, item in state["state"].items()
    }
    return {"$": "numpy generator", "of": name, "old": old, "state": inner, "rest": flat}


def read_numeric(kind: str, data: dict[str, Any], tensor: Callable[[str], Tensor]) -> Any:
    """Rebuild a value.

    Raises:
        CheckpointError: there is no such kind, or the parts do not fit.
    """
    if kind == "numpy dtype":
        return _dtype(data["dtype"])
    if kind == "numpy number":
        (number,) = np.frombuffer(bytes.fromhex(data["bytes"]), dtype=_dtype(data["dtype"]))
        return number
    if kind == "numpy array":
        return _array(data, tensor)
    if kind == "torch generator":
        found = torch.Generator()
        found.set_state(tensor(data["bytes"]))
        return found
    if kind in ("finfo", "iinfo"):
        dtype = getattr(torch, str(data["dtype"]))
        return torch.finfo(dtype) if kind == "finfo" else torch.iinfo(dtype)
    if kind == "numpy generator":
        return _read_generator(data, tensor)
    raise CheckpointError(f"unknown kind of value {kind[:100]!r}")


def _array(data: dict[str, Any], tensor: Callable[[str], Tensor]) -> Any:
    raw, dtype = tensor(data["bytes"]).numpy(), _dtype(data["dtype"])
    flat = np.frombuffer(raw.tobytes(), dtype=dtype) if raw.size else np.empty(0, dtype)
    found = flat.reshape(data["shape"]).copy(order="F" if data["order"] == "F" else "C")
    found.flags.writeable = bool(data["writeable"])
    return found


def _read_generator(data: dict[str, Any], tensor: Callable[[str], Tensor]) -> Any:
    name = data["of"]
    if name not in _BIT_GENERATORS:
        raise CheckpointError(f"unknown random generator {str(name)[:100]!r}")
    inner: dict[str, Any] = {
        key: np.frombuffer(tensor(item).numpy().tobytes(), np.uint32 if key == "key" else np.uint64)
        if isinstance(item, str)
        else int(item)
        for key, item in data["state"].items()
    }
    # NumPy takes any position, and would read past the end of its table.
    if name == "MT19937" and not (
        0 <= inner["pos"] <= _MT19937_WORDS and inner["key"].shape == (_MT19937_WORDS,)
    ):
        raise CheckpointError("the state of a random generator is damaged")
    bits = getattr(np.random, name)(0)
    state = {"bit_generator": name, "state": inner, **data["rest"]}
    if data["old"]:
        old = np.random.RandomState(bits)
        old.set_state(state)
        return old
    bits.state = state
    return np.random.Generator(bits)


def _is_plain(dtype: np.dtype[Any]) -> bool:
    return _PLAIN_DTYPE.fullmatch(dtype.str) is not None


def _dtype(name: Any) -> np.dtype[Any]:
    if not isinstance(name, str) or not _PLAIN_DTYPE.fullmatch(name):
        raise CheckpointError(f"unknown NumPy dtype {str(name)[:100]!r}")
    return np.dtype(name)


def _bytes(array: Any) -> Tensor:
    """Return the bytes of an array, in C order."""
    raw = np.frombuffer(array.tobytes(), dtype=np.uint8)
    return torch.from_numpy(raw.copy())
