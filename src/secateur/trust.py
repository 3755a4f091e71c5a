"""Names of classes and functions, and which of them a saved network may use.

A folder can come from a stranger. What its JSON names is looked up, never searched for: nothing is
imported, and no code of a class runs while a network is put together. Without ``trust`` a name is
good only where this process has it already and calling it can do no harm:

- classes of ``torch.nn`` and Secateur's own networks;
- ``torch.nn.Module`` classes of modules that are imported;
- plain classes, enums and functions of the user's own imported modules (not of an installed
  package), and plain classes of the packages that the network's modules come from;
- pure functions of PyTorch, ``math``, ``operator`` and NumPy, and plain classes of the standard
  library.

Whatever the caller names with ``trust`` is imported and used as it is.
"""

from __future__ import annotations

import enum
import functools
import importlib
import inspect
import site
import sys
import sysconfig
import types
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from secateur.errors import CheckpointError, InputError

MAIN = "__main__"
Trusted = str | types.ModuleType | type | Callable[..., Any]


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_OWN_NETWORKS = ("secateur.models", "secateur.course_network", "secateur.sparse_training.absent")
_TORCH_CLASSES = ("torch.nn", "torch.ao.nn", "torch.distributions")
_PURE_MODULES = ("torch.nn.functional", "torch.functional", "torch.nn.init", "math", "cmath")
_PURE_EXTENSIONS = tuple(f"torch._C._{room}" for room in ("nn", "special", "linalg", "fft"))
_PURE = {
    "_operator": _words(
        "abs add and_ contains eq floordiv ge getitem gt index inv invert le lshift lt matmul mod "
        "mul ne neg not_ or_ pos pow rshift sub truediv truth xor"
    ),
    "builtins": _words(
        "abs all any bool bytearray bytes complex dict divmod enumerate float frozenset int len "
        "list max min object pow range reversed round set slice sorted str sum tuple zip"
    ),
    "collections": _words(
        "ChainMap Counter OrderedDict UserDict UserList UserString defaultdict deque"
    ),
    "argparse": frozenset(["Namespace"]),
    "inspect": frozenset(["_empty"]),
    "typing": frozenset(["Any"]),
    "uuid": frozenset(["UUID"]),
    "types": frozenset(["SimpleNamespace"]),
    "fractions": frozenset(["Fraction"]),
}
_MODULES = _words(
    "torch torch.nn torch.nn.functional torch.fft torch.linalg torch.special math cmath numpy"
)
_INSTALLED = tuple(
    {
        str(Path(folder).resolve())
        for folder in (
            *(sysconfig.get_path(kind) for kind in ("stdlib", "platstdlib", "purelib", "platlib")),
            *site.getsitepackages(),
            site.getusersitepackages(),
        )
    }
)


def name_of(thing: Any) -> str | None:
    """Return "package.module:qualified.name" of a class or function, None if it has no such name.

    A thing of the running script has the name that the script's file is imported by.
    """
    module = getattr(thing, "__module__", None) or ("numpy" if isinstance(thing, np.ufunc) else "")
    for path in (getattr(thing, "__qualname__", None), getattr(thing, "__name__", None)):
        if isinstance(module, str) and isinstance(path, str) and _look_up(module, path) is thing:
            return f"{_public_name(module)}:{path}" if _public_name(module) else None
    return None


def _public_name(module: str) -> str:
    """Return what a module is imported by elsewhere; empty where it cannot be imported."""
    if module != MAIN:
        return module if _is_importable(sys.modules[module]) else ""
    main = sys.modules[MAIN]
    spec = getattr(main, "__spec__", None)
    if spec is not None:
        return str(spec.name)
    file = Path(getattr(main, "__file__", None) or "")
    return file.stem if file.suffix == ".py" and file.stem.isidentifier() else ""


def _is_importable(module: types.ModuleType) -> bool:
    """Tell whether a module's name leads to its file, as far as both can be compared."""
    name = module.__name__
    if name.startswith("secateur_file_"):  # secateur.models.load_model finds it by its path
        return True
    file = getattr(module, "__file__", None)
    if file is None:
        return getattr(module, "__spec__", None) is not None or name.startswith("torch.")
    stem = Path(file).name.partition(".")[0]
    return name.rpartition(".")[2] in (stem, Path(file).parent.name)


