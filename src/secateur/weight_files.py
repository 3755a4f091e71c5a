"""Weights as people have them: safetensors or PyTorch's own files, wrapped and prefixed.

PyTorch's files are read with ``weights_only=True``, which makes tensors and plain containers and
runs nothing of the file.
"""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from secateur.errors import InputError

WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "network", "module", "weights")
"""Keys under which training scripts keep a state dict, the likeliest first."""


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Read the state dict of a file, on the CPU.

    Args:
        path: a safetensors file, or what ``torch.save`` wrote of a state dict or of a checkpoint
            that holds one.

    Raises:
        InputError: the file is missing or damaged, or holds no state dict; where it must be
            converted, the message says how.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise InputError(f"weights: the file {str(path)!r} does not exist")
    try:
        with file.open("rb") as opened:
            head = opened.read(2)
        pickled = head in (b"PK", b"\x80\x02")
        found = _read_pickled(file, path) if pickled else load_file(file)
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"weights {str(path)!r} is not a safetensors file: {_one_line(error)}"
        ) from error
    return _state_dict(found, path)


def without_prefix(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return ``found`` without the prefix that all its names share, where ``wanted`` has none.

    ``nn.DataParallel`` puts "module." before every name, ``torch.compile`` "_orig_mod.", training
    frameworks "model.".
    """
    names, depth = list(found), 0
    while not set(names) & set(wanted):
        first = {name.partition(".")[0] for name in names}
        if len(first) != 1 or not all("." in name for name in names):
            return dict(found)
        names, depth = [name.partition(".")[2] for name in names], depth + 1
    return {name.split(".", depth)[-1]: value for name, value in found.items()}


def _read_pickled(file: Path, path: str | Path) -> Any:
    try:
        # Opened here, because by its name PyTorch would take some files for another format.
        with file.open("rb") as opened, warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of TorchScript files, told below
            return torch.load(opened, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"weights {str(path)!r} holds more than tensors (a whole pickled model, say), and to "
            'read it would run its code. If you trust it, convert it once: python -c "import '
            f"torch; m = torch.load({str(path)!r}, weights_only=False); torch.save(m.state_dict() "
            f"if hasattr(m, 'state_dict') else m['state_dict'], {_converted(path)!r})\""
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError, IndexError) as error:
        if "TorchScript" in str(error):
            raise InputError(
                f"weights {str(path)!r} is a TorchScript program; take its weights out once: "
                f'python -c "import torch; torch.save(torch.jit.load({str(path)!r}).state_dict(), '
                f'{_converted(path)!r})"'
            ) from error
        raise InputError(f"weights {str(path)!r} is damaged: {_one_line(error)}") from error


def _state_dict(found: Any, path: str | Path) -> dict[str, Tensor]:
    """Find the state dict in what a file held."""
    if _is_state_dict(found):
        return dict(found)
    if not isinstance(found, Mapping):
        raise InputError(
            f"weights {str(path)!r} must hold a state dict, but holds a {type(found).__name__}"
        )
    held = {str(key): value for key, value in found.items() if _is_state_dict(value)}
    known = [key for key in WRAPPERS if key in held] or list(held)
    if not known or (len(known) > 1 and known[0] not in WRAPPERS):
        keys = ", ".join(map(str, found)) or "nothing"
        raise InputError(
            f"weights {str(path)!r} must hold one state dict (by itself or under "
            f"{', '.join(map(repr, WRAPPERS))}), but holds {keys}; save the part that is meant by "
            "itself"
        )
    return dict(held[known[0]])


def _is_state_dict(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and bool(value)
        and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in value.items())
    )


def _converted(path: str | Path) -> str:
    return str(Path(path).with_suffix(".weights.pth"))


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
