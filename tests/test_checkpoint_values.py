"""What a network holds comes back as it was in a fresh process, or is refused at once."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import secateur
from secateur.checkpoint import check_saveable
from secateur.errors import CheckpointError

KINDS = '''
import argparse
import collections
import dataclasses
import decimal
import enum
import fractions
import functools
import inspect
import logging
import math
import operator
import pathlib
import random
import re
import types
import typing

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn


class Listed(list):
    pass


class Config(dict):
    def __getattr__(self, key):
        if key in self:
            return self[key]
        raise AttributeError(key)


class AttrDict(dict):
    def __init__(self, *args, **more):
        super().__init__(*args, **more)
        self.__dict__ = self


class Ordered(collections.OrderedDict):
    pass


class Number(float):
    pass


class Count(int):
    pass


class Word(str):
    pass


class Bag(set):
    pass


class Missing(dict):
    def __missing__(self, key):
        return 7


class Slots:
    __slots__ = ("a", "b")

    def __init__(self):
        self.a = 1.5


class Processor:
    def __call__(self, x):
        return 2 * x


class Scaling:
    def __init__(self, scale):
        self.scale = scale

    def __call__(self, x):
        return self.scale * x


Params = collections.namedtuple("Params", "width depth")


class Typed(typing.NamedTuple):
    width: int
    act: typing.Callable


@dataclasses.dataclass
class Data:
    hidden: int = 32
    parts: list = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class Frozen:
    hidden: int = 32


class Mode(enum.Enum):
    A = 1


class Switch(enum.Flag):
    A = 1
    B = 2


class Plain:
    def __init__(self, **more):
        self.__dict__.update(more)


class Holder:
    """Keeps a reference to itself."""

    def __init__(self):
        self.me = self
        self.items = [self]


class Step(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.sign()

    @staticmethod
    def backward(ctx, g):
        return g


class Net(nn.Module):
    def __init__(self, **held):
        super().__init__()
        self.a, self.b = nn.Linear(8, 16), nn.Linear(16, 4)
        self.__dict__.update(held)

    def act(self, x):
        return torch.relu(x)

    @staticmethod
    def double(x):
        return 2 * x

    @classmethod
    def named(cls):
        return cls.__name__

    def forward(self, x):
        return self.b(self.act(self.a(x)))


def leaky(x):
    return F.leaky_relu(x, 0.2)


def forward(self, x):
    return self.b(torch.tanh(self.a(x)))


def other_act(self, x):
    return torch.tanh(x)


def hook(module, args, output):
    return 3 * output


def hook_with_words(module, args, words, output):
    return 3 * output


def shared_list():
    held = [1, 2]
    return {"first": held, "second": held}


def cycle():
    held = [1]
    held.append(held)
    return held


def nan_keys():
    return {float("inf"): 1, -0.0: 2, (1, "a"): 3, None: 4, True: 5, b"x": 6}
'''

VALUES = (
    "Listed([1.0, 2.0])", "Config(scale=2.0)", "AttrDict(scale=2.0)", "Ordered(a=1, b=[2])",
    "collections.Counter('aab')", "collections.OrderedDict(z=1, a=2)", "Missing(a=1)",
    "collections.defaultdict(list, a=[1])", "collections.defaultdict(None)",
    "collections.deque([1, 2], maxlen=3)", "collections.ChainMap({'a': 1}, {'b': 2})",
    "collections.UserDict(a=1)", "Number(2.0)", "Count(3)", "Word('x')", "Bag([3, 1, 2])",
    "Slots()", "Processor()", "Scaling(2.0)", "Scaling(torch.ones(3))", "Params(1, 2)",
    "Typed(1, F.relu)", "Params([1], {'a': (2,)})", "Data()", "Data(3, [Data()])", "Frozen(3)",
    "Mode.A", "Switch.A | Switch.B", "inspect.Parameter.empty", "Plain(a=1, b=Plain(c=[2]))",
    "Holder()", "argparse.Namespace(lr=0.1, deep=argparse.Namespace(x=1))",
    "types.SimpleNamespace(a=1)", "types.MappingProxyType({'a': 1})", "pathlib.Path('a/b')",
    "pathlib.PurePosixPath('/x')", "fractions.Fraction(1, 3)", "3 + 4j", "b'\\x00\\xff'",
    "bytearray(b'ab')", "slice(0, 3)", "range(0, 9, 2)", "...", "NotImplemented",
    "frozenset([1, 'a', (2, 3)])", "{1, 2.5, None}", "[float('nan'), -0.0, 1e-310, 2**70]",
    "'\\ud800 text \\n'", "np.prod([2, 3])", "np.float32(0.1)", "np.bool_(True)", "np.str_('a')",
    "np.datetime64('2020-01-01')", "np.dtype('float32')", "np.zeros((2, 0))",
    "np.arange(6.0).reshape(2, 3)", "np.asfortranarray(np.arange(6.0).reshape(2, 3))",
    "np.array(['a', 'bc'])", "np.arange(6)[::2]", "np.random.default_rng(0)",
    "np.random.RandomState(1)", "np.random.Generator(np.random.SFC64(3))", "random.Random(3)",
    "torch.Generator().manual_seed(3)", "torch.Size([1, 2])", "torch.float16",
    "torch.device('cuda:1')", "torch.channels_last", "torch.strided", "torch.finfo(torch.float16)",
    "torch.iinfo(torch.int8)", "inspect.signature(print)", "inspect.signature(leaky)",
    "inspect.signature(Net.forward)", "typing.Optional[int]", "list[int]", "int | None",
    "typing.Callable[[int], str]", "typing.Any", "logging.getLogger('net')", "re.compile('a+', 2)",
    "torch.relu", "torch.special.expit", "torch.einsum", "F.gelu", "F.max_pool2d", "F.relu",
    "nn.init.normal_", "math.sqrt", "operator.mul", "np.sin", "max", "leaky", "nn.ReLU", "Net",
    "Data", "Net.double", "Net.named", "Step.apply", "functools.partial(F.leaky_relu)",
    "functools.partial(leaky)", "functools.partial(nn.LayerNorm, eps=1e-6)", "Processor().__call__",
    "F", "torch", "math", "shared_list()", "cycle()", "nan_keys()", "{nn.Linear: 1, leaky: 2}",
    "[nn.Linear(2, 3), nn.Dropout(0.5)]", "{'deep': [nn.Sequential(nn.Linear(2, 2))]}",
    "torch.arange(3)", "torch.randn(3, requires_grad=True)", "nn.Parameter(torch.ones(2))",
    "[nn.Parameter(torch.ones(2), requires_grad=False)]", "torch.eye(3).to_sparse()",
    "torch.eye(3).to_sparse_csr()", "torch.randn(2, 3, dtype=torch.complex128)",
    "torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)", "torch.zeros(0, 3)",
    "torch.ones(2, 3).t()", "torch.arange(3).expand(2, 3)", "torch.ones(2, dtype=torch.bfloat16)",
    "torch.nn.utils.parametrizations.weight_norm(nn.Linear(2, 3))",
    "torch.distributions.Normal(torch.zeros(2), torch.ones(2))",
)  # fmt: skip

READER = """
import sys

