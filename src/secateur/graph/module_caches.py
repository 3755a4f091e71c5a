"""Attributes in which modules keep tensors that they computed, from one pass to the next.

LeViT keeps its attention biases by resolution or device. What such a cache holds after a pass is
made from parameters, so a trace must see it made, and a cut network must make it anew. No mark
tells it from a table that the network was built with: so a pass finds it empty, and where the pass
does not fill it again, the next one finds it as it was.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from secateur.graph.attributes import owner_of
from secateur.graph.module_tree import modules_of, registered_tensors
from secateur.graph.program import tensor_leaves
from secateur.graph.sizes import Sized

Caches = Mapping[str, str]
"""What an attribute is before its first use, by path: "empty", "None" or "absent"."""


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
        # A comparison of a traced size with a number would fix that size.
        if plain(key) in self._entries and not super().__contains__(key):
            self._missed.add(key)


def plain(key: Any) -> Any:
    """Return a key with plain integers in place of traced sizes."""
    if isinstance(key, tuple):
        return tuple(plain(part) for part in key)
    return int.__index__(key) if type(key) is Sized else key


class ModuleCaches:
    """The caches of a network that is about to run; found after the pass by :meth:`filled`.

    Args:
        model: its dictionaries of tensors are emptied, but for those whose paths are ``intact``.
    """

    def __init__(self, model: nn.Module, intact: Collection[str]) -> None:
        self._homes: dict[str, tuple[nn.Module, str]] = {}
        self._emptied: dict[str, _Emptied] = {}
        registered = {id(tensor) for _, tensor in registered_tensors(model)}
        for name, module in modules_of(model):
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

    def filled(self) -> dict[str, str]:
        """Return the paths of the dictionaries that hold tensors after the pass."""
        held = {path: vars(module).get(key) for path, (module, key) in self._homes.items()}
        return {
            path: "empty"
            for path, value in held.items()
            if isinstance(value, dict) and tensor_leaves(list(dict.values(value)))
        }


_MACHINERY = frozenset(vars(nn.Module()))


def _is_result(value: Any, registered: Collection[int]) -> bool:
    """Tell what a pass may have computed: tensors, none of them a parameter or buffer."""
    parts = value if isinstance(value, list | tuple) else (value,)
    return all(isinstance(part, Tensor) and id(part) not in registered for part in parts)


def empty_caches(model: nn.Module, caches: Caches) -> None:
    """Put attributes back to what they are before their first use."""
    modules = dict(modules_of(model))
    for path, unused in caches.items():
        home, key = owner_of(modules, path)
        held: dict[str, Any] = modules[home].__dict__
        if unused == "absent":
            held.pop(key, None)
        elif unused == "None":
            held[key] = None
        elif isinstance(held.get(key), (dict, list)):
            held[key].clear()


def keeping(model: nn.Module) -> dict[str, Any]:
    """Return the lists and tensors in attributes that are no parameters and buffers, by path."""
    own = {id(tensor) for _, tensor in registered_tensors(model)}
    return {
        f"{name}.{key}" if name else key: value
        for name, module in modules_of(model)
        if not type(module).__module__.startswith("torch.")
        for key, value in vars(module).items()
        if key not in _MACHINERY
        and isinstance(value, (Tensor, list))
        and any(id(tensor) not in own for tensor in tensor_leaves(value))
    }


def filled(model: nn.Module, twin: nn.Module) -> dict[str, str]:
    """Return lists and attributes that hold tensors in ``twin``, which ran, alone."""
    modules, found = dict(modules_of(model)), {}
    for path in sorted(keeping(twin).keys() - keeping(model).keys()):
        home, key = owner_of(modules, path)
        value = vars(modules[home]).get(key, _ABSENT)
        if value is _ABSENT or value is None or value == []:
            found[path] = "empty" if value == [] else "None" if value is None else "absent"
    return found


_ABSENT = object()
