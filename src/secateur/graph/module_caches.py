"""Dictionaries in which modules keep tensors that they computed, from one pass to the next.

LeViT keeps its attention biases by resolution or device. What such a cache holds after a pass is
made from parameters, so a trace must see it made, and a cut network must make it anew. No mark
tells it from a table that the network was built with: so a pass finds it empty, and where the pass
does not fill it again, the next one finds it as it was.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterator
from typing import Any

from torch import Tensor, nn

from secateur.graph.program import tensor_leaves


class NotCachesError(Exception):
    """Dictionaries, by path, that a pass read and did not fill again."""

    def __init__(self, paths: Collection[str]) -> None:
        super().__init__(", ".join(sorted(paths)))
        self.paths = frozenset(paths)


class _Emptied(dict[Any, Any]):
    """A dictionary without its entries, which notes whether anybody looks for them."""

    def __init__(self, entries: dict[Any, Any]) -> None:
        super().__init__()
        self._entries = entries
        self._read = False
        self._missed: set[Any] = set()

    def forget(self) -> None:
        """Forget who has looked so far."""
        self._read = False
        self._missed.clear()

    def is_table(self) -> bool:
        """Tell whether entries were used, or looked for and not made again."""
        return self._read or any(not dict.__contains__(self, key) for key in self._missed)

    def __missing__(self, key: Any) -> Any:
        self._look_for(key)
        raise KeyError(key)

    def __contains__(self, key: object) -> bool:
        self._look_for(key)
        return super().__contains__(key)

    def get(self, key: Any, default: Any = None) -> Any:
        self._look_for(key)
        return super().get(key, default)

    def pop(self, key: Any, *default: Any) -> Any:
        self._look_for(key)
        return super().pop(key, *default)

    def __iter__(self) -> Iterator[Any]:
        self._read = True
        return super().__iter__()

    def keys(self) -> Any:
        self._read = True
        return super().keys()

    def values(self) -> Any:
        self._read = True
        return super().values()

    def items(self) -> Any:
        self._read = True
        return super().items()

    def __len__(self) -> int:
        self._read = True
        return super().__len__()

    def _look_for(self, key: Any) -> None:
        if key in self._entries and not super().__contains__(key):
            self._missed.add(key)


class ModuleCaches:
    """The caches of a network that is about to run; found after the pass by :meth:`filled`.

    Args:
        model: its dictionaries of tensors are emptied, but for those whose paths are ``intact``.
    """

    def __init__(self, model: nn.Module, intact: Collection[str]) -> None:
        self._homes: dict[str, tuple[nn.Module, str]] = {}
        self._emptied: dict[str, _Emptied] = {}
        registered = {id(t) for t in (*model.parameters(), *model.buffers())}
        for name, module in model.named_modules():
            for key, value in vars(module).items():
                path = f"{name}.{key}" if name else key
                if type(value) not in (dict, OrderedDict) or key in _MACHINERY or path in intact:
                    continue
                if all(_is_result(part, registered) for part in value.values()):
                    self._homes[path] = module, key
        for path, (module, key) in self._homes.items():
            if vars(module)[key]:
                self._emptied[path] = vars(module)[key] = _Emptied(vars(module)[key])

    def watch(self) -> None:
        """Note from now on what is looked for."""
        for emptied in self._emptied.values():
            emptied.forget()

    def check(self) -> None:
        """Refuse a pass that took a table for a cache.

        Raises:
            NotCachesError: names the tables.
        """
        tables = [path for path, emptied in self._emptied.items() if emptied.is_table()]
        if tables:
            raise NotCachesError(tables)

    def filled(self) -> tuple[str, ...]:
        """Return the paths of the dictionaries that hold tensors after the pass."""
        held = {path: vars(module).get(key) for path, (module, key) in self._homes.items()}
        return tuple(
            path
            for path, value in held.items()
            if isinstance(value, dict) and tensor_leaves(list(dict.values(value)))
        )


_MACHINERY = frozenset(vars(nn.Module()))


def _is_result(value: Any, registered: Collection[int]) -> bool:
    """Tell what a pass may have computed: tensors, none of them a parameter or buffer."""
    parts = value if isinstance(value, list | tuple) else (value,)
    return all(isinstance(part, Tensor) and id(part) not in registered for part in parts)


def empty_caches(model: nn.Module, paths: Collection[str]) -> None:
    """Take out of the dictionaries at ``paths`` what a past pass left there."""
    for path in paths:
        home, _, key = path.rpartition(".")
        held = getattr(model.get_submodule(home), key, None)
        if isinstance(held, dict):
            held.clear()