def is_of_script(name: str) -> bool:
    """Tell whether a name stands for something of the running script."""
    return name.partition(":")[0] == _public_name(MAIN)


def _look_up(module: str, path: str) -> Any:
    """Return what a loaded module holds under a path of class attributes, None if nothing.

    No code runs: neither a module's ``__getattr__`` nor a descriptor is asked.
    """
    loaded = sys.modules.get(module)
    if loaded is None and module == _public_name(MAIN):
        loaded = sys.modules[MAIN]
    first, *rest = path.split(".")
    found = vars(loaded).get(first) if isinstance(loaded, types.ModuleType) else None
    for part in rest:
        if not isinstance(found, type):
            return None
        found = static_attribute(found, part)
    return found


def static_attribute(kind: type, name: str) -> Any:
    """Return the function or value that a class holds by that name, None if there is none."""
    for base in kind.__mro__:
        if name in vars(base):
            found = vars(base)[name]
            wrapped = isinstance(found, (staticmethod, classmethod))
            return found.__func__ if wrapped else found
    return None


def root_of(name: str) -> str:
    """Return the outermost package of a name."""
    return name.partition(":")[0].partition(".")[0]


@functools.lru_cache(maxsize=1024)
def _is_own(module: str) -> bool:
    """Tell whether a loaded module is the user's own code, no installed package."""
    if root_of(module) in (*sys.stdlib_module_names, "torch", "secateur") and module != MAIN:
        return False
    for name in (module, root_of(module)):
        file = getattr(sys.modules.get(name), "__file__", None)
        if file is not None:
            return not str(Path(file).resolve()).startswith(_INSTALLED) or module == MAIN
    return True


def finalises(kind: type) -> bool:
    """Tell whether a class runs code when an object of it goes."""
    return any("__del__" in vars(base) for base in kind.__mro__)


def is_of_system(name: str, thing: Any) -> bool:
    """Tell whether a thing is Python's own and no part of a network: a thread, a file, a clock."""
    module, _, path = name.partition(":")
    known = Trust()._is_harmless(thing, module, path)
    return root_of(module) in sys.stdlib_module_names and not known


