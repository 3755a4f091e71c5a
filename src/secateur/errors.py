"""The errors Secateur raises on purpose; anything else is a bug."""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable


class SecateurError(Exception):
    """Base of every error that Secateur raises on purpose."""


class InputError(SecateurError, ValueError):
    """An argument, file or setting breaks a rule; the message names all three."""


class TraceError(SecateurError):
    """The model fails on its example input, or cannot be followed."""


class PlanError(SecateurError):
    """A plan does not fit the model, or nothing can be cut."""


class VerificationError(SecateurError):
    """A cut network does not compute what its masked reference computes."""


class ExportError(SecateurError):
    """A network cannot be exported, or what was exported does not compute the same."""


class CheckpointError(SecateurError):
    """A saved network is incomplete, damaged or of another version."""


class StorageError(SecateurError, OSError):
    """A file cannot be written or read (a full disk, no permission); the message names it."""


_NO_MEMORY = (
    "can't allocate memory",
    "cannot allocate memory",
    "not enough memory",
    "out of memory",
    "bad_alloc",
    "could not create a memory",
    "could not create a primitive",
    "failed to map segment",
    "can't start new thread",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether the system, PyTorch or a library of its (oneDNN, CUDA) wanted for memory."""
    if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
        return True
    text = str(error).lower()
    known = isinstance(error, RuntimeError | ImportError | OSError)
    return known and any(words in text for words in _NO_MEMORY)


def told_out_of_memory(error: BaseException) -> str:
    """Say on one line that memory was missing, and what helps."""
    text = " ".join(str(error).split()).partition(" (Triggered")[0][:200]
    more = f" ({text})" if text else ""
    return (
        f"there is too little memory{more}: use smaller batches or images, fewer workers, or a "
        "machine with more"
    )


def unknown_name(what: str, name: str, choices: Iterable[str]) -> InputError:
    """Build the error for an unknown name: it lists the choices and the nearest one."""
    known = sorted(choices)
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return InputError(f"{what} must be one of {', '.join(known)}, but got {name!r}{hint}")


def unmatched(what: str, pattern: str, known: Iterable[str]) -> InputError:
    """Build the error for a pattern that matches nothing: it names the nearest."""
    near = difflib.get_close_matches(pattern, sorted(known), n=3, cutoff=0) or ["none"]
    return InputError(
        f"{what} must match something, but {pattern!r} matches nothing; "
        f"the nearest {'is' if len(near) == 1 else 'are'} {', '.join(near)}"
    )
