"""The modules and registered tensors of a network, in PyTorch's order.

``nn.Module.named_modules`` walks by nested generators, which takes as long as all else that a
trace does with a module's attributes; a trace walks several times.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn


def modules_of(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return the path and module of every module, each once; "" for the network itself."""
    found: list[tuple[str, nn.Module]] = []
    seen: set[int] = set()
    ahead: list[tuple[str, nn.Module]] = [("", model)]
    while ahead:
        name, module = ahead.pop()
        if id(module) in seen:
            continue
        seen.add(id(module))
        found.append((name, module))
        inner = module._modules
        if inner:
            prefix = f"{name}." if name else ""
            ahead += [
                (prefix + key, part) for key, part in reversed(inner.items()) if part is not None
            ]
    return found


def registered_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the name and tensor of every parameter, then of every buffer, ties once."""
    modules = modules_of(model)
    for table in ("_parameters", "_buffers"):
        seen: set[int] = set()
        for name, module in modules:
            held: dict[str, Tensor | None] = vars(module)[table]
            for key, tensor in held.items():
                if tensor is not None and id(tensor) not in seen:
                    seen.add(id(tensor))
                    yield (f"{name}.{key}" if name else key), tensor