import torch

import secateur

values, folder = sys.argv[1:]
import attribute_kinds
from test_checkpoint_values import likeness

torch.manual_seed(0)
bad = []
for i, text in enumerate(open(values).read().splitlines()):
    torch.manual_seed(0)
    wanted = eval(text, vars(attribute_kinds))
    try:
        found = secateur.load(f"{folder}/{i}", trust=["attribute_kinds"]).held
    except Exception as error:
        bad.append(f"{text}: {error!r}")
        continue
    if likeness(found) != likeness(wanted):
        bad.append(f"{text}: {likeness(found)} is not {likeness(wanted)}")
print("\\n".join(bad))
"""


def likeness(value: Any, depth: int = 6) -> Any:
    """Describe a value for comparison, without code of the package."""
    if depth == 0:
        return type(value).__qualname__
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    if isinstance(value, Tensor):
        dense = value.detach().to_dense() if value.layout is not torch.strided else value.detach()
        about = (value.dtype, value.shape, value.layout, value.requires_grad)
        last = dense.dim() == 4 and dense.is_contiguous(memory_format=torch.channels_last)
        return kind, about, last, dense.tolist()
    if isinstance(value, nn.Module):
        return kind, {k: likeness(v, depth - 1) for k, v in value.state_dict().items()}, str(value)
    if isinstance(value, np.ndarray):
        return kind, value.dtype, value.tolist(), np.isfortran(value)
    if isinstance(value, (np.random.Generator, np.random.RandomState)):
        return kind, str(
            value.bit_generator.state if hasattr(value, "bit_generator") else value.get_state()
        )
    if isinstance(value, torch.Generator):
        return kind, value.get_state().tolist()
    if hasattr(value, "getstate"):
        return kind, value.getstate()
    contents: Any = ()
    if isinstance(value, dict):
        contents = [(likeness(k, depth - 1), likeness(v, depth - 1)) for k, v in value.items()]
    elif isinstance(value, (set, frozenset)):
        contents = sorted(map(repr, value))
    elif isinstance(value, (list, tuple)) or kind == "collections.deque":
        contents = [likeness(v, depth - 1) for v in value]
    elif isinstance(value, (float, complex)):
        contents = repr(value)
    elif callable(value) or " at 0x" in repr(value):
        contents = getattr(value, "__qualname__", None)
    else:
        contents = repr(value)
    held = getattr(value, "__dict__", {}) if not isinstance(value, (type, type(os))) else {}
    if callable(value) and hasattr(value, "__code__"):
        held = {}
    own = {} if held is value else {k: likeness(v, depth - 1) for k, v in dict(held).items()}
    extra = [getattr(value, k, None) for k in ("maxlen", "default_factory", "a", "__self__")]
    return kind, contents, own, [likeness(e, depth - 1) for e in extra if e is not None]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("kinds")
    (path / "attribute_kinds.py").write_text(KINDS)
    (path / "reader.py").write_text(READER)
    return path


@pytest.fixture
def kinds(place: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(place))
    torch.manual_seed(0)
    return importlib.import_module("attribute_kinds")


def fresh(place: Path, script: str, *words: str) -> str:
    """Run a script in a process of its own that finds the same modules."""
    folders = [place, Path(secateur.__file__).parents[1], Path(__file__).parent]
    done = subprocess.run(
        [sys.executable, "-c", script, *words],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, folders))},
        capture_output=True, text=True, check=False, cwd=place,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.filterwarnings("ignore:Sparse CSR")
def test_every_kind_of_value_comes_back_in_a_fresh_process(
    kinds: Any, place: Path, tmp_path: Path
) -> None:
    for i, text in enumerate(VALUES):
        torch.manual_seed(0)
        value = eval(text, vars(kinds))
        secateur.save(kinds.Net(held=value), tmp_path / str(i))
    (tmp_path / "values.txt").write_text("\n".join(VALUES))
    assert fresh(place, READER, str(tmp_path / "values.txt"), str(tmp_path)) == ""


@pytest.mark.filterwarnings("ignore:Sparse CSR")
@pytest.mark.parametrize("text", VALUES)
def test_without_trust_too_where_its_modules_are_imported(
    kinds: Any, text: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    value = eval(text, vars(kinds))
    saved = secateur.save(kinds.Net(held=value), tmp_path)
    if text == "functools.partial(leaky)":
        with pytest.raises(CheckpointError, match=r"trust="):
            secateur.load(saved)
        return
    found: Any = secateur.load(saved)
    assert likeness(found.held) == likeness(value)


REFUSED = (
    "lambda x: x", "functools.partial(lambda x: x)", "[lambda x: x]", "(i for i in range(3))",
    "weakref.ref(Data)", "threading.Lock()", "io.StringIO()", "threading.local()",
    "threading.Thread()",
    "np.array([object()])", "np.zeros(2, dtype='i4,f4')", "np.ma.array([1])", "iter([1])",
    "weakref.finalize(Data, int)", "sys.stdout", "{Keyed(): 1}", "{Keyed()}", "Closing()",
    "type('Local', (), {})()", "type('Local', (nn.Module,), {})()", "[].append", "print.__call__",
    "torch.zeros(2, device='meta')",
    "torch.quantize_per_tensor(torch.ones(2), 1.0, 0, torch.qint8)",
    "nn.LazyLinear(3)", "super(Net, Net())", "memoryview(b'a')", "Exception('x')", "property()",
    "functools.reduce(lambda a, _: [a], range(300), 1)", "deaf()", "Stale.value",
)  # fmt: skip

MORE = """
import io
import sys
import threading
import weakref


