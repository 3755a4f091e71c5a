"""Folders of a stranger: none runs or imports anything, or fills the memory; one line each."""

from __future__ import annotations

import hashlib
import json
import os
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

import secateur
import secateur.models
from secateur.errors import CheckpointError
from secateur.files import with_checksum

MARKER = "ran"
LIMIT = 2**30
Layout = dict[str, Any]


class Net(nn.Module):
    """A network with a property, as classes of users have."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(8, 16)
        self.b = nn.Linear(16, 4)
        self.settings = {"scale": 2.0}

    @property
    def trap(self) -> None:
        touch()

    @trap.setter
    def trap(self, value: Any) -> None:
        touch()

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.b(torch.relu(self.a(x))) * self.settings["scale"]
        return found


class Alarm:
    """A plain class of which every bit of code leaves the marker."""

    def __new__(cls, *args: Any) -> Alarm:
        touch()
        return super().__new__(cls)

    def __init__(self, *args: Any) -> None:
        touch()

    def __setattr__(self, key: str, value: Any) -> None:
        touch()

    def __setstate__(self, state: Any) -> None:
        touch()

    def __eq__(self, other: object) -> bool:
        touch()
        return False

    def __hash__(self) -> int:
        touch()
        return 0


class Closing:
    """A class that acts when an object of it goes."""

    def __del__(self) -> None:
        touch()


class AlarmList(list[Any]):
    def append(self, item: Any) -> None:
        touch()

    def extend(self, items: Any) -> None:
        touch()


class AlarmDict(dict[str, Any]):
    def __setitem__(self, key: Any, value: Any) -> None:
        touch()


def touch(*args: Any, **kwargs: Any) -> None:
    Path(MARKER).touch()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "evil_import.py").write_text(f"open({MARKER!r}, 'w').close()\n\n\nclass Net: ...\n")
    yield secateur.save(Net(), tmp_path / "net")
    sys.modules.pop("evil_import", None)


def edit(folder: Path, change: Callable[[Layout], Any]) -> None:
    """Change the JSON as somebody does who knows the checksum."""
    layout = json.loads((folder / "model.json").read_text())
    change(layout)
    (folder / "model.json").write_text(json.dumps(with_checksum(layout)))


def reweigh(folder: Path, content: bytes, stored: Any = None) -> None:
    """Replace the weights and all that the JSON says about them."""
    (folder / "model.safetensors").write_bytes(content)

    def change(layout: Layout) -> None:
        layout["sha256"] = hashlib.sha256(content).hexdigest()
        if stored is not None:
            layout["stored"] = stored

    edit(folder, change)


def peak_memory() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def refused(folder: Path, **options: Any) -> str:
    """Load, and return the one line that says why not; nothing must have run."""
    loaded = set(sys.modules)
    measured = os.access("/proc/self/clear_refs", os.W_OK)
    if measured:
        Path("/proc/self/clear_refs").write_text("5")
    before = peak_memory() if measured else 0
    with pytest.raises(CheckpointError) as caught:
        secateur.load(folder, **options)
    if measured:
        assert peak_memory() - before < LIMIT
    assert not Path(MARKER).exists()
    assert set(sys.modules) - loaded == set()
    told = str(caught.value)
    assert "\n" not in told
    assert len(told) < 1000
    return told


def attribute(value: Any, name: str = "x") -> Callable[[Layout], Any]:
    return lambda layout: layout["modules"][""]["attributes"].update({name: value})


def named(name: str) -> dict[str, Any]:
    return {"$": "object", "name": name}


def partial(name: str, *arguments: Any) -> dict[str, Any]:
    listed = {"$": "list", "items": list(arguments)}
    return {"$": "partial", "parts": [named(name), listed, {"$": "dict", "items": []}]}


def instance(name: str, **more: Any) -> dict[str, Any]:
    return {"$": "instance", "class": name, **more}


# What would run, open or fetch if it were called, or when it is imported.
DANGEROUS = (
    "os:system", "os:popen", "os:remove", "posix:system", "subprocess:Popen", "subprocess:run",
    "builtins:eval", "builtins:exec", "builtins:compile", "builtins:open", "builtins:__import__",
    "builtins:input", "builtins:getattr", "builtins:breakpoint", "builtins:type",
    "importlib:import_module", "runpy:run_path", "pickle:loads", "_pickle:loads", "marshal:loads",
    "shutil:rmtree", "ctypes:CDLL", "socket:socket", "webbrowser:open", "pty:spawn", "io:open",
    "operator:methodcaller", "operator:attrgetter", "operator:call", "functools:partial",
    "functools:reduce", "types:FunctionType", "types:CodeType", "logging.config:dictConfig",
    "torch:load", "torch.serialization:load", "torch.serialization:save", "torch.hub:load",
    "torch.hub:load_state_dict_from_url", "torch:compile", "torch.utils.cpp_extension:load",
    "torch.jit._serialization:load", "torch:from_file", "torch:_VariableFunctionsClass.from_file",
    "torch.ops:load_library", "torch.package:PackageImporter", "torch.multiprocessing:spawn",
    "torch._dynamo.eval_frame:OptimizedModule", "torch.fx.graph_module:GraphModule",
    "numpy:load", "numpy:fromfile", "numpy:memmap", "safetensors.torch:load_file",
    "secateur.models:load_model", "secateur.checkpoint:load", "secateur.files:write_text",
    "secateur.__main__:main", "evil_import:Net", "antigravity:fly", "idlelib.idle:main",
    "torch:os.system", "torch:nn.functional.relu", "test_checkpoint_hostile:os.system",
    "no_such_package:Net", "os.path:os.system", "", ":", "os", "os:", ":system", "a b:c",
    "os:system.__call__", "Net.__init__", "../net:Net", "x" * 5000,
)  # fmt: skip


@pytest.mark.parametrize("name", DANGEROUS)
def test_nothing_dangerous_is_taken_by_name(folder: Path, name: str) -> None:
    edit(folder, attribute(named(name), "forward"))
    refused(folder)


WAYS: dict[str, Callable[[str], Callable[[Layout], Any]]] = {
    "factory": lambda name: lambda layout: layout.update(
        factory={"name": name, "arguments": {"command": f"touch {MARKER}"}}
    ),
    "class": lambda name: lambda layout: layout["modules"]["a"].update({"class": name}),
    "root class": lambda name: lambda layout: layout["modules"][""].update({"class": name}),
    "instance": lambda name: attribute(instance(name, state={"cmd": f"touch {MARKER}"})),
    "list": lambda name: attribute(instance(name, base="list", items=[f"touch {MARKER}"])),
    "enum": lambda name: attribute({"$": "enum", "class": name, "value": f"touch {MARKER}"}),
    "partial": lambda name: attribute(partial(name, f"touch {MARKER}"), "forward"),
    "call": lambda name: attribute(partial(name, f"touch {MARKER}"), "_call_impl"),
    "compiled": lambda name: attribute(partial(name, f"touch {MARKER}"), "_compiled_call_impl"),
    "method": lambda name: attribute(
        {"$": "method", "self": f"touch {MARKER}", "function": named(name)}, "forward"
    ),
    "hook": lambda name: lambda layout: layout["modules"][""]["hooks"].update(
        _forward_hooks=[[partial(name, f"touch {MARKER}"), [False, False]]]
    ),
    "default": lambda name: attribute(
        {"$": "defaultdict", "items": [], "default": partial(name, f"touch {MARKER}")}
    ),
    "tensor class": lambda name: lambda layout: layout["tensors"]["a.weight"].update(
        {"class": name}
    ),
    "tensor attribute": lambda name: lambda layout: layout["tensors"]["a.weight"].update(
        attributes={"x": named(name)}
    ),
    "key": lambda name: attribute({"$": "dict", "items": [[instance(name), 1]]}),
    "annotation": lambda name: attribute(
        {"$": "annotation", "origin": named(name), "args": [f"touch {MARKER}"]}
    ),
    "python module": lambda name: attribute(
        {"$": "python module", "name": name.partition(":")[0]}
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ["os:system", "subprocess:Popen", "evil_import:Net"])
@pytest.mark.parametrize("way", WAYS)
def test_no_way_leads_to_it(folder: Path, way: str, name: str) -> None:
    edit(folder, WAYS[way](name))
    refused(folder)


def test_a_factory_needs_trust_whatever_it_is(folder: Path) -> None:
    edit(folder, WAYS["factory"]("test_checkpoint_hostile:touch"))
    assert "trust=['test_checkpoint_hostile']" in refused(folder)
    refused(folder, trust=["torch", "os.path"])


def test_a_partial_of_own_code_needs_trust(folder: Path) -> None:
    edit(folder, attribute(partial("test_checkpoint_hostile:touch", 1), "forward"))
    assert "trust=" in refused(folder)


@pytest.mark.parametrize(
    "name", ["torch:os.system", "os:system", "posix:system", "torch.serialization:os.remove"]
)
def test_trust_in_a_package_is_none_in_what_it_imports(folder: Path, name: str) -> None:
    edit(folder, attribute(named(name), "forward"))
    refused(folder, trust=["torch", "test_checkpoint_hostile"])
    edit(folder, WAYS["factory"](name))
    refused(folder, trust=["torch", "test_checkpoint_hostile"])


OWN = "test_checkpoint_hostile"


@pytest.mark.parametrize(
    "value",
    [
        instance(f"{OWN}:Alarm", state={"x": 1}),
        instance(f"{OWN}:AlarmList", base="list", items=[1, 2]),
        instance(f"{OWN}:AlarmDict", base="dict", items=[["a", 1]]),
        {"$": "list", "items": [instance(f"{OWN}:Alarm")]},
    ],
)
def test_no_code_of_a_known_class_runs(folder: Path, value: Any) -> None:
    edit(folder, attribute(value))
    secateur.load(folder)
    assert not Path(MARKER).exists()


def test_no_property_runs(folder: Path) -> None:
    edit(folder, attribute(3, "trap"))
    secateur.load(folder)
    edit(folder, attribute({"$": "method", "self": {"$": "module", "name": ""}, "name": "trap"}))
    refused(folder)


HARMFUL_VALUES: dict[str, Any] = {
    "acts when it goes": instance(f"{OWN}:Closing"),
    "own key": {"$": "dict", "items": [[instance(f"{OWN}:Alarm"), 1]]},
    "own item of a set": {"$": "set", "items": [instance(f"{OWN}:Alarm")]},
    "temporary file": instance("tempfile:_TemporaryFileCloser", state={"name": "net"}),
    "lock file": instance("filelock._soft:SoftFileLock", state={}),
    "module as plain object": instance("torch.nn.modules.linear:Linear", state={}),
    "wrong base": instance("collections:Counter", base="list", items=[]),
    "no base": instance("collections:Counter", state={}),
    "class of classes": instance("builtins:type", state={}),
    "slot of a property": instance(f"{OWN}:Alarm", slots={"x": 1}),
    "state of a number": {"$": "int", "data": "1"},
    "unknown kind": {"$": "spell"},
    "no kind": {"name": "x"},
    "a bare list": [1, 2],
    "kind of a list": {"$": ["list"]},
    "reader's own method": {"$": "one"},
    "unknown module": {"$": "module", "name": "c"},
    "unknown tensor": {"$": "tensor", "name": "c"},
    "unknown dtype": {"$": "dtype", "name": "load"},
    "unknown device": {"$": "device", "name": "/dev/sda"},
    "unknown object": {"$": "same", "id": 77},
    "kept by no factory": {"$": "kept"},
    "object dtype": {"$": "numpy dtype", "dtype": "|O"},
    "structured dtype": {"$": "numpy dtype", "dtype": "i4,(1000000000,)f8"},
    "giant dtype": {"$": "numpy number", "dtype": "<U99999999999", "bytes": ""},
    "short number": {"$": "numpy number", "dtype": "<i8", "bytes": "00"},
    "generator past its table": {
        "$": "numpy generator", "of": "MT19937", "old": True,
        "state": {"key": "a.weight", "pos": 10**6}, "rest": {"has_gauss": 0, "gauss": 0.0},
    },
    "unknown generator": {"$": "numpy generator", "of": "os", "old": False, "state": {}},
    "annotation": {"$": "annotation", "name": "get_type_hints", "args": [1]},
    "text for bytes": {"$": "bytes", "data": "%%%"},
    "endless integer": {"$": "range", "parts": [0, "9" * 5000, 1]},
    "logger without name": {"$": "logger"},
    "pattern": {"$": "pattern", "of": "(" * 5000, "flags": 0},
    "giant annotation": {"$": "annotation", "name": "|", "args": []},
    "path": {"$": "path", "system": "os", "text": "x"},
    "deque": {"$": "deque", "items": [], "longest": -1},
    "unhashable key": {"$": "dict", "items": [[{"$": "list", "items": []}, 1]]},
}  # fmt: skip


@pytest.mark.parametrize("what", HARMFUL_VALUES)
def test_a_value_that_cannot_be_is_refused(folder: Path, what: str) -> None:
    edit(folder, attribute(HARMFUL_VALUES[what]))
    refused(folder)


def swap(table: Any, a: str, b: str) -> None:
    table[a], table[b] = table[b], table[a]


MODULES: dict[str, Callable[[Layout], Any]] = {
    "no root": lambda layout: layout["modules"].pop(""),
    "no child": lambda layout: layout["modules"].pop("a"),
    "a child of none": lambda layout: layout["modules"].update(c=layout["modules"]["a"]),
    "a circle": lambda layout: layout["modules"]["a"]["modules"].update(up=""),
    "itself": lambda layout: layout["modules"]["a"]["modules"].update(me="a"),
    "swapped modules": lambda layout: swap(layout["modules"][""]["modules"], "a", "b"),
    "swapped names": lambda layout: layout["modules"]["a"]["parameters"].update(weight="b.weight"),
    "tied away": lambda layout: layout["ties"].update({"a.weight": "b.weight"}),
    "tied to nothing": lambda layout: layout["ties"].update({"a.weight": "c.weight"}),
    "no such tensor": lambda layout: layout["modules"]["a"]["parameters"].update(c="a.c"),
    "a buffer as parameter": lambda layout: layout["tensors"]["a.weight"].pop("parameter"),
    "machinery": lambda layout: layout["modules"]["a"]["attributes"].update(_modules={}),
    "hook tables": lambda layout: layout["modules"]["a"]["attributes"].update(_forward_hooks=1),
    "unknown hooks": lambda layout: layout["modules"]["a"]["hooks"].update(forward=[]),
    "no function": lambda layout: layout["modules"]["a"].update({"class": "torch:relu"}),
    "a plain class": lambda layout: layout["modules"]["a"].update({"class": f"{OWN}:Alarm"}),
    "another class": lambda layout: layout["modules"]["a"].update({"class": 3}),
    "modules as list": lambda layout: layout.update(modules=[]),
    "module as text": lambda layout: layout["modules"].update(a="torch.nn:Linear"),
    "tensors as list": lambda layout: layout.update(tensors=[1]),
    "shares itself": lambda layout: layout["tensors"]["a.weight"].update(shares="a.weight"),
    "order of many": lambda layout: layout["tensors"]["a.weight"].update(order=[5, 7]),
    "complex": lambda layout: layout["tensors"]["a.weight"].update(complex=True),
    "sparse": lambda layout: layout["tensors"]["a.weight"].update(
        layout="sparse_coo", size=[10**15, 10**15]
    ),
    "parametrized": lambda layout: layout["modules"]["a"].update(parametrized=["weight"]),
    "frozen as dict": lambda layout: layout.update(frozen={}),
    "training unhashable": lambda layout: layout.update(training=[[]]),
    "other shape": lambda layout: layout["stored"].update({"a.weight": ["float32", [10**18]]}),
    "other type": lambda layout: layout["stored"].update({"a.weight": ["int32", [16, 8]]}),
    "nan shape": lambda layout: layout["stored"].update({"a.weight": ["float32", [float("nan")]]}),
    "stored as list": lambda layout: layout.update(stored=[]),
    "other format": lambda layout: layout.update(format=float("nan")),
}  # fmt: skip


@pytest.mark.parametrize("what", MODULES)
def test_modules_and_tensors_that_do_not_fit_are_refused(folder: Path, what: str) -> None:
    edit(folder, MODULES[what])
    refused(folder)


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = {"$": "tuple", "items": [value]}
    return value


def test_deep_values_are_refused(folder: Path) -> None:
    edit(folder, attribute(nested(150)))
    assert "nested" in refused(folder)


def text_of(folder: Path, make: Callable[[str], str]) -> None:
    path = folder / "model.json"
    path.write_text(make(path.read_text()))


TEXTS: dict[str, Callable[[str], str]] = {
    "deep": lambda text: "[" * 500_000,
    "deep in place": lambda text: text.replace('"ties": {', '"ties": ' + '{"a":' * 200_000, 1),
    "deep and closed": lambda text: "[" * 100_000 + "]" * 100_000,
    "many lists": lambda text: "[" + "[]," * 5_000_000 + "[]]",
    "many attributes": lambda text: text.replace(
        '"attributes": {', '"attributes": {' + "".join(f'"a{i}":{i},' for i in range(2_000_000)), 1
    ),
    "many texts": lambda text: text.replace('"note":', "") + '"ab",' * 7_000_000,
    "a key twice": lambda text: text.replace('"format": 1', '"format": 1, "format": 1', 1),
    "class twice": lambda text: text.replace('"class":', '"class": "os:system", "class":', 1),
    "endless number": lambda text: text.replace('"format": 1', '"format": ' + "9" * 100_000, 1),
    "edited": lambda text: text.replace("2.0", "3.0"),
    "not closed": lambda text: text[:-3],
    "no text": lambda text: "\x00" * 1000,
    "python": lambda text: "__import__('os').system('touch ran')",
    "empty": lambda text: "",
}  # fmt: skip


@pytest.mark.parametrize("what", TEXTS)
def test_a_text_that_is_no_description_is_refused(folder: Path, what: str) -> None:
    text_of(folder, TEXTS[what])
    refused(folder)


def header(document: Any, data: bytes = b"") -> bytes:
    text = document if isinstance(document, bytes) else json.dumps(document).encode()
    return struct.pack("<Q", len(text)) + text + data


def giant(*shape: int) -> bytes:
    return header({"a.weight": {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]}})


def swapped(folder: Path) -> bytes:
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    swap(tensors, "a.weight", "b.weight")
    return safetensors.torch.save(tensors)


FILES: dict[str, Callable[[Path], bytes]] = {
    "petabytes": lambda folder: giant(10**8, 10**7),
    "overflow": lambda folder: giant(2**40, 2**40),
    "empty giant": lambda folder: giant(0, 2**62),
    "negative": lambda folder: giant(-1, 8),
    "giant header": lambda folder: struct.pack("<Q", 2**62) + b"{}",
    "header of its size": lambda folder: struct.pack("<Q", 40 * 2**20) + b" " * (40 * 2**20),
    "many tensors": lambda folder: header(
        b"{" + b",".join(b'"%d":{}' % i for i in range(1_500_000)) + b"}"
    ),
    "deep header": lambda folder: header(b"[" * 900_000),
    "offsets outside": lambda folder: header(
        {"a.weight": {"dtype": "F32", "shape": [16, 8], "data_offsets": [0, 512]}}
    ),
    "nan shape": lambda folder: header(
        b'{"a.weight":{"dtype":"F32","shape":[NaN],"data_offsets":[0,4]}}', b"0000"
    ),
    "pickle": lambda folder: b"\x80\x04cos\nsystem\n(S'touch ran'\ntR.",
    "swapped tensors": swapped,
    "another network's": lambda folder: safetensors.torch.save({"x": torch.zeros(1)}),
    "nothing": lambda folder: b"",
}  # fmt: skip


@pytest.mark.parametrize("what", FILES)
def test_weights_that_do_not_fit_are_refused(folder: Path, what: str) -> None:
    reweigh(folder, FILES[what](folder))
    refused(folder)


def test_swapped_tensors_of_an_honest_json_are_recognised(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(swapped(folder))
    assert "checksum" in refused(folder)


@pytest.mark.parametrize("name", ["model.json", "model.safetensors"])
@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "loop", "missing"])
def test_what_is_no_file_is_not_read(folder: Path, name: str, kind: str) -> None:
    path = folder / name
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    elif kind == "loop":
        path.symlink_to(path)
    refused(folder)


def test_a_lock_of_memory_is_shared_not_multiplied(folder: Path) -> None:
    """References to one list, ten in each of many levels, are one list each."""
    value: Any = {"$": "list", "items": [1], "id": 0}
    for level in range(1, 60):
        again = {"$": "same", "id": level - 1}
        value = {"$": "list", "items": [value, *[again] * 9], "id": level}
    edit(folder, attribute(value))
    found: Any = secateur.load(folder)
    assert found.x[0] is found.x[9]