class Trust:
    """What the caller trusts; finds what a folder names, or refuses it.

    Args:
        entries: packages or modules (their submodules included) as names or as modules, and
            classes and functions as "package.module:name" or as such.

    Raises:
        InputError: an entry is none of these.
    """

    def __init__(self, entries: str | Iterable[Trusted] = ()) -> None:
        if not isinstance(entries, (str, Iterable)):
            raise InputError(
                f"trust must be a list of names, as ['my_package'], but got {entries!r}"
            )
        self._names = [_entry(e) for e in ([entries] if isinstance(entries, str) else entries)]
        self._packages: set[str] = set()

    def add_packages(self, names: Iterable[str]) -> None:
        """Note where the network's classes come from: what is imported of those is known."""
        for name in names:
            module, _, path = name.partition(":")
            found = _look_up(module, path)
            if isinstance(found, type) and issubclass(found, nn.Module):
                self._packages |= {root_of(base.__module__) for base in found.__mro__}
        self._packages -= {"torch", "secateur", *sys.stdlib_module_names}

    def names(self, name: str) -> bool:
        """Tell whether the caller named it."""
        module = name.partition(":")[0]
        return any(
            name == entry or module == entry or module.startswith(f"{entry}.")
            for entry in self._names
        )

    def find(self, name: Any, *, alias: bool = False) -> Any:
        """Return the class or function of that name.

        Args:
            name: "package.module:qualified.name".
            alias: the thing may have another name, if that is trusted as well.

        Raises:
            CheckpointError: it is not there, or not trusted.
        """
        module, path = _parts(name)
        named = self.names(name)
        self._load(module, named)
        found = _look_up(module, path)
        if found is None:
            raise CheckpointError(f"{name} cannot be imported: {module} has no {path}")
        if name_of(found) != name and not (alias and named and self._names_home(found)):
            raise CheckpointError(f"{name} is refused: the thing there has another name")
        if not (named or self._is_harmless(found, module, path)):
            raise CheckpointError(f"{name} is refused: {_advice(module)}")
        return found

    def _names_home(self, found: Any) -> bool:
        """Tell whether the caller named the module that a thing is from."""
        home = name_of(found) or f"{getattr(found, '__module__', None)}:{found!r}"
        return self.names(home)

    def module(self, name: Any) -> types.ModuleType:
        """Return the Python module of that name.

        Raises:
            CheckpointError: it is not there or not trusted.
        """
        module, _ = _parts(f"{name}:x")
        self._load(module, self.names(f"{name}:"))
        known = self.names(f"{name}:") or name in _MODULES or _is_own(module)
        if not known:
            raise CheckpointError(f"{name} is refused: {_advice(module)}")
        return sys.modules[module]

    def _load(self, module: str, named: bool) -> None:
        if module in sys.modules or module == _public_name(MAIN):
            return
        if not (named or module in _OWN_NETWORKS or module.startswith("torch.nn.")):
            raise CheckpointError(f"{module} is refused: it is not imported; {_advice(module)}")
        try:
            importlib.import_module(module)
        except Exception as error:
            raise CheckpointError(f"{module} cannot be imported: {told(error)}") from error

    def _is_harmless(self, found: Any, module: str, path: str) -> bool:
        if path in _PURE.get(module, ()):
            return True
        if isinstance(found, type):
            return not finalises(found) and self._is_known(found, module)
        if not callable(found):
            return False
        if module in _PURE_MODULES or module in _PURE_EXTENSIONS:
            return not path.startswith("_")
        if module == "torch":
            return isinstance(found, types.BuiltinFunctionType) and _is_pure_builtin(path)
        return isinstance(found, np.ufunc) or _is_own(_loaded_name(module))

    def _is_known(self, kind: type, module: str) -> bool:
        if root_of(module) == "torch":
            return kind is torch.Tensor or any(
                module == room or module.startswith(f"{room}.") for room in _TORCH_CLASSES
            )
        if issubclass(kind, (nn.Module, enum.Enum)):
            return True
        return root_of(module) in self._packages or _is_own(_loaded_name(module))


def _loaded_name(module: str) -> str:
    return module if module in sys.modules else MAIN


def _is_pure_builtin(path: str) -> bool:
    name = path.removeprefix("_VariableFunctionsClass.")
    return not name.startswith("_") and name != "from_file"


def _parts(name: Any) -> tuple[str, str]:
    """Split "package.module:qualified.name", or refuse what is no such name."""
    if not isinstance(name, str) or len(name) > 1000:
        raise CheckpointError("a name of a class or function must be 'package.module:name'")
    module, _, path = name.partition(":")
    if not all(part.isidentifier() for part in (*module.split("."), *path.split("."))):
        raise CheckpointError(f"{name!r} is no 'package.module:name'")
    return module, path


def _advice(module: str) -> str:
    root = root_of(module)
    if root in sys.stdlib_module_names and root != MAIN:
        return "it is no part of a network"
    return (
        "import it first, or, if you know where the folder comes from, "
        f"load(folder, trust=[{root!r}])"
    )


def _entry(entry: Any) -> str:
    if isinstance(entry, types.ModuleType):
        return entry.__name__
    name = entry if isinstance(entry, str) else name_of(entry)
    if not name or not all(
        part.isidentifier() for half in name.split(":") for part in half.split(".")
    ):
        raise InputError(
            "trust must hold packages, modules, classes or functions, as 'my_package' or "
            f"'package.module:name', but got {entry!r}"
        )
    return name


def told(error: BaseException) -> str:
    """Put an error on one line of bounded length."""
    text = " ".join(str(error).split())[:300]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def is_function(value: Any) -> bool:
    """Tell whether a value is a function in the wide sense: something called by its name."""
    return inspect.isroutine(value) or isinstance(
        value, (np.ufunc, functools._lru_cache_wrapper, torch.jit.ScriptFunction)
    )