class Keyed:
    def __hash__(self):
        return 3

    def __eq__(self, other):
        return True


class Closing:
    def __del__(self):
        pass


def deaf():
    tensor = torch.ones(2, requires_grad=True)
    tensor.register_hook(print)
    return tensor


class Stale:
    def value(self):
        pass


Stale.value.__qualname__ = "Gone.value"
"""


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("text", REFUSED)
def test_what_cannot_come_back_is_refused_at_once(kinds: Any, text: str, tmp_path: Path) -> None:
    names = dict(vars(kinds))
    exec(MORE, names)
    model = kinds.Net(held=eval(text, names))
    with pytest.raises(CheckpointError) as caught:
        check_saveable(model)
    told = str(caught.value)
    assert "held" in told
    assert "\n" not in told
    with pytest.raises(CheckpointError):
        secateur.save(model, tmp_path / "net")
    assert not (tmp_path / "net").exists()


def half(model: nn.Module) -> Any:
    torch.manual_seed(0)
    x = torch.randn(4, 8)
    return secateur.prune(model, x, sparsity=0.5).model, x


def same_outputs(place: Path, saved: Path, model: nn.Module, x: Tensor) -> None:
    """Compare the outputs with those of a fresh process."""
    with torch.no_grad():
        wanted = model(x)
    script = (
        "import sys, torch, secateur\n"
        "model = secateur.load(sys.argv[1], trust=['attribute_kinds'])\n"
        "torch.manual_seed(0)\n"
        "with torch.no_grad(): print(model(torch.randn(4, 8)).tolist())"
    )
    found = torch.tensor(eval(fresh(place, script, str(saved))))
    torch.testing.assert_close(found, wanted)


PATCHES: dict[str, Callable[[Any, Any], Any]] = {
    "forward": lambda kinds, net: setattr(net, "forward", kinds.forward.__get__(net)),
    "helper": lambda kinds, net: setattr(net, "act", kinds.other_act.__get__(net)),
    "a function": lambda kinds, net: setattr(net, "act", torch.tanh),
    "an object": lambda kinds, net: setattr(net, "act", kinds.Scaling(2.0)),
    "another's method": lambda kinds, net: setattr(net, "act", kinds.Net().act),
    "a hook": lambda kinds, net: net.b.register_forward_hook(kinds.hook),
    "a hook with words": lambda kinds, net: net.b.register_forward_hook(
        kinds.hook_with_words, with_kwargs=True
    ),
    "a pre-hook object": lambda kinds, net: torch.nn.utils.weight_norm(net.b),
    "torch's pruning": lambda kinds, net: importlib.import_module(
        "torch.nn.utils.prune"
    ).l1_unstructured(net.b, "weight", 0.3),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("what", PATCHES)
def test_what_was_replaced_on_an_instance_comes_back(
    kinds: Any, place: Path, tmp_path: Path, what: str
) -> None:
    model = kinds.Net()
    plain = model(torch.ones(1, 8))
    PATCHES[what](kinds, model)
    assert what in ("a pre-hook object", "another's method") or not torch.equal(
        model(torch.ones(1, 8)), plain
    )
    torch.manual_seed(0)
    x = torch.randn(4, 8)
    same_outputs(place, secateur.save(model.eval(), tmp_path), model, x)


@pytest.mark.parametrize("what", ["forward", "helper"])
def test_a_cut_network_keeps_what_was_replaced(
    kinds: Any, place: Path, tmp_path: Path, what: str
) -> None:
    model = kinds.Net()
    PATCHES[what](kinds, model)
    pruned, x = half(model)
    same_outputs(place, secateur.save(pruned, tmp_path), pruned, x)


def test_a_method_replaced_on_the_class_is_refused(
    kinds: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secateur.save(kinds.Net(), tmp_path / "before")
    monkeypatch.setattr(kinds.Net, "act", kinds.other_act)
    with pytest.raises(CheckpointError, match=r"Net whose Net\.act was replaced"):
        secateur.save(kinds.Net(), tmp_path / "after")
    assert not (tmp_path / "after").exists()


def test_parameters_in_a_list_stay_tied(kinds: Any, tmp_path: Path) -> None:
    model = kinds.Net()
    model.ws = [model.a.weight, {"b": model.b.weight}]
    pruned, x = half(model)
    found: Any = secateur.load(secateur.save(pruned, tmp_path))
    assert found.ws[0] is found.a.weight
    assert found.ws[1]["b"] is found.b.weight
    found(x).sum().backward()
    assert found.ws[0].grad is not None


def test_tensors_that_share_memory_still_do(kinds: Any, tmp_path: Path) -> None:
    model = kinds.Net()
    model.again = nn.Parameter(model.a.weight.detach())
    model.register_buffer("view", model.b.bias.detach())
    found: Any = secateur.load(secateur.save(model, tmp_path))
    assert found.again is not found.a.weight
    with torch.no_grad():
        found.a.weight.fill_(3.0)
        found.b.bias.fill_(4.0)
    assert found.again.eq(3.0).all()
    assert found.view.eq(4.0).all()


def test_what_modules_share_is_one_object_again(kinds: Any, tmp_path: Path) -> None:
    model = kinds.Net(config=kinds.Plain(scale=2.0))
    model.a.config = model.config
    model.shared = [nn.Linear(2, 2)]
    model.a.hidden = model.shared[0]
    del model.a._modules["hidden"]
    model.a.__dict__["hidden"] = model.shared[0]
    found: Any = secateur.load(secateur.save(model, tmp_path))
    assert found.a.config is found.config
    assert found.a.hidden is found.shared[0]
    assert list(found.state_dict()) == list(model.state_dict())


def test_tensors_keep_their_attributes_and_classes(kinds: Any, tmp_path: Path) -> None:
    model = kinds.Net()
    model.a.weight._no_weight_decay = True
    model.a.bias.about = [model.b.bias]
    found: Any = secateur.load(secateur.save(model, tmp_path))
    assert found.a.weight._no_weight_decay is True
    assert found.a.bias.about[0] is found.b.bias


def test_a_compiled_network_is_saved_as_what_it_compiles(kinds: Any, tmp_path: Path) -> None:
    model = kinds.Net()
    model.compile(backend="eager")
    found = secateur.load(secateur.save(model, tmp_path))
    assert torch.equal(found(torch.ones(1, 8)), model(torch.ones(1, 8)))


# --- factories ---


FACTORY = """
import torch
from torch import nn


class Odd(nn.Module):
    def __init__(self, hidden=16, scale=2.0):
        super().__init__()
        self.a, self.b = nn.Linear(8, hidden), nn.Linear(hidden, 4)
        self.scale, self.table, self.config = scale, torch.ones(4), {"scale": scale}
        self.act = lambda x: torch.relu(x)

    def forward(self, x):
        return self.b(self.act(self.a(x))) * self.scale * self.config["scale"] + self.table


def build(hidden=16):
    class Local(Odd):
        pass

    return Local(hidden)


def other():
    return Odd(8)
"""


@pytest.fixture
def odd(place: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    (place / "odd_factory.py").write_text(FACTORY)
    monkeypatch.syspath_prepend(str(place))
    return importlib.import_module("odd_factory")


def test_all_but_what_json_cannot_describe_is_saved_beside_a_factory(
    odd: Any, tmp_path: Path
) -> None:
    pruned, x = half(odd.build())
    pruned.scale, pruned.config["scale"] = 3.0, 0.5
    pruned.table.fill_(7.0)
    saved = secateur.save(pruned, tmp_path, factory="odd_factory:build")
    found: Any = secateur.load(saved, trust=["odd_factory"])
    assert (found.scale, found.config, found.a.out_features) == (3.0, {"scale": 0.5}, 8)
    assert torch.equal(found(x), pruned(x))


def test_a_factory_that_makes_something_else_is_refused_before_anything_is_written(
    odd: Any, tmp_path: Path
) -> None:
    model = odd.build()
    model.act = lambda x: torch.tanh(x)
    with pytest.raises(CheckpointError, match=r"act is .*lambda"):
        secateur.save(model, tmp_path / "net", factory="odd_factory:build")
    assert not (tmp_path / "net").exists()


# --- classes of the running script ---


SCRIPT = """
import sys

import torch
from torch import nn

import secateur


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(8, 4)

    def forward(self, x):
        return self.a(x)


if __name__ == "__main__":
    torch.manual_seed(0)
    saved = secateur.save(Net(), sys.argv[1])
    print(type(secateur.load(saved)) is Net)
"""


def test_a_class_of_the_script_is_found_by_the_scripts_name(place: Path, tmp_path: Path) -> None:
    (place / "own_script.py").write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": str(Path(secateur.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, str(place / "own_script.py"), str(tmp_path / "net")],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout.strip() == "True", done.stderr
    assert "trust=['own_script']" in done.stderr
    read = "import sys, secateur; print(type(secateur.load(sys.argv[1], trust=['own_script'])))"
    assert "own_script.Net" in fresh(place, read, str(tmp_path / "net"))
    plain = "import sys, secateur\ntry: secateur.load(sys.argv[1])\nexcept Exception as e: print(e)"
    assert "trust=['own_script']" in fresh(place, plain, str(tmp_path / "net"))


def test_a_class_of_no_file_is_refused(place: Path, tmp_path: Path) -> None:
    script = SCRIPT.replace("    saved =", "    try: saved =").replace(
        "    print(", "    except secateur.errors.CheckpointError as error: print(error, '#',"
    )
    script = script.replace("import secateur\n", "import secateur, secateur.errors\n")
    script = script.replace("'#',type", "'#') if True else (type")
    told = fresh(place, script, str(tmp_path / "net"))
    assert "__main__:Net, which cannot be found again" in told
